// Package statemachine holds the two types that the replication layer and the
// state it drives exchange. Package raftnode fills an Entry with what raft
// committed; package kvstore executes it. Neither imports the other, and an
// entry is not copied on its way: two structurally equal types, one in each
// package, would need an adapter that allocates for every batch.
//
// The interface that the state machine implements stays with its user, in
// package raftnode.
package statemachine

// Record is one row of the table that the replication layer keeps inside the
// state machine, beside the data: its membership and the origins of batches. It
// is opaque to the state machine, which stores it in the same atomic write as
// the entry's commands, covers it with the state hash and carries it in
// snapshots. A nil Value deletes the row.
type Record struct {
	Key   []byte
	Value []byte
}

// Entry is one committed log entry: commands and records that take effect
// together at a log position.
type Entry struct {
	Index uint64
	Term  uint64
	// Commands are executed in order. They are opaque to the replication layer,
	// and an entry of its own has none.
	Commands [][]byte
	Records  []Record
	// WantResults is set if a request on this node waits for the results.
	WantResults bool
	// Results has one element per command. The state machine fills it in if
	// WantResults is set.
	Results []any
}
