package raftnode

import (
	"io"

	"github.com/kvd-io/kvd/internal/statemachine"
)

// Record and Entry are what a replica and its state machine exchange.
type (
	Record = statemachine.Record
	Entry  = statemachine.Entry
)

// View is a consistent, immutable reading of the state at one log position.
type View interface {
	// Position returns the index and term of the last entry in the view.
	Position() (index, term uint64)
	// Records returns the replica's records in key order.
	Records() ([]Record, error)
	// WriteTo writes the whole state as a snapshot body and returns its size.
	WriteTo(w io.Writer) (int64, error)
	Close() error
}

// BodyInfo describes a snapshot body that was verified.
type BodyInfo struct {
	Index, Term uint64
	Bytes       int64 // the most that the restored state takes on disk
}

// StateMachine is the replicated state that committed entries drive. The apply
// loop alone calls Apply, Restore and Maintain. View, Durable and Flush may be
// called from any goroutine.
type StateMachine interface {
	// Apply executes the entries in order. Their effects, their records and the
	// new position become visible together. An error is fatal: the replica
	// stops without answering anybody.
	Apply(entries []Entry) error
	// View pins the current state in constant time.
	View() (View, error)
	// Durable returns the state that would survive a crash without the log, nil
	// if nothing would (an engine in memory).
	Durable() (View, error)
	// Flush asks for everything applied so far to become durable soon. It does
	// not wait.
	Flush() error
	// Restore replaces the whole state with the snapshot body in r. A crash in
	// the middle leaves either the old or the new state.
	Restore(r io.Reader) error
	// Maintain does a bounded piece of background work, such as removing
	// compacted history, and reports whether there is more.
	Maintain() (more bool, err error)
}
