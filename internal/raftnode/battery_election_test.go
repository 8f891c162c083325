package raftnode

import (
	"iter"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// The Raft battery: each test is one story on the simulator, in virtual time,
// under all of its invariants; settle checks the end of each.

// batterySeeds is how many clusters each story runs in.
const batterySeeds = 3

// battery makes healthy clusters, one after the other.
func battery(t *testing.T, members int) iter.Seq[*sim] {
	return clusters(t, simOptions{members: members})
}

// clusters makes a cluster of each of batterySeeds seeds.
func clusters(t *testing.T, opts simOptions) iter.Seq[*sim] {
	return func(yield func(*sim) bool) {
		for seed := range seeds(t, batterySeeds) {
			if !yield(newSim(t, seed, opts)) {
				return
			}
		}
	}
}

// seeds returns the seeds to run, as simSeeds chooses them, and tells which one has failed.
func seeds(t *testing.T, otherwise uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		first, runs := simSeeds(t, otherwise)
		at := first
		defer func() {
			if t.Failed() {
				t.Logf("FAILED: KVD_SIM_SEED=%d", at)
			}
		}()
		for ; at < first+runs; at++ {
			if !yield(at) || t.Failed() {
				return
			}
		}
	}
}

// unreliable loses, doubles, delays and reorders messages.
func (s *sim) unreliable() {
	s.net.loss, s.net.duplicate, s.net.reorder = 0.1, 0.1, 0.3
	s.net.delay.max = 27 * milli
}

// others returns the members except some.
func (s *sim) others(except ...uint64) []uint64 {
	return removeIf(append([]uint64(nil), s.order...), func(id uint64) bool {
		for _, e := range except {
			if e == id {
				return true
			}
		}
		return false
	})
}

// agree writes one command at a member and waits until all the given members
// have run it.
func (s *sim) agree(at *simNode, size int, on ...uint64) *op {
	s.t.Helper()
	o := s.write(at, size)
	s.must(20*electionTimeout, "the command to run everywhere", func() bool {
		if o.outcome == refused || o.outcome == unknown {
			s.fatalf("command %d: %v", o.id, o.err)
		}
		return o.outcome == succeeded && s.ranOn(o.id, on...)
	})
	return o
}

func (s *sim) ranOn(id uint64, on ...uint64) bool {
	for _, n := range on {
		if !s.nodes[n].machine.ran(id) {
			return false
		}
	}
	return true
}

// noLeaderOf demands that none of the members leads for a while.
func (s *sim) noLeaderOf(d int64, ids ...uint64) {
	s.t.Helper()
	for _, id := range ids {
		if n := s.nodes[id]; n.up && n.core.isLeader() {
			s.run(3 * electionTimeout) // time to step down
		}
	}
	if s.until(d, func() bool {
		for _, id := range ids {
			if s.nodes[id].up && s.nodes[id].core.isLeader() {
				return true
			}
		}
		return false
	}) {
		s.fatalf("one of %v leads without a quorum\n%s", ids, s.describe())
	}
}

func TestInitialElection(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		term := l.core.term
		s.run(20 * electionTimeout)
		if s.leader() != l || l.core.term != term {
			t.Fatalf("leader and term changed without a failure: member %d term %d, then\n%s", l.id, term, s.describe())
		}
		s.settle(patience)
	}
}

func TestReElection(t *testing.T) {
	for s := range battery(t, 3) {
		first := s.elect()
		s.isolate(first.id)
		second := s.elect(s.others(first.id)...)
		s.rejoin(first.id)
		s.run(5 * electionTimeout)
		if s.leader() != second || first.core.isLeader() {
			t.Fatalf("the returning leader %d disturbs member %d\n%s", first.id, second.id, s.describe())
		}
		// Without a quorum nobody leads.
		s.partition([]uint64{second.id})
		s.noLeaderOf(10*electionTimeout, s.order...)
		s.heal()
		s.elect()
		s.settle(patience)
	}
}

