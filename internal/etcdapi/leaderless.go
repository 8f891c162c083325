package etcdapi

import (
	"context"
	"sync"
	"time"
)

// leaderlessElections is how many election timeouts in a row this node may know no leader
// before it ends the streams that require one. A refused call costs a client less than a
// stream that has to be opened elsewhere, and most elections are over after one.
const leaderlessElections = 3

// ledStreams are the streams whose clients require a leader (metadata "hasleader"). The
// node may be cut off from the others, and such a client would rather be told than wait for
// events that cannot come.
//
// A timer looks for the leader while there are such streams, and never otherwise.
type ledStreams struct {
	member   Member
	interval time.Duration // the election timeout
	mu       struct {
		sync.Mutex
		ends   map[*context.CancelCauseFunc]struct{}
		timer  *time.Timer // nil while there are no streams
		missed int         // looks in a row without a leader
	}
}

// whileLed returns a context that also ends when this node has no leader anymore, if the
// client asked for that.
func (s *Server) whileLed(ctx context.Context) (context.Context, context.CancelFunc) {
	if !requiresLeader(ctx) {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s.led.add(&cancel)
	return ctx, func() {
		s.led.remove(&cancel)
		cancel(nil)
	}
}

func (l *ledStreams) add(end *context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.ends == nil {
		l.mu.ends = make(map[*context.CancelCauseFunc]struct{})
	}
	l.mu.ends[end] = struct{}{}
	if l.mu.timer == nil {
		l.mu.missed = 0
		l.mu.timer = time.AfterFunc(l.interval, l.look)
	}
}

func (l *ledStreams) remove(end *context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.ends, end)
	l.restLocked()
}

// restLocked stops the timer if nobody needs it.
func (l *ledStreams) restLocked() {
	if len(l.mu.ends) == 0 && l.mu.timer != nil {
		l.mu.timer.Stop()
		l.mu.timer = nil
	}
}

// look ends the streams if there has been no leader for too long.
func (l *ledStreams) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.timer == nil {
		return // it was stopped too late
	}
	if l.mu.missed++; l.member.HasLeader() {
		l.mu.missed = 0
	}
	if l.mu.missed >= leaderlessElections {
		for end := range l.mu.ends {
			(*end)(errNoLeader)
		}
		clear(l.mu.ends)
		l.restLocked()
		return
	}
	l.mu.timer.Reset(l.interval)
}
