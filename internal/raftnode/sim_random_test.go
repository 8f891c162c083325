package raftnode

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	record "github.com/kvd-io/kvd/internal/proof"
)

// randomOptions chooses the shape of a seed's cluster.
func randomOptions(seed uint64) simOptions {
	o := simOptions{members: []int{3, 3, 3, 5, 5, 2, 1, 4}[seed%8]}
	if seed%3 > 0 {
		o.catchUp = 5 + int(seed%40)
	}
	o.memory = seed%4 == 1
	if seed%5 > 0 {
		o.checkpoints = second * int64(1+seed%4)
	}
	if seed%7 == 0 {
		o.maxBatch = 64
	}
	if seed%11 == 0 {
		o.maxQueue = 128
	}
	return o
}

// simulate runs as much of a seed as the plan says, without certain faults, and returns its
// cluster.
func simulate(t *testing.T, seed uint64, p plan, j *journal, without ...string) *sim {
	t.Helper()
	opts := randomOptions(seed)
	opts.plan, opts.journal, opts.without, opts.bug = p, j, without, chosenBug(t)
	s := newSim(t, seed, opts)
	s.plague()
	s.load(1+s.rng.IntN(6), span{5 * milli, 200 * milli})
	s.run(s.plan.length())
	return s
}

// patience is how long a healthy cluster may take to work again.
const patience = 30 * electionTimeout

