package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// snapshotter is the goroutine that makes checkpoints (checkpoint.go) and the
// snapshot bodies that followers get, off the path of writes. It also releases
// the log in memory, because both decide what is still needed of it.
//
// A body for a follower takes this way:
//
//	raft asks (logStore.Snapshot) and is told "temporarily unavailable"
//	→ build: the body is written to a file, from a view pinned in constant time
//	→ offer: raft gets the snapshot when it asks again, and emits MsgSnap
//	→ request, send: the transport streams the file
//	→ sent: how it ended, to the observer and, as an event, to raft
//
// Raft sends nothing else to a follower between MsgSnap and the report, so every
// path out of request and send ends in exactly one report (S2). The log after an
// offered body stays in memory until the transfers that need it have ended: a
// follower that installed the body continues from there.
//
// One body is offered at a time, and serves every follower that asks while it is
// fresh. Rejected: one body per follower, which multiplies the disk traffic when
// it hurts most, after a partition that cut off several.
//
// The functions among the fields are all that the snapshotter does to the rest
// of the replica; request, sent, applied and appended are all that the rest does
// to it.
type snapshotter struct {
	cfg      *Config
	log      *logStore
	disk     *datadir.Log
	outgoing string // directory of the bodies for followers

	// record has the append loop make a checkpoint durable, and waits for it.
	record func(ctx context.Context, s *raftpb.Snapshot) error
	// transmit sends a body and closes it. The transport reports its end to
	// sent, and to raft.
	transmit func(m *raftpb.Message, body io.ReadCloser, size int64)
	// failed tells raft that a transfer did not take place.
	failed func(to uint64)

	// requests carries MsgSnap messages from the node loop. Its capacity bounds
	// the transfers that wait.
	requests chan *raftpb.Message
	applied  atomic.Uint64 // set by the apply loop
	appended atomic.Int64  // bytes of log written since the start; added to by the append loop
	// transfers in progress, by member. The transport's goroutines take out
	// what send put in.
	transfers sync.Map

	// Owned by run.
	offered *offeredBody
	last    checkpointState
}

// offeredBody is a complete body that raft may send.
type offeredBody struct {
	snapshot *raftpb.Snapshot
	path     string
	size     int64
	used     time.Time    // when it was last sent, or built
	sending  atomic.Int32 // transfers that read it now
}

const (
	// snapshotPace is how often the snapshotter looks for work.
	snapshotPace = 200 * time.Millisecond
	// maxRequests bounds the transfers that wait.
	maxRequests = 4
	// bodyLifetime is how long an unused body waits for another follower.
	bodyLifetime = 30 * time.Second
	// pinnedFactor bounds the log kept for a transfer, in multiples of
	// Config.CatchUpBytes.
	pinnedFactor = 4
	// catchUpEntries bounds the number of entries kept in memory, beside their
	// bytes.
	catchUpEntries = 50_000
)

// newSnapshotter prepares the directory for outgoing bodies. checkpoint is the
// index of the last checkpoint on disk.
func newSnapshotter(cfg *Config, log *logStore, disk *datadir.Log, checkpoint uint64) (*snapshotter, error) {
	s := &snapshotter{
		cfg: cfg, log: log, disk: disk,
		outgoing: filepath.Join(cfg.Dir, "outgoing"),
		requests: make(chan *raftpb.Message, maxRequests),
		last:     checkpointState{index: checkpoint, at: time.Now()},
	}
	// Nobody can ask for the bodies of the previous process any more.
	if err := os.RemoveAll(s.outgoing); err != nil {
		return nil, fmt.Errorf("remove old snapshot bodies: %w", err)
	}
	if err := os.MkdirAll(s.outgoing, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory for snapshot bodies: %w", err)
	}
	return s, nil
}

// request takes a MsgSnap from raft. It never waits: if too many transfers wait
// already, it reports a failure, and raft tries again.
func (s *snapshotter) request(m *raftpb.Message) {
	select {
	case s.requests <- m:
	default:
		s.failed(m.GetTo())
	}
}

