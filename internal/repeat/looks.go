package repeat

import (
	"context"
	"time"
)

// Looks paces a loop that looks after what others change: at most one look each pace, and
// none while nothing has changed. An idle node should not wake up: that alone costs more
// than most looks.
type Looks struct {
	pace    time.Duration
	stirred chan struct{} // capacity 1: something may have changed since the last look
}

// NewLooks returns looks of which the first is due.
func NewLooks(pace time.Duration) Looks {
	l := Looks{pace: pace, stirred: make(chan struct{}, 1)}
	l.Stir()
	return l
}

// Stir has the loop look within a pace. It does not wait.
func (l Looks) Stir() {
	select {
	case l.stirred <- struct{}{}:
	default:
	}
}

// Wait waits for the next look. What urgent brings needs no stirring, and does not wait for
// the pace; nil brings nothing. Wait returns false once the context has ended.
func (l Looks) Wait(ctx context.Context, urgent <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-urgent:
		return true
	case <-l.stirred:
	}
	select {
	case <-ctx.Done():
		return false
	case <-urgent:
	case <-time.After(l.pace):
	}
	select {
	case <-l.stirred: // the look sees that, too
	default:
	}
	return true
}
