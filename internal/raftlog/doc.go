// Package raftlog is the log as raft reads it, and the order in which it is
// written.
//
// A Store holds the newest entries in memory and behind them, while a snapshot
// transfer needs older ones, a spool on disk. What makes entries durable is a Disk,
// the WAL in package datadir; a Store only ever holds what the WAL has, or is about
// to have, and is filled from it at a start. The Appender writes both, in the order
// that A1 demands.
//
// Three goroutines share a Store. The append loop writes it, the node loop reads
// it through raft, and the compactor, which owns the files of the spool, moves
// entries from memory to the spool or drops them. The mutex of the Store guards
// all of it, and nobody holds it while waiting for a disk, except for a bounded
// read of the spool on behalf of raft.
//
// # Invariants
//
//	A1  Durable first, then raft's log in memory, then the responses, in raft's
//	    order. The responses acknowledge what is durable.
//	A2  Nothing is retried on a disk that failed: the kernel may have dropped the
//	    pages, and report success the next time. The replica stops and answers
//	    nobody.
//
// The comments on Store and spool give theirs, and what was rejected.
package raftlog
