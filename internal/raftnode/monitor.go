package raftnode

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

const (
	// maxMonitorPause bounds the pauses between dials, the shortest is 1 ms.
	maxMonitorPause = time.Second
	// monitorSettled is for how long a connection must have held before the
	// next break is dialled without a pause.
	monitorSettled = 100 * time.Millisecond
)

// monitorState decides when to dial. It has no clock and no network; the
// simulator runs the same.
//
// Messages that a dead leader had sent before make raft follow it again, so
// that every refusal has to count, not only the first. But where something
// else refuses, a firewall perhaps, a living leader must not be suspected all
// the time: the pauses grow, and go on growing when it is followed again.
type monitorState struct {
	leader, term uint64
	failures     int // dials in a row without a connection that held
}

// follow begins with a leader, or goes on with the same one.
func (s *monitorState) follow(leader, term uint64) {
	if s.leader != leader || s.term != term {
		*s = monitorState{leader: leader, term: term}
	}
}

// pause is how long to wait before the next dial.
func (s *monitorState) pause() time.Duration {
	if s.failures == 0 {
		return 0
	}
	return min(time.Millisecond<<min(s.failures-1, 10), maxMonitorPause)
}

// ended counts a dial, and whether a connection came of it that held for a
// while.
func (s *monitorState) ended(held bool) {
	if s.failures++; held {
		s.failures = 0
	}
}

// leaderMonitor keeps one connection, with the present leader.
type leaderMonitor struct {
	self uint64
	lg   *zap.Logger
	// urlsOf returns where a member is reached, nil if it is not known.
	urlsOf func(id uint64) []string
	// hold keeps a connection until it breaks: see peers.Transport.HoldMonitor.
	hold func(ctx context.Context, urls []string) (up, refused bool)
	// suspect is told that the leader's process is gone.
	suspect func(id uint64)

	state monitorState
	// leaders brings the present leader; capacity 1, the newest wins.
	leaders chan Position
}

func newLeaderMonitor(n *Replica) *leaderMonitor {
	return &leaderMonitor{
		self: n.cfg.ID,
		lg:   n.lg,
		urlsOf: func(id uint64) []string {
			m, _ := n.Membership().Member(id)
			return m.PeerURLs
		},
		hold:    n.transport.HoldMonitor,
		suspect: func(id uint64) { n.events.put(event{suspect: id}) },
		leaders: make(chan Position, 1),
	}
}

// tell is called by the node loop when its position changed.
func (w *leaderMonitor) tell(p Position) {
	select {
	case <-w.leaders: // an older one
	default:
	}
	w.leaders <- p
}

// run follows the leader until the context ends. It waits for the network;
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

// begin monitors the leader of this position, if it is another member, until
// end is called.
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

// monitor dials again and again.
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
			w.lg.Info("the leader's process is gone: connections to it are refused", zap.Uint64("leader", w.state.leader))
		}
		if refused {
			w.suspect(w.state.leader)
		}
	}
}
