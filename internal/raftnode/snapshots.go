package raftnode

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/raftlog"
)

// snapshotter sees to it that members that lag too far get a snapshot. Its loop
// waits for nothing but events, and asks catchup.Deliveries what to do about them. A body
// is built on a goroutine of its own, from a view that is pinned in constant time,
// and the transport sends it on others; the snapshotter waits for them when it
// ends.
type snapshotter struct {
	cfg      *Config
	log      *raftlog.Store
	outgoing string        // directory of bodies, and of the spool
	written  atomic.Uint64 // bodies, so that each has a file of its own
	begin    time.Time

	// transmit sends a body and closes it. Its end arrives at ended.
	transmit func(m *raftpb.Message, body io.ReadCloser, size int64)
	// reportToRaft tells raft how the delivery to a member ended.
	reportToRaft func(to uint64, ok bool)
	// tell has the node loop do something, unless it is too busy to be asked.
	tell func(f func(*core)) bool
	// replica returns the parts of place that other loops know.
	replica func() catchup.Place

	applied  atomic.Uint64                   // set by the apply loop
	state    atomic.Pointer[catchup.KeptLog] // for operators
	requests chan *raftpb.Message            // MsgSnap, from the node loop
	builtC   chan builtBody                  // capacity 1, as there is one build at a time
	sent     *mailbox[sentBody]              // one for each transfer
	matchesC chan map[uint64]uint64          // capacity 1: an answer of the node loop

	// Owned by run.
	ctx        context.Context
	deliveries *catchup.Deliveries
	work       sync.WaitGroup
	transfers  map[uint64]time.Time // when they began
	lastSize   int64                // of the last body
	limit      int64                // of the intake, bytes per tick
	limitTold  bool                 // whether the node loop knows it
}

// builtBody is the end of a build.
type builtBody struct {
	body *catchup.Body
	err  error
}

// sentBody is the end of a transfer.
type sentBody struct {
	to  uint64
	err error
}

// lookPace is how often these loops look at what changes, and at what depends on time.
const lookPace = 200 * time.Millisecond

func newSnapshotter(cfg *Config, log *raftlog.Store) (*snapshotter, error) {
	s := &snapshotter{
		cfg: cfg, log: log, outgoing: filepath.Join(cfg.Dir, "outgoing"), begin: time.Now(),
		requests: make(chan *raftpb.Message, maxRequests), builtC: make(chan builtBody, 1),
		sent: newMailbox[sentBody](), matchesC: make(chan map[uint64]uint64, 1),
		transfers: make(map[uint64]time.Time), limitTold: true,
	}
	s.deliveries = catchup.New(cfg.Logger, log, s, int64(cfg.CatchUpBytes))
	s.state.Store(new(catchup.KeptLog))
	// Bodies and spools of the process before are of use to nobody.
	if err := os.RemoveAll(s.outgoing); err != nil {
		return nil, fmt.Errorf("remove old snapshot bodies: %w", err)
	}
	if err := os.MkdirAll(s.outgoing, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for snapshot bodies: %w", err)
	}
	return s, nil
}

// maxRequests bounds the MsgSnap messages that wait for the snapshotter's loop.
// raft emits one for a member and then waits for its report.
const maxRequests = 64

// request takes a MsgSnap from raft. It never waits: if too many wait already, it
// reports a failure, and raft tries again.
func (s *snapshotter) request(m *raftpb.Message) {
	select {
	case s.requests <- m:
	default:
		s.Report(m.GetTo(), false)
	}
}

func (s *snapshotter) now() time.Duration { return time.Since(s.begin) }

func (s *snapshotter) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.work.Wait()
	defer cancel()
	s.ctx = ctx
	ticker := time.NewTicker(lookPace)
	defer ticker.Stop()
	var tick <-chan time.Time // nil while nothing depends on time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.log.Asked:
			s.deliveries.Asked(s.now(), s.applied.Load())
		case m := <-s.requests:
			s.deliveries.Take(s.now(), m)
		case b := <-s.builtC:
			s.deliveries.Built(s.now(), b.body, b.err)
		case <-s.sent.ready:
			for _, e := range s.sent.take() {
				s.noteSent(e)
			}
		case matches := <-s.matchesC:
			s.tick(matches)
		case <-tick:
			s.tick(nil)
			s.askMatches()
		}
		kept := s.deliveries.View(s.now())
		s.state.Store(kept)
		if tick = ticker.C; s.deliveries.Resting() && kept.Entries == 0 && s.limitTold {
			tick = nil
		}
	}
}

func (s *snapshotter) tick(matches map[uint64]uint64) {
	at := s.replica()
	at.Applied, at.Matches = s.applied.Load(), matches
	s.deliveries.Tick(s.now(), at)
	s.tellLimit()
}