// TestLateLeaderOfAnOldTerm: a candidate is paused when its votes arrive. Before it goes on
// and takes office, a leader of a later term has committed. It lacks that entry, and can do
// no harm.
func TestLateLeaderOfAnOldTerm(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		late := s.nodes[s.others(l.id)[0]]
		s.handOver(l, late.id)
		s.must(electionTimeout, "a campaign", func() bool { return late.core.rn.BasicStatus().RaftState == raft.StateCandidate })
		term := late.core.term
		s.must(electionTimeout, "the votes", func() bool { return s.nodes[l.id].core.term == term })
		late.pausedUntil = s.now + 20*electionTimeout
		s.run(20 * milli)
		s.isolate(late.id)
		rest := s.others(late.id)
		s.must(10*electionTimeout, "a leader of the others", func() bool { return s.settledLeader(rest...) != nil && s.leader().core.term > term })
		s.agree(s.leader(), 8, rest...)
		s.must(20*electionTimeout, "the late leader", late.core.isLeader)
		if late.core.term != term {
			s.fatalf("it leads in term %d, want %d", late.core.term, term)
		}
		o := s.write(late, 8)
		s.run(electionTimeout)
		if o.outcome == succeeded {
			s.fatalf("a leader of an old term has committed a command")
		}
		s.settle(patience)
	}
}

func TestManyElections(t *testing.T) {
	for s := range battery(t, 7) {
		s.elect()
		for round := range 12 {
			var cut []uint64
			for len(cut) < 3 {
				if id := s.anyNode().id; len(removeIf(append([]uint64(nil), cut...), func(c uint64) bool { return c != id })) == 0 {
					cut = append(cut, id)
				}
			}
			s.partition(s.others(cut...))
			s.elect(s.others(cut...)...)
			s.heal()
			if round%3 == 0 {
				s.elect()
			}
		}
		s.settle(patience)
	}
}

// TestRPCCounts bounds the messages of an election and of an idle second.
func TestRPCCounts(t *testing.T) {
	for s := range battery(t, 3) {
		s.elect()
		if s.net.sent > 30 {
			t.Errorf("%d messages until a leader was elected, want at most 30: %v", s.net.sent, s.net.perType)
		}
		s.run(5 * second)
		before := s.net.sent
		s.run(10 * second)
		if rate := (s.net.sent - before) / 10; rate > 60 {
			t.Errorf("%d messages in an idle second, want at most 60: %v", rate, s.net.perType)
		}
		before = s.net.perType[raftpb.MsgApp]
		var ops []*op
		for range 10 {
			ops = append(ops, s.write(s.leader(), 8))
		}
		s.must(electionTimeout, "ten writes", func() bool { return allDone(ops) })
		if apps := s.net.perType[raftpb.MsgApp] - before; apps > (10+1+3)*3 {
			t.Errorf("%d appends for ten writes", apps)
		}
		s.settle(patience)
	}
}

func allDone(ops []*op) bool {
	for _, o := range ops {
		if o.outcome != succeeded {
			return false
		}
	}
	return true
}

// TestLeadershipTransfer hands over to a chosen member and to the best one,
// and refuses a learner and a stranger.
func TestLeadershipTransfer(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		to := s.others(l.id)[0]
		o := s.handOver(l, to)
		s.must(2*electionTimeout, "the transfer", func() bool { return o.outcome == succeeded })
		if got := s.elect(); got.id != to {
			t.Fatalf("member %d leads, want %d", got.id, to)
		}
		o = s.handOver(s.nodes[to], 0)
		s.must(2*electionTimeout, "the second transfer", func() bool { return o.outcome == succeeded })
		if got := s.elect(); got.id == to {
			t.Fatalf("member %d still leads", to)
		}
		o = s.handOver(s.leader(), 99)
		s.must(electionTimeout, "a refusal", func() bool { return o.outcome == refused })
		s.settle(patience)
	}
}

// TestLeaderWithHungDiskDoesNotLeadTwiceInATerm: the others' votes must not
// elect a candidate whose disk hangs. After a crash it would have forgotten
// the term, and could win it again.
func TestLeaderWithHungDiskDoesNotLeadTwiceInATerm(t *testing.T) {
	for seed := range seeds(t, 10) {
		s := newSim(t, seed, simOptions{members: 3})
		for range 8 {
			l := s.elect()
			s.must(patience, "rest", s.agreed)
			heir := s.nodes[s.others(l.id)[s.rng.IntN(2)]]
			heir.stalled = true
			s.handOver(l, heir.id) // it campaigns at once
			s.until(100*milli, heir.core.isLeader)
			third := s.others(l.id, heir.id)[0]
			s.net.blocked[link{heir.id, third}] = true // it gets no entry of the term
			s.write(heir, 8)
			s.run(s.between(span{5 * milli, electionTimeout}))
			s.crashAndRestart(heir.id)
			s.heal()
			s.write(heir, 8)
			s.run(s.between(span{0, 2 * electionTimeout}))
		}
		s.settle(patience)
	}
}
