// Package accounts has the routes for users, roles, tokens, and checks of rights.
//
// Routes lists them. Package httpapi adds them to its own routes and calls a Route's Handle
// with a Request, after the same checks as for all others: parameters, limits, deadlines. The
// handler returns an Answer, which package httpapi writes.
//
// # The path of a change
//
// The document becomes a rights.Change, which the Gate checks when the request arrives. The
// change is one command in the log, with the conditions of the request, and both are checked
// again when it is applied: so concurrent edits cannot undo each other, and the edit of a
// user who has lost the right meanwhile is refused. The entity tag of an entry is the
// revision of all rights; entries have no tags of their own.
//
// # Who may see what
//
// Everybody sees what is their own: their user, their roles, their tokens, and what they
// may do. For all else it takes the capability auth. Who may change what is up to
// rights.CheckChange and, for programs with a token, to access.Gate.CheckCommand: both
// faces ask it.
//
// # Invariants
//
//   - A password or the secret of a token is in no answer but the one to the request
//     that made the token, in no error, and in no log (httpapi's TestTokens, TestLogin).
//   - A page of a list has at most pageBytes and one entry (TestAccountPages).
//   - Every role in an answer can be sent back as it is, and changes nothing
//     (TestRolesInEveryForm).
package accounts
