// Package raftnode replicates opaque commands. It joins etcd's raft library
// with a log on disk (package datadir) and connections to the other members
// (package peers) into one replica that feeds a StateMachine. It does not know
// what a command means.
//
// # How it works
//
// A deterministic core decides and eight goroutines around it do what it says.
// The core owns raft's RawNode, everything that waits for raft, and the search
// for a leader. Events go in through method calls; takeEffects returns what has
// to be done about them. The simulator drives the same core, single-threaded,
// against a model network and model disks, so that every decision can be
// replayed from a seed.
//
// Storage is asynchronous: raft hands out MsgStorageAppend and MsgStorageApply,
// and their responses tell it what is durable and applied. The append loop makes
// everything that is queued durable with one fsync, then shows it to raft, then
// delivers the responses; so no acknowledgment leaves before what it
// acknowledges is on disk. The apply loop runs committed entries through the
// roster (the replicated membership) into the state machine.
//
// What needs neither the core nor a loop is in packages of its own: the order in
// which the log is written (raftlog), what an entry does to the membership and which
// batches run (roster), and what a leader does for a member that lags (catchup).
//
// All commands that wait are packed into one entry, and at most one such batch
// per node is in flight. A batch has an identity (roster.BatchID), which lets it be
// proposed again after a change of leader without running twice.
//
// A replica shows the cluster who it is by a start entry. Its log index is the
// incarnation of the process; once it is applied, so is everything before it,
// and the replica is ready.
//
// # Invariants
//
//	C1–C4  of the core: see core. One batch in flight; any number of copies of
//	       a batch, one run; a fresh context per ReadIndex; one answer each.
//	I1–I5  of the replicated membership: see package roster.
//	A1–A2  of writing the log: see package raftlog. Durable first; nothing is
//	       retried on a disk that failed.
//	V1–V4  of snapshots for members that lag: see package catchup.
//	S1     Log is released only behind a checkpoint: a state that survives a
//	       crash without it (checkpointer).
//	S2     Every snapshot that raft wants to send ends in one report to raft.
//	W1     The goroutines wait for each other without a cycle: see Replica.
//	W2     Every queue is bounded, and says by what.
//
// # Rejected
//
// The classic loop of Ready, save, send, Advance: on a fast disk it is 6–8 %
// faster for one client, but heartbeats and reads then wait for every fsync, so
// that a slow disk costs the leadership (ADR 1). Leader leases for reads: they
// trust clocks. Joint consensus: kvd changes one member at a time, and needs no
// configuration that a reader of the log has to hold in two halves.
package raftnode
