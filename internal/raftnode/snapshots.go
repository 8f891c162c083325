package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
)

// snapshotter makes checkpoints and outgoing snapshot bodies, off the path of
// writes.
//
// A checkpoint says: the state up to index i survives a crash without the
// log. It is a small .snap file and a WAL record, without a body where the
// engine itself keeps the state (its durable part is the body), with one
// where it does not. Only what lies before a checkpoint is released from the
// log.
//
// A body for a follower is built when raft asks for one, from a view pinned in
// constant time, into a file of its own; raft is offered the snapshot once the
// file is complete, and the log after it stays in memory until the transfers
// that need it have ended.
type snapshotter struct {
	n        *Replica
	outgoing string // directory of bodies for followers

	applied  atomic.Uint64
	appended atomic.Int64 // bytes of log written since the start
	// transfers under way, by member.
	transfers sync.Map

	// Owned by run.
	checkpoint      uint64 // index of the last one
	checkpointBytes int64  // appended at that time
	checkpointTime  time.Time
	flushed         uint64 // applied index when a flush was last asked for
	bodyBytes       int64  // size of the last checkpoint's body
	offered         *offeredBody
}

// offeredBody is a complete body that raft may send.
type offeredBody struct {
	snapshot *raftpb.Snapshot
	path     string
	size     int64
	used     time.Time
	sending  atomic.Int32
}

const (
	// snapshotPace is how often the snapshotter looks for work.
	snapshotPace = 200 * time.Millisecond
	// bodyLifetime is how long an unused body waits for another follower.
	bodyLifetime = 30 * time.Second
	// pinnedFactor bounds the log kept for a transfer, in catch-up sizes.
	pinnedFactor = 4
	// catchUpEntries bounds the entries kept in memory beside their bytes.
	catchUpEntries = 50_000
	keptSnapshots  = 2
)

func newSnapshotter(n *Replica, checkpoint uint64) (*snapshotter, error) {
	s := &snapshotter{n: n, outgoing: filepath.Join(n.cfg.Dir, "outgoing"), checkpoint: checkpoint, checkpointTime: time.Now()}
	// Bodies of the process before serve nobody any more.
	if err := os.RemoveAll(s.outgoing); err != nil {
		return nil, fmt.Errorf("remove old snapshot bodies: %w", err)
	}
	if err := os.MkdirAll(s.outgoing, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for snapshot bodies: %w", err)
	}
	return s, nil
}

func (s *snapshotter) noteApplied(index uint64) { s.applied.Store(index) }

