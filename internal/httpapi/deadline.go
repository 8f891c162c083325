package httpapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// deadline is a context that ends at a time and can be used again. The timer,
// channel and context of the standard one, made for each request, cost more
// than parsing the request does.
//
// Whoever gets it must not keep it, nor derive another from it, beyond the
// call: after release it belongs to another request.
type deadline struct {
	context.Context // for values
	at              time.Time
	done            chan struct{}
	expired         atomic.Bool
	timer           *time.Timer
	release         context.CancelFunc // putBack, bound once
}

var deadlines sync.Pool

// newDeadline returns a context that ends at the time; parent must not end by
// itself.
func newDeadline(parent context.Context, at time.Time) *deadline {
	d, ok := deadlines.Get().(*deadline)
	if ok {
		d.Context, d.at = parent, at
		d.timer.Reset(time.Until(at))
		return d
	}
	d = &deadline{Context: parent, at: at, done: make(chan struct{})}
	d.release = d.putBack
	d.timer = time.AfterFunc(time.Until(at), d.expire)
	return d
}

func (d *deadline) expire() {
	d.expired.Store(true)
	close(d.done)
}

// putBack lets go of the deadline. One that has run out is of no further use.
func (d *deadline) putBack() {
	if d.timer.Stop() {
		d.Context = nil
		deadlines.Put(d)
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
