package kvdtest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

// What a cluster acknowledged survives the restart of any of its nodes.
func TestClusterRestart(t *testing.T) {
	nodes := kvdtest.Cluster(t, 3, kvdtest.TLS())
	c := nodes.Client()
	for i, n := range nodes {
		if _, err := c.Put(t.Context(), "key", []byte{byte('a' + i)}); err != nil {
			t.Fatal(err)
		}
		n.Stop()
		if kv, err := c.Get(t.Context(), "key"); err != nil || kv.Value[0] != byte('a'+i) {
			t.Fatalf("%+v %v", kv, err)
		}
		n.Start()
	}
}

// A node that is cut off answers stale reads only. The others go on without it, and it
// catches up once it is back.
func TestCut(t *testing.T) {
	nodes := kvdtest.Cluster(t, 3)
	for i, n := range nodes {
		n.Cut()
		others := append(append(kvdtest.Nodes{}, nodes[:i]...), nodes[i+1:]...).Client()
		if _, err := others.Put(t.Context(), "key", []byte{byte('a' + i)}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Client().Get(t.Context(), "key", client.Stale(0)); err != nil && i > 0 {
			t.Errorf("a stale read of a node that is cut off: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if kv, err := n.Client().Get(ctx, "key"); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("a node that is cut off knows the newest value: %+v %v", kv, err)
		}
		cancel()
		n.Mend()
		if kv, err := n.Client().Get(t.Context(), "key"); err != nil || kv.Value[0] != byte('a'+i) {
			t.Errorf("a node that is back: %+v %v", kv, err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		kvdtest.New(b).Stop()
	}
}
