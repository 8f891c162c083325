package raftnode

import (
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"
)

// applier turns committed entries into calls of the state machine. It is the
// body of the apply loop, without the goroutine: the simulator calls it too.
type applier struct {
	self   uint64
	sm     StateMachine
	roster *roster
	index  uint64 // last entry applied

	entries []Entry // reused between calls
}

// restoreWork asks for the state to be replaced by a snapshot's body.
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
	skipped     []*batch // of this process, surely without effect
	starts      []startApplied
	changes     []changeApplied
	membership  *Membership // set when it changed
	restored    *restoredState
}

type startApplied struct {
	start *start
	index uint64
	began bool // it began a new incarnation
	err   error
}

type changeApplied struct {
	id  batchID
	err error
}

// restoredState is what a core needs to know of an installed snapshot.
type restoredState struct {
	membership *Membership
	origin     originState // of this member
}

// apply executes work in order and answers the proposals in it. An error is
// fatal.
func (a *applier) apply(work []applyWork) (*appliedWork, error) {
	out := new(appliedWork)
	a.entries = a.entries[:0]
	before := a.roster.picture
	for i := range work {
		for _, e := range work[i].entries {
			if err := a.prepare(e, out); err != nil {
				return nil, err
			}
		}
		out.responses = append(out.responses, work[i].responses...)
	}
	a.markOwn(work)
	if err := a.sm.Apply(a.entries); err != nil {
		return nil, fmt.Errorf("apply entries up to %d: %w", a.index, err)
	}
	out.index = a.index
	a.answer(work, out)
	if m := a.roster.membership(); m != before {
		out.membership = m
	}
	clear(a.entries)
	return out, nil
}

// prepare runs one entry through the roster and queues what it means for the
// state machine.
func (a *applier) prepare(e *raftpb.Entry, out *appliedWork) error {
	if e.GetIndex() != a.index+1 {
		panic(fmt.Sprintf("raftnode: entry %d follows %d", e.GetIndex(), a.index))
	}
	a.index = e.GetIndex()
	s, err := a.roster.apply(e)
	if err != nil {
		return err
	}
	a.entries = append(a.entries, Entry{Index: e.GetIndex(), Term: e.GetTerm(), Commands: s.commands, Records: s.records})
	if s.confChange != nil {
		out.confChanges = append(out.confChanges, s.confChange)
	}
	switch {
	case s.start != nil:
		out.starts = append(out.starts, startApplied{start: s.start, index: e.GetIndex(), began: s.ran, err: s.err})
	case s.change != nil && s.ran && s.id.member == a.self:
		out.changes = append(out.changes, changeApplied{id: s.id, err: s.err})
	}
	return nil
}

// markOwn asks for the results of the batches that somebody here waits for.
func (a *applier) markOwn(work []applyWork) {
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

// answer gives the results to those who wait. A batch whose entry had no
// commands left was skipped (I3) and goes back to the core.
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
		membership: a.roster.membership(),
		origin:     a.ownOrigin(),
	}}, nil
}

// load takes the roster and the position from the state machine. A snapshot
// whose body is of another position than its metadata is refused.
func (a *applier) load(index, term uint64) error {
	v, err := a.sm.View()
	if err != nil {
		return err
	}
	defer v.Close()
	if i, t := v.Position(); i != index || t != term {
		return fmt.Errorf("body is of index %d term %d, its snapshot of index %d term %d", i, t, index, term)
	}
	records, err := v.Records()
	if err != nil {
		return err
	}
	if a.roster, err = loadRoster(records); err != nil {
		return err
	}
	a.index = index
	a.roster.membership()
	return nil
}

func (a *applier) ownOrigin() originState {
	if o := a.roster.origins[a.self]; o != nil {
		return *o
	}
	return originState{}
}
