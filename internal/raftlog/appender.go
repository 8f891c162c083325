package raftlog

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Disk is the durable side of the log: etcd's WAL and snapshot files, or a
// model of them with crash semantics. Every error is final (A2). A failed write
// or fsync cannot be repeated: the kernel may have dropped the pages and report
// success the next time. The replica stops and answers nobody.
type Disk interface {
	// Save makes the hard state and the entries durable, in one write. A save
	// of nothing but a commit index need not be synced.
	Save(hs *raftpb.HardState, entries []*raftpb.Entry) error
	// SaveSnapshot makes a snapshot's metadata durable: first the .snap file,
	// then the WAL record that refers to it, then a hard state whose commit
	// index makes the record valid. A state restored from the snapshot must
	// never be ahead of the log, and no entry may follow a gap.
	SaveSnapshot(s *raftpb.Snapshot) error
}

// Log is what raft reads, in memory behind the disk: a Store.
type Log interface {
	Append(entries []*raftpb.Entry)
	SetHardState(hs *raftpb.HardState)
	ApplySnapshot(s *raftpb.Snapshot)
}

// Appender executes MsgStorageAppend messages. It is the body of raftnode's append
// loop, without the goroutine: the simulator calls it too.
//
// The order of every save (A1): durable first, then raft's log in memory, then
// the responses, in the order in which raft gave them. The responses acknowledge
// what is durable. Raft drops entries from its own memory when it sees them, so
// its log must have the entries by then.
type Appender struct {
	Disk Disk
	Log  Log
	// Install replaces the state machine's content with the received snapshot
	// and returns when that is done.
	Install func(s *raftpb.Snapshot) error
}

// Append executes the messages as one: all entries and the last hard state in
// one save (group commit). It returns the responses, to be delivered in order.
func (a *Appender) Append(messages []*raftpb.Message) ([]*raftpb.Message, error) {
	var group saveGroup
	var responses []*raftpb.Message
	for _, m := range messages {
		if !raft.IsEmptySnap(m.GetSnapshot()) {
			// Entries that were queued before the snapshot belong before it.
			if err := a.flush(&group); err != nil {
				return nil, err
			}
			if err := a.receive(m.GetSnapshot()); err != nil {
				return nil, err
			}
		}
		group.add(m)
		responses = append(responses, m.GetResponses()...)
	}
	return responses, a.flush(&group)
}

func (a *Appender) flush(g *saveGroup) error {
	if g.hardState == nil && len(g.entries) == 0 {
		return nil
	}
	if err := a.Disk.Save(g.hardState, g.entries); err != nil {
		return fmt.Errorf("save the log: %w", err)
	}
	if g.hardState != nil {
		a.Log.SetHardState(g.hardState)
	}
	if len(g.entries) > 0 {
		a.Log.Append(g.entries)
	}
	*g = saveGroup{}
	return nil
}

// receive installs a snapshot whose body the transport has already made durable:
// then the .snap file, then the WAL record and its commit index, then the state,
// and only then the response that tells the leader. A crash between any two
// steps leaves something that the next start completes.
func (a *Appender) receive(s *raftpb.Snapshot) error {
	if err := a.Disk.SaveSnapshot(s); err != nil {
		return fmt.Errorf("save the snapshot at %d: %w", s.GetMetadata().GetIndex(), err)
	}
	if err := a.Install(s); err != nil {
		return err
	}
	a.Log.ApplySnapshot(s)
	return nil
}

// saveGroup collects the writes of several messages.
type saveGroup struct {
	hardState *raftpb.HardState
	entries   []*raftpb.Entry
}

func (g *saveGroup) add(m *raftpb.Message) {
	if hs := HardStateOf(m); hs != nil {
		g.hardState = hs
	}
	ents := m.GetEntries()
	if len(ents) == 0 {
		return
	}
	// A later message may replace entries of an earlier one: a new leader
	// overwrites what the old one had not committed.
	first := ents[0].GetIndex()
	for n := len(g.entries); n > 0 && g.entries[n-1].GetIndex() >= first; n-- {
		g.entries = g.entries[:n-1]
	}
	g.entries = append(g.entries, ents...)
}

// HardStateOf returns the hard state that a MsgStorageAppend carries, spread over
// its fields; nil if it carries none. (Raft's doc.go names other fields.)
func HardStateOf(m *raftpb.Message) *raftpb.HardState {
	hs := &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	if raft.IsEmptyHardState(hs) {
		return nil
	}
	return hs
}
