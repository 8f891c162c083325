package raftnode

import (
	"errors"
	"testing"
	"time"

	record "github.com/kvd-io/kvd/internal/proof"
)

// Stories about a leader whose process dies, or is believed to be dead. If
// raft's own election timeout must not be what helps, it is 30 s or more of
// virtual time, and everything has to be over long before that.

const (
	longElection   = 300 // ticks
	beforeElection = 10 * second
)

var failoverSeeds = seedsOf(20)

// busy and idle are the clients' pauses. A busy leader refutes a suspicion
// within milliseconds, an idle one with its next heartbeat.
var (
	busy = span{milli, 10 * milli}
	idle = span{100 * milli, second}
)

// failover makes a cluster under load without faults.
func failover(t *testing.T, seed uint64, think span, opts simOptions) (s *sim, leader *simNode) {
	t.Helper()
	if opts.members == 0 {
		opts.members = []int{3, 5}[seed%2]
	}
	s = newSim(t, seed, opts)
	s.nemesis = new(nemesis) // clients work while there is one
	s.load(4, think)
	leader = s.elect()
	s.run(second)
	return s, leader
}

// expectNoErrors demands that every operation at the members succeeds.
func (s *sim) expectNoErrors(at ...uint64) {
	s.t.Helper()
	s.nemesis = nil
	s.must(beforeElection, "an answer to everything", func() bool {
		for _, id := range at {
			if len(s.nodes[id].ops) > 0 {
				return false
			}
		}
		return true
	})
	for _, o := range s.known.ops {
		for _, id := range at {
			if o.node.id == id && o.outcome != succeeded && !o.withdrawn {
				s.fatalf("an operation of kind %d at member %d, begun at %d ms, ended with %v", o.kind, id, o.begin/milli, o.err)
			}
		}
	}
}

// TestDeadLeaderIsFollowedAtOnce: nobody waits for an election timeout, and
// clients of the other members see no error.
func TestDeadLeaderIsFollowedAtOnce(t *testing.T) {
	var slowest, sum int64
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, old := failover(t, seed, busy, simOptions{electionTicks: longElection})
		died := s.now
		old.crash()
		rest := s.others(old.id)
		s.elect(rest...)
		took := s.now - died
		slowest, sum = max(slowest, took), sum+took
		s.run(second)
		s.expectNoErrors(rest...)
		if s.now-died > beforeElection {
			s.fatalf("it took %d ms, in which the election timeout may have fired", (s.now-died)/milli)
		}
		s.settle(patience)
	}
	t.Logf("a new leader for all after %d ms on average, %d ms at most", sum/int64(failoverSeeds)/milli, slowest/milli)
}

// TestLeaderRestartedUnnoticed: a leader that was restarted before anybody
// noticed its end asks for votes, which shows that it no longer leads.
func TestLeaderRestartedUnnoticed(t *testing.T) {
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, old := failover(t, seed, busy, simOptions{electionTicks: longElection, deaf: true})
		old.crash()
		s.run(5 * milli)
		old.start()
		s.must(beforeElection, "a leader after the restart", func() bool { return s.settledLeader(s.order...) != nil })
		s.expectNoErrors(s.others(old.id)...)
		s.settle(patience)
	}
}

// TestEveryoneRestarted: after a power cut nobody waits for the election
// timeout either.
func TestEveryoneRestarted(t *testing.T) {
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, _ := failover(t, seed, busy, simOptions{electionTicks: longElection})
		s.crashAndRestart(s.order...)
		s.must(beforeElection, "a leader after the power cut", func() bool { return s.settledLeader(s.order...) != nil })
		s.settle(patience)
	}
}

// TestSlowElectionsGetTheirTime: on slow disks and networks a campaign is not
// abandoned for the next one before it can be won.
func TestSlowElectionsGetTheirTime(t *testing.T) {
	terms := uint64(0)
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, old := failover(t, seed, busy, simOptions{members: 5, electionTicks: longElection, disk: span{20 * milli, 80 * milli}})
		s.net.delay.max = 20 * milli
		s.run(second)
		term := old.core.term
		old.crash()
		s.must(beforeElection, "a leader of all", func() bool { return s.settledLeader(s.others(old.id)...) != nil })
		terms += s.leader().core.term - term
		s.expectNoErrors(s.others(old.id)...)
		s.settle(patience)
	}
	if t.Logf("%d terms for %d elections", terms, failoverSeeds); terms > 2*failoverSeeds {
		t.Errorf("%d terms for %d elections", terms, failoverSeeds)
	}
}

// suspectAt makes the members believe now and then that their leader is gone.
func (s *sim) suspectAt(d int64, members func() []uint64) {
	end := s.now + d
	for s.now < end && s.violation == nil {
		for _, id := range members() {
			s.nodes[id].post(func(c *core) { c.suspect(c.lead) })
		}
		s.run(s.between(span{milli, 100 * milli}))
	}
}

