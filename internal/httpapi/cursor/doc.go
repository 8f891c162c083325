// Package cursor has the places where the pages of a listing of keys continue.
//
// A node keeps nothing between two pages. The cursor says which revision the first page
// was read at, which listing it was, and where the rest begins, so any node can answer
// the next page, and a node that restarts forgets nothing.
//
// # Invariants
//
//	Q1  Parse accepts exactly what String can make. A cursor that was cut, damaged, or
//	    made in another format is refused; it does not mean another place.
//	Q2  A cursor belongs to one listing: those with other bounds, another direction, or
//	    another grouping have other digests.
//	Q3  The rest has every item of the listing after the last one that was sent, in its
//	    direction, and none before it (After).
//
// # Rejected
//
//   - An iterator that the node keeps open for the client. It would keep what is
//     overwritten meanwhile, and the client would have to return to this node.
//   - A signature. A client that may list may begin anywhere, so a forged cursor
//     shows nothing new; the checksum is there for accidents.
package cursor
