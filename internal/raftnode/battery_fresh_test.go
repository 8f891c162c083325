package raftnode

import (
	"testing"
	"time"
)

// usualAge is how old the proofs of healthy members get: a number travels to the
// leader, waits for the leader's next question, and returns with the heartbeat
// after that; then the next one sets out.
const usualAge = 5 * simTick

// freshnessAge is how old the state of the member may be, as far as it knows.
func (n *simNode) freshnessAge() time.Duration {
	at := n.fresh.confirmed(n.applier.index)
	if at.IsZero() {
		return time.Hour
	}
	return n.time().Sub(at)
}

// freshFor demands that the members know themselves to be fresh all the time.
func (s *sim) freshFor(d int64, ids ...uint64) {
	s.t.Helper()
	if s.until(d, func() bool {
		for _, id := range ids {
			if s.nodes[id].freshnessAge() > time.Duration(usualAge)*time.Microsecond {
				return true
			}
		}
		return false
	}) {
		s.fatalf("the members know no better than %v, %v, %v", s.nodes[1].freshnessAge(), s.nodes[2].freshnessAge(), s.nodes[3].freshnessAge())
	}
}

// TestFreshnessOfHealthyMembers: leader and followers know themselves to be fresh,
// idle, under writes, and while reads use the contexts of the heartbeats.
func TestFreshnessOfHealthyMembers(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.run(2 * second)
		s.freshFor(20*second, s.order...)
		s.load(6, span{5 * milli, 40 * milli})
		s.freshFor(20*second, s.order...)
		s.must(20*electionTimeout, "a hand-over", func() bool { return s.leader() != nil })
		if s.leader() != l {
			t.Error("the leader changed without a failure")
		}
		s.settle(patience)
	}
}

// TestFreshnessOfASlowFollower: a follower whose apply loop hangs hears from its
// leader all the time, and knows that its state grows old.
func TestFreshnessOfASlowFollower(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.run(2 * second)
		slow := s.nodes[s.others(l.id)[0]]
		slow.slow = true
		begin := slow.time()
		s.agree(l, 8, l.id)
		s.run(3 * second)
		if age := slow.freshnessAge(); age < slow.time().Sub(begin)-time.Duration(milli)*time.Microsecond {
			t.Errorf("with entries that are not applied since %v, the member knows an age of %v", slow.time().Sub(begin), age)
		}
		if p := slow.core.position(); p.Known <= slow.applier.index {
			t.Errorf("known commit index %d, applied %d: no lag", p.Known, slow.applier.index)
		}
		slow.slow = false
		slow.startApply()
		s.must(second, "a fresh follower", func() bool { return slow.freshnessAge() < time.Duration(usualAge)*time.Microsecond })
		s.settle(patience)
	}
}

// TestFreshnessOfAnIsolatedLeader: a leader that is cut off grows old from the last
// contact with a quorum on, and so does a follower that is cut off with it,
// although both still believe in this leader.
func TestFreshnessOfAnIsolatedLeader(t *testing.T) {
	for s := range battery(t, 5) {
		l := s.elect()
		s.run(2 * second)
		rest := s.others(l.id)
		with := s.nodes[rest[0]]
		s.partition([]uint64{l.id, with.id}, rest[1:])
		cut := s.now
		s.agree(s.elect(rest[1:]...), 8, rest[1:]...)
		s.until(10*electionTimeout, func() bool { return !l.core.isLeader() })
		if limit := time.UnixMicro(cut + 10*milli); l.fresh.confirmed(l.applier.index).After(limit) || with.fresh.confirmed(with.applier.index).After(limit) {
			t.Errorf("the partition began %v ago, and the two know ages of %v and %v", l.time().Sub(limit), l.freshnessAge(), with.freshnessAge())
		}
		s.heal()
		s.settle(patience)
	}
}

// TestFreshnessOfASingleVoter: a cluster of one has no heartbeats.
func TestFreshnessOfASingleVoter(t *testing.T) {
	for s := range battery(t, 1) {
		l := s.elect()
		s.run(second)
		s.agree(l, 8, l.id)
		if age := l.freshnessAge(); age > 2*time.Duration(simTick)*time.Microsecond {
			t.Errorf("a single voter knows an age of %v", age)
		}
		s.settle(patience)
	}
}

// TestFreshnessAfterAPause: a member that was paused finds answers in its buffers,
// and they prove only what was true when it asked.
func TestFreshnessAfterAPause(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.run(2 * second)
		paused := s.nodes[s.others(l.id)[0]]
		paused.turning = true // nothing schedules a turn anymore, and the inbox fills
		began := s.now
		s.run(5 * electionTimeout / 10)
		s.agree(l, 8, l.id)
		items := paused.inbox
		for i := range items { // one by one, as from a socket
			paused.inbox = items[i : i+1]
			paused.turn()
			if at := paused.fresh.confirmed(paused.applier.index); at.UnixMicro() > began && paused.applier.index < l.applier.index {
				t.Fatalf("after message %d of %d: claims to be as fresh as of %d µs after the pause began", i, len(items), at.UnixMicro()-began)
			}
		}
		s.settle(patience)
	}
}
