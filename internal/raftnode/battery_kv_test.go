package raftnode

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// kvBattery is a test of clients that append to keys of real stores: each piece has to be
// there exactly once, and those of a client in its order.
type kvBattery struct {
	name             string
	members, clients int
	oneKey           bool // for all clients; otherwise each has its own
	unreliable       bool // messages are lost and late
	crashes          bool // all members lose their power again and again
	partitions       bool
	catchUp          int // entries that stay in memory; 0: all
	usual            int // pieces of a seed: the mean of 60
}

var kvBatteries = []kvBattery{
	{name: "basic", members: 5, clients: 1, usual: 96},
	{name: "many clients", members: 5, clients: 5, usual: 471},
	{name: "unreliable", members: 5, clients: 5, usual: 39, unreliable: true},
	{name: "unreliable, one key", members: 3, clients: 5, usual: 43, unreliable: true, oneKey: true},
	{name: "many partitions, one client", members: 5, clients: 1, usual: 36, partitions: true},
	{name: "many partitions, many clients", members: 5, clients: 5, usual: 168, partitions: true},
	{name: "persist, one client", members: 5, clients: 1, usual: 42, crashes: true},
	{name: "persist, concurrent", members: 5, clients: 5, usual: 207, crashes: true},
	{name: "persist, unreliable", members: 5, clients: 5, usual: 19, crashes: true, unreliable: true},
	{name: "persist, partitions", members: 5, clients: 5, usual: 167, crashes: true, partitions: true},
	{name: "persist, all together", members: 5, clients: 5, usual: 18, crashes: true, unreliable: true, partitions: true},
	{name: "linearizable", members: 7, clients: 15, usual: 48, crashes: true, unreliable: true, partitions: true, oneKey: true},
	{name: "snapshots, recovery", members: 5, clients: 1, usual: 41, crashes: true, catchUp: 5},
	{name: "snapshots, many clients", members: 5, clients: 20, usual: 801, crashes: true, catchUp: 5},
	{name: "snapshots, unreliable", members: 5, clients: 5, usual: 40, unreliable: true, catchUp: 5},
	{name: "snapshots, partitions", members: 5, clients: 5, usual: 17, crashes: true, unreliable: true, partitions: true, catchUp: 5},
	{name: "snapshots, linearizable", members: 7, clients: 15, usual: 46, crashes: true, unreliable: true, partitions: true, oneKey: true, catchUp: 5},
}

// kvSeeds is how many seeds each battery takes.
const kvSeeds = 2

// fairSeeds is how many seeds it takes until their number of pieces tells anything. From
// seed to seed it differs by half of what is usual, and more.
const fairSeeds = 20

// TestKeyValue runs the batteries. Half of the usual pieces is demanded of each battery if
// it runs enough seeds, and otherwise of all together, each relative to what is usual for
// it: over 34 runs that is six standard deviations away.
func TestKeyValue(t *testing.T) {
	first, runs := simSeeds(t, kvSeeds)
	total := 0.0
	for i, b := range kvBatteries {
		t.Run(b.name, func(t *testing.T) {
			pieces := 0
			begin := first + uint64(i)*runs // what one seed brings, it brings to all
			for seed := begin; seed < begin+runs; seed++ {
				pieces += b.run(t, seed)
			}
			share := float64(pieces) / float64(int(runs)*b.usual)
			t.Logf("%d pieces, %.2f of what is usual", pieces, share)
			if pieces == 0 || runs >= fairSeeds && share < 0.5 {
				t.Errorf("only %d pieces in %d runs, where %d in each are usual", pieces, runs, b.usual)
			}
			total += share
		})
	}
	if share := total / float64(len(kvBatteries)); runs >= kvSeeds && share < 0.5 {
		t.Errorf("all batteries together have %.2f of the usual pieces", share)
	}
}