// TestFewCannotDeposeALeader: a live leader that fewer than a majority suspect
// keeps its office and its term, and no client notices.
func TestFewCannotDeposeALeader(t *testing.T) {
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, l := fewSuspect(t, seed, noBug)
		if s.leader() != l.leader || l.core.term != l.term {
			s.fatalf("the suspected leader %d lost its office of term %d\n%s", l.id, l.term, s.describe())
		}
		s.expectNoErrors(s.order...)
		s.settle(patience)
	}
}

type office struct {
	*simNode
	leader *simNode
	term   uint64
}

func fewSuspect(t *testing.T, seed uint64, bug plantedBug) (*sim, office) {
	t.Helper()
	s, l := failover(t, seed, idle, simOptions{bug: bug})
	o := office{simNode: l, leader: l, term: l.core.term}
	few := s.others(l.id)[:(len(s.order)-1)/2]
	s.suspectAt(10*second, func() []uint64 { return few })
	s.run(electionTimeout)
	return s, o
}

// TestManySuspectALivingLeader: a majority that is wrong at the same time may
// elect another leader. It does so safely and keeps serving, and once its
// members trust their leader again, the leader stays.
func TestManySuspectALivingLeader(t *testing.T) {
	elections := 0
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, l := failover(t, seed, idle, simOptions{})
		term := l.core.term
		s.suspectAt(10*second, func() []uint64 { return s.order })
		last := s.elect()
		elections += int(last.core.term - term)
		term = last.core.term
		s.run(10 * electionTimeout)
		if s.leader() != last || last.core.term != term {
			s.fatalf("the elections go on\n%s", s.describe())
		}
		s.expectNoErrors(s.order...)
		s.settle(patience)
	}
	t.Logf("%d elections", elections)
}

// TestGlitchElectsNobody: while connections break all the time and every
// process lives, the leader and its term stay.
func TestGlitchElectsNobody(t *testing.T) {
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, l, term := glitches(t, seed, noBug)
		if s.leader() != l || l.core.term != term {
			s.fatalf("glitches deposed member %d of term %d\n%s", l.id, term, s.describe())
		}
		s.expectNoErrors(s.order...)
		s.settle(patience)
	}
}

func glitches(t *testing.T, seed uint64, bug plantedBug) (s *sim, l *simNode, term uint64) {
	t.Helper()
	s, l = failover(t, seed, idle, simOptions{bug: bug})
	term = l.core.term
	for range 200 {
		s.faultGlitch()
		s.run(s.between(span{milli, 100 * milli}))
	}
	s.run(electionTimeout)
	return s, l, term
}

// TestControlSuspectEveryBreak: a broken connection alone does not prove that
// the leader is gone.
func TestControlSuspectEveryBreak(t *testing.T) {
	begin := time.Now()
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		if s, l, term := glitches(t, seed, bugSuspectEveryBreak); s.leader() != l || l.core.term != term {
			t.Logf("detected by seed %d: term %d became %d", seed, term, s.leader().core.term)
			record.Caught(t, controlSuite, bugSuspectEveryBreak.String(), int(seed), begin)
			return
		}
	}
	t.Fatal("not detected")
}

// TestControlCampaignWithoutPreVote: PreVote is what keeps a suspected leader
// in office.
func TestControlCampaignWithoutPreVote(t *testing.T) {
	begin := time.Now()
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		if s, l := fewSuspect(t, seed, bugCampaignWithoutPreVote); s.leader() != l.leader || l.core.term != l.term {
			t.Logf("detected by seed %d: term %d became %d", seed, l.term, s.leader().core.term)
			record.Caught(t, controlSuite, bugCampaignWithoutPreVote.String(), int(seed), begin)
			return
		}
	}
	t.Fatal("not detected")
}

// TestHandOverIsNotOvertaken: the chosen member wins its election on a slow
// machine too, because the third member gives it time.
func TestHandOverIsNotOvertaken(t *testing.T) {
	for seed := uint64(1); seed <= 5*failoverSeeds; seed++ {
		s, l := failover(t, seed, idle, simOptions{
			electionTicks: longElection, disk: span{5 * milli, 15 * milli}, turn: span{milli, 3 * milli},
		})
		o := s.handOver(l, s.others(l.id)[seed%2])
		s.must(beforeElection, "the hand-over", func() bool { return o.outcome != open })
		if o.outcome != succeeded {
			s.fatalf("the hand-over failed: %v", o.err)
		}
		s.settle(patience)
	}
}

// TestHandOverShowsNoError: a leader that is stopped hands over first.
// Requests in progress at any member, including its own, are answered.
func TestHandOverShowsNoError(t *testing.T) {
	for seed := uint64(1); seed <= failoverSeeds; seed++ {
		s, l := failover(t, seed, busy, simOptions{electionTicks: longElection})
		o := s.handOver(l, 0)
		s.must(beforeElection, "the hand-over", func() bool { return o.outcome != open })
		if o.outcome != succeeded {
			s.fatalf("the hand-over failed: %v", o.err)
		}
		s.elect()
		s.run(100 * milli)
		s.expectNoErrors(s.order...)
		l.stop(errors.New("stopped"))
		s.run(second)
		if s.leader().core.term != s.elect(s.others(l.id)...).core.term {
			s.fatalf("the end of a member that does not lead caused an election")
		}
		s.settle(patience)
	}
}
