package raftnode

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// populate starts the clients.
func (w *contractWorld) populate() *contractEnd {
	e := &contractEnd{w: w}
	total := 0
	seen := make(map[string]bool)
	for i := range 2 {
		k := &counter{total: &total, seen: seen}
		name := fmt.Sprintf("c%d", i)
		e.counters, e.names = append(e.counters, k), append(e.names, name)
		w.client(name, k.use)
		w.client("bank", bank)
		w.client("writer", writer)
		w.client("tenant", tenant)
		w.client("composer", composer)
		w.client("visitor", visitor)
		w.client("swapper", swapper)
		w.client("user of etcd", etcdUser)
	}
	w.client("tenant of etcd", etcdTenant)
	w.client("visitor of etcd", etcdVisitor)
	for range 2 {
		st := new(etcdStream)
		e.streams = append(e.streams, st)
		w.client("watcher of etcd", st.use)
	}
	w.client("administrator", administrator)
	for range 3 {
		w.client("locker", locker)
	}
	w.client("compactor", compacting)
	for i := range 4 {
		v := newWatcher(w, i)
		e.watchers = append(e.watchers, v)
		w.client("watcher", v.use)
	}
	return e
}

// lodge starts clients of leases only.
func (w *contractWorld) lodge() *contractEnd {
	for range 8 {
		w.client("tenant", tenant)
	}
	return &contractEnd{w: w}
}

// contractEnd is what has to be looked at in the end.
type contractEnd struct {
	w        *contractWorld
	counters []*counter
	names    []string
	watchers []*watcher
	streams  []*etcdStream
}

// settle ends the faults and the clients, and demands that the cluster works (X7).
func (e *contractEnd) settle() {
	w, s := e.w, e.w.s
	w.stopping = true
	if s.converge(patience); s.violation == nil {
		e.finish(func(what string, cond func() bool) bool { return s.lively(2*patience, what, cond) })
	}
}

// finish waits for what has to become true in the end, and then looks at it.
func (e *contractEnd) finish(wait func(what string, cond func() bool) bool) {
	w, s := e.w, e.w.s
	works := wait("the clients to finish", func() bool {
		return !slices.ContainsFunc(w.clients, func(c *client) bool { return c.busy })
	}) && wait("the end of all leases", func() bool {
		n := w.truth.store.Counts()
		return n.Leases == 0 && n.Locks == 0 && n.Waiters == 0
	}) && wait("agreement of all", s.agreed)
	for _, v := range e.watchers {
		works = works && wait("the watchers to have everything", func() bool { return v.c == nil || v.catchUp() })
	}
	for _, st := range e.streams {
		works = works && wait("the streams to have everything", func() bool { return st.c == nil || st.catchUp() })
	}
	if !works {
		return
	}
	for _, mb := range s.members().Members {
		if n := s.nodes[mb.ID]; n != nil && n.up {
			for i, k := range e.counters {
				k.check(w, e.names[i], storeOf(n).store)
			}
		}
	}
}

// contractShape is what a control needs beside a bug to show the damage. The zero value
// is a random cluster with all clients.
type contractShape struct {
	options func(*simOptions)
	faults  []func(*sim)
	window  int
	clients func(*contractWorld) *contractEnd
}

// contractRun runs one seed, without an end.
func contractRun(t *testing.T, seed uint64, bug plantedBug, shape contractShape, p plan, j *journal) *contractEnd {
	t.Helper()
	w := newContractWorld(t, seed, bug, func(o *simOptions) {
		o.plan, o.journal = p, j
		if bug == noBug {
			if o.onDisk = seed%5 == 2 || seed%5 == 4; o.onDisk {
				o.often = []string{"rot"} // chance alone would need a thousand seeds
			}
		} else {
			o.without = newerNames
		}
		if shape.options != nil {
			shape.options(o)
		}
	})
	w.s.plague()
	if len(shape.faults) > 0 {
		afflict(shape.faults...)(w.s)
	}
	if shape.window > 0 {
		w.windowBytes = shape.window
	}
	if shape.clients == nil {
		shape.clients = (*contractWorld).populate
	}
	e := shape.clients(w)
	w.s.run(w.s.plan.length())
	return e
}

