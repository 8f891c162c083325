// Package kvstore is the replicated state of kvd: keys with revisions, their
// history, and the settings that decide outcomes. It is a deterministic state
// machine over an engine of ordered bytes (package engine), and knows neither raft
// nor HTTP nor a clock.
//
// # Apply
//
// Store.Apply executes committed log entries in order. It reads nothing of the
// node: no clock, flag, disk size, randomness or map order, so that equal entries
// give equal state on every replica. Time enters only as a command of the leader
// (OpTick), and limits are replicated settings. A command that makes no sense gets
// the same refusal everywhere; a command that cannot be decoded stops the replica,
// because skipping it would make replicas diverge.
//
// All writes of one call collect in one engine write batch, together with the log
// position. There is no write-ahead log of the store's own: what a crash takes is
// applied again from the raft log, starting at the position that the engine kept.
//
// A command is executed in an overlay, which holds its changes until all of its
// operations have succeeded, and then becomes the next revision. So a transaction that
// fails at its last operation leaves no trace, and its operations see the earlier ones. See
// overlay.go and txn.go.
//
// # Layout
//
// The store is multi-version (MVCC): every revision can be read until it is
// compacted. Table v holds all versions of a key, newest first, so that a point
// read at any revision is one seek and a range read at a revision is one walk.
// Table c, the change log, lists the keys that each revision changed, in the order of
// the operations: one record for each call of Apply, which belongs to this replica. It
// names what a compaction makes superfluous, and watches read it. See packages
// layout and changelog.
//
// Apply would need a read for every write, to learn the version before. A cache
// of key metadata (cache.go) answers most of them.
//
// The newest pairs of keys that are being read are kept in memory (package hot). A read of
// one opens no iterator. So are the numbers of keys in parts of the store that were counted
// (package tally).
//
// # Exactly once
//
// A command with an idempotency key leaves a record of its result in the write batch
// of its effects. A repeat, whether it was already under way or comes from another
// node after a failure, finds the record and returns the result. See package once.
//
// # State hash
//
// The state hash is a sum over hash(record) for all records of the current state.
// A change subtracts one term and adds one, so that it is always up to date, and a
// scan in any order reproduces it. Replicas compare it at equal log indexes.
// History is left out: replicas remove it at their own pace. See package statehash.
//
// # History
//
// A compact command moves the compact revision on every replica at the same log
// position. Each replica then removes versions that no remaining read can see, in
// small steps (Store.Maintain). See history.go.
//
// # Snapshot bodies
//
// A body is the whole state as one stream of sections (package body), one for each table,
// and the same for every engine and replica: equal states have equal bodies, whatever each
// has removed of its history. The reader lets nothing pass before hash, counters,
// revisions and the change log fit what the records add up to. It serves followers that
// lag, backups, and moving between engines. See body.go.
//
// # Invariants
//
//	S1  Data, records, counters, hash and position of an entry are committed in
//	    one write batch: whatever the engine has flushed is a whole position
//	    (TestRandomHistories crashes replicas; engine's TestCrashLeavesPrefix).
//	S2  The revision grows by exactly one with each effective change
//	    (FuzzStoreIsTheModel, TestRandomHistories against a plain model).
//	S3  The hash is the sum over the current records: View.ScanHash reproduces it
//	    (checked throughout the tests, at every restore, and by kvd snapshot
//	    verify).
//	S4  No version is removed that a read at or above the compact revision needs
//	    (TestRandomHistories reads at random revisions, before and after
//	    maintenance).
//	S5  A reader sees one position and all of it: it never sees a revision half
//	    applied, or a restore half done (TestReadersSeeRevisions,
//	    TestReadersDuringRestore).
//	S6  Entries may arrive in calls of any size, with maintenance between any two,
//	    and give the same state (TestRandomHistories, FuzzApply).
//	S7  A body is verified before anything of it is visible, and a damaged or
//	    forged one changes nothing (TestDamagedBody, TestForgedBody, FuzzRestore).
//	    Equal states have equal bodies (TestEqualStatesHaveEqualBodies).
//	S8  A command that is refused leaves no trace in metadata, hash, counters and
//	    engine (TestFailedTxnLeavesNoTrace), and a key changes at most once in a
//	    revision (TestTxnOutcomes).
//	S9  A command with an idempotency key takes effect once while its record is
//	    kept, and every replica keeps and forgets the same records
//	    (TestRepeatHasTheFirstResult, TestRecordsSurvive, TestAgeingInSteps).
//	S10 Formats change only with their version: golden files hold every record,
//	    command and body byte for byte (golden_test.go).
//	S11 What is bound to a lease exists only while the lease does, and the indexes
//	    from leases to keys and tickets are part of the state (TestRandomHistories
//	    compares them with the model). See lease.go; lock.go has more about locks.
//
// # Rejected
//
//   - A second table with the newest value of each key. It doubles what a put
//     writes, and saves only the seek that the metadata cache avoids anyway.
//   - Copying a revision number into a separate index, as etcd does with its
//     in-memory B-tree of all keys: memory would grow with the number of keys, and a
//     start would read everything.
//   - A write-ahead log of the engine's own. The raft log has every entry already;
//     a second one costs a second fsync or a window in which both disagree.
//   - A Merkle tree instead of a sum. It finds where replicas differ, but costs a
//     logarithm of hashes per write; finding the place can wait until there is a
//     difference, which is a bug.
//   - Pebble checkpoints (hard links of its files) as snapshots. They tie the format
//     to one engine and its version, and cannot be verified record by record.
//   - Compaction by Pebble's range deletes or compaction filters. They would remove
//     versions at times that the counters could not follow.
//
// Read it in this order: types.go, store.go, apply.go, overlay.go, txn.go, read.go,
// history.go, log.go, body.go; packages command, layout, and statehash before all of them.
package kvstore
