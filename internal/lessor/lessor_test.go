package lessor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// world is a cluster of lessors over one replicated log. Applying is immediate on
// every node that is not cut off.
type world struct {
	t     *testing.T
	nodes []*testNode
	start time.Time

	mu     sync.Mutex
	term   uint64
	leader int // index; -1: none
	seq    uint64
	leases map[uint64]Lease
	// ended is when, by the virtual clock, the log ended a lease.
	ended map[uint64]time.Duration
	log   []int // numbers of leases that each expiry named
	// lostExpiries fail without being applied; keys are those of each lease.
	lostExpiries int
	keys         map[uint64]int
}

// testNode is one node: its Lessor and what it believes.
type testNode struct {
	*Lessor
	w  *world
	id int
	// deaf nodes hear nothing of elections: they keep believing in their term, and
	// apply nothing.
	deaf   bool
	term   uint64
	stored map[uint64]Lease // the table as this node has applied it
	hooks  hooks
	looks  int // at the office
}

// hooks interfere with a node; nil ones do nothing.
type hooks struct {
	leases        func() ([]Lease, error) // in place of reading the table
	prove, expire func()                  // called before
}

func (n *testNode) set(h hooks) { n.w.locked(func() { n.hooks = h }) }

func (n *testNode) hook() (h hooks) {
	n.w.locked(func() { h = n.hooks })
	return h
}

// in runs a test in virtual time with a world of n nodes.
func in(t *testing.T, n int, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, leader: -1, start: time.Now(), leases: map[uint64]Lease{}, ended: map[uint64]time.Duration{}, keys: map[uint64]int{}}
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		for i := range n {
			node := &testNode{w: w, id: i, stored: map[uint64]Lease{}}
			node.Lessor = New(node, node, time.Now, func(error) {})
			w.nodes = append(w.nodes, node)
			done.Go(func() { node.Run(ctx) })
		}
		defer done.Wait()
		defer cancel()
		test(t, w)
	})
}

// elect makes a node the leader of a new term.
func (w *world) elect(id int) {
	w.mu.Lock()
	w.term++
	w.leader = id
	for _, n := range w.nodes {
		if n.deaf {
			continue
		}
		if n.term = 0; n.id == id {
			n.term = w.term
		}
	}
	nodes := slices.DeleteFunc(slices.Clone(w.nodes), func(n *testNode) bool { return n.deaf })
	w.mu.Unlock()
	for _, n := range nodes {
		n.Applied() // the first entry of the term
	}
	time.Sleep(2 * pace) // virtual: until the node has noticed
}

// apply applies a change everywhere but on deaf nodes.
func (w *world) apply(c Change) {
	w.mu.Lock()
	if c.Ended {
		delete(w.leases, c.ID)
		w.ended[c.ID] = time.Since(w.start)
	} else {
		w.seq++
		c.Seq = w.seq
		w.leases[c.ID] = c.Lease
	}
	var hearing []*testNode
	for _, n := range w.nodes {
		if n.deaf {
			continue
		}
		hearing = append(hearing, n)
		if c.Ended {
			delete(n.stored, c.ID)
		} else {
			n.stored[c.ID] = c.Lease
		}
	}
	w.mu.Unlock()
	for _, n := range hearing {
		n.Changed([]Change{c})
	}
}

func (w *world) grant(id uint64, ttl time.Duration) {
	w.apply(Change{Lease: Lease{ID: id, TTL: ttl}})
}

func (w *world) revoke(id uint64) { w.apply(Change{Lease: Lease{ID: id}, Ended: true}) }

func (w *world) exists(id uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.leases[id]
	return ok
}

