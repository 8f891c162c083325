// Package transfer moves keys between clusters: it writes and reads exports, and
// imports them, an etcd that runs, or what consul kv export has written.
//
// # How an import works
//
// Import reads its source in chunks. It reads the keys of each chunk from the
// cluster, and stores the pairs that differ in one transaction. At the end it reads
// everything once more, from both sides, and compares number and hash.
//
// # Invariants
//
//   - I1: A file is read to its end, with its count and its hash, before anything
//     of it is stored. A mistake in its last line does no harm.
//   - I2: An import that is run again resumes: it skips whatever is already stored. It
//     keeps no progress record, which could be lost or belong to another import.
//   - I3: Memory is bounded by a chunk, whatever the size of the source.
//   - I4: An export has one revision, and its last line is there only if all the
//     others are.
//
// # Rejected
//
//   - A stream of independent puts (POST /v1/batch), which would be faster, but
//     would write equal values again: each run would wake everybody who watches.
//   - Deleting what the source does not have. An import with a mistyped prefix would
//     delete the cluster.
package transfer
