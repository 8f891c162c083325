package raftnode

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

// Recovery turns what one member of a lost quorum has on disk into a cluster of
// one. In a copy of the data directory (datadir.Replacement) it applies the
// whole log and begins a new log: a snapshot whose only voter is this member,
// in a new cluster and with a new nonce. Then the copy takes the directory's
// place.
//
// It applies every entry of the log, including those that this member did not
// know to be committed. A write is acknowledged as soon as a quorum has it on
// disk, and the members learn that later. Dropping the tail would lose
// acknowledged writes that are at hand. Keeping it may put a write into effect
// whose client was told that the outcome is unknown, or nothing at all; that
// was always possible.
type Recovery struct {
	Dir        string
	Member     roster.Member
	OldCluster uint64
	NewCluster uint64
	Lost       []roster.Member // the other members
	Index      uint64          // last entry of the log
	Term       uint64          // of that entry
	Commit     uint64          // last entry that this member knew to be committed
	TornTail   string          // what was cut off the end of the log, or ""
	Stale      bool            // the cluster had refused the directory as an older copy
	Backup     string          // where the old files go

	replacement *datadir.Replacement
}

// OfflineMachine is a state machine opened for a recovery, without a replica.
type OfflineMachine interface {
	StateMachine
	// Close makes everything applied so far durable.
	Close() error
}

// PrepareRecovery builds the recovered copy of a data directory and reports what
// the recovery would do. Afterwards the caller calls Complete or Abandon. open
// opens the state machine of the data directory that it is given.
func PrepareRecovery(lg *zap.Logger, d *datadir.Dir, open func(dir string) (OfflineMachine, error)) (*Recovery, error) {
	id, known := d.Identity()
	switch {
	case !known || !d.HasLog():
		return nil, refuseRecovery(d.Path(), "the directory has no log, so there is nothing to recover")
	case id.State == datadir.StateRemoved:
		return nil, refuseRecovery(d.Path(), "member %d was removed from its cluster", id.MemberID)
	}
	copied, err := d.NewReplacement()
	if err != nil {
		return nil, err
	}
	b := &rebuild{lg: lg, Replacement: copied, open: open, old: id}
	r := &Recovery{Dir: d.Path(), OldCluster: id.ClusterID, NewCluster: datadir.NewClusterID(), Backup: copied.Backup, replacement: copied, Stale: id.State == datadir.StateStale}
	if err := b.run(r); err != nil {
		return nil, errors.Join(err, copied.Abandon())
	}
	return r, nil
}

func refuseRecovery(file, format string, args ...any) error {
	return &datadir.RefusedError{File: file, Reason: fmt.Sprintf(format, args...), Remedy: datadir.TakeAnother}
}

// rebuild makes the recovered copy.
type rebuild struct {
	*datadir.Replacement
	lg   *zap.Logger
	open func(dir string) (OfflineMachine, error)
	old  datadir.Identity

	sm   OfflineMachine
	a    *applier
	term uint64 // the highest that this member knew of
}

func (b *rebuild) run(r *Recovery) (err error) {
	if b.sm, err = b.open(b.Path); err != nil {
		return err
	}
	err = b.replay(r)
	if err == nil {
		err = b.begin(r)
	}
	if err = errors.Join(err, b.sm.Close()); err != nil {
		return err
	}
	if err := b.verify(r); err != nil {
		return fmt.Errorf("verify the recovered directory: %w", err)
	}
	return nil
}

// replay applies the whole log to the copied state.
func (b *rebuild) replay(r *Recovery) error {
	d, state, err := datadir.OpenLog(b.lg, b.Path, datadir.Owner{MemberID: b.old.MemberID, ClusterID: b.old.ClusterID})
	if err != nil {
		return err
	}
	cfg := &Config{ID: b.old.MemberID, ClusterID: b.old.ClusterID, Dir: b.Path, StateMachine: b.sm}
	b.a, err = recoverState(cfg, d, &state)
	if err == nil {
		err = b.applyAll(state.Entries)
	}
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	if b.a.index == 0 {
		return refuseRecovery(r.Dir, "this member never received any state from its cluster")
	}
	_, term, err := positionOf(b.sm)
	if err != nil {
		return err
	}
	r.Index, r.Term, r.Commit, r.TornTail = b.a.index, term, state.HardState.GetCommit(), state.Repaired
	b.term = max(state.HardState.GetTerm(), term)
	return b.describe(r)
}