func (n *testNode) Leases(after uint64, limit int) (page []Lease, err error) {
	if read := n.hook().leases; read != nil {
		return read()
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, l := range n.stored {
		if l.ID > after {
			page = append(page, l)
		}
	}
	slices.SortFunc(page, func(a, b Lease) int { return int(a.ID) - int(b.ID) })
	return page[:min(limit, len(page))], nil
}

func (n *testNode) LeaseKeys(id uint64) (int, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.keys[id], nil
}

func (n *testNode) Tenure() uint64 {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.looks++
	return n.term
}

var errUnproven = errors.New("no quorum")

// Prove fails for a leader that is not the current one.
func (n *testNode) Prove(_ context.Context, term uint64) error {
	if before := n.hook().prove; before != nil {
		before()
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.deaf || n.w.leader != n.id || n.w.term != term {
		return errUnproven
	}
	return nil
}

// Expire is the state machine: it ignores an expiry of another term, and leases that
// were granted later.
func (n *testNode) Expire(_ context.Context, term, asOf uint64, leases []uint64) error {
	if before := n.hook().expire; before != nil {
		before()
	}
	n.w.mu.Lock()
	lost := n.w.lostExpiries > 0
	if lost {
		n.w.lostExpiries--
	}
	current := term == n.w.term
	var ends []uint64
	for _, id := range leases {
		if l, ok := n.w.leases[id]; ok && l.Seq <= asOf {
			ends = append(ends, id)
		}
	}
	if !lost && current {
		n.w.log = append(n.w.log, len(leases))
	}
	n.w.mu.Unlock()
	if lost {
		return errUnproven
	}
	if current {
		for _, id := range ends {
			n.w.revoke(id)
		}
	}
	return nil
}

// ask sends one request to a node.
func (n *testNode) ask(t *testing.T, r Request) (Answer, error) {
	t.Helper()
	answers, err := n.Serve(t.Context(), []Request{r})
	if err != nil {
		return Answer{}, err
	}
	return answers[0], nil
}

func (n *testNode) keepAlive(t *testing.T, id uint64) (Answer, error) {
	t.Helper()
	return n.ask(t, Request{ID: id, Renew: true})
}

// endsBetween checks when a lease ended.
func (w *world) endsBetween(id uint64, from, until time.Duration) {
	w.t.Helper()
	if at, ok := w.endedAt(id); !ok || at < from || at > until {
		w.t.Fatalf("lease %d ended at %v (%v), want between %v and %v", id, at, ok, from, until)
	}
}

// locked runs f under the lock: the lessors work in goroutines of their own.
func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// entries returns the expiries since the last call.
func (w *world) entries() (log []int) {
	w.locked(func() { log, w.log = w.log, nil })
	return log
}

// loseExpiries makes the next n expiries fail, and returns how many were still to.
func (w *world) loseExpiries(n int) (left int) {
	w.locked(func() { left, w.lostExpiries = w.lostExpiries, n })
	return left
}

// endedAt returns when a lease ended, if it did.
func (w *world) endedAt(id uint64) (at time.Duration, ok bool) {
	w.locked(func() { at, ok = w.ended[id] })
	return at, ok
}

func (w *world) now() time.Duration { return time.Since(w.start) }

// TestLeaseEndsAfterTTL: not before, and at most a look and a bit later.
func TestLeaseEndsAfterTTL(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		from := w.now()
		w.grant(1, 10*time.Second)
		w.grant(2, 0) // has no end of its own
		time.Sleep(5 * time.Second)
		if a, err := w.nodes[0].ask(t, Request{ID: 1}); err != nil || a.State != Alive || a.Remaining != 5*time.Second || a.TTL != 10*time.Second {
			t.Fatalf("after 5 s: %+v, %v", a, err)
		}
		time.Sleep(time.Hour)
		w.endsBetween(1, from+10*time.Second, from+10*time.Second+2*pace)
		if a, err := w.nodes[0].keepAlive(t, 2); err != nil || a != (Answer{State: Alive}) || !w.exists(2) {
			t.Fatalf("a lease without an end: %+v, %v", a, err)
		}
		if a, err := w.nodes[0].keepAlive(t, 1); err != nil || a.State != Unknown {
			t.Fatalf("keep-alive of an ended lease: %+v, %v", a, err)
		}
		if n := w.nodes[0].Expired(); n != 1 {
			t.Fatalf("%d leases expired, want 1", n)
		}
	})
}

func TestKeepAliveMovesTheDeadline(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		w.grant(1, 10*time.Second)
		for range 20 {
			time.Sleep(7 * time.Second)
			if a, err := w.nodes[0].keepAlive(t, 1); err != nil || a.State != Alive || a.Remaining != 10*time.Second {
				t.Fatalf("%+v, %v", a, err)
			}
		}
		from := w.now()
		time.Sleep(time.Minute)
		w.endsBetween(1, from+10*time.Second, from+10*time.Second+2*pace)
	})
}

