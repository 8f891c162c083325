package raftnode

import "io"

// Record is one entry of the table that raftnode keeps inside the state
// machine, beside the data: its membership and origins. The state machine
// stores it in the same atomic write as the entry's commands, covers it with
// its hash and carries it in snapshots. A nil Value deletes.
type Record struct {
	Key   []byte
	Value []byte
}

// Entry is one committed log entry as the state machine gets it.
type Entry struct {
	Index    uint64
	Term     uint64
	Commands [][]byte // opaque, executed in order; none for entries of raftnode's own
	Records  []Record // to be stored with them
	// WantResults is set where somebody on this node waits for the results.
	WantResults bool
	// Results has one element a command, filled in by the state machine when
	// WantResults is set.
	Results []any
}

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