// contractRunAndSettle runs one seed, which must not violate anything, and returns its world.
func contractRunAndSettle(t *testing.T, seed uint64) *contractWorld {
	t.Helper()
	var w *contractWorld
	run := func(p plan, j *journal) *sim {
		e := contractRun(t, seed, noBug, contractShape{}, p, j)
		w = e.w
		if w.s.violation == nil {
			e.settle()
		}
		w.stopClients()
		return w.s
	}
	if s := run(planOf(t), nil); s.violation != nil {
		report(t, s, run)
	}
	return w
}

// TestContractSimulation runs random clusters of real stores with random faults, and
// clients that use all of the contract.
func TestContractSimulation(t *testing.T) {
	first, runs := simSeeds(t, 20)
	var total contractStats
	corners := newTally()
	for seed := first; seed < first+runs; seed++ {
		w := contractRunAndSettle(t, seed)
		total.add(&w.stats)
		corners.add(w.s)
	}
	t.Logf("%d seeds: %+v", runs, total)
	if runs >= demandSeeds {
		total.demand(t, int(runs))
	}
	t.Logf("simulated: %d seeds with real stores, %s", runs, corners.speed())
	t.Logf("the situations:%s", corners.list(replicationSituations+1, situations))
	corners.demand(t, replicationSituations+1, situations)
	recordSeeds(t, "simulation of the contract", first, corners, total.transfers+total.checkedReads+total.once+total.granted+total.renewed+total.locked+total.events+total.etcd,
		"linearizable", "replicas agree", "exactly once", "watch", "leases")
}

// demandSeeds is the number of seeds for which the demands were measured.
const demandSeeds = 20

// demand fails a run in which too little happened to prove anything. What so many seeds do
// varies: transfers by a factor of four, because some clusters spend most of their time
// without a leader or on full disks. A demand is what a run misses once in a million, by the
// mean and deviation of the logarithms of 14 runs, or less.
func (a *contractStats) demand(t *testing.T, runs int) {
	t.Helper()
	for _, m := range []struct {
		what      string
		have, min int
	}{
		{"transfers", a.transfers, 80}, {"reads of all accounts", a.checkedReads, 200}, {"requests with an idempotency key", a.once, 150},
		{"repeats", a.repeats, 100}, {"granted leases", a.granted, 100}, {"keep-alives", a.renewed, 400}, {"leases that ended", a.leasesEnded, 250},
		{"locks", a.locked, 25}, {"events", a.events, 2200}, {"resumed watches", a.resumed, 300},
		{"answers to clients of etcd", a.etcd, 400}, {"reads of the change log", a.diskReads, 50}, {"compactions", a.compacted, 10},
	} {
		if least := m.min * runs / demandSeeds; m.have < least {
			t.Errorf("only %d %s, want at least %d", m.have, m.what, least)
		}
	}
}

func (a *contractStats) add(b *contractStats) {
	a.transfers += b.transfers
	a.once += b.once
	a.repeats += b.repeats
	a.granted += b.granted
	a.renewed += b.renewed
	a.leasesEnded += b.leasesEnded
	a.locked += b.locked
	a.staleTokens += b.staleTokens
	a.events += b.events
	a.resumed += b.resumed
	a.diskReads += b.diskReads
	a.compacted += b.compacted
	a.checkedReads += b.checkedReads
	a.delays += b.delays
	a.etcd += b.etcd
}

// contractControl plants a bug and demands that the clients notice it.
func contractControl(t *testing.T, bug plantedBug, invariant string, shape contractShape) {
	t.Helper()
	begin := time.Now()
	options := shape.options
	shape.options = func(o *simOptions) {
		o.members, o.blind = 3, true
		if options != nil {
			options(o)
		}
	}
	first, _ := environment(t, "KVD_SIM_SEED", 1)
	for seed := first; seed < first+controlSeeds; seed++ {
		run := func(p plan, j *journal) *sim {
			e := contractRun(t, seed, bug, shape, p, j)
			s := e.w.s
			if s.violation == nil {
				s.calm()
				e.w.stopping = true
				e.finish(func(_ string, cond func() bool) bool { return s.until(2*patience, cond) })
			}
			e.w.stopClients()
			return s
		}
		s := run(plan{}, nil)
		if s.violation == nil {
			continue
		}
		if !strings.HasPrefix(s.violation.Error(), invariant) {
			t.Fatalf("seed %d went red for another reason: %v", seed, s.violation)
		}
		detected(t, s, begin, seed-first+1, run)
		return
	}
	t.Fatalf("not detected by %d seeds", controlSeeds)
}

