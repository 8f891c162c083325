package raftnode

import (
	"iter"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/lessor"
	"github.com/kvd-io/kvd/internal/rights"
)

// contractWorld is a simulated cluster of real stores, with clients that use all of what
// kvd promises beside reads and writes of keys: transactions, watches, leases, locks, and
// requests that take effect once. After each event the invariants S1 to S10 of knowledge
// hold, and
//
//	X0  a command has the same result on every member, and every member that applied the
//	    same index has the same state (S4)
//	X1  a request with an idempotency key takes effect once, and all of its answers are
//	    the same, on whichever member
//	X2  a transaction is atomic: a reader sees all of it or nothing
//	X3  a lease does not end before the time that was promised to its owner
//	X4  a ticket of a lock has a lease that exists, and tokens grow
//	X5  a holder whose lease cannot have ended is the only one, and there is none before a
//	    lock delay is over
//	X6  a watch gets the events of committed revisions, each once, in order, whole
//	    revisions, none missing, with the right previous pairs
//	X7  in the end, what is bound to leases is gone, and everybody has everything
//	X8  a command runs if its user may do that at its place in the log, and not otherwise;
//	    a read is answered if its user may do that as far as its member has the log
//	X9  a client of etcd gets the answer, also of an error, that a plain model of etcd gives
//	    at the place of the request in the log, or at the revision that the answer names
type contractWorld struct {
	s       *sim
	truth   *truth
	clients []*client
	answers map[string]*kvstore.Result // the first one for each idempotency key

	windowBytes int // of the hubs
	stopping    bool
	// blindToState leaves out X0 and S4, so that a control shows what clients see.
	blindToState bool
	nextLease    uint64
	lastLease    uint64            // that somebody was granted
	swaps        map[uint64][]byte // of a planted bug: what a pair was at a revision
	resources    map[string]*guarded
	etcd         *etcdWorld
	stats        contractStats
}

// contractStats count what happened, to see that it was enough.
type contractStats struct {
	transfers, once, repeats, granted, renewed, leasesEnded int
	locked, staleTokens, events, resumed, diskReads, etcd   int
	compacted, checkedReads, delays                         int
}

// newContractWorld returns a cluster with random options, and its clients.
func newContractWorld(t *testing.T, seed uint64, bug plantedBug, shape func(*simOptions)) *contractWorld {
	t.Helper()
	opts := randomOptions(seed)
	opts.bug = bug
	if shape != nil {
		shape(&opts)
	}
	w := &contractWorld{answers: make(map[string]*kvstore.Result), swaps: make(map[uint64][]byte), resources: make(map[string]*guarded)}
	opts.machine = func(n *simNode) simMachine {
		if w.truth == nil { // newSim makes the members
			w.begin(n.s, bug)
		}
		return w.newMachine(n)
	}
	opts.command = func(id uint64, size int) []byte {
		c := kvstore.Command{Op: kvstore.OpPut, Key: []byte("probe"), Value: make([]byte, size)}
		return encodeNumbered(id, &c)
	}
	opts.started = w.started
	newSim(t, seed, opts)
	return w
}

func (w *contractWorld) begin(s *sim, bug plantedBug) {
	w.s, w.etcd = s, newEtcdWorld()
	w.etcd.model.differs = func() { s.reach(etcdNestedDiffers) }
	w.truth = newTruth(w)
	w.windowBytes = 1 << (10 + s.rng.IntN(8))
	w.blindToState = bug == bugOnceNotInSnapshot
}

// encodeNumbered encodes a command with its number.
func encodeNumbered(id uint64, c *kvstore.Command) []byte {
	if c.Origin.Principal == "" {
		c.Origin.Principal = rights.Root
	}
	return encodeAs(id, c)
}

// encodeAs encodes a command with its number, of the user that it names, or of nobody.
func encodeAs(id uint64, c *kvstore.Command) []byte {
	c.Origin.RequestID = strconv.FormatUint(id, 10)
	return kvstore.EncodeCommand(nil, c)
}

// propose asks a member to replicate a command.
func (w *contractWorld) propose(n *simNode, c *kvstore.Command) *op {
	return w.s.propose(n, encodeNumbered(w.s.nextCommand+1, c))
}

func storeOf(n *simNode) *storeMachine { return n.machine.(*storeMachine) }

// started begins what a member does by itself.
func (w *contractWorld) started(n *simNode) {
	m := storeOf(n)
	n.every(span{90 * milli, 110 * milli}, m.keepLeases)
	n.every(span{second, second}, m.tick)
	n.every(span{50 * milli, 500 * milli}, func() {
		_, err := m.Maintain()
		w.s.violateUnlessDamaged("maintain", err)
	})
}

// keepLeases is a round of the lessor.
func (m *storeMachine) keepLeases() {
	m.lessor.TakeOffice(m.w.s.t.Context())
	if m.expiring {
		return
	}
	due := m.lessor.TakeDue()
	if len(due.IDs()) == 0 {
		return
	}
	m.expiring = true
	// The trap alone would be sprung in one run of twenty.
	if m.w.s.springs(trapExpiry) || m.w.s.opts.bug == noBug && m.w.s.chance(0.02) {
		m.w.regrant(due.IDs()[0])
		m.n.later(300*milli, "trap", func() { m.expire(&due) })
		return
	}
	m.expire(&due)
}

