package raftnode

import (
	"testing"
	"time"
	"unsafe"
)

// bootTime has a monotonic reading, as all times have that a process takes from its clock.
var bootTime = time.Now()

// clock is the member's own clock: it does not run quite as fast as others, may fall back
// with its machine, and may be set.
func (n *simNode) clock() time.Time {
	s := n.s
	rate := 1 + s.opts.drift*(2*s.source(unit{kind: unitHarm, client: int(n.id)}).Float64()-1)
	if s.opts.bug == bugFastClock && n.id%2 == 0 {
		rate *= 2
	}
	t := setClock(bootTime.Add(time.Duration(n.clockAt+int64(rate*float64(s.now)))*time.Microsecond), n.clockSet)
	if s.opts.bug == bugWallClock {
		t = t.Round(0)
	}
	return t
}

// setClock returns what a clock shows that an operator or NTP has set forward: another time
// of day, with the same monotonic reading. Package time has no function for that.
func setClock(t time.Time, by time.Duration) time.Time {
	const nanosBits = 30 // below the seconds of a time with a monotonic reading
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall += uint64(by/time.Second) << nanosBits
	return t
}

func TestSetClock(t *testing.T) {
	set := setClock(bootTime, time.Hour)
	if d := set.Round(0).Sub(bootTime.Round(0)); d != time.Hour {
		t.Errorf("the time of day moved by %v, want an hour", d)
	}
	if d := set.Sub(bootTime); d != 0 {
		t.Errorf("the monotonic reading moved by %v", d)
	}
}

// faultClockSet sets the clock of a machine forward, mostly that of the leader, which ends
// the leases.
func (s *sim) faultClockSet() {
	n := s.anyNode()
	if l := s.leader(); l != nil && s.chance(0.7) {
		n = l
	}
	n.clockSet += time.Duration(1+s.rng.IntN(1000)) * time.Second
	m, stores := n.machine.(*storeMachine)
	s.reachIf(clockJumps, n.up && n.core.isLeader() && stores && m.store.Counts().Leases > 0)
}