func environment(t testing.TB, name string, otherwise uint64) (uint64, bool) {
	t.Helper()
	text, ok := os.LookupEnv(name)
	if !ok {
		return otherwise, false
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v, true
}

// chosenBug returns the bug that somebody wants to see in the seeds of the simulation:
// KVD_SIM_BUG, as the table of controls in docs/testing.md names it. A seed that is kept
// because it found a bug has to go red with it.
func chosenBug(t testing.TB) plantedBug {
	t.Helper()
	text, chosen := os.LookupEnv("KVD_SIM_BUG")
	if !chosen {
		return noBug
	}
	for bug, name := range bugTexts {
		if name == text {
			return bug
		}
	}
	t.Fatalf("KVD_SIM_BUG: there is no bug %q", text)
	return noBug
}

// seedsOf returns how many seeds of n to run. All members of a simulation run on one
// goroutine, in which there are no races to find: the race detector, under which each takes
// ten times as long, sees a tenth of them.
func seedsOf(n uint64) uint64 {
	if underRace {
		return (n + 9) / 10
	}
	return n
}

// simSeeds returns the seeds to run: by default otherwise of them, from a base
// that is another one every time, so that each run of the tests looks at clusters
// that none has looked at before. The environment sets the first (KVD_SIM_SEED)
// and their number (KVD_SIM_RUNS; 1 if only the seed is given).
func simSeeds(t *testing.T, otherwise uint64) (first, runs uint64) {
	t.Helper()
	first, chosen := environment(t, "KVD_SIM_SEED", 1+rand.Uint64N(1<<40))
	if chosen {
		otherwise = 1
	}
	runs, _ = environment(t, "KVD_SIM_RUNS", seedsOf(otherwise))
	t.Logf("seeds %d to %d; replay: KVD_SIM_SEED=%d KVD_SIM_RUNS=%d go test -count=1 -run '^%s$' ./internal/raftnode",
		first, first+runs-1, first, runs, t.Name())
	return first, runs
}

// TestSimulation runs random clusters with random faults.
func TestSimulation(t *testing.T) {
	first, runs := simSeeds(t, 100)
	var total knowledge
	corners := newTally()
	for seed := first; seed < first+runs; seed++ {
		s := simulateAndSettle(t, seed)
		total.sum(&s.known)
		corners.add(s)
	}
	t.Logf("%d seeds: %d writes, %d reads, %d membership changes, %d transfers succeeded; %d elections, %d restarts, %d of %d snapshots installed",
		runs, total.writes, total.reads, total.changes, total.transfers, total.elections, total.restarts, total.snapshotsInstalled, total.snapshotsSent)
	if runs >= 40 {
		demandTraffic(t, &total)
	}
	t.Logf("simulated: %d seeds, %s", runs, corners.speed())
	t.Logf("the situations:%s", corners.list(0, replicationSituations))
	corners.demand(t, 0, replicationSituations)
	recordSeeds(t, "simulation", first, corners, total.writes+total.reads, "linearizable", "replicas agree", "ids", "writes resume")
}

// recordSeeds adds what seeds have seen to the results of a suite.
func recordSeeds(t *testing.T, suite string, first uint64, corners *tally, operations int, promises ...string) {
	t.Helper()
	record.Record(t, record.Result{
		Suite: suite, Runs: int64(corners.runs), Operations: int64(operations), Seconds: float64(corners.time) / float64(second), Simulated: true, Promises: promises,
		Replay: fmt.Sprintf("KVD_SIM_SEED=%d KVD_SIM_RUNS=%d go test -run '^%s$' ./internal/raftnode", first, corners.runs, t.Name()),
	})
}

// simulateAndSettle runs one seed, which must not violate anything, and returns its
// cluster.
func simulateAndSettle(t *testing.T, seed uint64, without ...string) *sim {
	t.Helper()
	run := func(p plan, j *journal) *sim {
		s := simulate(t, seed, p, j, without...)
		if s.violation == nil {
			s.converge(patience)
		}
		return s
	}
	s := run(planOf(t), nil)
	if s.violation != nil {
		report(t, s, run)
	}
	return s
}

// TestSimulationRegressions runs the seeds that once found a fault. With KVD_SIM_BUG, those of
// a fault that can be planted go red again, unless a change has given them other runs.
func TestSimulationRegressions(t *testing.T) {
	for _, r := range []struct {
		seed    uint64
		without []string // the faults that came later
		fault   string
	}{
		{7001756, newerNames, "a save torn between its entries and its hard state: no leader with two of three members alive"},
		{875733857521, newerNames, "entries released from memory before raft knew them to be applied: a panic in the next campaign"},
		{752256322088, newestNames, "the same with a full disk"},
		{8815, nil, "the same among all faults"},
		{772435503086, nil, "a rebuild that asked only the members of an old snapshot, and waited forever"},
	} {
		t.Run(strconv.FormatUint(r.seed, 10), func(t *testing.T) { simulateAndSettle(t, r.seed, r.without...) })
	}
}

func (k *knowledge) sum(o *knowledge) {
	k.writes += o.writes
	k.reads += o.reads
	k.changes += o.changes
	k.transfers += o.transfers
	k.elections += o.elections
	k.restarts += o.restarts
	k.snapshotsInstalled += o.snapshotsInstalled
	k.snapshotsSent += o.snapshotsSent
}

// demandTraffic fails a run in which too little happened to prove anything.
func demandTraffic(t *testing.T, k *knowledge) {
	t.Helper()
	for _, m := range []struct {
		what      string
		have, min int
	}{
		{"writes", k.writes, 4000}, {"reads", k.reads, 2000}, {"membership changes", k.changes, 40},
		{"transfers", k.transfers, 20}, {"elections", k.elections, 200}, {"restarts", k.restarts, 200},
		{"installed snapshots", k.snapshotsInstalled, 20},
	} {
		if m.have < m.min {
			t.Errorf("only %d %s, want at least %d", m.have, m.what, m.min)
		}
	}
}

// TestSimulationIsReplayable runs one seed twice: the traces are the same.
func TestSimulationIsReplayable(t *testing.T) {
	for seed := uint64(1001); seed < 1005; seed++ {
		a, b := simulate(t, seed, plan{}, nil), simulate(t, seed, plan{}, new(journal))
		if a.traced != b.traced || a.serial != b.serial {
			t.Fatalf("seed %d: traces %x (%d events) and %x (%d events)", seed, a.traced, a.serial, b.traced, b.serial)
		}
		if c := simulate(t, seed+1, plan{}, nil); c.traced == a.traced {
			t.Fatalf("seeds %d and %d have the same trace", seed, seed+1)
		}
	}
}
