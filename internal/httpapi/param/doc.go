// Package param reads what requests say about themselves outside their body: the
// parameters of the query, the conditions in If-Match and If-None-Match, and what makes a
// repeat of a request harmless.
//
// # Algorithm
//
// Parse decodes the raw query once, and compares its names with those that the route
// takes. The other methods of Query then read one parameter each, with its type and its
// bounds. Conditions are read into the form that the store evaluates when it carries out
// the command. Nothing here knows a route or waits for
// anything, and each error is an *api.Error with the code bad_request or too_large.
//
// # Invariants
//
//	K1  What is not understood is refused: a parameter that the request does not take,
//	    one that is given twice, a value that does not fit its type. Nothing falls back
//	    to a default that the client did not ask for.
//	K2  A condition never holds by mistake. A tag that kvd cannot have made matches no
//	    key, and neither does a weak one where the comparison is strong.
//	K3  The conditions of one request have a bound (limits.MaxTags for each header):
//	    they become part of the log.
//
// # Rejected
//
// url.ParseQuery makes a map for each request, and ignores what it cannot decode if its
// error is not looked at; url.Values.Get hides that a parameter is given twice.
package param