// isolateLeader lets a leader believe for a while that it still leads.
func isolateLeader(s *sim) {
	if l := s.leader(); l != nil {
		s.isolate(l.id)
		s.healLater()
	}
}

func TestContractControlWatchBeforeCommit(t *testing.T) {
	contractControl(t, bugWatchBeforeCommit, "X6", contractShape{})
}

func TestContractControlResumeOffByOne(t *testing.T) {
	contractControl(t, bugResumeOffByOne, "X6", contractShape{})
}

func TestContractControlSlowWatcherSkipped(t *testing.T) {
	contractControl(t, bugSlowWatcherSkipped, "X6", contractShape{window: 1 << 10})
}

func TestContractControlLeaseEndedByDeposedLeader(t *testing.T) {
	contractControl(t, bugLeaseEndedByDeposed, "X3", contractShape{faults: []func(*sim){isolateLeader}, clients: (*contractWorld).lodge})
}

func TestContractControlLockWithoutLease(t *testing.T) {
	contractControl(t, bugLockWithoutLease, "X4", contractShape{faults: []func(*sim){(*sim).faultIsolate}})
}

// TestContractControlOnceNotInSnapshot: the member that forgot goes its own way, which
// shows itself to many clients.
func TestContractControlOnceNotInSnapshot(t *testing.T) {
	contractControl(t, bugOnceNotInSnapshot, "X", contractShape{
		faults: []func(*sim){(*sim).faultIsolate, (*sim).faultCrash}, options: func(o *simOptions) { o.catchUp = 3 },
	})
}

func TestContractControlOnceBySequence(t *testing.T) {
	contractControl(t, bugOnceBySequence, "X1", contractShape{})
}

func TestContractControlRightsAtTheDoor(t *testing.T) {
	contractControl(t, bugRightsAtTheDoor, "X8", contractShape{})
}

func TestContractControlCompareByValue(t *testing.T) {
	contractControl(t, bugCompareByValue, "X2", contractShape{})
}

// TestContractControlKeepAliveUnproven: who leads next counts from when it took office,
// and that was before the answer.
func TestContractControlKeepAliveUnproven(t *testing.T) {
	contractControl(t, bugKeepAliveUnproven, "X3", contractShape{faults: []func(*sim){isolateLeader}, clients: (*contractWorld).lodge})
}

func TestContractControlFastClock(t *testing.T) {
	contractControl(t, bugFastClock, "X3", contractShape{clients: (*contractWorld).lodge})
}

// TestContractControlWallClock: leases are measured by the time of day.
func TestContractControlWallClock(t *testing.T) {
	contractControl(t, bugWallClock, "X3", contractShape{faults: []func(*sim){(*sim).faultClockSet}, clients: (*contractWorld).lodge})
}

func TestContractControlIgnoreLease(t *testing.T) {
	contractControl(t, bugIgnoreLeaseDropsIt, "X9", contractShape{})
}

func TestContractControlNestedJudgedLate(t *testing.T) {
	contractControl(t, bugNestedJudgedLate, "X9", contractShape{})
}

func TestContractControlProgressAhead(t *testing.T) {
	contractControl(t, bugProgressAhead, "X6", contractShape{})
}

// TestContractControlNone plants no bug, under the conditions of the other controls.
func TestContractControlNone(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		for _, clients := range []func(*contractWorld) *contractEnd{(*contractWorld).populate, (*contractWorld).lodge} {
			e := contractRun(t, seed, noBug, contractShape{
				faults: []func(*sim){isolateLeader, (*sim).faultIsolate, (*sim).faultTransfer, (*sim).faultCrash}, window: 1 << 10, clients: clients,
				options: func(o *simOptions) { o.members, o.blind, o.catchUp = 3, true, 3 },
			}, plan{}, nil)
			if e.w.stopClients(); e.w.s.violation != nil {
				t.Fatalf("seed %d: %v", seed, e.w.s.violation)
			}
		}
	}
}

// TestContractIsReplayable runs one seed twice: the traces are the same.
func TestContractIsReplayable(t *testing.T) {
	var runs [2]*sim
	for i := range runs {
		w := contractRun(t, 77, noBug, contractShape{}, plan{}, nil).w
		w.stopClients()
		runs[i] = w.s
	}
	a, b := runs[0], runs[1]
	if a.traced != b.traced || a.serial != b.serial {
		t.Fatalf("traces %x (%d events) and %x (%d events)", a.traced, a.serial, b.traced, b.serial)
	}
}