// applyAtOnce bounds the entries of one apply, and with them its memory.
const applyAtOnce = 256

func (b *rebuild) applyAll(entries []*raftpb.Entry) error {
	for len(entries) > 0 && entries[0].GetIndex() <= b.a.index {
		entries = entries[1:]
	}
	for len(entries) > 0 {
		n := min(len(entries), applyAtOnce)
		if _, err := b.a.apply([]applyWork{{entries: entries[:n]}}); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (b *rebuild) describe(r *Recovery) error {
	for _, m := range b.a.roster.Membership().Members {
		if m.ID == b.old.MemberID {
			r.Member = m
		} else {
			r.Lost = append(r.Lost, m)
		}
	}
	if r.Member.ID == 0 {
		return refuseRecovery(r.Dir, "the recovered state does not list member %d as a member of the cluster", b.old.MemberID)
	}
	return nil
}

// begin replaces the membership in the state and begins the new log. The term is
// above every term that this member knew of, and the index follows the log, so
// that indexes and terms go on growing.
func (b *rebuild) begin(r *Recovery) error {
	id := b.old
	if id.Original == 0 {
		id.Original = id.ClusterID
	}
	id.ClusterID, id.Nonce, id.Founding = r.NewCluster, datadir.NewNonce(), nil
	if r.Stale {
		id.State = datadir.StateAdmitted // the cluster that refused it is left behind
	}
	self := r.Member
	self.Learner, self.KeepLearner, self.Nonce = false, false, id.Nonce
	next := b.a.roster.Alone(id.ClusterID, self)
	index, term := r.Index+1, b.term+1
	if err := b.sm.Apply([]Entry{{Index: index, Term: term, Records: b.a.roster.RecordsFor(next)}}); err != nil {
		return fmt.Errorf("write the new membership: %w", err)
	}
	if err := b.ResetLog(id); err != nil {
		return err
	}
	return b.newLog(roster.NewSnapshot(index, term, next.Membership()), id)
}

func (b *rebuild) newLog(s *raftpb.Snapshot, id datadir.Identity) error {
	d, _, err := datadir.OpenLog(b.lg, b.Path, datadir.Owner{MemberID: id.MemberID, ClusterID: id.ClusterID})
	if err != nil {
		return err
	}
	if err = b.writeBody(d.BodyPath(s.GetMetadata().GetIndex())); err == nil {
		err = d.SaveSnapshot(s)
	}
	return errors.Join(err, d.Close())
}

// writeBody writes the state beside the log if nothing else keeps it, that is,
// for an engine in memory.
func (b *rebuild) writeBody(path string) error {
	durable, err := b.sm.Durable()
	if err != nil {
		return err
	}
	if durable != nil {
		return durable.Close()
	}
	v, err := b.sm.View()
	if err != nil {
		return err
	}
	_, err = datadir.WriteBody(path, v)
	return errors.Join(err, v.Close())
}

// verify opens the copy as a start would.
func (b *rebuild) verify(r *Recovery) error {
	d, state, err := datadir.OpenLog(b.lg, b.Path, datadir.Owner{MemberID: r.Member.ID, ClusterID: r.NewCluster})
	if err != nil {
		return err
	}
	sm, err := b.open(b.Path)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	cfg := &Config{ID: r.Member.ID, ClusterID: r.NewCluster, Dir: b.Path, StateMachine: sm}
	a, err := recoverState(cfg, d, &state)
	if err == nil {
		m := a.roster.Membership()
		if voters := m.Voters(); a.index != r.Index+1 || m.ClusterID != r.NewCluster || len(m.Members) != 1 || len(voters) != 1 || voters[0] != r.Member.ID {
			err = fmt.Errorf("unexpected state at entry %d with members %+v", a.index, m)
		}
	}
	return errors.Join(err, sm.Close(), d.Close())
}

// Abandon drops the recovery and leaves the directory as it was.
func (r *Recovery) Abandon() error { return r.replacement.Abandon() }

// Complete puts the copy into the directory's place. From then on there is no
// way back but the files in Backup.
func (r *Recovery) Complete() error { return r.replacement.Complete() }
