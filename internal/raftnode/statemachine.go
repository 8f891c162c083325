package raftnode

import (
	"io"

	"github.com/kvd-io/kvd/internal/statemachine"
)

// Record and Entry are what raftnode and its state machine exchange.
type (
	Record = statemachine.Record
	Entry  = statemachine.Entry
)

// View is a consistent, immutable reading of the state at one log position.
type View interface {
	// Position is the index and term of the last entry the view contains.
	Position() (index, term uint64)
	// Records returns raftnode's records in key order.
	Records() ([]Record, error)
	// WriteTo writes the whole state as a snapshot body and returns its size.
	WriteTo(w io.Writer) (int64, error)
	Close() error
}

// BodyInfo describes a snapshot body that was verified.
type BodyInfo struct {
	Index, Term uint64
	Bytes       int64 // what a restored state takes on disk, at most
}

// StateMachine is the replicated state that committed entries drive. Apply,
// Restore and Maintain are called by one goroutine, the apply loop; View and
// Durable may be called from any.
type StateMachine interface {
	// Apply executes the entries in order. Their effects, their records and
	// the new position become visible together. An error is fatal: the node
	// stops without answering anybody.
	Apply(entries []Entry) error
	// View pins the current state in constant time.
	View() (View, error)
	// Durable is the state that survives a crash without the log, nil when
	// nothing does (an engine in memory).
	Durable() (View, error)
	// Flush asks for everything applied to become durable soon; it does not
	// wait.
	Flush() error
	// Restore replaces the whole state with the snapshot body in r. After a
	// crash in the middle either the old or the new state is found.
	Restore(r io.Reader) error
	// Maintain does a bounded piece of background work, such as removing
	// compacted history, and reports whether more is left.
	Maintain() (more bool, err error)
}
