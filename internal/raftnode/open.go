package raftnode

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

// A bootstrapped cluster begins with a snapshot at this index, the same on every
// member: the initial membership, as if that had been the first log entry.
const (
	InitialIndex = 1
	initialTerm  = 1
)

// Open brings a replica up to where its disk left it, or bootstraps it, without
// starting anything. A *datadir.RefusedError means that the directory is damaged
// in a way that leaves nothing to guess.
func Open(cfg Config) (*Replica, error) {
	cfg.setDefaults()
	if !limits.ValidMemberID(cfg.ID) {
		return nil, fmt.Errorf("%w: id %d is not between 1 and 2^53-1", roster.ErrBadMember, cfg.ID)
	}
	d, state, err := datadir.OpenLog(cfg.Logger, cfg.Dir, datadir.Owner{MemberID: cfg.ID, ClusterID: cfg.ClusterID})
	if err != nil {
		return nil, err
	}
	r, err := assemble(&cfg, d, state)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return r, nil
}

// assemble builds the parts around what the disk holds.
func assemble(cfg *Config, d *datadir.Log, state datadir.LogState) (*Replica, error) {
	if err := bootstrap(cfg, d, &state); err != nil {
		return nil, err
	}
	cfg.StateMachine = observedMachine{cfg.StateMachine, cfg.Observer}
	a, err := recoverState(cfg, d, &state)
	if err != nil {
		return nil, err
	}
	if id := a.roster.Membership().ClusterID; id != cfg.ClusterID {
		return nil, datadir.RefuseForeignState(cfg.Dir, id, cfg.ClusterID)
	}
	now := time.Now()
	r := &Replica{
		cfg:         *cfg,
		lg:          cfg.Logger,
		disk:        d,
		log:         raftlog.New(state.Snapshot, raisedCommit(state.HardState, a.index), state.Entries, a.roster.Membership().ConfState()),
		applier:     a,
		waiting:     newWaitingRoom(cfg.MaxQueueBytes),
		readC:       make(chan *readRequest, 4096),
		confChangeC: make(chan *changeRequest, 16),
		callC:       make(chan func(*core), 16),
		receiveC:    make(chan *raftpb.Message, 1024),
		events:      newMailbox[event](),
		campaign:    time.NewTimer(time.Hour), // until the core says otherwise
		ticked:      moment{base: now},
		opened:      now,
		ready:       make(chan struct{}),
		stopped:     make(chan struct{}),
	}
	r.received = &receivedBodies{cfg: &r.cfg, disk: d}
	r.waiters.advance(a.index) // reads may ask for what was applied before the start
	if r.snapshots, err = newSnapshotter(&r.cfg, r.log); err != nil {
		return nil, err
	}
	r.snapshots.applied.Store(a.index)
	r.log.NewSpoolFile = r.snapshots.newSpoolFile
	r.log.MaxBytes, r.log.MaxEntries = cfg.CatchUpBytes, catchUpEntries
	r.log.HardBytes = hardFactor*cfg.CatchUpBytes + limits.MaxUncommittedBytes
	r.checkpoints = &checkpointer{cfg: &r.cfg, disk: d, snapshots: r.snapshots, index: state.Snapshot.GetMetadata().GetIndex(), at: now, looks: repeat.NewLooks(lookPace)}
	// What was read at the start counts, or a node that restarts often would never
	// release its log.
	r.checkpoints.appended.Store(int64(entryBytes(state.Entries)))
	if err := r.connectCore(); err != nil {
		return nil, err
	}
	r.connectLoops()
	r.publish()
	initial := r.core.membership
	if len(initial.Members) == 0 { // joining: what the leader sends must be answered
		initial = &roster.Membership{ClusterID: cfg.ClusterID, Members: cfg.Known}
	}
	r.membership.Store(initial)
	r.connector.tell(initial)
	return r, nil
}

// connectCore makes the core and the transport.
func (r *Replica) connectCore() (err error) {
	cfg := &r.cfg
	// It tells a copy of this process's start entry from the start of another
	// process of the same directory.
	boot := cmp.Or(cfg.Boot, datadir.NewNonce())
	r.core, err = newCore(coreConfig{
		id: cfg.ID,
		start: roster.Start{
			Member: cfg.ID, Nonce: cfg.Nonce, Boot: boot, Starts: cfg.Starts, Name: cfg.Name,
			PeerURLs: cfg.PeerURLs, ClientURLs: cfg.ClientURLs, Faces: cfg.Faces, Version: roster.PayloadVersion,
		},
		electionTicks:  cfg.ElectionTicks,
		heartbeatTicks: 1,

		replaceTicks:    cfg.ticks(cfg.ReplaceAfter),
		removeDeadTicks: cfg.ticks(cfg.RemoveDeadAfter),

		maxBatchBytes: cfg.MaxBatchBytes,
		maxQueueBytes: cfg.MaxQueueBytes,
		log:           r.log,
		applied:       r.applier.index,
		membership:    r.applier.roster.Membership(),
		logger:        newRaftLogger(cfg.Logger),

		electionTimeout: time.Duration(cfg.ElectionTicks) * cfg.TickInterval,
		random:          rand.Int64N,
	})
	if err != nil {
		return err
	}
	r.transport, err = peers.New(peers.Config{
		ID:          cfg.ID,
		ClusterID:   cfg.ClusterID,
		Boot:        boot,
		Dir:         cfg.Dir,
		PeerURLs:    cfg.PeerURLs,
		Snapshotter: r.disk.Snapshotter(),
		Logger:      cfg.Logger,
		Security:    cfg.Security,
		Receiver:    receiver{r},
		Bodies:      r.received,
		Lookup:      cfg.Lookup,
	})
	return err
}

