package httpapi

import (
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/watch"
)

// newTestNode returns a node with an empty store in memory.
func newTestNode(t testing.TB) *testNode {
	t.Helper()
	hub := watch.New(watch.Options{WindowBytes: 16 << 10, MaxWatches: 50})
	store, err := kvstore.Open(engine.NewMemory(), kvstore.Options{Observer: hub})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	hub.Attach(store)
	return &testNode{Store: store, hub: hub}
}

func (*testNode) Encode(dst []byte, cmd *kvstore.Command) []byte {
	return kvstore.EncodeCommand(dst, cmd)
}

// applyLocked applies a command as the next entry of the log.
func (n *testNode) applyLocked(cmd *kvstore.Command) (kvstore.Result, error) {
	results, err := n.applyGroupLocked([][]byte{kvstore.EncodeCommand(nil, cmd)})
	if err != nil {
		return kvstore.Result{}, err
	}
	return *results[0], nil
}

// applyGroupLocked is applyLocked for several commands in one entry.
func (n *testNode) applyGroupLocked(commands [][]byte) ([]*kvstore.Result, error) {
	n.index++
	entries := []kvstore.Entry{{Index: n.index, Term: 1, WantResults: true, Commands: commands}}
	if err := n.Store.Apply(entries); err != nil {
		return nil, err
	}
	out := make([]*kvstore.Result, len(commands))
	for i := range out {
		out[i] = entries[0].Results[i].(*kvstore.Result)
	}
	return out, nil
}
