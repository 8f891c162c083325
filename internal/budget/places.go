package budget

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Places bounds the requests that are being handled. One that finds all places taken
// waits for a moment: refusing it costs nearly as much as a small write, and a client
// that repeats it at once would cause that cost over and over, while a request that
// waits costs nothing. If there is still no place then, it is refused.
//
// Any goroutine may use it.
type Places struct {
	places  chan struct{} // holds a token for each request that is being handled
	waiting atomic.Int64  // requests that wait for a place
	// MaxWaiting is how many may wait; beyond it, requests are refused at once.
	MaxWaiting int64
	// Patience is how long one waits. Both are set before the first use.
	Patience time.Duration
}

// maxWaiting is more than the connections that a node accepts by default. A request
// waits with its body, which is claimed from the Budget beyond Free bytes.
const maxWaiting = 16 << 10

// ErrNoPlace says that all places are taken.
var ErrNoPlace = errors.New("all places are taken")

// NewPlaces returns n places.
func NewPlaces(n int) *Places {
	return &Places{places: make(chan struct{}, n), MaxWaiting: maxWaiting, Patience: Patience}
}

// Try takes a place, which Leave gives back, and reports whether there was one.
func (p *Places) Try() bool {
	select {
	case p.places <- struct{}{}:
		return true
	default:
		return false
	}
}

// Wait takes a place as soon as there is one. It gives up with ErrNoPlace after
// Patience, and at half of the time until the deadline, so that the other half is left
// for the work: a request that got its place too late would be a place wasted.
func (p *Places) Wait(ctx context.Context, deadline time.Time) error {
	defer p.waiting.Add(-1)
	if p.waiting.Add(1) > p.MaxWaiting {
		return ErrNoPlace
	}
	ctx, cancel := context.WithTimeout(ctx, min(p.Patience, time.Until(deadline)/2))
	defer cancel()
	select {
	case p.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ErrNoPlace
	}
}

// Leave gives a place back.
func (p *Places) Leave() { <-p.places }

// Taken returns how many places are taken.
func (p *Places) Taken() int { return len(p.places) }

// Waiting returns how many requests wait for a place.
func (p *Places) Waiting() int { return int(p.waiting.Load()) }

// Size returns the number of places.
func (p *Places) Size() int { return cap(p.places) }