// connectLoops makes the loops and joins them.
func (r *Replica) connectLoops() {
	r.refused.lg = r.lg
	r.applies = &applyLoop{
		lg: r.lg,
		sm: r.cfg.StateMachine, applier: r.applier, events: r.events, waiters: &r.waiters, members: &r.membership,
		snapshots: r.snapshots, refused: &r.refused, work: newMailbox[applyWork](),
	}
	r.appends = &appendLoop{
		self: r.cfg.ID, lg: r.lg, disk: r.disk, writes: observedDisk{r.disk, r.cfg.Observer}, log: r.log,
		transport: r.transport, events: r.events, applies: r.applies.work, checkpoints: r.checkpoints,
		work: newMailbox[appendJob](), saving: moment{base: time.Now()},
	}
	r.checkpoints.record = r.appends.record
	r.compactor = &compactor{cfg: &r.cfg, log: r.log, looks: repeat.NewLooks(lookPace)}
	r.snapshots.transmit = r.transport.SendSnapshot
	r.snapshots.reportToRaft = func(to uint64, ok bool) { r.events.put(event{snapshotTo: to, snapshotOK: ok}) }
	r.snapshots.tell = r.tell
	r.snapshots.replica = func() catchup.Place {
		p := r.Position()
		return catchup.Place{Leads: p.Leader == r.cfg.ID, Term: p.Term, Members: r.Membership()}
	}
	r.connector = newConnector(r.cfg.ID, r.lg, r.transport)
	r.monitor = r.transport.NewLeaderMonitor(func(id uint64) []string {
		m, _ := r.Membership().Member(id)
		return m.PeerURLs
	}, func(id uint64) { r.events.put(event{suspect: id}) })
}

// bootstrap gives an empty log its first snapshot: the initial membership. A
// crash in the middle leaves an empty log, and the next start does it again.
func bootstrap(cfg *Config, d *datadir.Log, state *datadir.LogState) error {
	if len(cfg.Initial) == 0 || state.Snapshot != nil || len(state.Entries) > 0 {
		return nil
	}
	initial := roster.New(cfg.ClusterID, cfg.Initial)
	s := roster.NewSnapshot(InitialIndex, initialTerm, initial.Membership())
	if cfg.Seed != nil {
		var err error
		if s, err = plantSeed(cfg, d, initial); err != nil {
			return fmt.Errorf("begin with the state of a backup: %w", err)
		}
	}
	// This also commits the snapshot. It keeps a term and a vote that are there:
	// a member that started late may have voted before its log had an entry.
	if err := d.SaveSnapshot(s); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	state.Snapshot, state.HardState = s, d.HardState()
	return nil
}

// plantSeed puts the state of a backup into the state machine, with the initial
// members in place of those of the old cluster: their origins have gone with it. The
// log begins after the backup's last entry and not at InitialIndex, because a log that
// begins there promises that the whole state can be built from it. The state is written
// as a body too, so that the log never begins with what only memory has.
func plantSeed(cfg *Config, d *datadir.Log, initial *roster.Roster) (*raftpb.Snapshot, error) {
	sm := cfg.StateMachine
	if err := cfg.Seed(); err != nil {
		return nil, err
	}
	old := &applier{sm: sm}
	index, term, err := positionOf(sm)
	if err == nil {
		err = old.load(index, term)
	}
	if err != nil {
		return nil, err
	}
	index, term = max(index, InitialIndex)+1, term+1
	if err := sm.Apply([]Entry{{Index: index, Term: term, Records: old.roster.RecordsFor(initial)}}); err != nil {
		return nil, err
	}
	v, err := sm.View()
	if err != nil {
		return nil, err
	}
	_, err = datadir.WriteBody(d.BodyPath(index), v)
	return roster.NewSnapshot(index, term, initial.Membership()), errors.Join(err, v.Close())
}

// recoverState brings the state machine at least to where the log begins. The
// entries after that are applied through the ordinary path.
func recoverState(cfg *Config, d *datadir.Log, state *datadir.LogState) (*applier, error) {
	a := &applier{self: cfg.ID, sm: cfg.StateMachine, roster: roster.New(cfg.ClusterID, nil)}
	index, term, err := positionOf(cfg.StateMachine)
	if err != nil {
		return nil, err
	}
	meta := state.Snapshot.GetMetadata()
	if err := datadir.JudgeStore(cfg.Dir, InitialIndex, index, meta.GetIndex(), meta.GetIndex()+uint64(len(state.Entries))); err != nil {
		if errors.Is(err, datadir.ErrStoreBehind) && cfg.FetchBody != nil {
			return a, a.fetchBody(cfg, d, state)
		}
		return nil, err
	}
	switch {
	case index == 0 && state.Snapshot == nil:
		return a, nil // joining: everything will come from the leader
	case index >= meta.GetIndex():
		return a, a.load(index, term)
	case meta.GetIndex() == InitialIndex:
		return a, a.begin(cfg, state.Snapshot)
	}
	err = a.recoverBody(cfg, d, meta)
	var damaged *datadir.RefusedError
	if errors.As(err, &damaged) && cfg.FetchBody != nil {
		err = a.fetchBody(cfg, d, state)
	}
	return a, err
}

