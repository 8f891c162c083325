package rows

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/btree"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
)

// Rows are the rows of a store. They belong to the goroutine that applies.
type Rows struct {
	eng    engine.Engine
	hasher statehash.Hasher
	// draft are the changes of the overlay, and pending those that were committed but are
	// not in the engine yet, by engine key. A nil value is a deletion.
	draft   map[string][]byte
	pending *btree.BTreeG[row]
	recent  recent
}

// row is a row that is not in the engine as it is here. A nil value means that it was
// deleted.
type row struct {
	key   string
	value []byte
}

func rowLess(a, b row) bool { return a.key < b.key }

// pendingDegree suits a tree that is small and short-lived.
const pendingDegree = 16

// New returns the rows that an engine has, with an empty overlay.
func New(eng engine.Engine) *Rows {
	return &Rows{eng: eng, draft: make(map[string][]byte), pending: btree.NewG(pendingDegree, rowLess)}
}

// Set adds a row to the overlay. The value must not be nil and is not copied.
func (t *Rows) Set(table byte, key, value []byte) { t.draft[Key(table, key)] = value }

// Delete adds the deletion of a row to the overlay.
func (t *Rows) Delete(table byte, key []byte) { t.draft[Key(table, key)] = nil }

// Key returns the key in the engine of a row.
func Key(table byte, key []byte) string { return string(table) + string(key) }

// Get returns a row as the overlay has it, and whether it exists. The value must not
// be changed.
func (t *Rows) Get(table byte, key []byte) (value []byte, exists bool, err error) {
	row := Key(table, key)
	if value, changed := t.draft[row]; changed {
		return value, value != nil, nil
	}
	return t.committed(row)
}

// committed returns a row without the overlay.
func (t *Rows) committed(key string) (value []byte, exists bool, err error) {
	if value, known := t.recent.get(key); known {
		return value, value != nil, nil
	}
	if r, changed := t.pending.Get(row{key: key}); changed {
		return r.value, r.value != nil, nil
	}
	value, err = t.eng.Get([]byte{}, []byte(key))
	if errors.Is(err, engine.ErrNotFound) {
		value, err = nil, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up row: %w", err)
	}
	t.recent.put(key, value)
	return value, value != nil, nil
}

// Each calls fn with the rows of a table whose keys begin with the prefix, as the
// overlay has them, in order, until fn returns false. fn must not change rows.
func (t *Rows) Each(table byte, prefix []byte, fn func(key, value []byte) (more bool)) error {
	return t.EachFrom(table, prefix, prefix, fn)
}

// EachFrom is each without the rows before from, which begins with the prefix.
func (t *Rows) EachFrom(table byte, prefix, from []byte, fn func(key, value []byte) (more bool)) error {
	within, lower := Key(table, prefix), Key(table, from)
	changed := t.changed(within, lower)
	it, err := t.eng.Iter([]byte(lower), layout.Prefix(within).End())
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	defer it.Close()
	more := true
	for valid := it.First(); more && (valid || len(changed) > 0); {
		order := -1 // of the row in the engine and the first changed one
		if len(changed) > 0 {
			order = 1
			if valid {
				order = strings.Compare(string(it.Key()), changed[0].key)
			}
		}
		if order < 0 {
			more = fn(it.Key()[1:], it.Value())
		} else {
			if changed[0].value != nil {
				more = fn([]byte(changed[0].key)[1:], changed[0].value)
			}
			changed = changed[1:]
		}
		if order <= 0 {
			valid = it.Next()
		}
	}
	return it.Err()
}

// changed returns the rows with a prefix, from a key on, that are not in the engine as
// they are here, in order.
func (t *Rows) changed(prefix, from string) (out []row) {
	changed := make(map[string][]byte)
	t.pending.AscendGreaterOrEqual(row{key: from}, func(r row) bool {
		if !strings.HasPrefix(r.key, prefix) {
			return false
		}
		changed[r.key] = r.value
		return true
	})
	for key, value := range t.draft {
		if key >= from && strings.HasPrefix(key, prefix) {
			changed[key] = value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		out = append(out, row{key, changed[key]})
	}
	return out
}

// Commit adds the rows of the overlay to the writes and the hash.
func (t *Rows) Commit(now *layout.Meta, writes engine.WriteBatch) error {
	if t.Clean() {
		return nil
	}
	// The order does not matter: the hash is a sum, and no key is there twice.
	for key, value := range t.draft {
		old, existed, err := t.committed(key)
		if err != nil {
			return err
		}
		if existed {
			now.Rest -= t.hasher.Row([]byte(key), old)
		}
		if value == nil {
			writes.Delete([]byte(key))
		} else {
			now.Rest += t.hasher.Row([]byte(key), value)
			writes.Set([]byte(key), value)
		}
		t.pending.ReplaceOrInsert(row{key, value})
		t.recent.put(key, value)
	}
	clear(t.draft)
	return nil
}

// Clean reports whether the overlay has no rows.
func (t *Rows) Clean() bool { return len(t.draft) == 0 }

// Drop forgets the rows of the overlay.
func (t *Rows) Drop() { clear(t.draft) }

// Reset forgets everything, because the whole state was replaced.
func (t *Rows) Reset() { *t = *New(t.eng) }

// Settle forgets the committed rows once they are in the engine.
func (t *Rows) Settle() {
	if t.pending.Len() > 0 {
		t.pending.Clear(false)
	}
}
