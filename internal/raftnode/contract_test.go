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
	}
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
}

// settle ends the faults and the clients, and demands that the cluster works (X7).
func (e *contractEnd) settle() {
	w, s := e.w, e.w.s
	w.stopping = true
	s.settle(patience)
	e.finish(func(what string, cond func() bool) bool {
		s.must(2*patience, what, cond)
		return true
	})
	if s.violation != nil {
		s.fatalf("")
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
func contractRun(t *testing.T, seed uint64, bug plantedBug, shape contractShape) *contractEnd {
	t.Helper()
	w := newContractWorld(t, seed, bug, shape.options)
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
	w.s.run(20 * second)
	return e
}

// TestContractSimulation runs random clusters of real stores with random faults, and
// clients that use all of the contract.
func TestContractSimulation(t *testing.T) {
	first, runs := simSeeds(t, 20)
	var total contractStats
	for seed := first; seed < first+runs; seed++ {
		e := contractRun(t, seed, noBug, contractShape{})
		s, faults := e.w.s, e.w.s.nemesis.String()
		if s.violation == nil {
			e.settle()
		}
		if s.violation != nil {
			t.Fatalf("seed %d (%d members; %s), at %d ms: %v\nreplay: KVD_SIM_SEED=%d go test -count=1 -run '^TestContractSimulation$' ./internal/raftnode\n%s",
				seed, s.opts.members, faults, s.now/milli, s.violation, seed, s.describe())
		}
		e.w.stopClients()
		total.add(&e.w.stats)
	}
	t.Logf("%d seeds: %+v", runs, total)
	if runs >= 20 {
		total.demand(t)
	}
}

// demand fails a run in which too little happened to prove anything.
func (a *contractStats) demand(t *testing.T) {
	t.Helper()
	for _, m := range []struct {
		what      string
		have, min int
	}{
		{"transfers", a.transfers, 400}, {"reads of all accounts", a.checkedReads, 600}, {"requests with an idempotency key", a.once, 600},
		{"repeats", a.repeats, 150}, {"granted leases", a.granted, 100}, {"keep-alives", a.renewed, 500}, {"leases that ended", a.leasesEnded, 250},
		{"locks", a.locked, 25}, {"events", a.events, 4000}, {"resumed watches", a.resumed, 300},
		{"reads of the change log", a.diskReads, 50}, {"compactions", a.compacted, 12},
	} {
		if m.have < m.min {
			t.Errorf("only %d %s, want at least %d", m.have, m.what, m.min)
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
		e := contractRun(t, seed, bug, shape)
		s := e.w.s
		if s.violation == nil {
			s.calm()
			e.w.stopping = true
			e.finish(func(_ string, cond func() bool) bool { return s.until(2*patience, cond) })
		}
		e.w.stopClients()
		if s.violation == nil {
			continue
		}
		text, _, _ := strings.Cut(s.violation.Error(), "\n")
		if !strings.HasPrefix(text, invariant) {
			t.Fatalf("seed %d went red for another reason: %v", seed, s.violation)
		}
		t.Logf("detected by seed %d, after %d of them and %v: %s", seed, seed-first+1, time.Since(begin).Round(time.Millisecond), text)
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

// TestContractControlNone plants no bug, under the conditions of the other controls.
func TestContractControlNone(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		for _, clients := range []func(*contractWorld) *contractEnd{(*contractWorld).populate, (*contractWorld).lodge} {
			e := contractRun(t, seed, noBug, contractShape{
				faults: []func(*sim){isolateLeader, (*sim).faultIsolate, (*sim).faultTransfer, (*sim).faultCrash}, window: 1 << 10, clients: clients,
				options: func(o *simOptions) { o.members, o.blind, o.catchUp = 3, true, 3 },
			})
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
		w := contractRun(t, 77, noBug, contractShape{}).w
		w.stopClients()
		runs[i] = w.s
	}
	a, b := runs[0], runs[1]
	if a.traced != b.traced || a.serial != b.serial {
		t.Fatalf("traces %x (%d events) and %x (%d events)", a.traced, a.serial, b.traced, b.serial)
	}
}
