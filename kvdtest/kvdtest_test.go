package kvdtest_test

import (
	"testing"

	"github.com/kvd-io/kvd/kvdtest"
)

// What a cluster acknowledged survives the restart of any of its nodes.
func TestClusterRestart(t *testing.T) {
	nodes := kvdtest.Cluster(t, 3)
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

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		kvdtest.New(b).Stop()
	}
}
