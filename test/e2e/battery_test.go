package e2e

import (
	"testing"
	"time"
)

// TestBatteriesOfKeysAndValues runs the key-value batteries of the simulation by their
// names (TestKeyValue in package raftnode) with real processes: their links break, are
// late, and are cut, and their processes are killed. The witness and porcupine judge.
func TestBatteriesOfKeysAndValues(t *testing.T) {
	if runSize != sizeHuge {
		t.Skipf("NOT RUN: takes ten minutes; KVD_E2E=%s runs it", sizeHuge)
	}
	for _, b := range []battery{
		{name: "basic", members: 5, clients: 1},
		{name: "many clients", members: 5, clients: 5},
		{name: "unreliable", members: 5, clients: 5, unreliable: true},
		{name: "unreliable, one key", members: 3, clients: 5, unreliable: true, oneKey: true},
		{name: "many partitions, one client", members: 5, clients: 1, partitions: true},
		{name: "many partitions, many clients", members: 5, clients: 5, partitions: true},
		{name: "persist, one client", members: 5, clients: 1, crashes: true},
		{name: "persist, concurrent", members: 5, clients: 5, crashes: true},
		{name: "persist, unreliable", members: 5, clients: 5, crashes: true, unreliable: true},
		{name: "persist, partitions", members: 5, clients: 5, crashes: true, partitions: true},
		{name: "persist, all together", members: 5, clients: 5, crashes: true, unreliable: true, partitions: true},
		{name: "linearizable", members: 7, clients: 15, crashes: true, unreliable: true, partitions: true, oneKey: true},
		{name: "snapshots, recovery", members: 5, clients: 1, crashes: true, snapshots: true},
		{name: "snapshots, many clients", members: 5, clients: 20, crashes: true, snapshots: true},
		{name: "snapshots, unreliable", members: 5, clients: 5, unreliable: true, snapshots: true},
		{name: "snapshots, partitions", members: 5, clients: 5, crashes: true, unreliable: true, partitions: true, snapshots: true},
		{name: "snapshots, linearizable", members: 7, clients: 15, crashes: true, unreliable: true, partitions: true, oneKey: true, snapshots: true},
	} {
		t.Run(b.name, b.run)
	}
}

// battery says how many use how large a cluster, and what happens to it meanwhile.
type battery struct {
	name                                               string
	members, clients                                   int
	oneKey, unreliable, crashes, partitions, snapshots bool
}

func (b *battery) run(t *testing.T) {
	random := seeded(t)
	c, l := newLinkedCluster(t, b.members, small...)
	l.start(c.nodes...)
	shape := loadShape{paced: min(b.clients, 4), pacedKeys: 4, keys: 4, pace: 5 * time.Millisecond, padding: 100}
	shape.clients = b.clients - shape.paced
	if b.oneKey {
		shape.keys, shape.pacedKeys = 1, 1
	}
	r := &mixedRun{t: t, c: c, links: l, random: random, load: startLoad(t, c, random, shape)}
	l.unreliable.Store(b.unreliable)
	for range 2 {
		r.load.await(t, 20)
		if b.partitions {
			r.isolate(c.leader(), true, true)
			r.isolate(pick(random, c.followers()), true, true)
		}
		if b.crashes {
			r.kill(pick(random, c.nodes))
			r.kill(c.nodes...)
			c.awaitReady()
		}
		if b.snapshots {
			r.lagBehind()
		}
	}
	r.load.await(t, 100)
	l.unreliable.Store(false)
	c.awaitReady()
	history := r.load.stop()
	t.Log(outcomes(history))
	judgeLoad(t, c, r.load, history, nil)
}
