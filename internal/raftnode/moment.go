package raftnode

import (
	"sync/atomic"
	"time"
)

// moment is a point in time that one goroutine notes and any goroutine reads.
// It counts on the monotonic clock: if an operator or NTP sets the machine's
// clock back or forth, no disk appears to have stalled and no leader to have
// been silent.
type moment struct {
	base  time.Time    // set once, before the first use
	nanos atomic.Int64 // after base; 0: nothing noted
}

// note sets the moment to now.
func (m *moment) note() { m.nanos.Store(max(1, int64(time.Since(m.base)))) }

// clear forgets the moment.
func (m *moment) clear() { m.nanos.Store(0) }

// age returns how long ago the moment was; false if nothing is noted.
func (m *moment) age() (time.Duration, bool) {
	at := m.nanos.Load()
	if at == 0 {
		return 0, false
	}
	return time.Since(m.base) - time.Duration(at), true
}
