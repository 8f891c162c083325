package rows

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
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
		if got := all(t, rows, prefix, from); !slices.Equal(got, in) {
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
	if got := all(t, rows, "", ""); !rows.Clean() || now != before || !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("%v, hash %x, want %x", got, now.Rest, before.Rest)
	}
	rows.Delete(table, []byte("a"))
	commit()
	if now != (layout.Meta{}) {
		t.Errorf("no rows have the hash %x", now.Rest)
	}
}

// TestRecentRows: rows are remembered within a bound, as they are committed, also those that
// were deleted, or never existed. After Reset, the rows are those of the engine.
func TestRecentRows(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	eng := engine.NewMemory()
	defer eng.Close()
	rows, writes := New(eng), eng.NewWriteBatch()
	var now, fresh layout.Meta
	want := make(map[string]string)
	value := func(step int) string { return strings.Repeat(fmt.Sprint(step, " "), 4000+rng.IntN(10_000)) }
	for step := range 3000 {
		key := fmt.Sprint(rng.IntN(60))
		if got, exists, err := rows.Get(table, []byte(key)); err != nil || string(got) != want[key] || exists != (want[key] != "") {
			t.Fatalf("seed %d, step %d: row %s has %d bytes, %t, %v; want %d", seed, step, key, len(got), exists, err, len(want[key]))
		}
		switch n := rng.IntN(8); n {
		case 0, 1, 2:
			want[key] = value(step)
			rows.Set(table, []byte(key), []byte(want[key]))
		case 3:
			delete(want, key)
			rows.Delete(table, []byte(key))
		case 4:
			rows.Set(table, []byte(key), []byte("dropped"))
			delete(want, key)
			rows.Delete(table, []byte(key))
		case 5:
			if err := rows.Commit(&now, writes); err != nil {
				t.Fatal(err)
			}
			if err := writes.Commit(); err != nil {
				t.Fatal(err)
			}
			writes.Reset()
			rows.Settle()
		}
		if size := rows.recent.size(); size > 2*recentBytes+200_000 {
			t.Fatalf("seed %d, step %d: %d bytes are remembered", seed, step, size)
		}
	}
	rows.Drop()
	rows.Reset()
	var hasher statehash.Hasher
	for key := range 60 {
		if value, exists, err := rows.Get(table, []byte(fmt.Sprint(key))); err != nil {
			t.Fatal(err)
		} else if exists {
			fresh.Rest += hasher.Row([]byte(Key(table, []byte(fmt.Sprint(key)))), value)
		}
	}
	if fresh.Rest != now.Rest {
		t.Errorf("seed %d: the rows in the engine have the hash %x, and %x was noted", seed, fresh.Rest, now.Rest)
	}
}

// size is what the rows of both generations take.
func (r *recent) size() (bytes int) {
	for _, generation := range []map[string][]byte{r.young, r.old} {
		for key, value := range generation {
			bytes += rowBytes(key, value)
		}
	}
	return bytes
}
