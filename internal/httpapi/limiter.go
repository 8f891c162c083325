package httpapi

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// limiter bounds the requests that are being handled. One that finds all places
// taken waits for a moment: refusing it costs nearly as much as a small write, and a
// client that repeats it at once would cause that cost over and over, while a
// request that waits costs nothing. If there is still no place then, it is refused.
//
// Any goroutine may use it.
type limiter struct {
	places  chan struct{} // holds a token for each request that is being handled
	waiting atomic.Int64  // requests that wait for a place
	// maxWaiting is how many may wait; beyond it, requests are refused at once.
	maxWaiting int64
	// patience is how long one waits.
	patience time.Duration
}

const (
	// placePatience is the time that Retry-After asks of refused requests, too.
	placePatience = time.Second
	// maxWaiting is more than the connections that a node accepts by default. A
	// request waits with the body that has arrived, at most 32 KiB over HTTP/1.1,
	// or with an unread one.
	maxWaiting = 16 << 10
)

func newLimiter(places int) *limiter {
	return &limiter{places: make(chan struct{}, places), maxWaiting: maxWaiting, patience: placePatience}
}

// enter takes a place, which leave gives back.
func (l *limiter) enter(x *exchange) error {
	select {
	case l.places <- struct{}{}:
		return nil
	default:
		return l.wait(x)
	}
}

func (l *limiter) leave() { <-l.places }

func (l *limiter) wait(x *exchange) error {
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > l.maxWaiting {
		return l.refusal()
	}
	if err := x.startTimeout(); err != nil {
		return err
	}
	// At most half of the request's time, so that the other half is left for the
	// work: a request that got its place too late would be a place wasted.
	ctx, cancel := context.WithTimeout(x.r.Context(), min(l.patience, time.Until(x.deadline)/2))
	defer cancel()
	select {
	case l.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return l.refusal()
	}
}

func (l *limiter) refusal() error {
	return api.Errorf(api.Overloaded, "the node is handling %d requests, as many as --max-inflight allows; nothing was done; try again later", cap(l.places))
}