// fetchBody fills an empty store from another member. Raft has no part in that: the
// log and the hard state of this member are whole, and only what they led to is
// lost. The body is committed state, so it may also take the place of a log that
// it is ahead of, like the body of a received snapshot.
//
// A crash in between leaves a store and a log that do not fit. The directory knows
// that its store is being rebuilt, and the next start begins anew.
func (a *applier) fetchBody(cfg *Config, d *datadir.Log, state *datadir.LogState) error {
	meta := state.Snapshot.GetMetadata()
	data, err := roster.DecodeSnapshotData(state.Snapshot.GetData())
	if err != nil {
		return err
	}
	path := filepath.Join(cfg.Dir, "snap", "rebuild.tmp")
	if err := cfg.FetchBody(slices.Concat(data.Members, roster.Named(state.Entries), cfg.Known), meta.GetIndex(), path); err != nil {
		return fmt.Errorf("rebuild the store: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("rebuild the store: %w", err)
	}
	defer f.Close()
	if err := a.sm.Restore(f); err != nil {
		return fmt.Errorf("rebuild the store: %w", err)
	}
	index, term, err := positionOf(a.sm)
	if err != nil {
		return err
	}
	if err := a.load(index, term); err != nil {
		return err
	}
	ms := a.roster.Membership()
	if ms.ClusterID != cfg.ClusterID || index < meta.GetIndex() {
		return fmt.Errorf("rebuild the store: got the state of cluster %016x at entry %d, want cluster %016x at entry %d or later",
			ms.ClusterID, index, cfg.ClusterID, meta.GetIndex())
	}
	var rest []*raftpb.Entry // of a log that leads on from there
	if at := index - meta.GetIndex(); at == 0 || at <= uint64(len(state.Entries)) && state.Entries[at-1].GetTerm() == term {
		rest = state.Entries[at:]
	}
	// The body is kept: an engine in memory has nothing else to start from next time.
	if err := d.KeepBody(path, index); err != nil {
		return err
	}
	s := roster.NewSnapshot(index, term, ms)
	if err := d.SaveSnapshot(s); err != nil {
		return err
	}
	state.Snapshot, state.Entries, state.HardState = s, rest, d.HardState()
	return nil
}

// raisedCommit returns the hard state with a commit index of at least applied.
// Saves that only change the commit index are not synced, so after a crash it
// may be lower than what the store has, and raft refuses to start like that.
func raisedCommit(hs *raftpb.HardState, applied uint64) *raftpb.HardState {
	if hs.GetCommit() >= applied {
		return hs
	}
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(applied)}
}

// recoverBody restores the state from the body of the snapshot that the log
// begins with. That is the ordinary start of an engine in memory, and otherwise
// what a crash leaves before a received snapshot was installed.
func (a *applier) recoverBody(cfg *Config, d *datadir.Log, meta *raftpb.SnapshotMetadata) error {
	path := d.BodyPath(meta.GetIndex())
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open snapshot body: %w", err)
	}
	defer f.Close()
	if err := a.sm.Restore(f); err != nil {
		if damage := datadir.JudgeBody(cfg.Dir, meta.GetIndex(), func(r io.Reader) error { _, err := cfg.VerifyBody(r); return err }); damage != nil {
			return damage
		}
		return fmt.Errorf("restore snapshot %d: %w", meta.GetIndex(), err)
	}
	return a.load(meta.GetIndex(), meta.GetTerm())
}

// begin puts the initial membership into an empty state machine.
func (a *applier) begin(cfg *Config, s *raftpb.Snapshot) error {
	data, err := roster.DecodeSnapshotData(s.GetData())
	if err != nil {
		return err
	}
	a.roster = roster.New(data.ClusterID, data.Members)
	a.index = InitialIndex
	err = cfg.StateMachine.Apply([]Entry{{Index: InitialIndex, Term: initialTerm, Records: a.roster.Records()}})
	if err != nil {
		return fmt.Errorf("write the initial membership: %w", err)
	}
	return nil
}

// entryBytes returns what the entries count towards the next checkpoint.
func entryBytes(entries []*raftpb.Entry) (total int) {
	for _, e := range entries {
		total += len(e.GetData())
	}
	return total
}

func positionOf(sm StateMachine) (index, term uint64, err error) {
	v, err := sm.View()
	if err != nil {
		return 0, 0, fmt.Errorf("read the position of the state: %w", err)
	}
	index, term = v.Position()
	return index, term, v.Close()
}
