package rows

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

const table = layout.TableLease

// all returns the rows with a prefix from a key on, in the order of EachFrom.
func all(t *testing.T, rows *Rows, prefix, from string) (out []string) {
	t.Helper()
	err := rows.EachFrom(table, []byte(prefix), []byte(from), func(key, value []byte) bool {
		out = append(out, string(key)+"="+string(value))
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestEachMerges compares the rows with a map, wherever they are: in the overlay, committed,
// or in the engine.
func TestEachMerges(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	eng := engine.NewMemory()
	defer eng.Close()
	rows, writes := New(eng), eng.NewWriteBatch()
	var now layout.Meta
	want := make(map[string]string)
	for step := range 2000 {
		key := fmt.Sprintf("%c%c", 'a'+rng.IntN(3), 'a'+rng.IntN(6))
		switch n := rng.IntN(10); {
		case n < 5:
			want[key] = fmt.Sprint(step)
			rows.Set(table, []byte(key), []byte(want[key]))
		case n < 8:
			delete(want, key)
			rows.Delete(table, []byte(key))
		default:
			if err := rows.Commit(&now, writes); err != nil {
				t.Fatal(err)
			}
			if n == 9 {
				if err := writes.Commit(); err != nil {
					t.Fatal(err)
				}
				writes.Reset()
				rows.Settle()
			}
		}
		prefix, from := key[:1], key[:1+rng.IntN(2)]
		var in []string
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if k[:1] == prefix && k >= from {
				in = append(in, k+"="+want[k])
			}
		}
		if got := all(t, &rows, prefix, from); !slices.Equal(got, in) {
			t.Fatalf("seed %d, step %d: rows %v, want %v", seed, step, got, in)
		}
		if value, exists, err := rows.Get(table, []byte(key)); err != nil || string(value) != want[key] || exists != (want[key] != "") {
			t.Fatalf("seed %d, step %d: %s is %q, %t, %v", seed, step, key, value, exists, err)
		}
	}
}

// TestDroppedRowsLeaveNoTrace: neither in the rows nor in the hash, and deleting what was
// added takes its term away again.
func TestDroppedRowsLeaveNoTrace(t *testing.T) {
	eng := engine.NewMemory()
	defer eng.Close()
	rows, writes := New(eng), eng.NewWriteBatch()
	var now layout.Meta
	commit := func() {
		t.Helper()
		if err := rows.Commit(&now, writes); err != nil {
			t.Fatal(err)
		}
	}
	rows.Set(table, []byte("a"), []byte("1"))
	commit()
	before := now
	rows.Set(table, []byte("a"), []byte("2"))
	rows.Set(table, []byte("b"), []byte("2"))
	rows.Drop()
	commit()
	if got := all(t, &rows, "", ""); !rows.Clean() || now != before || !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("%v, hash %x, want %x", got, now.Rest, before.Rest)
	}
	rows.Delete(table, []byte("a"))
	commit()
	if now != (layout.Meta{}) {
		t.Errorf("no rows have the hash %x", now.Rest)
	}
}
