// Package rows keeps the records of the replicated tables beside that of the versions:
// leases, locks, and the like. Such a table is one byte in the layout and functions that
// encode its keys and values. Overlay, state hash, engine, and snapshot bodies treat all of
// them alike, so a new table needs no code in any of these.
//
// A row is in the overlay of the current command, among those that were committed since the
// last write to the engine, or in the engine; a reader here sees the first of these.
//
// # Invariants
//
//   - A row changes the writes and the state hash in Commit alone: what Drop forgets leaves
//     no trace (TestDroppedRowsLeaveNoTrace; kvstore's S8).
//   - A row that is remembered from an earlier use is as it is committed (TestRecentRows).
//   - Each shows every row once and in order, wherever it is (TestEachMerges).
package rows