// expire proposes the end of leases.
func (m *storeMachine) expire(due *lessor.Expiry) {
	l := m.lessor
	o := m.w.propose(m.n, &kvstore.Command{Op: kvstore.OpLeaseExpire, Term: due.Term, Sequence: due.AsOf, Leases: due.IDs()})
	if m.w.s.opts.bug == noBug && m.w.s.chance(0.1) {
		m.w.keepAliveLate(due.IDs()[0])
	}
	o.whenDone(func() {
		if m.lessor == l { // the same life
			m.expiring = false
			l.Settle(*due)
		}
	})
}

// keepAliveLate asks for more time for a lease whose end was just proposed, which clients
// hit upon in one of fifty runs. If it got any, X3 would break.
func (w *contractWorld) keepAliveLate(lease uint64) {
	begin := w.s.now
	w.askLeader(w.s.anyNode(), lessor.Request{ID: lease, Renew: true}, func(a lessor.Answer) {
		w.s.reachIf(keepAliveTooLate, a.State == lessor.Ending)
		if a.State == lessor.Alive && !w.etcd.shared[int64(lease)] {
			w.truth.promise(lease, begin+w.promised(a.Remaining.Microseconds()))
		}
	})
}

// regrant gives a lease up and grants its id anew, and wants the id once more.
func (w *contractWorld) regrant(lease uint64) {
	w.truth.fate(lease).givenUp = true
	n := w.s.anyNode()
	w.propose(n, &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: lease})
	for range 2 {
		w.propose(n, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: lease, TTLMillis: 2500})
	}
}

// tick lets a leader move replicated time.
func (m *storeMachine) tick() {
	if m.n.core.isLeader() {
		m.w.propose(m.n, &kvstore.Command{Op: kvstore.OpTick, Term: m.n.core.term, ElapsedMillis: second / milli})
	}
}

// client is somebody who uses the cluster. Its code runs in a coroutine, and so reads from
// top to bottom: whatever takes time hands control back to the simulator.
//
// Its choices are its own, and those of each act of its own, too: what others do changes
// none of them.
type client struct {
	w    *contractWorld
	name string
	rng  *rand.Rand
	next func()
	stop func()
	wait func() // hands control back
	// turn numbers the waits: what would have ended an earlier one does nothing.
	turn int
	busy bool
}

// errStopped unwinds the code of a client at the end of a test.
type errStopped struct{}

// client starts a client, which uses the cluster again and again until it is told to
// stop. Then it finishes what it has begun.
func (w *contractWorld) client(name string, use func(c *client)) {
	act := unit{kind: unitAct, client: len(w.clients)}
	c := &client{w: w, name: name, busy: true, rng: w.s.source(act)}
	next, stop := iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != any(errStopped{}) {
				panic(r)
			}
		}()
		c.wait = func() {
			if !yield(struct{}{}) {
				panic(errStopped{})
			}
		}
		for c.pause(span{2 * milli, 60 * milli}); !w.stopping; c.pause(span{2 * milli, 60 * milli}) {
			act.number++
			c.rng = w.s.source(act)
			w.s.rng = c.rng
			if w.s.happens(act) {
				use(c)
			}
		}
		c.busy = false
	})
	c.next = func() { w.s.within(c.rng, func() { next() }) }
	c.stop = stop
	w.clients = append(w.clients, c)
	w.s.after(0, "client", c.next)
}

// stopClients lets go of the clients' coroutines, after the last event.
func (w *contractWorld) stopClients() {
	for _, c := range w.clients {
		c.stop()
	}
	for _, n := range w.s.nodes {
		storeOf(n).close()
	}
}

// waker returns what ends the next wait.
func (c *client) waker() func() {
	c.turn++
	turn := c.turn
	return func() {
		if c.turn == turn {
			c.turn++
			c.next()
		}
	}
}

// pause lets time pass.
func (c *client) pause(d span) {
	c.w.s.after(c.w.s.between(d), "client", c.waker())
	c.wait()
}

// await waits for the end of an operation, for as long as the client has patience, and
// reports whether it succeeded.
func (c *client) await(o *op, patience int64) bool {
	if o.outcome == open {
		wake := c.waker()
		o.whenDone(wake)
		c.w.s.after(patience, "client", wake)
		c.wait()
	}
	return o.outcome == succeeded
}

// patience is how long a client waits for an answer.
func (c *client) patience() int64 { return c.w.s.between(span{300 * milli, 2 * second}) }

// do runs a command at a member. It returns nil if there was no answer in time, or one
// that the command did not run.
func (c *client) do(n *simNode, cmd *kvstore.Command) *kvstore.Result {
	o := c.w.propose(n, cmd)
	if !c.await(o, c.patience()) {
		return nil
	}
	return o.result.value.(*kvstore.Result)
}

// fresh waits until a member has applied everything that was committed when it began, and
// reports whether it has.
func (c *client) fresh(n *simNode) bool { return c.await(c.w.s.linearizable(n), c.patience()) }

// whenDone has something done soon after the operation has ended.
func (o *op) whenDone(do func()) {
	s := o.node.s
	if o.outcome != open {
		s.after(0, "answer", do)
		return
	}
	o.then = append(o.then, func() { s.after(0, "answer", do) })
}