func (s *snapshotter) run(ctx context.Context) error {
	ticker := time.NewTicker(snapshotPace)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-s.requests:
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
	if s.log.wanted() {
		if err := s.build(); err != nil {
			return fmt.Errorf("build a snapshot for a follower: %w", err)
		}
	}
	s.expire()
	s.log.compact(s.applied.Load(), s.cfg.CatchUpBytes, catchUpEntries, s.pinned())
	return s.checkpointIfDue(ctx)
}

// pinned returns the index after which the log stays for a follower that gets
// the offered body; 0 if there is none. It is also 0 if the transfer takes so
// long that memory matters more; the follower then needs another snapshot.
func (s *snapshotter) pinned() uint64 {
	if _, bytes := s.log.sizes(); s.offered == nil || bytes > pinnedFactor*s.cfg.CatchUpBytes {
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
	s.log.withdrawSnapshot()
	if err := os.Remove(s.offered.path); err != nil {
		s.cfg.Logger.Warn("cannot remove an outgoing snapshot body", zap.Error(err))
	}
	s.offered = nil
}

// build writes a body for followers and offers it to raft.
func (s *snapshotter) build() error {
	if s.offered != nil {
		if s.offered.sending.Load() > 0 {
			return nil // the log after it is still there, and raft asks again
		}
		s.withdraw()
	}
	view, err := s.cfg.StateMachine.View()
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
	s.cfg.Observer.Snapshot(SnapshotBuild, time.Since(begin), size, err)
	if err != nil {
		return err
	}
	s.offered = &offeredBody{snapshot: snapshot, path: path, size: size, used: time.Now()}
	s.log.offerSnapshot(snapshot)
	s.cfg.Logger.Info("snapshot for a follower built", zap.Uint64("index", index), zap.Int64("bytes", size), zap.Duration("took", time.Since(begin)))
	return nil
}

// send begins the transfer of the offered body.
func (s *snapshotter) send(m *raftpb.Message) {
	o := s.offered
	fail := func(reason string, err error) {
		s.cfg.Observer.Snapshot(SnapshotSend, 0, 0, errNotSent)
		s.cfg.Logger.Warn("snapshot not sent", zap.Uint64("to", m.GetTo()), zap.String("reason", reason), zap.Error(err))
		s.failed(m.GetTo())
	}
	if o == nil || o.snapshot.GetMetadata().GetIndex() != m.GetSnapshot().GetMetadata().GetIndex() {
		fail("the body was withdrawn", nil)
		return
	}
	if !hasMember(o.snapshot, m.GetTo()) {
		// The body is older than the member. Raft on that member ignores a
		// snapshot whose configuration does not contain it. Once the body is
		// withdrawn, raft here asks for another.
		s.withdraw()
		fail("the body is older than the member", nil)
		return
	}
	f, err := os.Open(o.path)
	if err != nil {
		fail("cannot open the body", err)
		return
	}
	o.used = time.Now()
	o.sending.Add(1)
	s.transfers.Store(m.GetTo(), transfer{begin: o.used, bytes: o.size})
	s.transmit(m, &countedBody{File: f, closed: func() { o.sending.Add(-1) }}, o.size)
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

// sent takes the transport's report of how a transfer ended.
func (s *snapshotter) sent(id uint64, err error) {
	t, known := s.transfers.LoadAndDelete(id)
	if !known {
		return
	}
	if err != nil {
		s.cfg.Logger.Warn("snapshot not sent", zap.Uint64("to", id), zap.Error(err))
	}
	s.cfg.Observer.Snapshot(SnapshotSend, time.Since(t.(transfer).begin), t.(transfer).bytes, err)
}

// countedBody calls closed once the transport no longer reads the body.
type countedBody struct {
	*os.File
	closed func()
	once   atomic.Bool
}

// Close implements io.Closer. The transport may call it twice.
func (b *countedBody) Close() error {
	if b.once.CompareAndSwap(false, true) {
		b.closed()
	}
	return b.File.Close()
}