// TestNewLeaderGivesFullTTL: whatever was left under the old leader, and however
// often the leader changes (T1).
func TestNewLeaderGivesFullTTL(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.elect(0)
		for id := range uint64(2500) { // more than two pages
			w.grant(id+1, 10*time.Second)
		}
		for i := range 6 {
			time.Sleep(9 * time.Second)
			w.elect((i + 1) % 3)
		}
		from := w.now() - 2*pace // when it was elected
		w.locked(func() {
			if len(w.ended) != 0 {
				t.Fatalf("%d leases ended early", len(w.ended))
			}
		})
		time.Sleep(time.Minute)
		for id := range uint64(2500) {
			w.endsBetween(id+1, from+10*time.Second, from+10*time.Second+4*pace)
		}
	})
}

// TestDeposedLeaderEndsNothing: a leader that was cut off still believes in its
// term. What it proposes arrives later, in another term (T2).
func TestDeposedLeaderEndsNothing(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		w.elect(0)
		w.grant(1, 10*time.Second)
		time.Sleep(9 * time.Second)
		w.locked(func() { w.nodes[0].deaf = true })
		w.elect(1)
		from := w.now() - 2*pace
		time.Sleep(8 * time.Second) // the old leader's deadline is long past
		if !w.exists(1) {
			t.Fatal("the deposed leader ended the lease")
		}
		time.Sleep(time.Minute)
		w.endsBetween(1, from+10*time.Second, from+10*time.Second+3*pace)
	})
}

// TestKeepAliveNeedsProof: an isolated leader extends what nobody else knows of. It
// must not promise it (T1).
func TestKeepAliveNeedsProof(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		w.elect(0)
		w.grant(1, 10*time.Second)
		w.locked(func() { w.nodes[0].deaf = true })
		w.elect(1)
		time.Sleep(9 * time.Second)
		if a, err := w.nodes[0].keepAlive(t, 1); err == nil {
			t.Fatalf("a deposed leader promises %+v", a)
		}
		time.Sleep(2 * time.Second)
		if w.exists(1) {
			t.Fatal("the lease did not end under the new leader")
		}
		if _, err := w.nodes[0].ask(t, Request{ID: 1}); err == nil {
			t.Fatal("a deposed leader tells the remaining time")
		}
	})
}

// TestProofComesAfterTheRenewal: the deadline has moved when the proof begins, and an
// office that is lost in between gives no answer.
func TestProofComesAfterTheRenewal(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		n := w.nodes[0]
		w.elect(0)
		w.grant(1, 10*time.Second)
		time.Sleep(5 * time.Second)
		n.set(hooks{prove: func() {
			n.Lessor.mu.Lock()
			e := n.Lessor.mu.office.leases[1]
			if left := e.deadline - n.nowLocked(); left != 10*time.Second {
				t.Errorf("%v are left when the proof begins", left)
			}
			n.Lessor.mu.Unlock()
			w.elect(1)
		}})
		if a, err := n.keepAlive(t, 1); err == nil {
			t.Fatalf("the leader lost its office before the proof, and answers %+v", a)
		}
	})
}

// TestGrantSeenElsewhereFirst: another node has applied a grant that the leader has
// not. The proof waits until it has.
func TestGrantSeenElsewhereFirst(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		w.nodes[0].set(hooks{prove: func() { w.grant(1, 10*time.Second) }})
		if a, err := w.nodes[0].keepAlive(t, 1); err != nil || a.State != Alive || a.Remaining != 10*time.Second {
			t.Fatalf("%+v, %v", a, err)
		}
	})
}

// TestEndSeenElsewhereFirst: somebody may have read elsewhere that the keys of a lease are
// gone, before the leader has applied the end. The proof waits until it has.
func TestEndSeenElsewhereFirst(t *testing.T) {
	for _, renew := range []bool{false, true} {
		in(t, 1, func(t *testing.T, w *world) {
			w.elect(0)
			w.grant(1, 10*time.Second)
			w.nodes[0].set(hooks{prove: func() { w.revoke(1) }})
			if a, err := w.nodes[0].ask(t, Request{ID: 1, Renew: renew}); err != nil || a != (Answer{}) {
				t.Fatalf("renew %v: a lease that ended before the proof: %+v, %v", renew, a, err)
			}
		})
	}
}

