// Package access authenticates callers, and asks package rights whether they may do what a
// request does. The HTTP API and etcd's API both use it.
//
// # Authentication
//
// Gate.Identify uses the first of these that a request has: a token or password in
// Authorization or in etcd's metadata, a client certificate, a Unix socket of the node's own
// user. Invalid credentials are refused rather than ignored: a client whose token was
// revoked must not continue with the rights of requests without credentials.
//
// A secret from NewSecret is looked up by its SHA-256, so timing reveals nothing about it. A
// login token is self-contained: it has the user, the auth revision, and its expiry, and a
// MAC by a replicated key over these and the hash of the password. So members store no login
// tokens, and a new password invalidates them at once. Other changes of rights do not: the
// rights of the user are looked up for each request, and if each change ended all logins, a
// busy administrator would make every client hash its password again.
//
// Passwords are hashed with bcrypt, which is slow on purpose. The type passwords bounds the
// CPU that this takes, and pauses slows down guessing.
//
// # Authorization
//
// Gate.Check and Gate.CheckCommand use the newest tables, and first check that the
// credentials are still valid. A stream calls them again after Gate.Changed.
//
// # Invariants
//
//	C1  While rights are disabled, everything is allowed, at the cost of one atomic load.
//	C2  Credentials that are wrong, expired or revoked are refused, whatever requests
//	    without credentials may do (TestIdentify).
//	C3  A login token is taken only in the one form in which it was made, from a user who
//	    exists with the same password (TestLoginToken, FuzzAuthorization).
//	C4  At most one password for each CPU is compared at once. Guesses take at most a
//	    fifth of that time (TestGuessesTakeAFifth). They pause a user only where they come
//	    from (TestNobodyIsLockedOut), and do not make somebody wait who logged in from an
//	    address before, even with a password that a stranger has sent too
//	    (TestFloodKeepsNoFriendOut, TestFriendTakesOver, TestEveryLoginMakesFamiliar). If
//	    all places are taken of those that wait, one of the address or user with the most
//	    makes room, so a newcomer gets a place, and keeps it while others have more
//	    (TestFairShare). Only a password that was compared counts as wrong
//	    (TestManyUsersOfOneAddress). What is remembered is bounded (TestPausesAreBounded,
//	    TestFamiliarIsBounded). Guesses from many addresses, at many names or at the
//	    user's own, can make strangers wait and push them out before their turn, more often
//	    the more there are: nothing tells these apart from them.
//	C5  An answer about an unknown user takes as long as one about a wrong password.
//	C6  No error has a secret in it.
//	C7  A stolen token or JSON Web Token cannot be made into more:
//	    without the capability auth, it changes neither the password nor the tokens of its
//	    user, by either face (TestTokensDoNotChangeTheirUser).
package access
