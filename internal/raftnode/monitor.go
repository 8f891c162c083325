package raftnode

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

const (
	// maxMonitorPause bounds the pauses between dials. The shortest is 1 ms.
	maxMonitorPause = time.Second
	// monitorSettled is how long a connection must have held for the member to
	// dial without a pause once it breaks.
	monitorSettled = 100 * time.Millisecond
)

// monitorState decides when to dial. It has no clock and no network, so that the
// simulator runs the same code.
//
// Every refusal counts, not only the first: messages that a dead leader had sent
// before make raft follow it again. But if it is something else that refuses, for
// example a firewall, a leader that is alive must not be suspected again and again.
// So the pauses grow, and keep growing when the same leader is followed again.
type monitorState struct {
	leader, term uint64
	failures     int // dials in a row without a connection that held
}

// follow starts over with a new leader, and continues with the same one.
func (s *monitorState) follow(leader, term uint64) {
	if s.leader != leader || s.term != term {
		*s = monitorState{leader: leader, term: term}
	}
}

// pause returns how long to wait before the next dial.
func (s *monitorState) pause() time.Duration {
	if s.failures == 0 {
		return 0
	}
	return min(time.Millisecond<<min(s.failures-1, 10), maxMonitorPause)
}

// ended counts a dial. held reports that it led to a connection that held for at
// least monitorSettled.
func (s *monitorState) ended(held bool) {
	if s.failures++; held {
		s.failures = 0
	}
}

// leaderMonitor holds one connection, with the current leader, in order to notice
// when the leader's process is gone. Package peers tells how.
type leaderMonitor struct {
	self uint64
	lg   *zap.Logger
	// urlsOf returns the peer URLs of a member, nil if it is not known.
	urlsOf func(id uint64) []string
	// hold is peers.Transport.HoldMonitor.
	hold func(ctx context.Context, urls []string) (up, refused bool)
	// suspect is called when the leader's process is gone.
	suspect func(id uint64)

	state monitorState // owned by run
	// leaders carries the position from the node loop to run. Its capacity is 1,
	// and the newest position replaces one that was not taken yet.
	leaders chan Position
}

func newLeaderMonitor(r *Replica) *leaderMonitor {
	return &leaderMonitor{
		self: r.cfg.ID,
		lg:   r.lg,
		urlsOf: func(id uint64) []string {
			m, _ := r.Membership().Member(id)
			return m.PeerURLs
		},
		hold:    r.transport.HoldMonitor,
		suspect: func(id uint64) { r.events.put(event{suspect: id}) },
		leaders: make(chan Position, 1),
	}
}

// tell passes a new position on. Only the node loop calls it.
func (w *leaderMonitor) tell(p Position) {
	select {
	case <-w.leaders: // an older one
	default:
	}
	w.leaders <- p
}

// run monitors whoever leads, until the context ends. It waits for the network, and
// nothing waits for it.
func (w *leaderMonitor) run(ctx context.Context) error {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-w.leaders:
			end()
			end = w.begin(ctx, p)
		}
	}
}

// begin monitors the leader of this position, unless it is this member, until the
// caller calls end.
func (w *leaderMonitor) begin(ctx context.Context, p Position) (end func()) {
	if p.Leader == raft.None || p.Leader == w.self {
		return func() {}
	}
	w.state.follow(p.Leader, p.Term)
	ctx, cancel := context.WithCancel(ctx)
	var monitoring sync.WaitGroup
	monitoring.Go(func() { w.monitor(ctx) })
	return func() { cancel(); monitoring.Wait() }
}

// monitor dials again whenever the connection breaks, until the context ends.
func (w *leaderMonitor) monitor(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.state.pause()):
		}
		began := time.Now()
		up, refused := w.hold(ctx, w.urlsOf(w.state.leader))
		if ctx.Err() != nil {
			return
		}
		w.state.ended(up && time.Since(began) > monitorSettled)
		if refused && w.state.failures == 1 {
			w.lg.Info("leader refuses connections; its process is gone", zap.Uint64("leader", w.state.leader))
		}
		if refused {
			w.suspect(w.state.leader)
		}
	}
}
