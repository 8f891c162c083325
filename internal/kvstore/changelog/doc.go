// Package changelog encodes the change log of a store, which says which keys each
// revision changed, in the order of the operations. Compaction finds in it what it makes
// superfluous, and watches read it. The values are with the versions of the keys.
//
// All changes of one call of Apply share a record. A record for each revision cost as much
// as the versions themselves on the way through memtable, flush and compaction. So where
// a record begins depends on the calls of this replica; the log as a whole does not.
//
//	c  first revision [, part]  → version, {Δrevision, n, {change} × n} …
//	change:                       flags, shared, suffix, [revision − previous, stored bytes before]
//
// A key is written as what it does not share with the one before it in the record. A
// record has several whole revisions, or one part of a revision that does not fit into
// MaxBytes; parts after the first have their number in the key. Therefore revision R is
// in the last record whose key is below R+1, or in the first part of that revision.
package changelog
