// Package tally knows how many keys there are in ranges of a store, so that a count of a
// large range does not walk over it.
//
// It divides all keys into buckets of about a thousand and remembers how many keys exist
// in each at one revision. A count adds up the buckets inside its range and walks over
// the parts of the buckets at its two ends. About a million keys take some 50 KB.
//
// Nothing is kept up to date when entries are applied, and nothing is stored: the buckets
// follow from the versions and the change log. A count first moves them to the newest
// revision along the change log, which says which keys were created and deleted since the
// last count. The first count of a part of the keys walks over it and divides it. A count
// at an older revision takes the changes since then out again, along the same log.
//
// Counts take turns. In its turn, one pins the newest state of the store and moves the
// buckets to it. If it then knows its range, it has what it needs, and walks over the two
// ends without the turn. If not, it walks over a piece of what is unknown, leaves that in the
// buckets, and waits for its next turn. So a long walk does not hold up others, what it
// learned stays when its context ends, and counts of the same range share the walk.
//
// A tally that has to go too far along the log, or whose place in it is compacted, or
// whose store was replaced, begins anew with one bucket: the store knows the number of
// all its keys. From this number follows what is in a bucket that is the only unknown one.
//
// # Invariants
//
//   - A bucket has the number of keys in it that exist at the tally's revision, or is
//     unknown. Buckets cover all keys, in order, without gaps (kvstore's
//     TestRandomHistories counts at random revisions with small buckets and compares with
//     a model; TestReadersSeeRevisions and TestReadersDuringRestore do so under load).
//   - Buckets take at most maxBytes, also after counts that failed (TestMemoryIsBounded,
//     TestMemoryIsBoundedAfterAnEnd).
//   - A turn walks over a bounded piece (TestCountsTakeTurns), and a count knows more of its
//     range after each one, even if its context ends or memory is short (TestAWalkIsKept,
//     TestAWalkBesideFullBucketsIsKept, kvstore's TestCountMovesOnWithItsContext).
//   - A count has the keys of a single revision, whatever is written between its turns
//     (kvstore's TestCountBetweenWrites).
//   - Once the keys of a range are known, a count of a part of it walks over few
//     (TestKnownKeysAreNotWalkedOver).
//
// # Rejected
//
//   - Walks without the turn, whose buckets are put in afterwards: while others count and
//     write, they would have to be moved along the log first, and each walk of a range would
//     be done by everybody who waits for it.
//   - Counters that Apply keeps up to date. Every put would pay for them, also where
//     nobody counts, transactions would have to undo them, and a start would have to walk
//     over all keys before the first entry.
//   - Counts of live keys in the properties of blocks: they cannot be added up while
//     tables of several levels overlap.
//   - A count for each range that somebody asked for, moved along the change log: it
//     serves that range alone, and each first count walks.
package tally