// TestNoPromiseOfADeposedLeader: after a leader has proved itself for one question, and
// before it answers, a successor takes office; to renew the lease here then is worth nothing.
func TestNoPromiseOfADeposedLeader(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		n := w.nodes[0]
		w.elect(0)
		w.grant(1, 10*time.Second)
		time.Sleep(5 * time.Second)
		asked := w.now()
		r, err := n.Renew([]Request{{ID: 1}})
		if err != nil || n.Prove(t.Context(), r.Term) != nil {
			t.Fatal("the leader cannot prove itself", err)
		}
		w.locked(func() { n.deaf = true })
		w.elect(1)
		time.Sleep(time.Second)
		if _, err := n.Renew([]Request{{ID: 1, Renew: true}}); err != nil {
			t.Fatal(err)
		}
		answers, err := n.Confirm(r)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if at, ok := w.endedAt(1); !ok || asked+answers[0].Remaining > at {
			t.Fatalf("the lease ended at %v (%v); %v were promised at %v", at, ok, answers[0].Remaining, asked)
		}
	})
}

// TestNoExtensionAfterExpiry: the proposals get lost for a while, but any of them may
// still be on its way (T3).
func TestNoExtensionAfterExpiry(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		w.grant(1, 2*time.Second)
		w.loseExpiries(10)
		time.Sleep(2*time.Second + pace)
		for w.exists(1) {
			if a, err := w.nodes[0].keepAlive(t, 1); err != nil || a.State != Ending {
				t.Fatalf("a lease whose end was proposed: %+v, %v", a, err)
			}
			if a, err := w.nodes[0].ask(t, Request{ID: 1}); err != nil || a.State != Alive || a.Remaining != 0 {
				t.Fatalf("its remaining time: %+v, %v", a, err)
			}
			time.Sleep(pace)
		}
		if n := w.loseExpiries(0); n != 0 {
			t.Fatalf("%d proposals were not repeated", n)
		}
	})
}

// TestExpiryMeansItsGrant: while an expiry is on its way, the lease is revoked and its
// id granted anew (T4).
func TestExpiryMeansItsGrant(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		w.grant(1, 2*time.Second)
		var again atomic.Int64 // when it was granted again
		w.nodes[0].set(hooks{expire: func() {
			if again.CompareAndSwap(0, int64(w.now())) {
				w.revoke(1)
				w.grant(1, 10*time.Second)
			}
		}})
		time.Sleep(5 * time.Second)
		from := time.Duration(again.Load())
		if from == 0 || !w.exists(1) {
			t.Fatalf("granted again at %v; exists: %v", from, w.exists(1))
		}
		if a, err := w.nodes[0].keepAlive(t, 1); err != nil || a.State != Alive {
			t.Fatalf("the new lease cannot be renewed: %+v, %v", a, err)
		}
		time.Sleep(time.Minute)
		w.endsBetween(1, from+10*time.Second, from+15*time.Second)
	})
}

// TestExpiriesAreSpread: leases that end together end in several entries, bounded by
// leases and by keys.
func TestExpiriesAreSpread(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.elect(0)
		for id := range uint64(10_000) {
			w.grant(id+1, 5*time.Second)
		}
		for id := range uint64(20) {
			w.grant(20_001+id, 15*time.Second)
			w.locked(func() { w.keys[20_001+id] = 400 })
		}
		w.grant(30_000, 20*time.Second)
		w.locked(func() { w.keys[30_000] = 100_000 })
		time.Sleep(10 * time.Second)
		want := slices.Repeat([]int{maxExpireLeases}, 10_000/maxExpireLeases)
		want = append(want, 10_000%maxExpireLeases)
		if log := w.entries(); !slices.Equal(log, want) {
			t.Fatalf("10,000 leases ended in entries of %v", log)
		}
		time.Sleep(7 * time.Second)
		want = slices.Repeat([]int{2}, 10)
		if log := w.entries(); !slices.Equal(log, want) {
			t.Fatalf("20 leases of 400 keys ended in entries of %v, want %v", log, want)
		}
		time.Sleep(7 * time.Second)
		if w.exists(30_000) {
			t.Fatal("a lease with many keys does not end")
		}
	})
}

