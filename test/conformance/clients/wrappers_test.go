package clients

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/test/conformance/cluster"
)

// TestLeasing: two clients that cache keys which they own see each other's
// writes.
func TestLeasing(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	one, closeOne := leased(t, c)
	two, closeTwo := leased(t, c)
	defer closeOne()
	defer closeTwo()
	for i := range 10 {
		value := fmt.Sprint(i)
		if _, err := one.Put(ctx, "k", value); err != nil {
			t.Fatal(err)
		}
		for name, kv := range map[string]clientv3.KV{"the writer": one, "the other": two} {
			if got := get(ctx, t, kv, "k"); got != value {
				t.Fatalf("%s read %q, want %q", name, got, value)
			}
		}
		one, two = two, one
	}
	won, err := one.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "9")).
		Then(clientv3.OpPut("k", "swapped"), clientv3.OpPut("l", "new")).Else(clientv3.OpGet("k")).Commit()
	if err != nil || !won.Succeeded {
		t.Fatalf("got %v, %v", won, err)
	}
	resume := interrupt(ctx, t, c, false)
	defer resume()
	if got := get(ctx, t, two, "k") + get(ctx, t, two, "l"); got != "swappednew" {
		t.Errorf("got %q", got)
	}
	if d, err := two.Delete(ctx, "k", clientv3.WithRange("l\x00")); err != nil || d.Deleted != 2 {
		t.Errorf("deleted %v, %v", d, err)
	}
	if got := get(ctx, t, one, "k"); got != "" {
		t.Errorf("got %q after the delete", got)
	}
}

func leased(t *testing.T, c *cluster.Cluster) (clientv3.KV, func()) {
	t.Helper()
	kv, end, err := leasing.NewKV(c.Client(t), "leasing/")
	if err != nil {
		t.Fatal(err)
	}
	return kv, end
}

// get returns the value of a key, or "".
func get(ctx context.Context, t *testing.T, kv clientv3.KV, key string) string {
	t.Helper()
	r, err := kv.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// TestOrdering: serializable reads through whatever member never go back.
func TestOrdering(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	kv := ordering.NewKV(client.KV, ordering.NewOrderViolationSwitchEndpointClosure(client))
	last := int64(0)
	read := func() {
		t.Helper()
		r, err := kv.Get(ctx, "k", clientv3.WithSerializable())
		if err != nil && !errors.Is(err, ordering.ErrNoGreaterRev) {
			t.Fatal(err)
		}
		if err == nil && r.Header.Revision < last {
			t.Fatalf("read revision %d after %d", r.Header.Revision, last)
		} else if err == nil {
			last = r.Header.Revision
		}
	}
	write := func(i int) {
		t.Helper()
		if err := patiently(ctx, func(ctx context.Context) error { _, err := kv.Put(ctx, "k", fmt.Sprint(i)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		write(i)
		read()
	}
	resume := interrupt(ctx, t, c, false)
	for i := range 50 {
		write(i)
		read()
	}
	resume()
	for range 50 {
		read()
	}
}

// TestNamespace: keys, ranges, transactions, watches, and leases inside a prefix.
func TestNamespace(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	plain := c.Client(t)
	kv, w := namespace.NewKV(plain.KV, "app/"), namespace.NewWatcher(plain.Watcher, "app/")
	events := w.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithPrevKV())
	if _, err := plain.Put(ctx, "apq", "outside"); err != nil {
		t.Fatal(err)
	}
	resume := interrupt(ctx, t, c, false)
	defer resume()
	r, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision("k"), "=", 0)).
		Then(clientv3.OpPut("k", "v"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("l", "w"), clientv3.OpGet("", clientv3.WithPrefix())}, nil)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("got %v, %v", r, err)
	}
	if inner := r.Responses[1].GetResponseTxn().Responses[1].GetResponseRange(); inner.Count != 2 || string(inner.Kvs[0].Key) != "k" {
		t.Errorf("the transaction read %v", inner)
	}
	if e := next(ctx, t, events); string(e.Kv.Key) != "k" || string(e.Kv.Value) != "v" {
		t.Errorf("watched %v", e)
	}
	if get(ctx, t, plain, "app/k") != "v" || get(ctx, t, kv, "k") != "v" {
		t.Error("the key is not where it belongs")
	}
	if d, err := kv.Delete(ctx, "", clientv3.WithFromKey()); err != nil || d.Deleted != 2 {
		t.Errorf("deleted %v, %v", d, err)
	}
	if get(ctx, t, plain, "apq") != "outside" {
		t.Error("a key outside is gone")
	}
}

