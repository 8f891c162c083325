package raftnode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/peers"
)

// A bootstrapped cluster begins with a snapshot at this index, the same on
// every member: the initial membership, as if it had been the first log entry.
const (
	InitialIndex = 1
	initialTerm  = 1
)

// Open brings a member up to where its disk left it, or bootstraps it, without
// starting anything. A *datadir.RefusedError means that the directory is damaged in a
// way that must not be guessed about.
func Open(cfg Config) (*Replica, error) {
	cfg.setDefaults()
	if !limits.ValidMemberID(cfg.ID) {
		return nil, fmt.Errorf("%w: id %d is not between 1 and 2^53-1", ErrBadMember, cfg.ID)
	}
	d, state, err := datadir.OpenLog(cfg.Logger, cfg.Dir, datadir.Owner{MemberID: cfg.ID, ClusterID: cfg.ClusterID})
	if err != nil {
		return nil, err
	}
	n, err := assemble(&cfg, d, state)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return n, nil
}

// assemble joins the parts around what the disk holds.
func assemble(cfg *Config, d *datadir.Log, state datadir.LogState) (*Replica, error) {
	if err := bootstrap(cfg, d, &state); err != nil {
		return nil, err
	}
	cfg.StateMachine = observedMachine{cfg.StateMachine, cfg.Observer}
	a, err := recoverState(cfg, d, &state)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	n := &Replica{
		cfg:         *cfg,
		lg:          cfg.Logger,
		disk:        d,
		writes:      observedDisk{d, cfg.Observer},
		observer:    cfg.Observer,
		log:         newLogStore(state.Snapshot, raisedCommit(state.HardState, a.index), state.Entries, a.roster.membership().confState()),
		applier:     a,
		proposeC:    make(chan *proposal, 4096),
		readC:       make(chan *readRequest, 4096),
		confChangeC: make(chan *changeRequest, 16),
		callC:       make(chan func(*core), 16),
		receiveC:    make(chan *raftpb.Message, 1024),
		events:      newMailbox[event](),
		appendWork:  newMailbox[appendJob](),
		applyWork:   newMailbox[applyWork](),
		peersC:      make(chan *Membership, 1),
		sendC:       make(chan *raftpb.Message, 4),
		campaign:    time.NewTimer(time.Hour), // until the core says otherwise
		appending:   moment{base: now},
		leaderSeen:  moment{base: now},
		ticked:      moment{base: now},
		ready:       make(chan struct{}),
		stopped:     make(chan struct{}),
	}
	n.received = &receivedBodies{n: n}
	n.waiters.advance(a.index)
	if n.snapshots, err = newSnapshotter(n, state.Snapshot.GetMetadata().GetIndex()); err != nil {
		return nil, err
	}
	n.snapshots.noteApplied(a.index)
	n.snapshots.appended.Store(int64(entryBytes(state.Entries)))
	if err := n.connectCore(a); err != nil {
		return nil, err
	}
	return n, nil
}

// connectCore makes the core and the transport, which need each other.
func (n *Replica) connectCore(a *applier) (err error) {
	cfg := &n.cfg
	n.core, err = newCore(coreConfig{
		id: cfg.ID,
		start: start{
			Member: cfg.ID, Nonce: cfg.Nonce, Boot: datadir.NewNonce(), Name: cfg.Name,
			PeerURLs: cfg.PeerURLs, ClientURLs: cfg.ClientURLs, Version: payloadVersion,
		},
		electionTicks:  cfg.ElectionTicks,
		heartbeatTicks: 1,
		maxBatchBytes:  cfg.MaxBatchBytes,
		maxQueueBytes:  cfg.MaxQueueBytes,
		log:            n.log,
		applied:        a.index,
		membership:     a.roster.membership(),
		logger:         newRaftLogger(cfg.Logger),

		electionTimeout: time.Duration(cfg.ElectionTicks) * cfg.TickInterval,
		random:          rand.Int64N,
	})
	if err != nil {
		return err
	}
	n.transport, err = peers.New(peers.Config{
		ID:          cfg.ID,
		ClusterID:   cfg.ClusterID,
		PeerURLs:    cfg.PeerURLs,
		Snapshotter: n.disk.Snapshotter(),
		Logger:      cfg.Logger,
		Security:    cfg.Security,
		Receiver:    receiver{n},
		Bodies:      n.received,
		Lookup:      cfg.Lookup,
	})
	if err != nil {
		return err
	}
	n.monitor = newLeaderMonitor(n)
	n.publish()
	initial := n.core.membership
	if len(initial.Members) == 0 {
		initial = &Membership{ClusterID: cfg.ClusterID, Members: cfg.Known}
	}
	n.follow(initial)
	return nil
}

