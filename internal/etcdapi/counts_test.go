package etcdapi

import "testing"

// Counts are told apart by revision, start, and end, and those not asked for are
// forgotten first.
func TestCountCache(t *testing.T) {
	c := newCountCache()
	c.put(5, []byte("a"), []byte("b"), 1)
	c.put(5, []byte("a"), nil, 2)
	c.put(5, []byte("a"), []byte{}, 3)
	c.put(6, []byte("a"), []byte("b"), 4)
	c.put(5, []byte("ab"), []byte(""), 5)
	for i, k := range []struct {
		revision uint64
		start    string
		end      []byte
		keys     uint64
	}{{5, "a", []byte("b"), 1}, {5, "a", nil, 2}, {5, "a", []byte{}, 3}, {6, "a", []byte("b"), 4}, {5, "ab", []byte{}, 5}} {
		if keys, ok := c.get(k.revision, []byte(k.start), k.end); !ok || keys != k.keys {
			t.Errorf("%d: %d %v, want %d", i, keys, ok, k.keys)
		}
	}
	if _, ok := c.get(7, []byte("a"), []byte("b")); ok {
		t.Error("a count of another revision is known")
	}
	for i := range uint64(maxCounts) {
		c.put(100+i, []byte("x"), nil, i)
		c.get(6, []byte("a"), []byte("b"))
	}
	if _, ok := c.get(5, []byte("a"), nil); ok {
		t.Error("a count that nobody asked for was kept")
	}
	if keys, ok := c.get(6, []byte("a"), []byte("b")); !ok || keys != 4 {
		t.Error("a count that is in use was forgotten")
	}
	if n := len(c.mu.byRange); n != maxCounts || c.mu.used.Len() != n {
		t.Errorf("%d counts, %d in the list", n, c.mu.used.Len())
	}
}
