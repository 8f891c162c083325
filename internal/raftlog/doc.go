// Package raftlog is the log as raft reads it: the newest entries in memory, and
// behind them, while a snapshot transfer needs older ones, a spool on disk. What
// makes entries durable is the WAL in package datadir; a Store only ever holds
// what the WAL has, or is about to have, and is filled from it at a start.
//
// Three goroutines share a Store. The append loop writes it, the node loop reads
// it through raft, and the compactor, which owns the files of the spool, moves
// entries from memory to the spool or drops them. The mutex of the Store guards
// all of it, and nobody holds it while waiting for a disk, except for a bounded
// read of the spool on behalf of raft.
//
// The comments on Store and spool give the invariants and what was rejected.
package raftlog
