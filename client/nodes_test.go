package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

func TestKeys(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	odd := "a//../\x00\xff ü?#%"
	w, err := c.Put(ctx, odd, []byte("1\x00\xff"))
	if err != nil || !w.Created || w.Version != 1 {
		t.Fatalf("%+v %v", w, err)
	}
	kv, err := c.Get(ctx, odd)
	if err != nil || kv.Key != odd || string(kv.Value) != "1\x00\xff" || kv.ModRevision != w.Revision {
		t.Fatalf("%+v %v", kv, err)
	}
	if _, err := c.Put(ctx, odd, nil, client.IfRevision(0)); !errors.Is(err, client.ErrPreconditionFailed) {
		t.Errorf("a key that exists: %v", err)
	}
	if w, err = c.Append(ctx, odd, []byte("!"), client.IfExists(), client.ReturnPrevious()); err != nil || w.Previous == nil || string(w.Previous.Value) != "1\x00\xff" {
		t.Errorf("%+v %v", w, err)
	}
	if old, err := c.Get(ctx, odd, client.AtRevision(kv.ModRevision)); err != nil || len(old.Value) != 3 {
		t.Errorf("%+v %v", old, err)
	}
	for want := int64(5); want <= 10; want += 5 {
		if n, err := c.Incr(ctx, "n", 5); n != want || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	if w, err := c.Delete(ctx, odd); err != nil || w.Deleted != 1 {
		t.Errorf("%+v %v", w, err)
	}
	if _, err := c.Get(ctx, odd); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a deleted key: %v", err)
	}
}

func TestList(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	const n = 25
	for i := range n {
		if _, err := c.Put(ctx, fmt.Sprintf("d/%02d", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	i := 0
	for kv, err := range c.List(ctx, client.Prefix("d/"), client.Limit(10)) {
		if err != nil || kv.Key != fmt.Sprintf("d/%02d", i) || kv.Value[0] != byte(i) {
			t.Fatalf("item %d: %+v %v", i, kv, err)
		}
		// A list is a view of one revision: what is deleted meanwhile is in it.
		if _, err := c.Delete(ctx, fmt.Sprintf("d/%02d", n-1)); err != nil {
			t.Fatal(err)
		}
		i++
	}
	if count, err := c.Count(ctx, client.Between("d/05", "d/20")); i != n || count != 15 || err != nil {
		t.Errorf("%d items, count %d, %v", i, count, err)
	}
	if w, err := c.DeleteRange(ctx, client.Prefix("d/")); err != nil || w.Deleted != n-1 {
		t.Errorf("%+v %v", w, err)
	}
}

func TestCluster(t *testing.T) {
	ctx := t.Context()
	nodes := kvdtest.Cluster(t, 3)
	c := nodes.Client()
	members, err := c.Members(ctx)
	if err != nil || len(members) != 3 {
		t.Fatalf("%+v %v", members, err)
	}
	leader, err := c.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	to := leader.ID%3 + 1
	if err := c.TransferLeader(ctx, to); err != nil {
		t.Fatal(err)
	}
	if leader, err = c.Leader(ctx); err != nil || leader.ID != to {
		t.Errorf("%+v %v", leader, err)
	}
	s, err := c.Cluster(ctx)
	if err != nil || !s.Healthy || len(s.Members) != 3 {
		t.Errorf("%+v %v", s, err)
	}
}

func TestTxn(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	r, err := c.Txn().
		If(client.Absent("a"), client.Version("b").Equals(0), client.CreateRevision("").In(client.Prefix("p/")).Less(1)).
		Then(client.OpPut("a", []byte("\xff")), client.OpIncr("n", 3), client.OpPut("p/1", nil)).
		Commit(ctx)
	if err != nil || !r.Succeeded || len(r.Results) != 3 || r.Results[1].Sum != 3 || r.Results[0].Version != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	inner := c.Txn().If(client.ValueIs("a", []byte("\xff"))).Then(client.OpList(client.Prefix("p/"), 0), client.OpDelete("a").ReturnPrevious())
	r, err = c.Txn().If(client.Exists("gone")).Else(client.OpGet("n"), client.OpGet("gone"), client.OpTxn(inner)).Commit(ctx)
	if err != nil || r.Succeeded || len(r.Results) != 3 {
		t.Fatalf("%+v %v", r, err)
	}
	if kv := r.Results[0].KV; kv == nil || string(kv.Value) != "3" {
		t.Errorf("get: %+v", r.Results[0])
	}
	if r.Results[1].KV != nil {
		t.Errorf("get of an absent key: %+v", r.Results[1])
	}
	nested := r.Results[2].Txn
	if nested == nil || !nested.Succeeded || len(nested.Results) != 2 {
		t.Fatalf("nested: %+v", r.Results[2])
	}
	if list := nested.Results[0]; len(list.KVs) != 1 || list.KVs[0].Key != "p/1" || list.Count != 1 {
		t.Errorf("list: %+v", list)
	}
	if d := nested.Results[1]; d.Deleted != 1 || d.Previous == nil || string(d.Previous.Value) != "\xff" {
		t.Errorf("delete: %+v", d)
	}
}

// A watch goes on at another node when its node stops, without a gap and without
// repeating an event, also within a revision of several events.
func TestWatchResumes(t *testing.T) {
	nodes := kvdtest.Cluster(t, 3)
	c := nodes.Client()
	const rounds = 30
	started := make(chan uint64, 1)
	done := make(chan error, 1)
	go func() {
		n := 0
		o := client.WatchOptions{Previous: true, Progress: func(revision uint64) {
			select {
			case started <- revision:
			default:
			}
		}}
		for e, err := range c.Watch(t.Context(), client.Prefix("w/"), o) {
			if err != nil {
				done <- err
				return
			}
			if want := fmt.Sprintf("%d-%d", n/2, n%2); string(e.KV.Value) != want || e.More != (n%2 == 0) || (n >= 2) != (e.Previous != nil) {
				done <- fmt.Errorf("event %d: %s, want %s: %+v", n, e.KV.Value, want, e)
				return
			}
			if n++; n == 2*rounds {
				done <- nil
				return
			}
		}
	}()
	<-started
	for i := range rounds {
		put := func(k int) client.Op { return client.OpPut(fmt.Sprintf("w/%d", k), fmt.Appendf(nil, "%d-%d", i, k)) }
		if _, err := c.Txn().Then(put(0), put(1)).Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i%10 == 5 {
			n := nodes[i/10]
			n.Stop()
			n.Start()
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchOfACompactedRevision(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	for range 3 {
		if _, err := c.Put(ctx, "a", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Compact(ctx, 3); err != nil {
		t.Fatal(err)
	}
	for e, err := range c.Watch(ctx, client.Key("a"), client.WatchOptions{From: 2}) {
		var compacted *client.CompactedError
		if !errors.As(err, &compacted) || compacted.CompactRevision != 3 {
			t.Errorf("%+v %v", e, err)
		}
	}
}

func TestAwait(t *testing.T) {
	c := kvdtest.New(t).Client()
	go func() { _, _ = c.Put(context.WithoutCancel(t.Context()), "later", []byte("x")) }()
	kv, err := c.Await(t.Context(), "later", 0)
	if err != nil || string(kv.Value) != "x" {
		t.Fatalf("%+v %v", kv, err)
	}
}
