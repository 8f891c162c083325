package raftnode

import (
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

// applier turns committed entries into calls of the state machine, and answers
// the proposals that travel with them. It is the body of the apply loop, without
// the goroutine: the simulator calls it too.
//
// Every entry passes the roster first, which decides whether its commands run,
// the same on every replica. What an entry does to the roster becomes records,
// which the state machine stores in the same atomic write as the entry's
// commands: after a crash the store, the membership and the sequence numbers
// that keep batches from running twice are all of one index.
type applier struct {
	self   uint64
	sm     StateMachine
	roster *roster.Roster
	index  uint64 // last entry applied

	entries []Entry // reused between calls
}

// restoreWork asks for the state to be replaced with a snapshot's body.
type restoreWork struct {
	index, term uint64
	open        func() (io.ReadCloser, error)
	done        chan error // capacity 1; the append loop waits for it
}

// appliedWork tells the core what was done.
type appliedWork struct {
	index       uint64
	responses   []*raftpb.Message
	confChanges []*raftpb.ConfChangeV2
	made        []*roster.Change // membership changes of all members that took effect
	skipped     []*batch         // of this process, certainly without effect
	starts      []startApplied
	changes     []changeApplied
	membership  *roster.Membership // set if it changed
	restored    *restoredState
}

// startApplied is the outcome of any member's start entry.
type startApplied struct {
	start *roster.Start
	index uint64
	began bool // it began a new incarnation
	err   error
}

// changeApplied is the outcome of a membership change of this process.
type changeApplied struct {
	id  roster.BatchID
	err error
}

// restoredState is what a core needs to know about an installed snapshot.
type restoredState struct {
	membership *roster.Membership
	origin     roster.Origin // of this member
}

// apply executes work in order and answers the proposals in it. An error is
// fatal.
func (a *applier) apply(work []applyWork) (*appliedWork, error) {
	out := new(appliedWork)
	a.entries = a.entries[:0]
	before := a.roster.Membership()
	for i := range work {
		for _, e := range work[i].entries {
			if err := a.prepare(e, out); err != nil {
				return nil, err
			}
		}
		out.responses = append(out.responses, work[i].responses...)
	}
	a.requestResults(work)
	if err := a.sm.Apply(a.entries); err != nil {
		return nil, fmt.Errorf("apply entries up to %d: %w", a.index, err)
	}
	out.index = a.index
	a.answer(work, out)
	if m := a.roster.Membership(); m != before {
		out.membership = m
	}
	clear(a.entries)
	return out, nil
}

// prepare runs one entry through the roster and queues its effects for the state
// machine.
func (a *applier) prepare(e *raftpb.Entry, out *appliedWork) error {
	if e.GetIndex() != a.index+1 {
		panic(fmt.Sprintf("raftnode: entry %d follows %d", e.GetIndex(), a.index))
	}
	a.index = e.GetIndex()
	v, err := a.roster.Apply(e)
	if err != nil {
		return err
	}
	a.entries = append(a.entries, Entry{Index: e.GetIndex(), Term: e.GetTerm(), Commands: v.Commands, Records: v.Records})
	if len(v.ConfChanges) > 0 {
		out.confChanges = append(out.confChanges, v.ConfChanges...)
		out.made = append(out.made, v.Change)
	}
	switch {
	case v.Start != nil:
		out.starts = append(out.starts, startApplied{start: v.Start, index: e.GetIndex(), began: v.Ran, err: v.Err})
	case v.Change != nil && v.Ran && v.ID.Member == a.self:
		out.changes = append(out.changes, changeApplied{id: v.ID, err: v.Err})
	}
	return nil
}

// requestResults asks the state machine for the results of the batches that
// somebody here waits for. Nobody looks at the others.
func (a *applier) requestResults(work []applyWork) {
	for i := range work {
		for _, own := range work[i].own {
			e := a.entry(own.index)
			e.WantResults = len(e.Commands) > 0
		}
	}
}

// entry finds a prepared entry by its index.
func (a *applier) entry(index uint64) *Entry {
	return &a.entries[index-a.entries[0].Index]
}

// answer gives the results to the requests that wait. A batch whose entry has no
// commands left was skipped (I3), and goes back to the core.
func (a *applier) answer(work []applyWork, out *appliedWork) {
	for i := range work {
		for _, own := range work[i].own {
			e := a.entry(own.index)
			if len(e.Commands) == 0 {
				out.skipped = append(out.skipped, own.batch)
				continue
			}
			results := e.Results
			for _, p := range own.batch.proposals {
				n := len(p.commands)
				p.done <- answer{results: results[:n:n]}
				results = results[n:]
			}
		}
	}
}

// restore replaces the state with a snapshot's.
func (a *applier) restore(w *restoreWork) (*appliedWork, error) {
	body, err := w.open()
	if err != nil {
		return nil, fmt.Errorf("open snapshot body %d: %w", w.index, err)
	}
	err = a.sm.Restore(body)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("restore snapshot %d: %w", w.index, err)
	}
	if err := a.load(w.index, w.term); err != nil {
		return nil, fmt.Errorf("restore snapshot %d: %w", w.index, err)
	}
	return &appliedWork{index: a.index, restored: &restoredState{
		membership: a.roster.Membership(),
		origin:     a.roster.Origin(a.self),
	}}, nil
}

// load takes the roster and the position from the state machine. It refuses a
// snapshot whose body is at another position than its metadata: raft would
// continue the log from the one, and the state from the other.
func (a *applier) load(index, term uint64) error {
	v, err := a.sm.View()
	if err != nil {
		return err
	}
	defer v.Close()
	if i, t := v.Position(); i != index || t != term {
		return fmt.Errorf("the body is at index %d term %d, but its snapshot at index %d term %d", i, t, index, term)
	}
	records, err := v.Records()
	if err != nil {
		return err
	}
	if a.roster, err = roster.Load(records); err != nil {
		return err
	}
	a.index = index
	return nil
}