// TestRest: an idle node sleeps. Its clock goes on while there is a deadline, and the end of a
// lease that is granted meanwhile is not missed.
func TestRest(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		w.elect(0)
		looks := func(n *testNode, d time.Duration) (looks int) {
			w.locked(func() { n.looks = 0 })
			time.Sleep(d) // virtual
			w.locked(func() { looks = n.looks })
			return looks
		}
		for _, n := range w.nodes {
			if got := looks(n, 30*time.Minute); got > 1 {
				t.Errorf("node %d looked %d times in half an hour without leases", n.id, got)
			}
		}
		w.grant(1, 0)
		if got := looks(w.nodes[0], 30*time.Minute); got > 1 {
			t.Errorf("the leader looked %d times in half an hour, though the only lease has no end", got)
		}
		w.grant(2, 10*time.Minute)
		w.grant(3, 5*time.Second)
		from := w.now()
		if got, most := looks(w.nodes[0], 20*time.Minute), int(10*time.Minute/longestPause)+10; got > most {
			t.Errorf("the leader looked %d times while there were deadlines for ten minutes, want at most %d", got, most)
		}
		w.endsBetween(3, from+5*time.Second, from+5*time.Second+pace)
		w.endsBetween(2, from+10*time.Minute, from+10*time.Minute+pace)
	})
}

// TestChangesDuringLoading: what happens while a new leader reads the table counts,
// not what it reads.
func TestChangesDuringLoading(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		n := w.nodes[0]
		for id := range uint64(3) {
			w.grant(id+1, 10*time.Second)
		}
		old, _ := n.Leases(0, 10)
		var calls atomic.Int32
		n.set(hooks{leases: func() ([]Lease, error) {
			if calls.Add(1) == 1 {
				return nil, errUnproven // the next look begins anew
			}
			w.revoke(1) // after the page was read
			w.revoke(2)
			w.grant(2, time.Hour)
			w.grant(4, time.Hour)
			if _, err := n.keepAlive(t, 3); !errors.Is(err, ErrNotLeader) {
				t.Errorf("an answer before the table was read: %v", err)
			}
			return old, nil
		}})
		w.elect(0)
		time.Sleep(pace)
		for id, want := range map[uint64]Answer{1: {}, 2: {State: Alive, TTL: time.Hour}, 3: {State: Alive, TTL: 10 * time.Second}, 4: {State: Alive, TTL: time.Hour}} {
			a, err := n.ask(t, Request{ID: id})
			if a.Remaining = 0; err != nil || a != want {
				t.Errorf("lease %d: %+v, %v; want %+v", id, a, err, want)
			}
		}
		if n := calls.Load(); n != 2 {
			t.Errorf("the table was read %d times", n)
		}
	})
}

// TestSuspendedTimeDoesNotCount: after a pause of the process the keep-alives that
// waited meanwhile are heard before anything ends (T5).
func TestSuspendedTimeDoesNotCount(t *testing.T) {
	base := time.Now()
	clock := base
	table := &fixedTable{leases: []Lease{{ID: 1, TTL: 10 * time.Second}}}
	l := New(table, table, func() time.Time { return clock }, func(err error) { t.Error(err) })
	l.TakeOffice(t.Context())
	clock = clock.Add(time.Hour) // nobody looked at the clock meanwhile
	l.endDue(t.Context())
	if table.expired != 0 {
		t.Fatal("the lease ended in a time in which nobody could keep it alive")
	}
	if a, err := l.Serve(t.Context(), []Request{{ID: 1, Renew: true}}); err != nil || a[0].State != Alive {
		t.Fatalf("%+v, %v", a, err)
	}
	for range 100 {
		if table.expired != 0 {
			t.Fatal("the lease ended early")
		}
		clock = clock.Add(pace)
		l.endDue(t.Context())
	}
	if table.expired != 1 {
		t.Fatal("the lease did not end")
	}
}

