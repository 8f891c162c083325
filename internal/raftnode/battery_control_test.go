package raftnode

import (
	"strings"
	"testing"
	"time"
)

// A control plants a bug and demands that the simulation notices it. Otherwise
// green runs would prove nothing.

// TestControlNone plants no bug, under the conditions of the other controls.
func TestControlNone(t *testing.T) {
	for _, faults := range [][]func(*sim){
		{(*sim).faultCrashAll, (*sim).faultCrash, (*sim).faultCrashLeader},
		{(*sim).faultIsolate, (*sim).faultTransfer},
		{(*sim).faultAdd, (*sim).faultRemove, (*sim).faultCrash},
	} {
		for seed := uint64(1); seed <= 15; seed++ {
			if s := afflicted(t, seed, noBug, afflict(faults...)); s.violation != nil {
				t.Fatalf("seed %d: %v\n%s", seed, s.violation, s.describe())
			}
		}
	}
}

// controlSeeds bounds the number of seeds that a control may need.
const controlSeeds = 1000

func control(t *testing.T, bug plantedBug, shape func(s *sim)) {
	t.Helper()
	begin := time.Now()
	first, _ := environment(t, "KVD_SIM_SEED", 1)
	for seed := first; seed < first+controlSeeds; seed++ {
		if s := afflicted(t, seed, bug, shape); s.violation != nil {
			text, _, _ := strings.Cut(s.violation.Error(), "\n")
			t.Logf("detected by seed %d, after %d of them and %v: %s", seed, seed-first+1, time.Since(begin).Round(time.Millisecond), text)
			return
		}
	}
	t.Fatalf("not detected by %d seeds", controlSeeds)
}

// afflicted runs one seed under the control's conditions.
func afflicted(t *testing.T, seed uint64, bug plantedBug, shape func(*sim)) *sim {
	t.Helper()
	opts := randomOptions(seed)
	opts.members, opts.bug, opts.blind = 3, bug, true
	opts.checkpoints = second
	s := newSim(t, seed, opts)
	s.plague()
	shape(s)
	s.load(6, span{2 * milli, 40 * milli})
	s.run(20 * second)
	if s.violation == nil {
		s.finish()
	}
	return s
}

// finish ends the faults and judges, without demanding that the cluster
// recovers.
func (s *sim) finish() {
	s.calm()
	var probe *op
	works := s.until(patience, func() bool {
		if l := s.leader(); l != nil && (probe == nil || probe.outcome == refused || probe.outcome == unknown) {
			probe = s.write(l, 8)
		}
		return probe != nil && probe.outcome == succeeded && s.agreed()
	})
	if !works {
		return
	}
	at := probe.node.machine
	index, _ := at.position()
	for _, o := range s.known.ops {
		if o.kind == opWrite && o.outcome == succeeded && o.index <= index && !at.ran(o.id) {
			s.violate("S7: command %d was acknowledged in entry %d and is lost", o.id, o.index)
		}
	}
}

// afflict adds faults that a bug needs to show itself.
func afflict(faults ...func(*sim)) func(*sim) {
	return func(s *sim) {
		for _, f := range faults {
			s.nemesis.faults = append(s.nemesis.faults, fault{name: "planted", do: f, rate: 1})
		}
		s.nemesis.pause = span{20 * milli, 500 * milli}
	}
}

func TestControlFsyncOff(t *testing.T) {
	control(t, bugFsyncOff, afflict((*sim).faultCrashAll, (*sim).faultCrash))
}

func TestControlAcknowledgedBeforeSave(t *testing.T) {
	control(t, bugAckBeforeSave, afflict((*sim).faultCrashAll, (*sim).faultCrashLeader))
}

func TestControlFollowerAnswersBeforeSave(t *testing.T) {
	control(t, bugFollowerAnswersBeforeSave, afflict((*sim).faultCrashAll, (*sim).faultCrash))
}

func TestControlVoteNotPersisted(t *testing.T) {
	control(t, bugVoteNotPersisted, afflict((*sim).faultCrashAll, (*sim).faultCrash))
}

func TestControlLocalReads(t *testing.T) {
	control(t, bugLocalReads, afflict((*sim).faultIsolate))
}

// TestControlFreshByContact: a member that hears its leader counts as fresh.
func TestControlFreshByContact(t *testing.T) {
	control(t, bugFreshByContact, afflict((*sim).faultIsolate))
}

// TestControlReadContextReused: the answer to an attempt that was given up
// counts for the next attempt, whose requests arrived later.
func TestControlReadContextReused(t *testing.T) {
	control(t, bugReadContextReused, func(s *sim) {
		s.net.delay = span{milli, 150 * milli}
		s.net.reorder, s.net.late = 0.4, 600*milli
	})
}

func TestControlNoDedupe(t *testing.T) {
	control(t, bugNoDedupe, afflict((*sim).faultIsolate, (*sim).faultTransfer))
}

func TestControlOriginsNotInSnapshot(t *testing.T) {
	control(t, bugOriginsNotInSnapshot, func(s *sim) {
		afflict((*sim).faultIsolate, (*sim).faultTransfer)(s)
		s.opts.catchUp = 3
	})
}

// TestControlBodyNotVerified: a damaged body that is recorded ends its receiver
// for good.
func TestControlBodyNotVerified(t *testing.T) {
	control(t, bugBodyNotVerified, func(s *sim) {
		afflict((*sim).faultIsolate, (*sim).faultCrash)(s)
		s.opts.catchUp, s.net.damages = 3, 0.5
	})
}

func TestControlNonDeterministicApply(t *testing.T) {
	control(t, bugNonDeterministicApply, func(*sim) {})
}

func TestControlConfChangeTwice(t *testing.T) {
	control(t, bugConfChangeTwice, func(s *sim) {
		afflict((*sim).faultAdd, (*sim).faultRemove, (*sim).faultCrash)(s)
	})
}
