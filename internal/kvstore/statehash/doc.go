// Package statehash computes the state hash of a store, by which replicas are compared. It
// is the sum, modulo 2^64, of the hashes of all records of the
// current state: live keys with value and metadata, the records of the replication
// layer, the rows of the other tables, the settings, replicated time, and the compact
// revision. A sum does not depend on the order, so a change costs one
// subtraction and one addition, and a scan in any order reproduces it: Scan does.
//
// History is not part of it, because replicas remove it at their own pace. Neither
// is an exclusive or: with that, two equal records would cancel each other out.
//
// The hash finds bugs and bad hardware. It is no protection against an attacker, who
// could choose values that collide.
//
// # Invariants
//
//   - Each record has one term, and what is hashed for it begins with its table and the
//     length of its key: no two records consist of the same bytes (TestTermsDiffer).
//   - A Scan over the records gives the sum that the changes have led to. Kvstore's S3 holds
//     the two against each other.
//   - A VersionScan refuses versions that no read needs, and adds up the terms of exactly the
//     changes that the change log must name (kvstore's S7: TestForgedBody).
package statehash