// TestNaming: a registry of endpoints, as gRPC's resolver uses it.
func TestNaming(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	m, err := endpoints.NewManager(client, "services/web")
	if err != nil {
		t.Fatal(err)
	}
	s := session(t, client, 30)
	changes, err := m.NewWatchChannel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string) error {
		return m.AddEndpoint(ctx, "services/web/"+name, endpoints.Endpoint{Addr: name + ":80", Metadata: "m"}, clientv3.WithLease(s.Lease()))
	}
	if err := errors.Join(add("a"), add("b")); err != nil {
		t.Fatal(err)
	}
	seen := map[string]endpoints.Operation{}
	for len(seen) < 2 {
		for _, u := range <-changes {
			seen[u.Endpoint.Addr] = u.Op
		}
	}
	resume := interrupt(ctx, t, c, false)
	defer resume()
	if list, err := m.List(ctx); err != nil || len(list) != 2 || list["services/web/a"].Addr != "a:80" {
		t.Fatalf("got %v, %v", list, err)
	}
	if err := patiently(ctx, func(context.Context) error { return s.Close() }); err != nil {
		t.Fatal(err)
	}
	deleted := 0
	for deleted < 2 {
		for _, u := range <-changes {
			if u.Op == endpoints.Delete {
				deleted++
			}
		}
	}
}

// TestMirror: the initial copy of a mirror and the events after it add up to the whole
// content.
func TestMirror(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	put := func(i int) {
		t.Helper()
		if err := patiently(ctx, func(ctx context.Context) error {
			_, err := client.Put(ctx, fmt.Sprintf("m/%04d", i), "v")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	const before, after = 1500, 50 // a page of the copy has 1,000 keys
	for i := range before {
		put(i)
	}
	syncer := mirror.NewSyncer(client, "m/", 0)
	copied := map[string]bool{}
	answers, failures := syncer.SyncBase(ctx)
	for r := range answers {
		for _, kv := range r.Kvs {
			copied[string(kv.Key)] = true
		}
	}
	if err := <-failures; err != nil || len(copied) != before {
		t.Fatalf("%d keys, %v", len(copied), err)
	}
	updates := syncer.SyncUpdates(ctx)
	resume := interrupt(ctx, t, c, true)
	defer resume()
	for i := range after {
		put(before + i)
	}
	for len(copied) < before+after {
		select {
		case r := <-updates:
			if r.Err() != nil {
				t.Fatal(r.Err())
			}
			for _, e := range r.Events {
				copied[string(e.Kv.Key)] = true
			}
		case <-ctx.Done():
			t.Fatalf("%d keys were copied", len(copied))
		}
	}
}

// TestSnapshot: the library saves a snapshot and checks its sum.
func TestSnapshot(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	for i := range 100 {
		if _, err := client.Put(ctx, fmt.Sprint("k", i), strings.Repeat("v", 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "snapshot.db")
	version, err := snapshot.SaveWithVersion(ctx, zap.NewNop(), clientv3.Config{Endpoints: c.Endpoints()[:1], Logger: zap.NewNop()}, path)
	if err != nil || version == "" {
		t.Fatalf("version %q, %v", version, err)
	}
	content, err := os.ReadFile(path)
	if err != nil || len(content)%512 != sha256.Size {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	if sum := sha256.Sum256(content[:len(content)-sha256.Size]); string(sum[:]) != string(content[len(content)-sha256.Size:]) {
		t.Error("the sum is wrong")
	}
	r, err := client.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(content)) {
		t.Errorf("the stream has %d bytes, the file %d: %v", n, len(content), err)
	}
}
