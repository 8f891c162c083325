package client_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

func TestBatchResults(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	odd := "odd \xff"
	ops := []client.Op{
		client.OpPut(odd, []byte("1")),
		client.OpIncr(odd, 41),
		client.OpPut(odd, nil).IfRevision(1),
		client.OpGet(odd),
		client.OpGet("absent"),
		client.OpList(client.Prefix("odd"), 0),
		client.OpTxn(c.Txn().Then(client.OpDelete(odd).ReturnPrevious())),
		client.OpAppend("x", []byte("y")),
		client.OpPut("", nil),
	}
	var got []*client.BatchResult
	for r, err := range c.Batch(ctx, slices.Values(ops)) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, r); r.N != len(got)-1 {
			t.Errorf("result %d has number %d", len(got)-1, r.N)
		}
	}
	if len(got) != len(ops) {
		t.Fatalf("%d results of %d operations", len(got), len(ops))
	}
	var failed *client.PreconditionFailedError
	for i, ok := range []bool{
		got[0].Created && got[0].Version == 1,
		got[1].Sum == 42 && got[1].Version == 2,
		errors.As(got[2].Err, &failed) && failed.Revision == got[1].Revision,
		got[3].KV != nil && string(got[3].KV.Value) == "42" && got[3].KV.Key == odd && got[3].Revision == 0,
		errors.Is(got[4].Err, client.ErrKeyNotFound),
		len(got[5].KVs) == 1 && got[5].Count == 1,
		got[6].Txn != nil && got[6].Txn.Results[0].Deleted == 1 && string(got[6].Txn.Results[0].Previous.Value) == "42",
		got[7].Created,
		errors.Is(got[8].Err, client.ErrBadRequest),
	} {
		if !ok {
			t.Errorf("result %d: %+v, error %v", i, got[i], got[i].Err)
		}
	}
}

// Operations are answered while others are still to come, and the end of the loop ends
// the input.
func TestBatchStreams(t *testing.T) {
	c := kvdtest.New(t).Client()
	next, ended := make(chan client.Op), make(chan struct{})
	ops := func(yield func(client.Op) bool) {
		defer close(ended)
		for yield(<-next) {
			continue
		}
	}
	go func() { next <- client.OpIncr("n", 1) }()
	for r, err := range c.Batch(t.Context(), ops) {
		if err != nil || r.Err != nil {
			t.Fatal(r, err)
		}
		if r.Sum == 3 {
			break
		}
		next <- client.OpIncr("n", 1)
	}
	next <- client.OpIncr("n", 1)
	<-ended
	if n, err := c.Incr(t.Context(), "n", 0); n != 3 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

// count yields n increments of each of the keys.
func count(n int) iter.Seq[client.Op] {
	return func(yield func(client.Op) bool) {
		for i := range n {
			if !yield(client.OpIncr(fmt.Sprintf("counter/%d", i%7), 1)) {
				return
			}
		}
	}
}

// A batch goes on at another node when its node stops, and nothing takes effect twice.
func TestBatchFailsOver(t *testing.T) {
	ctx := t.Context()
	nodes := kvdtest.Cluster(t, 3)
	c := nodes.Client()
	const n = 7 * 1000
	sums := make(map[int]int64)
	for r, err := range c.Batch(ctx, count(n)) {
		if err != nil || r.Err != nil {
			t.Fatal(r, err)
		}
		if sums[r.N%7]++; r.Sum != sums[r.N%7] {
			t.Fatalf("operation %d: sum %d, want %d", r.N, r.Sum, sums[r.N%7])
		}
		if r.N%2000 == 1000 {
			node := nodes[r.N/2000%3]
			node.Stop()
			node.Start()
		}
	}
	total := int64(0)
	for _, sum := range sums {
		total += sum
	}
	if total != n {
		t.Errorf("%d of %d operations have results", total, n)
	}
}

// The cluster forgets the keys of a batch as it goes: there may be more operations than
// it would remember. A batch that ends in the middle says that its rest is open.
func TestBatchReleasesKeys(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	if _, err := c.ChangeSettings(ctx, client.SettingsChange{IdempotencyBytes: new(int64(2 << 20))}); err != nil {
		t.Fatal(err)
	}
	for r, err := range c.Batch(ctx, count(30_000)) {
		if err != nil || r.Err != nil {
			t.Fatal(r, err)
		}
	}
}

func TestBatchEndsWithItsContext(t *testing.T) {
	n := kvdtest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for r, err := range n.Client().Batch(ctx, count(1_000_000)) {
		if err == nil && r.N == 100 {
			n.Kill()
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("the end: %v", last)
	}
}
