package raftnode

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
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
	return o
}

// simulate runs one seed and returns its cluster after all checks.
func simulate(t *testing.T, seed uint64, bug plantedBug) *sim {
	t.Helper()
	opts := randomOptions(seed)
	opts.bug = bug
	s := newSim(t, seed, opts)
	s.plague()
	s.load(1+s.rng.IntN(6), span{5 * milli, 200 * milli})
	s.run(20 * second)
	return s
}

// patience is how long a healthy cluster may take to work again.
const patience = 30 * electionTimeout

func environment(t *testing.T, name string, otherwise uint64) (uint64, bool) {
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
	runs, _ = environment(t, "KVD_SIM_RUNS", otherwise)
	t.Logf("seeds %d to %d; replay: KVD_SIM_SEED=%d KVD_SIM_RUNS=%d go test -count=1 -run '^%s$' ./internal/raftnode",
		first, first+runs-1, first, runs, t.Name())
	return first, runs
}

// TestSimulation runs random clusters with random faults.
func TestSimulation(t *testing.T) {
	first, runs := simSeeds(t, 100)
	var total knowledge
	for seed := first; seed < first+runs; seed++ {
		total.sum(simulateAndSettle(t, seed))
	}
	t.Logf("%d seeds: %d writes, %d reads, %d membership changes, %d transfers succeeded; %d elections, %d restarts, %d of %d snapshots installed",
		runs, total.writes, total.reads, total.changes, total.transfers, total.elections, total.restarts, total.snapshotsInstalled, total.snapshotsSent)
	if runs >= 40 {
		demandTraffic(t, &total)
	}
}

// simulateAndSettle runs one seed, which must not violate anything, and returns
// what became known.
func simulateAndSettle(t *testing.T, seed uint64) *knowledge {
	t.Helper()
	s := simulate(t, seed, noBug)
	faults := s.nemesis.String()
	if s.violation == nil {
		s.settle(patience)
	}
	if s.violation != nil {
		t.Fatalf("seed %d (%d members; %s), at %d ms: %v\nreplay: KVD_SIM_SEED=%d go test -count=1 -run '^TestSimulation$' ./internal/raftnode\n%s",
			seed, s.opts.members, faults, s.now/milli, s.violation, seed, s.describe())
	}
	return &s.known
}

// TestSimulationRegressions runs the seeds that once found a fault.
func TestSimulationRegressions(t *testing.T) {
	for _, r := range []struct {
		seed  uint64
		fault string
	}{
		{7001756, "a save torn between its entries and its hard state: no leader with two of three members alive"},
	} {
		t.Run(strconv.FormatUint(r.seed, 10), func(t *testing.T) { simulateAndSettle(t, r.seed) })
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
		a := simulate(t, seed, noBug)
		b := simulate(t, seed, noBug)
		if a.traced != b.traced || a.serial != b.serial {
			t.Fatalf("seed %d: traces %x (%d events) and %x (%d events)", seed, a.traced, a.serial, b.traced, b.serial)
		}
		if c := simulate(t, seed+1, noBug); c.traced == a.traced {
			t.Fatalf("seeds %d and %d have the same trace", seed, seed+1)
		}
	}
}