// bootstrap gives an empty log its first snapshot: the initial membership. A
// crash in the middle leaves an empty log, and it is done again.
func bootstrap(cfg *Config, d *datadir.Log, state *datadir.LogState) error {
	if len(cfg.Initial) == 0 || state.Snapshot != nil || len(state.Entries) > 0 {
		return nil
	}
	s := newSnapshot(InitialIndex, initialTerm, newRoster(cfg.ClusterID, cfg.Initial).membership())
	// It commits the snapshot too, and keeps a term and vote that are there: a
	// member that joined late may have voted before its log had an entry.
	if err := d.SaveSnapshot(s); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	state.Snapshot, state.HardState = s, d.HardState()
	return nil
}

// recoverState brings the state machine to where the log begins, at least.
func recoverState(cfg *Config, d *datadir.Log, state *datadir.LogState) (*applier, error) {
	a := &applier{self: cfg.ID, sm: cfg.StateMachine, roster: newRoster(cfg.ClusterID, nil)}
	index, term, err := positionOf(cfg.StateMachine)
	if err != nil {
		return nil, err
	}
	meta := state.Snapshot.GetMetadata()
	if last := meta.GetIndex() + uint64(len(state.Entries)); index > last {
		return nil, refuseStore(cfg, "the store contains entry %d, but the log ends at %d", index, last)
	}
	switch {
	case index == 0 && state.Snapshot == nil:
		return a, nil // joining: everything comes from the leader
	case index >= meta.GetIndex():
		return a, a.load(index, term)
	case meta.GetIndex() == InitialIndex:
		return a, a.begin(cfg, state.Snapshot)
	}
	return a, a.recoverBody(cfg, d, meta)
}

// raisedCommit returns the hard state with its commit index at least at the
// applied one: saves that only change the commit index are not fsynced, so
// after a crash it may lie behind what the store has, and raft refuses that.
func raisedCommit(hs *raftpb.HardState, applied uint64) *raftpb.HardState {
	if hs.GetCommit() >= applied {
		return hs
	}
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(applied)}
}

// recoverBody restores the state from the body of the snapshot that the log
// begins with: an engine in memory, or a crash before a received snapshot was
// installed.
func (a *applier) recoverBody(cfg *Config, d *datadir.Log, meta *raftpb.SnapshotMetadata) error {
	f, err := os.Open(d.BodyPath(meta.GetIndex()))
	if errors.Is(err, os.ErrNotExist) {
		return refuseStore(cfg, "the log begins after entry %d, which the store does not contain", meta.GetIndex())
	}
	if err != nil {
		return fmt.Errorf("open snapshot body: %w", err)
	}
	defer f.Close()
	if err := a.sm.Restore(f); err != nil {
		return fmt.Errorf("restore snapshot %d: %w", meta.GetIndex(), err)
	}
	return a.load(meta.GetIndex(), meta.GetTerm())
}

// begin puts the initial membership into an empty state machine.
func (a *applier) begin(cfg *Config, s *raftpb.Snapshot) error {
	data, err := decodeSnapshotData(s.GetData())
	if err != nil {
		return err
	}
	a.roster = newRoster(data.ClusterID, data.Members)
	a.roster.membership()
	a.index = InitialIndex
	err = cfg.StateMachine.Apply([]Entry{{Index: InitialIndex, Term: initialTerm, Records: a.roster.records()}})
	if err != nil {
		return fmt.Errorf("begin the state: %w", err)
	}
	return nil
}

// entryBytes is what the entries count towards the next checkpoint.
func entryBytes(entries []*raftpb.Entry) (total int) {
	for _, e := range entries {
		total += len(e.GetData())
	}
	return total
}

func positionOf(sm StateMachine) (index, term uint64, err error) {
	v, err := sm.View()
	if err != nil {
		return 0, 0, fmt.Errorf("read the state's position: %w", err)
	}
	index, term = v.Position()
	return index, term, v.Close()
}

func refuseStore(cfg *Config, format string, args ...any) error {
	return &datadir.RefusedError{File: cfg.Dir, Reason: fmt.Sprintf(format, args...), Remedy: datadir.RemoveAndReAdd}
}

// receiver is the node as the transport sees it. rafthttp may call it from
// inside Send, that is from the node loop itself, so it only notes.
type receiver struct{ n *Replica }

func (r receiver) Process(ctx context.Context, m *raftpb.Message) error {
	select {
	case r.n.receiveC <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.n.stopped:
		return ErrStopping
	}
}

func (r receiver) IsRemoved(id uint64) bool { return r.n.Membership().Removed[id] }

// Unreachable is looked at with the next tick: there may be one for each
// message that could not be sent.
func (r receiver) Unreachable(id uint64) { r.n.unreachable.Store(id, true) }

func (r receiver) SnapshotStatus(id uint64, err error) {
	r.n.snapshots.noteSent(id, err)
	r.n.events.put(event{snapshotTo: id, snapshotOK: err == nil})
}
