package peers

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// maxMonitorPause bounds the pauses between dials. The shortest is 1 ms.
	maxMonitorPause = time.Second
	// MonitorSettled is how long a connection must have held for the member to
	// dial without a pause once it breaks.
	MonitorSettled = 100 * time.Millisecond
)

// MonitorState decides when to dial. It has no clock and no network, so that the
// simulator runs the same code.
//
// Every refusal counts, not only the first: messages that a dead leader had sent
// before make raft follow it again. But if it is something else that refuses, for
// example a firewall, a leader that is alive must not be suspected again and again.
// So the pauses grow, and keep growing when the same leader is followed again.
type MonitorState struct {
	Leader, term uint64
	failures     int // dials in a row without a connection that held
}

// Follow starts over with a new leader, and continues with the same one.
func (s *MonitorState) Follow(leader, term uint64) {
	if s.Leader != leader || s.term != term {
		*s = MonitorState{Leader: leader, term: term}
	}
}

// Pause returns how long to wait before the next dial.
func (s *MonitorState) Pause() time.Duration {
	if s.failures == 0 {
		return 0
	}
	return min(time.Millisecond<<min(s.failures-1, 10), maxMonitorPause)
}

// Ended counts a dial. held reports that it led to a connection that held for at
// least MonitorSettled.
func (s *MonitorState) Ended(held bool) {
	if s.failures++; held {
		s.failures = 0
	}
}

// LeaderMonitor holds one connection, with the current leader, in order to notice
// when the leader's process is gone. The package comment tells how.
type LeaderMonitor struct {
	t       *Transport
	urlsOf  func(id uint64) []string
	suspect func(id uint64)

	state MonitorState // owned by Run, and lent to the goroutine of monitor
	// leaders carries the leader from Follow to Run. Its capacity is 1, and the
	// newest leader replaces one that was not taken yet.
	leaders chan leaderInTerm
}

type leaderInTerm struct{ id, term uint64 }

// NewLeaderMonitor returns a monitor that follows nobody yet. urlsOf returns the
// peer URLs of a member, nil if it is not known. suspect is called when the
// leader's process is gone, and again while raft follows that leader.
func (t *Transport) NewLeaderMonitor(urlsOf func(id uint64) []string, suspect func(id uint64)) *LeaderMonitor {
	return &LeaderMonitor{t: t, urlsOf: urlsOf, suspect: suspect, leaders: make(chan leaderInTerm, 1)}
}

// Follow passes a new leader on, 0 if there is none. It does not wait. One
// goroutine calls it.
func (w *LeaderMonitor) Follow(leader, term uint64) {
	select {
	case <-w.leaders: // an older one
	default:
	}
	w.leaders <- leaderInTerm{leader, term}
}

// Run monitors the current leader until the context ends. It waits for the network, and
// nothing waits for it.
func (w *LeaderMonitor) Run(ctx context.Context) error {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-w.leaders:
			end()
			end = w.begin(ctx, l)
		}
	}
}

// begin monitors a leader, unless there is none or it is this member, until the
// caller calls end.
func (w *LeaderMonitor) begin(ctx context.Context, l leaderInTerm) (end func()) {
	if l.id == 0 || l.id == w.t.cfg.ID {
		return func() {}
	}
	w.state.Follow(l.id, l.term)
	ctx, cancel := context.WithCancel(ctx)
	var monitoring sync.WaitGroup
	monitoring.Go(func() { w.monitor(ctx) })
	return func() { cancel(); monitoring.Wait() }
}

// monitor dials again whenever the connection breaks, until the context ends.
func (w *LeaderMonitor) monitor(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.state.Pause()):
		}
		began := time.Now()
		up, refused := w.t.holdMonitor(ctx, w.urlsOf(w.state.Leader))
		if ctx.Err() != nil {
			return
		}
		w.state.Ended(up && time.Since(began) > MonitorSettled)
		if refused && w.state.failures == 1 {
			w.t.lg.Info("leader refuses connections; its process is gone", zap.Uint64("leader", w.state.Leader))
		}
		if refused {
			w.suspect(w.state.Leader)
		}
	}
}
