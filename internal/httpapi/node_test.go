package httpapi

import (
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// newTestNode makes a node with an empty store in memory.
func newTestNode(t testing.TB) *testNode {
	t.Helper()
	store, err := kvstore.Open(engine.NewMemory(), kvstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testNode{Store: store}
}

// applyLocked gives the command a place in the log and applies it.
func (n *testNode) applyLocked(cmd *kvstore.Command) (kvstore.Result, error) {
	n.index++
	entries := []kvstore.Entry{{
		Index: n.index, Term: 1, WantResults: true,
		Commands: [][]byte{kvstore.EncodeCommand(nil, cmd)},
	}}
	if err := n.Store.Apply(entries); err != nil {
		return kvstore.Result{}, err
	}
	return entries[0].Results[0], nil
}
