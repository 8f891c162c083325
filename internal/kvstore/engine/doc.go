// Package engine keeps ordered byte strings: one interface below the store, with an
// implementation on disk (Pebble) and one in memory (a copy-on-write B-tree). One
// conformance suite holds both to it (TestEngines), so that the store behaves alike
// on either.
//
// # Durability
//
// An engine has no write-ahead log. A committed write batch is visible at once, and
// survives a crash only once it and every batch before it have been flushed. What is
// durable is always a prefix of the history of batches. The owner replays the rest
// from a log of its own, starting at the position that it finds in the durable state
// (Engine.Durable): that is the durable index, below which it may release its log.
//
// # On disk
//
// Pebble runs with its WAL off. Memtables are then the only way to disk, and Pebble
// flushes them in order, which gives the prefix. A database lives in a numbered
// directory, a generation, and the file CURRENT names the one that counts. Replace
// fills the next generation while readers use the old one, and then moves CURRENT.
//
// Pebble retries a flush or compaction that failed, forever. kvd must not: after a
// failed fsync nobody knows what is on disk, and the retry may succeed on data that
// the kernel has already dropped. So every file operation goes through failStopFS,
// which refuses all changes after the first failure, and the owner is told once
// (PebbleOptions.OnFatal).
//
// # In memory
//
// The writer changes one B-tree in place, under a lock. Iterators and snapshots get
// a clone, made in constant time when the first of them asks after a commit and
// shared by all until the next commit.
//
// # Invariants
//
//	E1  CURRENT names a generation that was complete and synced before it was
//	    named (TestCrashAtEachStep crashes between any two file operations).
//	E2  A generation is closed, and removed if it is obsolete, only when nobody
//	    reads it anymore (TestOldGenerationGoesWithItsLastReader).
//	E3  What is on disk is a prefix of the history of batches
//	    (TestCrashLeavesPrefix, TestDurableShowsOnlyFlushed).
//	E4  After the first failure no file changes anymore, and nothing waits for
//	    the disk (TestFailedFlushIsFatal, TestFailedSwitchIsFatal,
//	    TestCommitWaitsForStuckDisk).
//	E5  A snapshot or an iterator sees the state of one moment (TestEngines,
//	    TestDurableIsOneState).
//
// # Rejected
//
//   - Pebble's WAL. Each batch would be written to disk twice, and after a crash
//     there would be two logs to reconcile.
//   - Ingesting a restored state as tables into the one database, over an excised
//     range. It would need neither CURRENT nor generations, but ingestion overtakes
//     memtables, which breaks E3.
//   - Pebble's own limits on its backlog (memtables, L0 files). Its writers wait for
//     them without a way out, so that a node with a broken disk could not even stop.
//   - bbolt, as etcd uses it: a single writer with an fsync per commit, and a file
//     that never shrinks without a defragmentation that blocks the node.
//   - Cloning the B-tree after every commit. Readers would need no lock, but a write
//     to a tree that has just been cloned costs four times as much.
package engine