func (s *snapshotter) run(ctx context.Context) error {
	ticker := time.NewTicker(snapshotPace)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-s.n.sendC:
			s.send(m)
			continue
		case <-ticker.C:
		}
		if err := s.turn(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// turn does what is due.
func (s *snapshotter) turn(ctx context.Context) error {
	if s.n.log.wanted() {
		if err := s.buildOutgoing(); err != nil {
			return fmt.Errorf("build a snapshot for a follower: %w", err)
		}
	}
	s.expire()
	s.n.log.compact(s.applied.Load(), s.n.cfg.CatchUpBytes, catchUpEntries, s.pinned())
	return s.checkpointIfDue(ctx)
}

// pinned is the index after which the log stays for a follower that gets a
// snapshot; 0 when there is none, or when it takes so long that memory matters
// more: it then needs another snapshot.
func (s *snapshotter) pinned() uint64 {
	if _, bytes := s.n.log.sizes(); s.offered == nil || bytes > pinnedFactor*s.n.cfg.CatchUpBytes {
		return 0
	}
	return s.offered.snapshot.GetMetadata().GetIndex()
}

// expire withdraws a body that nobody has used for a while.
func (s *snapshotter) expire() {
	o := s.offered
	if o == nil || o.sending.Load() > 0 || time.Since(o.used) < bodyLifetime {
		return
	}
	s.withdraw()
}

func (s *snapshotter) withdraw() {
	s.n.log.withdrawSnapshot()
	if err := os.Remove(s.offered.path); err != nil {
		s.n.lg.Warn("cannot remove an outgoing snapshot body", zap.Error(err))
	}
	s.offered = nil
}

// buildOutgoing writes the body for a follower and offers it to raft.
func (s *snapshotter) buildOutgoing() error {
	if s.offered != nil {
		if s.offered.sending.Load() > 0 {
			return nil // the log after it is still there; raft asks again
		}
		s.withdraw()
	}
	view, err := s.n.cfg.StateMachine.View()
	if err != nil {
		return err
	}
	defer view.Close()
	snapshot, err := describe(view)
	if err != nil {
		return err
	}
	index := snapshot.GetMetadata().GetIndex()
	path := filepath.Join(s.outgoing, fmt.Sprintf("%016x.body", index))
	begin := time.Now()
	size, err := datadir.WriteBody(path, view)
	s.n.observer.Snapshot(SnapshotBuild, time.Since(begin), size, err)
	if err != nil {
		return err
	}
	s.offered = &offeredBody{snapshot: snapshot, path: path, size: size, used: time.Now()}
	s.n.log.offerSnapshot(snapshot)
	s.n.lg.Info("built a snapshot for a follower", zap.Uint64("index", index), zap.Int64("bytes", size), zap.Duration("took", time.Since(begin)))
	return nil
}

// send starts the transfer of the offered body. Its end reaches raft as a
// snapshot status, whatever happens.
func (s *snapshotter) send(m *raftpb.Message) {
	o := s.offered
	fail := func(reason string, err error) {
		s.n.observer.Snapshot(SnapshotSend, 0, 0, errNotSent)
		s.n.lg.Warn("cannot send a snapshot", zap.Uint64("to", m.GetTo()), zap.String("reason", reason), zap.Error(err))
		s.n.events.put(event{snapshotTo: m.GetTo()})
	}
	if o == nil || o.snapshot.GetMetadata().GetIndex() != m.GetSnapshot().GetMetadata().GetIndex() {
		fail("its body is gone", nil)
		return
	}
	if !hasMember(o.snapshot, m.GetTo()) {
		// It is from before the member was added, who would drop it. Without it
		// raft asks for another.
		s.withdraw()
		fail("it does not know its receiver", nil)
		return
	}
	f, err := os.Open(o.path)
	if err != nil {
		fail("its body cannot be opened", err)
		return
	}
	o.used = time.Now()
	o.sending.Add(1)
	s.transfers.Store(m.GetTo(), transfer{begin: o.used, bytes: o.size})
	s.n.transport.SendSnapshot(m, &countedBody{File: f, closed: func() { o.sending.Add(-1) }}, o.size)
}

func hasMember(s *raftpb.Snapshot, id uint64) bool {
	cs := s.GetMetadata().GetConfState()
	return slices.Contains(cs.GetVoters(), id) || slices.Contains(cs.GetLearners(), id)
}

var errNotSent = errors.New("snapshot not sent")

// transfer is a body on its way to a member.
type transfer struct {
	begin time.Time
	bytes int64
}

// noteSent hears from the transport how a transfer ended.
func (s *snapshotter) noteSent(id uint64, err error) {
	t, known := s.transfers.LoadAndDelete(id)
	if !known {
		return
	}
	if err != nil {
		s.n.lg.Warn("snapshot not sent", zap.Uint64("to", id), zap.Error(err))
	}
	s.n.observer.Snapshot(SnapshotSend, time.Since(t.(transfer).begin), t.(transfer).bytes, err)
}

// countedBody tells when a transfer is over.
type countedBody struct {
	*os.File
	closed func()
	once   atomic.Bool
}

func (b *countedBody) Close() error {
	if b.once.CompareAndSwap(false, true) {
		b.closed()
	}
	return b.File.Close()
}

// checkpointIfDue flushes and records by bytes of log and by time, so that
// the log stays short and a restart has little to replay.
func (s *snapshotter) checkpointIfDue(ctx context.Context) error {
	applied := s.applied.Load()
	bytes := s.appended.Load() - s.checkpointBytes
	elapsed := time.Since(s.checkpointTime)
	if applied <= s.checkpoint || bytes < s.n.cfg.CheckpointBytes && elapsed < s.n.cfg.CheckpointInterval {
		return nil
	}
	view, err := s.n.cfg.StateMachine.Durable()
	if err != nil {
		return fmt.Errorf("read the durable state: %w", err)
	}
	if view == nil {
		// A body as large as the log it releases at most doubles what is written.
		if bytes < max(s.n.cfg.CheckpointBytes, s.bodyBytes) {
			return nil
		}
		return s.checkpointWithBody(ctx)
	}
	defer view.Close()
	if index, _ := view.Position(); index <= s.checkpoint {
		if s.flushed <= s.checkpoint {
			s.flushed = applied
			return s.n.cfg.StateMachine.Flush() // recorded on a later turn
		}
		return nil
	}
	return s.record(ctx, view)
}

// checkpointWithBody makes the state durable itself, for an engine that keeps
// nothing on disk.
func (s *snapshotter) checkpointWithBody(ctx context.Context) error {
	view, err := s.n.cfg.StateMachine.View()
	if err != nil {
		return err
	}
	defer view.Close()
	index, _ := view.Position()
	if s.bodyBytes, err = datadir.WriteBody(s.n.disk.BodyPath(index), view); err != nil {
		return err
	}
	return s.record(ctx, view)
}

// record has the append loop write the checkpoint down.
func (s *snapshotter) record(ctx context.Context, view View) error {
	snapshot, err := describe(view)
	if err != nil {
		return err
	}
	bytes, begin := s.appended.Load(), time.Now()
	job := appendJob{checkpoint: snapshot, done: make(chan error, 1)}
	s.n.appendWork.put(job)
	select {
	case err = <-job.done:
	case <-ctx.Done():
		return nil
	}
	s.n.observer.Snapshot(SnapshotCheckpoint, time.Since(begin), s.bodyBytes, err)
	if err != nil {
		return fmt.Errorf("record a checkpoint: %w", err)
	}
	s.checkpoint = snapshot.GetMetadata().GetIndex()
	s.checkpointBytes, s.checkpointTime = bytes, time.Now()
	return nil
}

// recordCheckpoint runs in the append loop.
func (n *Replica) recordCheckpoint(s *raftpb.Snapshot) error {
	index := s.GetMetadata().GetIndex()
	if err := n.disk.SaveSnapshot(s); err != nil {
		return err
	}
	n.lg.Debug("checkpoint", zap.Uint64("index", index))
	return n.disk.Purge(keptSnapshots)
}

// snapshotData is the Data of a raft snapshot: the membership at its index.
type snapshotData struct {
	Version   int      `json:"version"`
	ClusterID uint64   `json:"cluster_id"`
	Members   []Member `json:"members"`
	Removed   []uint64 `json:"removed,omitempty"`
}

const snapshotDataVersion = 1

// describe makes raft's small description of a view.
func describe(v View) (*raftpb.Snapshot, error) {
	records, err := v.Records()
	if err != nil {
		return nil, fmt.Errorf("read the membership: %w", err)
	}
	r, err := loadRoster(records)
	if err != nil {
		return nil, err
	}
	index, term := v.Position()
	return newSnapshot(index, term, r.membership()), nil
}

func newSnapshot(index, term uint64, m *Membership) *raftpb.Snapshot {
	data := snapshotData{Version: snapshotDataVersion, ClusterID: m.ClusterID, Members: m.Members}
	data.Removed = slices.Sorted(maps.Keys(m.Removed)) // the same bytes on every member
	b, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("raftnode: encode membership: %v", err)) // plain data always encodes
	}
	return &raftpb.Snapshot{
		Data:     b,
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: m.confState()},
	}
}

func decodeSnapshotData(b []byte) (snapshotData, error) {
	var d snapshotData
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("snapshot data: %w", err)
	}
	if d.Version != snapshotDataVersion {
		return d, fmt.Errorf("snapshot data has version %d, this binary knows %d: upgrade it", d.Version, snapshotDataVersion)
	}
	return d, nil
}
