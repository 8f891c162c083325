package kvstore

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

// deleteRange deletes all keys of a range in one revision.
func (x *executor) deleteRange(c *Command) (Result, error) {
	keys, err := x.live(c.Key, c.End)
	if err != nil {
		return Result{}, err
	}
	if len(keys) > MaxRangeDelete {
		return refuse(TooLarge, "the range has more than %d keys: delete it in parts", MaxRangeDelete), nil
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

// live returns the keys of a range as the batch being made leaves them, in
// order; if they are more than may be deleted, more than that, and not all.
// The walk comes by their metadata, so that none has to be looked up.
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
		continue // found has it
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