// askMatches asks the node loop how far the other members are, if a delivery
// depends on it. It does not wait: the next tick asks again.
func (s *snapshotter) askMatches() {
	if s.deliveries.Idle() {
		return
	}
	s.tell(func(c *core) {
		select {
		case s.matchesC <- c.matches():
		default:
		}
	})
}

// Build implements catchup.Work.
func (s *snapshotter) Build() {
	ctx, expected := s.ctx, s.lastSize
	s.work.Go(func() {
		begin := time.Now()
		b, err := s.writeBody(ctx, expected)
		size := int64(0)
		if err == nil {
			size = b.Size
			s.cfg.Logger.Info("snapshot for a follower built", zap.Uint64("index", b.Index()), zap.Int64("bytes", size), zap.Duration("took", time.Since(begin)))
		}
		if ctx.Err() == nil {
			s.cfg.Observer.Snapshot(SnapshotBuild, time.Since(begin), size, err)
		}
		s.builtC <- builtBody{b, err}
	})
}

// writeBody writes the current state to a file. An error leaves no file.
func (s *snapshotter) writeBody(ctx context.Context, expected int64) (*catchup.Body, error) {
	if err := datadir.CheckRoom(s.outgoing, expected); err != nil {
		return nil, err
	}
	view, err := s.cfg.StateMachine.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	snapshot, err := describe(view)
	if err != nil {
		return nil, err
	}
	b := &catchup.Body{Snapshot: snapshot, Path: filepath.Join(s.outgoing, fmt.Sprintf("%016x-%d.body", snapshot.GetMetadata().GetIndex(), s.written.Add(1)))}
	b.Size, err = datadir.WriteBody(b.Path, contextBody{ctx, view})
	return b, err
}

// contextBody writes a body until the context ends.
type contextBody struct {
	ctx  context.Context
	body io.WriterTo
}

func (b contextBody) WriteTo(w io.Writer) (int64, error) {
	return b.body.WriteTo(contextWriter{b.ctx, w})
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}

// Send implements catchup.Work. The transport reports how the transfer ends,
// whatever happens.
func (s *snapshotter) Send(m *raftpb.Message, b *catchup.Body) {
	s.transfers[m.GetTo()] = time.Now()
	s.lastSize = b.Size
	f, err := os.Open(b.Path)
	if err != nil {
		s.ended(m.GetTo(), fmt.Errorf("%w: %w", catchup.ErrBodyLost, err))
		return
	}
	s.transmit(m, f, b.Size)
}

// ended takes the report of a transfer from the transport, on any goroutine.
func (s *snapshotter) ended(to uint64, err error) { s.sent.put(sentBody{to: to, err: err}) }

func (s *snapshotter) noteSent(e sentBody) {
	begin, ok := s.transfers[e.to]
	if !ok {
		// A MsgSnap that did not come from here; raft waits for its report.
		s.Report(e.to, e.err == nil)
		return
	}
	delete(s.transfers, e.to)
	size := int64(0)
	if b := s.deliveries.Sending(e.to); b != nil {
		size = b.Size
	}
	s.cfg.Observer.Snapshot(SnapshotSend, time.Since(begin), size, e.err)
	s.deliveries.Sent(s.now(), e.to, e.err)
}

// Report implements catchup.Work.
func (s *snapshotter) Report(to uint64, ok bool) {
	s.reportToRaft(to, ok)
}

// Remove implements catchup.Work.
func (s *snapshotter) Remove(b *catchup.Body) {
	if err := os.Remove(b.Path); err != nil {
		s.cfg.Logger.Warn("snapshot body not removed", zap.Error(err))
	}
}

// LimitIntake implements catchup.Work.
func (s *snapshotter) LimitIntake(bytesPerSecond int64) {
	s.limit, s.limitTold = int64(float64(bytesPerSecond)*s.cfg.TickInterval.Seconds()), false
	s.tellLimit()
}

// tellLimit tells the node loop the limit. If the loop is too busy to be told now,
// the next tick tries again: a limit that was lifted must not stay.
func (s *snapshotter) tellLimit() {
	perTick := s.limit
	s.limitTold = s.limitTold || s.tell(func(c *core) { c.limitIntake(perTick) })
}

// newSpoolFile makes a file for the log's spool. It fails before it would fill
// the disk.
func (s *snapshotter) newSpoolFile() (raftlog.SpoolFile, error) {
	f, err := os.CreateTemp(s.outgoing, "log-*.spool")
	if err != nil {
		return nil, fmt.Errorf("make a file for the spool: %w", err)
	}
	return &diskSpool{File: f, w: datadir.RoomyWriter{Dir: s.outgoing, W: f}}, nil
}

// diskSpool is a file of the spool.
type diskSpool struct {
	*os.File
	w datadir.RoomyWriter
}

func (f *diskSpool) Write(p []byte) (int, error) { return f.w.Write(p) }

// Close also removes the file.
func (f *diskSpool) Close() error {
	return cmp.Or(os.Remove(f.Name()), f.File.Close())
}
