// Package walk reads the keys of a range that exist at one revision from the versions in
// the engine: pairs, or the groups into which a delimiter folds them.
//
// Forward, the versions of a key come newest first: the walker takes the first one
// that the revision sees and skips the rest. Backward, they come oldest first: it
// remembers the newest one seen so far until the key changes. In both directions it
// steps over a few versions and seeks past many: a seek costs as much as a handful
// of steps, and most keys have one or two versions.
//
// # Invariants
//
//   - A walk shows each key or group of the range once and in order, in both directions the
//     same ones, as they were at its revision (kvstore's TestRandomHistories reads ranges of
//     all kinds at random revisions and compares them with a model).
//   - It asks whether it should end after a bounded amount of work, also while it passes what
//     it does not show (kvstore's walk_test.go).
package walk
