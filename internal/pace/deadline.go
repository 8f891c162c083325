package pace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Deadlines has deadlines to use again. It belongs to a server and is safe for
// concurrent use. (It is not global, because a timer that was made in the virtual
// time of one test cannot be used outside it.)
type Deadlines struct{ pool sync.Pool }

// deadline is a context that expires at a time and can be used again. The timer,
// channel and context of a standard one, made for each request, cost more than
// parsing the request.
//
// A holder must not keep it, nor derive another from it, beyond the call:
// after release it belongs to another request.
type deadline struct {
	context.Context // for values
	at              time.Time
	done            chan struct{} // closed by expire
	expired         atomic.Bool
	timer           *time.Timer
	home            *Deadlines
	release         context.CancelFunc // putBack, bound once
}

// Get returns a context that expires at a time, and what to call in the end. The parent must never be done: a
// deadline does not watch it.
func (p *Deadlines) Get(parent context.Context, at time.Time) (context.Context, context.CancelFunc) {
	d, ok := p.pool.Get().(*deadline)
	if ok {
		d.Context, d.at = parent, at
		d.timer.Reset(time.Until(at))
		return d, d.release
	}
	d = &deadline{Context: parent, at: at, done: make(chan struct{}), home: p}
	d.release = d.putBack
	d.timer = time.AfterFunc(time.Until(at), d.expire)
	return d, d.release
}

func (d *deadline) expire() {
	d.expired.Store(true)
	close(d.done)
}

// putBack returns the deadline to its pool. One that has expired, or is about to, is
// dropped: its channel cannot be opened again.
func (d *deadline) putBack() {
	if d.timer.Stop() {
		d.Context = nil
		d.home.pool.Put(d)
	}
}

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

// Done implements context.Context.
func (d *deadline) Done() <-chan struct{} { return d.done }

// Err implements context.Context.
func (d *deadline) Err() error {
	if d.expired.Load() {
		return context.DeadlineExceeded
	}
	return nil
}
