// Package answer has what the answers of etcd's services have in common: the header, and
// the errors.
//
// Clients of etcd compare the text of an error before its code, so every error is one of
// the values that etcd's own clients know (package rpctypes). Error finds it for what the
// node and the store say, and Outcome for a command that changed nothing.
//
// # Invariants
//
//	A1  A write is answered with Unavailable only if it was not done, or if nobody
//	    knows. Clients take that code for "try again".
//	A2  A header never names a revision that readers of this node do not see yet
//	    (kvstore's S5: a result arrives after its position became visible).
//	A3  What Error does not know is a bug. It becomes Internal, with its text.
package answer
