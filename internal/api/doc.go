// Package api has the types that cross package borders as plain data: what the
// HTTP interface sends and receives about members, nodes and the cluster, and the
// error that carries a stable code. Package node fills them in, package httpapi
// puts them on the wire, and neither needs to import the other.
//
// Invariants:
//
//	A1  The package imports nothing of this module, and has no behavior: what
//	    decides something belongs to the package that decides it.
//	A2  JSON field names and codes are part of the HTTP contract. They are never
//	    renamed or reused; openapi.yaml in package httpapi documents each one, and a
//	    test there compares the codes.
//	A3  Every number that identifies something stays below 2^53, so that JSON readers
//	    that keep numbers as doubles do not lose digits.
//
// Types that never cross the wire do not belong here, even if two packages need
// them: an interface in the package that uses it, with plain types in its
// methods, does the same without a third package.
package api
