package kvstore

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

// deleteRange deletes all keys of a range in one revision, or none if they are too
// many.
func (x *executor) deleteRange(c *Command) (Result, error) {
	keys, err := x.live(c.Key, c.End)
	if err != nil {
		return Result{}, err
	}
	if len(keys) > MaxRangeDelete {
		return refuse(TooLarge, "the range has more than %d keys; delete it in parts", MaxRangeDelete), nil
	}
	if len(keys) == 0 {
		return Result{}, nil
	}
	x.now.revision++
	for _, m := range keys {
		x.cache.put(m)
		x.write(m, &version{deleted: true})
	}
	x.logRevision()
	return Result{Deleted: uint64(len(keys)), KV: KV{ModRevision: x.now.revision}}, nil
}

// live returns the metadata of the existing keys of a range, in order, with the
// writes that are not committed yet. It stops beyond MaxRangeDelete keys. The walk
// passes all metadata anyway, so no key is looked up.
//
// The order matters: the parts of the mutation record must be equal on every replica,
// or bodies of equal states would differ.
func (x *executor) live(start, end []byte) ([]*keyMeta, error) {
	changed := make(map[string]bool)
	var keys []*keyMeta
	for _, t := range x.scratch.touched {
		m := t.meta
		if !changed[m.key] && inRange([]byte(m.key), start, end) {
			changed[m.key] = true
			if m.exists {
				keys = append(keys, m)
			}
		}
	}
	lower, upper := versionBounds(start, end)
	it, err := x.eng.Iter(lower, upper)
	if err != nil {
		return nil, fmt.Errorf("find the keys of a range: %w", err)
	}
	w := walker{it: it, r: Range{KeysOnly: true}, at: math.MaxUint64}
	defer w.close()
	w.found = func(mod uint64, v *version, stored int) {
		if changed[string(w.key)] {
			return
		}
		m := &keyMeta{key: string(w.key)}
		x.learn(m, mod, v, int64(stored))
		keys = append(keys, m)
	}
	for len(keys) <= MaxRangeDelete && w.next() {
		continue // found collects them
	}
	if w.err != nil {
		return nil, w.err
	}
	slices.SortFunc(keys, func(a, b *keyMeta) int { return strings.Compare(a.key, b.key) })
	return keys, nil
}

func inRange(key, start, end []byte) bool {
	return bytes.Compare(key, start) >= 0 && (end == nil || bytes.Compare(key, end) < 0)
}
