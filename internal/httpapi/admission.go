package httpapi

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// admission bounds the requests in work. One that finds all places taken waits
// for a moment: refusing costs nearly as much as a small write does, and a
// client that comes again at once would cost it over and over, while one that
// waits costs nothing. What still has no place then is refused.
type admission struct {
	places  chan struct{} // holds a token for each request in work
	waiting atomic.Int64
	// most may wait at once; others are refused at once.
	most int64
	// patience is how long one waits.
	patience time.Duration
}

const (
	// admissionPatience is what Retry-After asks of those that are refused.
	admissionPatience = time.Second
	// maxWaiting is beyond the connections that a node takes, unless it is told
	// otherwise. One waits with the body it has sent, of at most 32 KiB in
	// HTTP/1.1, or unread.
	maxWaiting = 16 << 10
)

func newAdmission(places int) *admission {
	return &admission{places: make(chan struct{}, places), most: maxWaiting, patience: admissionPatience}
}

// enter takes a place, for which leave is to be called.
func (a *admission) enter(x *exchange) error {
	select {
	case a.places <- struct{}{}:
		return nil
	default:
		return a.wait(x)
	}
}

func (a *admission) leave() { <-a.places }

func (a *admission) wait(x *exchange) error {
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) > a.most {
		return a.refusal()
	}
	if err := x.startTimeout(); err != nil {
		return err
	}
	// Half of the time is for the work.
	ctx, cancel := context.WithTimeout(x.r.Context(), min(a.patience, time.Until(x.deadline)/2))
	defer cancel()
	select {
	case a.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return a.refusal()
	}
}

func (a *admission) refusal() error {
	return api.Errorf(api.Overloaded, "%d requests are in work here, as many as --max-inflight allows; nothing was done, try again", cap(a.places))
}
