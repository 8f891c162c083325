// Package repeat paces what is done again and again while a condition lasts, with
// pauses that double.
//
// A warning (Pace) is due at once, and then again after each pause: somebody who
// looks at the log later must find it, but nobody should have to read it every
// second. An attempt that failed (Attempts) is made again after each pause: what
// it needs may come back at any time, but a disk that is full or a member that is
// down must not be kept busy with it.
package repeat

import (
	"sync"
	"time"
)

// The pauses between two warnings about the same condition.
const (
	FirstPause   = 5 * time.Second
	LongestPause = 10 * time.Minute
)

// Pace is the pace of one warning. The zero value is ready, and is due at once.
// It is safe for concurrent use.
type Pace struct {
	mu struct {
		sync.Mutex        // held by Due alone
		about      string // what the warning was about
		next       time.Time
		pause      time.Duration
	}
}

// Due reports whether the warning should be given now. What it is about decides,
// too: a warning about something new is due at once.
func (p *Pace) Due(now time.Time, about string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if about != p.mu.about || p.mu.pause == 0 {
		p.mu.about, p.mu.pause = about, FirstPause
	} else if now.Before(p.mu.next) {
		return false
	} else {
		p.mu.pause = min(2*p.mu.pause, LongestPause)
	}
	p.mu.next = now.Add(p.mu.pause)
	return true
}