// start returns the world of a battery, in which its faults have begun.
func (b *kvBattery) start(t *testing.T, seed uint64) *contractWorld {
	t.Helper()
	w := newContractWorld(t, seed, noBug, func(o *simOptions) {
		*o = simOptions{members: b.members, catchUp: b.catchUp, machine: o.machine, command: o.command, started: o.started}
		if b.crashes {
			o.checkpoints = second
		}
	})
	s := w.s
	v := &nemesis{rng: s.source(unit{kind: unitFault, number: -1}), pause: span{300 * milli, 1500 * milli}}
	if b.crashes {
		v.faults = append(v.faults, fault{name: "crash all", do: (*sim).faultCrashAll, rate: 1}, fault{name: "crash", do: (*sim).faultCrash, rate: 1})
	}
	if b.partitions {
		v.faults = append(v.faults, fault{name: "split", do: (*sim).faultSplit, rate: 2})
	}
	if b.unreliable {
		s.unreliable()
	}
	s.nemesis = v
	if len(v.faults) > 0 {
		s.torment(v)
	}
	return w
}

// run runs one seed, and returns the number of pieces.
func (b *kvBattery) run(t *testing.T, seed uint64) (pieces int) {
	t.Helper()
	w := b.start(t, seed)
	var all []*appender
	for i := range b.clients {
		a := &appender{number: i, key: fmt.Appendf(nil, "kv/%d", i)}
		if b.oneKey {
			a.key = []byte("kv/all")
		}
		all = append(all, a)
		w.client(fmt.Sprintf("a%d", i), a.use)
	}
	w.s.run(4 * second)
	e := &contractEnd{w: w}
	if e.settle(); w.s.violation == nil {
		for _, mb := range w.s.members().Members {
			for _, a := range all {
				a.check(w, storeOf(w.s.nodes[mb.ID]).store)
			}
		}
	}
	w.stopClients()
	if w.s.violation != nil {
		t.Fatalf("seed %d: %v\n%s", seed, w.s.violation, w.s.describe())
	}
	for _, a := range all {
		pieces += a.done
	}
	return pieces
}

// appender is a client that appends numbered pieces, and reads what it has appended.
type appender struct {
	number, done int
	key          []byte
}

func (a *appender) piece(i int) []byte { return fmt.Appendf(nil, "(%d.%d)", a.number, i) }

func (a *appender) use(c *client) {
	a.done++
	c.once(fmt.Sprintf("%s/%d", c.name, a.done), kvstore.Command{Op: kvstore.OpAppend, Key: a.key, Value: a.piece(a.done)})
	n := c.w.s.anyNode()
	if !c.fresh(n) || !n.up {
		return
	}
	if kv, _, err := storeOf(n).store.Get(a.key, 0); err != nil || !bytes.Contains(kv.Value, a.piece(a.done)) {
		c.w.s.violate("X1: member %d answers %q for %s (%v), without piece %d.%d", n.id, kv.Value, a.key, err, a.number, a.done)
	}
}

// check demands that each piece is there once, in order.
func (a *appender) check(w *contractWorld, store *kvstore.Store) {
	kv, _, err := store.Get(a.key, 0)
	if err != nil && a.done > 0 {
		w.s.violate("X1: %s: %v", a.key, err)
		return
	}
	at := 0
	for i := 1; i <= a.done; i++ {
		next := bytes.Index(kv.Value[at:], a.piece(i))
		if next < 0 || bytes.Count(kv.Value, a.piece(i)) != 1 {
			w.s.violate("X1: %s is %q: piece %d.%d is missing, out of order, or there twice", a.key, kv.Value, a.number, i)
			return
		}
		at += next
	}
}