// fixedTable is a table and a cluster of one.
type fixedTable struct {
	leases  []Lease
	expired int
}

func (f *fixedTable) Leases(after uint64, limit int) ([]Lease, error) {
	i := slices.IndexFunc(f.leases, func(l Lease) bool { return l.ID > after })
	if i < 0 {
		return nil, nil
	}
	return f.leases[i:min(i+limit, len(f.leases))], nil
}
func (f *fixedTable) LeaseKeys(uint64) (int, error)       { return 0, nil }
func (f *fixedTable) Tenure() uint64                      { return 1 }
func (f *fixedTable) Prove(context.Context, uint64) error { return nil }
func (f *fixedTable) Expire(_ context.Context, _, _ uint64, leases []uint64) error {
	f.expired += len(leases)
	return nil
}

// TestRandomTenures holds random histories of grants, keep-alives, revocations,
// elections and isolation against T1: a lease lasts at least its TTL from the last
// answer, and not forever.
func TestRandomTenures(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			in(t, 3, func(t *testing.T, w *world) { randomTenures(t, w, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func randomTenures(t *testing.T, w *world, rng *rand.Rand) {
	promised := make(map[uint64]time.Duration) // until when a lease lasts at least
	w.elect(0)
	for range 400 {
		id := 1 + rng.Uint64N(5)
		switch rng.IntN(10) {
		case 0:
			if !w.exists(id) {
				ttl := time.Duration(1+rng.IntN(10)) * time.Second
				promised[id] = w.now() + ttl
				w.grant(id, ttl)
			}
		case 1:
			if rng.IntN(4) == 0 {
				delete(promised, id)
				w.revoke(id)
			}
		case 2:
			w.isolateOrElect(rng)
		case 3:
			w.loseExpiries(rng.IntN(3))
		case 4, 5, 6:
			at := w.now()
			if a, err := w.nodes[rng.IntN(3)].keepAlive(t, id); err == nil && a.State == Alive {
				promised[id] = at + a.TTL
			}
		}
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		for id, until := range promised {
			if !w.exists(id) {
				if at, _ := w.endedAt(id); at < until {
					t.Fatalf("lease %d ended at %v, promised until %v", id, at, until)
				}
				delete(promised, id)
			}
		}
	}
	w.heal()
	time.Sleep(20 * time.Second)
	w.locked(func() {
		if len(w.leases) > 0 {
			t.Fatalf("%d leases did not end", len(w.leases))
		}
	})
}

// isolateOrElect cuts the leader off and elects another one, or only elects.
func (w *world) isolateOrElect(rng *rand.Rand) {
	w.heal()
	if rng.IntN(2) == 0 {
		w.locked(func() { w.nodes[w.leader].deaf = true })
	}
	w.elect((w.leader + 1 + rng.IntN(2)) % 3)
}

// heal lets every node catch up with the log.
func (w *world) heal() {
	for _, n := range w.nodes {
		healed := false
		w.locked(func() {
			if healed = n.deaf; healed {
				n.deaf, n.term, n.stored = false, 0, maps.Clone(w.leases)
			}
		})
		if healed {
			n.Reset()
		}
	}
}

// BenchmarkIdleLook is what one look costs a leader with 100,000 leases, of which none
// is due: ten of them a second are the cost of idle leases.
func BenchmarkIdleLook(b *testing.B) {
	l := idleLessor(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		l.TakeOffice(b.Context())
		l.endDue(b.Context())
	}
}

// BenchmarkServe renews 64 of 100,000 leases under one proof.
func BenchmarkServe(b *testing.B) {
	l := idleLessor(b, 100_000)
	requests := make([]Request, 64)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		for j := range requests {
			requests[j] = Request{ID: uint64(1 + (i*64+j)*7919%100_000), Renew: true}
		}
		if _, err := l.Serve(b.Context(), requests); err != nil {
			b.Fatal(err)
		}
	}
}

func idleLessor(b *testing.B, n int) *Lessor {
	table := new(fixedTable)
	for i := range n {
		table.leases = append(table.leases, Lease{ID: uint64(i + 1), TTL: time.Hour})
	}
	l := New(table, table, time.Now, func(err error) { b.Error(err) })
	l.TakeOffice(b.Context())
	return l
}
