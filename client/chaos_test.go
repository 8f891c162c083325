package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

const (
	chaosClients  = 16
	chaosWatchers = 3
	// chaosPatience bounds one operation; faults last much less.
	chaosPatience = time.Minute
)

// TestChaos makes 16 clients write while nodes are killed, stopped, started, and cut off.
// No acknowledged write may be lost, none may take effect twice, and the watches must get
// every change once, in order. KVD_E2E=full makes it long, KVD_SEED repeats its choices.
func TestChaos(t *testing.T) {
	rounds := 5
	if os.Getenv("KVD_E2E") == "full" {
		rounds = 40
	}
	for name, options := range map[string][]kvdtest.Option{"plain": nil, "TLS": {kvdtest.TLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			if text := os.Getenv("KVD_SEED"); text != "" {
				seed, _ = strconv.ParseUint(text, 10, 64)
			}
			t.Logf("KVD_SEED=%d", seed)
			runChaos(t, kvdtest.Cluster(t, 3, options...), rand.New(rand.NewPCG(seed, 0)), rounds)
		})
	}
}

// chaos is one run.
type chaos struct {
	t     *testing.T
	nodes kvdtest.Nodes
	// ctx ends the writers, between two operations.
	ctx   context.Context
	acked atomic.Int64 // operations of all writers
}

func runChaos(t *testing.T, nodes kvdtest.Nodes, random *rand.Rand, rounds int) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c := &chaos{t: t, nodes: nodes, ctx: ctx}
	first, err := nodes.Client().Put(ctx, "begin", nil)
	if err != nil {
		t.Fatal(err)
	}
	var watching, writing sync.WaitGroup
	watchers := make([]*chaosWatcher, chaosWatchers)
	for i := range watchers {
		watchers[i] = &chaosWatcher{versions: make(map[string]uint64)}
		watching.Go(func() { watchers[i].run(t, c.client(i), first.Revision+1) })
	}
	writers := make([]*chaosWriter, chaosClients)
	for i := range writers {
		writers[i] = &chaosWriter{chaos: c, id: i, client: c.client(i)}
		writing.Go(writers[i].run)
	}
	for range rounds {
		c.fault(random)
	}
	stop()
	writing.Wait()
	if _, err := nodes.Client().Put(t.Context(), "end", nil); err != nil {
		t.Fatal(err)
	}
	watching.Wait()
	c.judge(writers, watchers)
}

// client returns a client that begins with the node i, and does not wait long for one.
func (c *chaos) client(i int) *client.Client {
	endpoints := c.nodes.Endpoints()
	endpoints = append(endpoints[i%3:], endpoints[:i%3]...)
	cl, err := client.New(client.Config{Endpoints: endpoints, TLS: c.nodes[0].TLS, AttemptTimeout: 500 * time.Millisecond})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

// fault does something to a node, and ends it once the writers have gone on without.
func (c *chaos) fault(random *rand.Rand) {
	n := c.nodes[random.IntN(len(c.nodes))]
	c.progress(int64(random.IntN(100)))
	switch random.IntN(4) {
	case 0:
		n.Cut()
		c.progress(50)
		n.Mend()
	case 1:
		n.Stop()
		c.progress(50)
		n.Start()
	default: // most often: this loses answers
		n.Kill()
		c.progress(50)
		n.Start()
	}
}

// progress waits until the writers have done n operations more.
func (c *chaos) progress(n int64) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for target, deadline := c.acked.Load()+n, time.Now().Add(2*chaosPatience); c.acked.Load() < target; <-ticker.C {
		if c.t.Failed() {
			c.t.FailNow() // a writer or a watcher has said why
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d operations are done, and no more for %v", c.acked.Load(), 2*chaosPatience)
		}
	}
}

// chaosWriter is one client. Each operation of kind k adds 1 to the counter k of the
// writer, in a way of its own.
type chaosWriter struct {
	*chaos
	id     int
	client *client.Client
	acked  [chaosKinds]int64
	open   [chaosKinds]int64 // operations whose outcome is unknown
}

// The kinds of operations.
const (
	chaosIncr = iota
	chaosAppend
	chaosTxn
	chaosSwap
	chaosBatch
	chaosKinds
)

func (w *chaosWriter) key(kind int) string { return fmt.Sprintf("writer/%02d/%d", w.id, kind) }

func (w *chaosWriter) run() {
	for n := w.id; w.ctx.Err() == nil; n++ {
		kind := n % chaosKinds
		ctx, cancel := context.WithTimeout(w.t.Context(), chaosPatience)
		err := w.once(ctx, kind)
		cancel()
		switch {
		case errors.Is(err, client.ErrUnknownOutcome):
			w.open[kind]++
		case err != nil:
			w.t.Errorf("writer %d, kind %d: %v", w.id, kind, err)
			return
		default:
			w.acked[kind]++
			w.chaos.acked.Add(1)
		}
	}
}

