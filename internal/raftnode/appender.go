package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// logDisk is the durable side of the log: etcd's WAL and snapshot files, or a
// model of them with crash semantics. Every error is final: a failed write or
// fsync can not be repeated (the kernel may have dropped the pages), so the
// node stops and answers nobody.
type logDisk interface {
	// Save makes the hard state and the entries durable, in one write. A save
	// of nothing but a commit index need not be synced.
	Save(hs *raftpb.HardState, entries []*raftpb.Entry) error
	// SaveSnapshot makes a snapshot's metadata durable: the .snap file first,
	// then the WAL record that refers to it, then a hard state whose commit
	// index makes the record valid: a state that was restored from it must
	// never be ahead of the log, and no entry may follow a gap.
	SaveSnapshot(s *raftpb.Snapshot) error
}

// raftLog is the log that raft reads, kept in memory behind the disk.
type raftLog interface {
	raft.Storage
	append(entries []*raftpb.Entry)
	setHardState(hs *raftpb.HardState)
	applySnapshot(s *raftpb.Snapshot)
}

// appender executes MsgStorageAppend messages. It is the body of the append
// loop, without the goroutine: the simulator calls it too.
//
// The order of every save is: durable first, then raft's in-memory log, then
// the responses, in the order raft gave them.
type appender struct {
	disk logDisk
	log  raftLog
	// install replaces the state machine's content by the received snapshot
	// and returns when that is done.
	install func(s *raftpb.Snapshot) error
}

// append executes the messages as one: all entries and the last hard state in
// one save (group commit). It returns the responses, to be delivered in order.
func (a *appender) append(messages []*raftpb.Message) ([]*raftpb.Message, error) {
	var group saveGroup
	var responses []*raftpb.Message
	for _, m := range messages {
		if !raft.IsEmptySnap(m.GetSnapshot()) {
			// What came before belongs before the snapshot.
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

func (a *appender) flush(g *saveGroup) error {
	if g.hardState == nil && len(g.entries) == 0 {
		return nil
	}
	if err := a.disk.Save(g.hardState, g.entries); err != nil {
		return fmt.Errorf("save the log: %w", err)
	}
	if g.hardState != nil {
		a.log.setHardState(g.hardState)
	}
	if len(g.entries) > 0 {
		a.log.append(g.entries)
	}
	*g = saveGroup{}
	return nil
}

// receive installs a snapshot whose body the transport has made durable
// already: then .snap, then the WAL record and its commit index, then the
// state, and only then the response that tells the leader.
func (a *appender) receive(s *raftpb.Snapshot) error {
	if err := a.disk.SaveSnapshot(s); err != nil {
		return fmt.Errorf("save the snapshot at %d: %w", s.GetMetadata().GetIndex(), err)
	}
	if err := a.install(s); err != nil {
		return err
	}
	a.log.applySnapshot(s)
	return nil
}

// saveGroup collects the writes of several messages.
type saveGroup struct {
	hardState *raftpb.HardState
	entries   []*raftpb.Entry
}

func (g *saveGroup) add(m *raftpb.Message) {
	if hs := hardStateOf(m); hs != nil {
		g.hardState = hs
	}
	ents := m.GetEntries()
	if len(ents) == 0 {
		return
	}
	// A later message may replace entries of an earlier one.
	first := ents[0].GetIndex()
	for n := len(g.entries); n > 0 && g.entries[n-1].GetIndex() >= first; n-- {
		g.entries = g.entries[:n-1]
	}
	g.entries = append(g.entries, ents...)
}

// hardStateOf collects the hard state that a MsgStorageAppend carries spread
// over its fields; nil when it carries none.
func hardStateOf(m *raftpb.Message) *raftpb.HardState {
	hs := &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	if raft.IsEmptyHardState(hs) {
		return nil
	}
	return hs
}
