package raftnode

import (
	"fmt"
	"strings"
	"testing"
	"time"

	record "github.com/kvd-io/kvd/internal/proof"
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
			if s := afflicted(t, seed, noBug, afflict(faults...), plan{}, nil); s.violation != nil {
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
		run := func(p plan, j *journal) *sim { return afflicted(t, seed, bug, shape, p, j) }
		if s := run(plan{}, nil); s.violation != nil {
			detected(t, s, begin, seed-first+1, run)
			return
		}
	}
	t.Fatalf("not detected by %d seeds", controlSeeds)
}

// controlSuite is the suite of the controls.
const controlSuite = "controls of the simulation"

// detected tells what a control has cost, and, with KVD_SIM_SHRINK, how small the run
// becomes that shows the bug.
func detected(t *testing.T, s *sim, begin time.Time, seeds uint64, run runner) {
	t.Helper()
	text, _, _ := strings.Cut(s.violation.Error(), "\n")
	t.Logf("detected by seed %d, after %d of them and %v: %s", s.seed, seeds, time.Since(begin).Round(time.Millisecond), text)
	record.Record(t, record.Result{
		Suite: controlSuite, Controls: 1, Caught: 1, Planted: s.opts.bug.String(), Tries: int64(seeds), Broken: broken(text), Seconds: time.Since(begin).Seconds(),
		Replay: fmt.Sprintf("KVD_SIM_SEED=%d go test -run '^%s$' ./internal/raftnode", s.seed, t.Name()),
	})
	if _, wanted := environment(t, "KVD_SIM_SHRINK", 0); wanted {
		t.Log(shrink(run))
	}
}

// broken names what a violation broke: an invariant by its number, or what happened instead
// of one.
func broken(violation string) string {
	invariant, _, _ := strings.Cut(violation, ": ")
	switch {
	case !strings.Contains(invariant, " "):
		return invariant
	case strings.Contains(violation, "cannot start"):
		return "start"
	case strings.Contains(violation, "ran twice"):
		return "S7"
	case strings.HasPrefix(violation, "panic"):
		return "panic"
	}
	return ""
}

// afflicted runs as much of one seed as the plan says, under the control's conditions.
func afflicted(t *testing.T, seed uint64, bug plantedBug, shape func(*sim), p plan, j *journal) *sim {
	t.Helper()
	opts := randomOptions(seed)
	opts.members, opts.bug, opts.blind = 3, bug, true
	opts.checkpoints, opts.without = second, newerNames
	opts.plan, opts.journal = p, j
	s := newSim(t, seed, opts)
	s.plague()
	shape(s)
	s.load(6, span{2 * milli, 40 * milli})
	s.run(s.plan.length())
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
	if !works || !s.mended(patience) {
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
	control(t, bugAckBeforeSave, func(s *sim) {
		afflict((*sim).faultCrashAll, (*sim).faultCrashLeader)(s)
		s.opts.disk = span{5 * milli, 100 * milli}
	})
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

// TestControlReleasedEarly: entries leave the memory once they are applied, although raft
// does not know it yet. A campaign at that moment does not find them.
func TestControlReleasedEarly(t *testing.T) {
	control(t, bugReleasedEarly, func(s *sim) {
		s.opts.catchUp, s.opts.turn = 1, span{milli, 100 * milli}
		for _, n := range s.nodes {
			n.log.MaxEntries = 1
		}
		afflict((*sim).faultCrashAll, (*sim).faultCrashLeader)(s)
	})
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

// TestControlStoreNotFlushed: the log on disk is released although the store is not there.
func TestControlStoreNotFlushed(t *testing.T) {
	control(t, bugStoreNotFlushed, afflict((*sim).faultCrash))
}

// TestControlRecordBeforeBody: a power cut leaves a log that begins with a snapshot that
// there is not.
func TestControlRecordBeforeBody(t *testing.T) {
	control(t, bugRecordBeforeBody, func(s *sim) {
		afflict((*sim).faultIsolate, (*sim).faultCrash)(s)
		s.opts.catchUp = 3
	})
}

// TestControlIDReused: an empty disk runs on as the member whose disk was lost.
func TestControlIDReused(t *testing.T) {
	control(t, bugIDReused, afflict((*sim).faultWipe, (*sim).faultCrashLeader, (*sim).faultIsolate))
}

// TestControlNoRepair: a log whose last save is torn is not repaired.
func TestControlNoRepair(t *testing.T) {
	control(t, bugNoRepair, func(s *sim) {
		afflict((*sim).faultCrashAll, (*sim).faultCrash)(s)
		s.opts.disk = span{5 * milli, 100 * milli}
	})
}

// TestControlGuardOff: a sector in the middle of a log is zeroed, and the log is read up to
// there, as etcd's WAL alone would do it. Stores are not durable, or they would tell.
func TestControlGuardOff(t *testing.T) {
	control(t, bugGuardOff, func(s *sim) {
		afflict((*sim).faultSector)(s)
		s.opts.checkpoints = 0
	})
}

// TestControlRotNotMended: nobody looks for rotten blocks.
func TestControlRotNotMended(t *testing.T) {
	control(t, bugRotNotMended, afflict((*sim).faultRot))
}

// TestControlRotServed: a rotten block is taken for a whole one.
func TestControlRotServed(t *testing.T) {
	control(t, bugRotServed, afflict((*sim).faultRot, (*sim).faultCrash))
}