// once carries out an operation, and compares its result with those before.
func (w *chaosWriter) once(ctx context.Context, kind int) (err error) {
	key, sum := w.key(kind), int64(0)
	switch kind {
	case chaosIncr:
		sum, err = w.client.Incr(ctx, key, 1)
	case chaosAppend:
		var written *client.Written
		if written, err = w.client.Append(ctx, key, []byte{'x'}); err == nil {
			sum = int64(written.Version)
		}
	case chaosTxn:
		var r *client.TxnResult
		if r, err = w.client.Txn().Then(client.OpIncr(key, 1), client.OpIncr(key+"/twin", 1)).Commit(ctx); err == nil {
			sum = r.Results[0].Sum
		}
	case chaosSwap:
		sum, err = w.swap(ctx, key)
	case chaosBatch:
		sum, err = w.batch(ctx, key)
	}
	if err == nil && (sum <= w.acked[kind] || sum > w.acked[kind]+w.open[kind]+1) {
		return fmt.Errorf("%s is %d after %d acknowledged and %d open operations", key, sum, w.acked[kind], w.open[kind])
	}
	return err
}

// swap adds 1 by compare and swap, which nobody else can disturb.
func (w *chaosWriter) swap(ctx context.Context, key string) (int64, error) {
	old, revision := int64(0), uint64(0)
	kv, err := w.client.Get(ctx, key)
	switch {
	case err == nil:
		revision = kv.ModRevision
		if old, err = strconv.ParseInt(string(kv.Value), 10, 64); err != nil {
			return 0, err
		}
	case !errors.Is(err, client.ErrKeyNotFound):
		return 0, err
	}
	_, err = w.client.Put(ctx, key, strconv.AppendInt(nil, old+1, 10), client.IfRevision(revision))
	return old + 1, err
}

// batch adds 1 in one of several operations of a batch.
func (w *chaosWriter) batch(ctx context.Context, key string) (sum int64, err error) {
	ops := []client.Op{client.OpIncr(key+"/first", 1), client.OpIncr(key, 1), client.OpGet(key + "/first")}
	for r, err := range w.client.Batch(ctx, slices.Values(ops)) {
		switch {
		case err != nil:
			return 0, err
		case r.Err != nil:
			return 0, r.Err
		case r.N == 1:
			sum = r.Sum
		}
	}
	return sum, nil
}

// chaosWatcher judges what a watch of everything brings.
type chaosWatcher struct {
	versions map[string]uint64
	revision uint64
}

// run watches until the key "end" is written.
func (w *chaosWatcher) run(t *testing.T, c *client.Client, from uint64) {
	for e, err := range c.Watch(t.Context(), client.Prefix(""), client.WatchOptions{From: from}) {
		if err != nil {
			t.Errorf("watch: %v", err)
			return
		}
		if e.KV.ModRevision < w.revision || e.KV.Version != w.versions[e.KV.Key]+1 {
			t.Errorf("watch: after revision %d and version %d of the key: %+v", w.revision, w.versions[e.KV.Key], e.KV)
			return
		}
		w.revision, w.versions[e.KV.Key] = e.KV.ModRevision, e.KV.Version
		if e.KV.Key == "end" {
			return
		}
	}
}

// judge compares what was acknowledged and watched with what is stored.
func (c *chaos) judge(writers []*chaosWriter, watchers []*chaosWatcher) {
	stored := make(map[string]*client.KV)
	for kv, err := range c.nodes.Client().List(c.t.Context(), client.Prefix("")) {
		if err != nil {
			c.t.Fatal(err)
		}
		stored[kv.Key] = kv
	}
	total, open := int64(0), int64(0)
	for _, w := range writers {
		for kind := range chaosKinds {
			kv := stored[w.key(kind)]
			if kv == nil {
				kv = new(client.KV)
			}
			n := int64(kv.Version)
			total, open = total+w.acked[kind], open+w.open[kind]
			if n < w.acked[kind] || n > w.acked[kind]+w.open[kind] {
				c.t.Errorf("%s took effect %d times; %d operations were acknowledged, %d are open", w.key(kind), n, w.acked[kind], w.open[kind])
			}
			if twin := stored[w.key(kind)+"/twin"]; kind == chaosTxn && kv.Value != nil && string(twin.Value) != string(kv.Value) {
				c.t.Errorf("half a transaction: %+v, %+v", kv, twin)
			}
			if kind == chaosAppend && strings.Count(string(kv.Value), "x") != int(n) {
				c.t.Errorf("%s has %d bytes after %d appends", w.key(kind), len(kv.Value), n)
			}
		}
	}
	for i, w := range watchers {
		for key, kv := range stored {
			if key != "begin" && w.versions[key] != kv.Version {
				c.t.Errorf("watcher %d: %s has version %d, watched %d", i, key, kv.Version, w.versions[key])
			}
		}
	}
	c.t.Logf("%d operations were acknowledged, and %d are open", total, open)
}