// TestKeyValueSpeed: a client that waits for each answer is not held up by heartbeats.
func TestKeyValueSpeed(t *testing.T) {
	for seed := range seeds(t, batterySeeds) {
		b := kvBattery{members: 3, clients: 1}
		w := b.start(t, seed)
		l := w.s.elect()
		begin, ops := w.s.now, 500
		for range ops {
			o := w.propose(l, &kvstore.Command{Op: kvstore.OpAppend, Key: []byte("k"), Value: []byte("x")})
			w.s.must(electionTimeout, "a write", func() bool { return o.outcome == succeeded })
		}
		if each := (w.s.now - begin) / int64(ops); each > simTick/10 {
			t.Errorf("a write takes %d µs, want at most a tenth of a heartbeat", each)
		}
	}
}

// onePartition cuts off a minority with the leader in it, and has a write wait there.
func onePartition(t *testing.T, seed uint64) (w *contractWorld, majority []uint64, waiting *op) {
	t.Helper()
	b := kvBattery{members: 5, clients: 1}
	w = b.start(t, seed)
	s := w.s
	l := s.elect()
	minority := []uint64{l.id, s.others(l.id)[0]}
	majority = s.others(minority...)
	s.partition(minority, majority)
	waiting = w.propose(s.nodes[minority[1]], &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k"), Value: []byte("minority")})
	return w, majority, waiting
}

// TestKeyValueOnePartition: the majority goes on, the minority does not, and what waited
// there ends within three seconds after the partition.
func TestKeyValueOnePartition(t *testing.T) {
	for seed := range seeds(t, 20) {
		w, majority, waiting := onePartition(t, seed)
		s := w.s
		s.elect(majority...)
		for _, id := range majority {
			o := w.propose(s.nodes[id], &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k"), Value: []byte("majority")})
			s.must(2*second, "progress in the majority", func() bool { return o.outcome == succeeded })
		}
		s.run(5 * second)
		if waiting.outcome == succeeded {
			t.Fatalf("seed %d: a write in the minority succeeded", seed)
		}
		s.heal()
		s.must(3*second, "the write that waited", func() bool { return waiting.outcome == succeeded })
		s.settle(patience)
	}
}

// TestKeyValueSnapshotRPC: members that were away while the log was compacted get
// snapshots, and serve from them.
func TestKeyValueSnapshotRPC(t *testing.T) {
	for seed := range seeds(t, 5) {
		b := kvBattery{members: 3, clients: 1, catchUp: 5}
		w := b.start(t, seed)
		s := w.s
		l := s.elect()
		away := s.nodes[s.others(l.id)[0]]
		s.isolate(away.id)
		for i := range 60 {
			o := w.propose(l, &kvstore.Command{Op: kvstore.OpPut, Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")})
			s.must(electionTimeout, "a write", func() bool { return o.outcome == succeeded })
		}
		s.run(second)
		s.rejoin(away.id)
		s.must(10*electionTimeout, "a snapshot", func() bool { return away.restored > 0 })
		s.settle(patience)
		if _, _, err := storeOf(away).store.Get([]byte("k59"), 0); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestKeyValueSnapshotSize: the size of a snapshot follows what is stored, and not what
// was ever written, once the history is compacted.
func TestKeyValueSnapshotSize(t *testing.T) {
	for seed := range seeds(t, batterySeeds) {
		b := kvBattery{members: 3, clients: 1, catchUp: 5}
		w := b.start(t, seed)
		s := w.s
		l := s.elect()
		size := func() int {
			o := w.propose(l, &kvstore.Command{Op: kvstore.OpCompact, Revision: storeOf(l).store.Revision()})
			s.must(electionTimeout, "a compaction", func() bool { return o.outcome == succeeded })
			s.run(5 * second)
			_, body := l.body()
			return len(body)
		}
		write := func(n int) {
			for i := range n {
				value := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 100)
				o := w.propose(l, &kvstore.Command{Op: kvstore.OpPut, Key: fmt.Appendf(nil, "k%d", i%10), Value: value})
				s.must(electionTimeout, "a write", func() bool { return o.outcome == succeeded })
			}
		}
		write(20)
		before := size()
		write(400)
		if after := size(); after > 3*before {
			t.Errorf("a snapshot of ten keys grew from %d bytes to %d", before, after)
		}
	}
}
