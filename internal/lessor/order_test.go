package lessor

import (
	"slices"
	"testing"
	"time"
)

// TestSortByDeadline: a keep-alive moves a lease to its new place; a node that does not lead
// leaves the order as it is.
func TestSortByDeadline(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		w.elect(0)
		for id, ttl := range map[uint64]time.Duration{1: 40, 2: 30, 3: 0, 4: 10} {
			w.grant(id, ttl*time.Second)
		}
		order := func(n *testNode) []uint64 {
			ids := []uint64{1, 2, 3, 4, 9}
			n.SortByDeadline(ids)
			return ids
		}
		if got, want := order(w.nodes[0]), []uint64{4, 2, 1, 3, 9}; !slices.Equal(got, want) {
			t.Errorf("the leader has %v, want %v", got, want)
		}
		time.Sleep(8 * time.Second) // virtual
		if _, err := w.nodes[0].keepAlive(t, 4); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second) // lease 4 has ended
		w.grant(4, 12*time.Second)
		if got, want := order(w.nodes[0]), []uint64{2, 4, 1, 3, 9}; !slices.Equal(got, want) {
			t.Errorf("later, the leader has %v, want %v", got, want)
		}
		if got, want := order(w.nodes[1]), []uint64{1, 2, 3, 4, 9}; !slices.Equal(got, want) {
			t.Errorf("another node has %v, want %v", got, want)
		}
	})
}
