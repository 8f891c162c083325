package kvstore

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
)

// deleteRange runs OpDeleteRange: it deletes all keys of a range, or none if they are
// too many for one revision.
func (x *executor) deleteRange(c *Command, b *budget, r *Result) error {
	w, err := x.liveWalk(Range{Start: c.Key, End: c.End, KeysOnly: !c.ReturnPrevious || !b.want}, true)
	if err != nil {
		return err
	}
	defer w.close()
	var keys []*keyMeta
	for w.next() {
		if err := b.deletedKey(); err != nil {
			return err
		}
		keys = append(keys, w.meta())
		if !c.ReturnPrevious {
			continue
		}
		if err := b.add(len(w.kv.Key) + int(w.state.size)); err != nil {
			return err
		}
		if b.want {
			r.Pairs = append(r.Pairs, w.kv.Clone())
		}
	}
	if w.err != nil {
		return w.err
	}
	if len(keys) > 0 {
		r.Deleted, r.KV.ModRevision = uint64(len(keys)), x.next()
	}
	for _, m := range keys {
		if err := x.draft(m, &layout.Version{Deleted: true}); err != nil {
			return err
		}
	}
	return nil
}

// liveWalk walks the keys of a range that exist, in order: those in the engine, with
// what was changed since then by earlier commands of the same call and by the overlay.
// Nothing may be added to the overlay during the walk.
type liveWalk struct {
	x *executor
	// The key that the walk is on, and its value unless only keys are walked. They are
	// valid until the next step.
	kv     KV
	change *change  // the change that made it so, or nil if it is in the engine
	learn  bool     // set state
	state  keyState // of the key
	ahead  keyState // of the key that the engine's walker is on
	err    error

	engine  walk.Walker
	found   bool      // the engine's walker is on a key that the walk has not passed
	changed []*change // the newest changes of keys in the range, in order, as far as not passed
	reverse bool
}

// liveWalk starts a walk. Range.Revision may be one that is not in the engine yet; 0
// stands for the newest, with the overlay.
func (x *executor) liveWalk(r Range, learn bool) (*liveWalk, error) {
	at := r.Revision
	if at == 0 {
		at = math.MaxUint64
	}
	lower, upper := layout.VersionBounds(r.Start, r.End)
	it, err := x.eng.Iter(lower, upper)
	if err != nil {
		return nil, fmt.Errorf("walk over keys: %w", err)
	}
	l := &liveWalk{x: x, learn: learn, engine: walk.New(it, r, at, nil), reverse: r.Reverse, changed: x.changedIn(r, at)}
	l.engine.Found = l.noteState
	l.step()
	return l, nil
}

// changedIn returns the newest change up to a revision of each key in a range, in the
// order of the walk. A revision is at most once among the changes of a key (S8), and the
// changes are in the order of revisions.
func (x *executor) changedIn(r Range, at uint64) []*change {
	newest := make(map[*keyMeta]*change)
	for i := range x.changes {
		c := &x.changes[i]
		if c.mod > at {
			break
		}
		if inRange(c.meta.key, r.Start, r.End) {
			newest[c.meta] = c
		}
	}
	out := make([]*change, 0, len(newest))
	for _, c := range newest {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *change) int { return strings.Compare(a.meta.key, b.meta.key) })
	if r.Reverse {
		slices.Reverse(out)
	}
	return out
}

// noteState keeps what the engine's walker found, for learn.
func (l *liveWalk) noteState(mod uint64, v *layout.Version, stored int) {
	if !l.learn {
		return
	}
	l.ahead = stateOf(v, mod)
	l.ahead.stored = uint32(stored)
	l.ahead.hash = l.x.hasher.Key(l.engine.Key, mod, v)
}

// step moves the engine's walker.
func (l *liveWalk) step() {
	l.found = l.engine.Next()
	l.err = l.engine.Err
}

// next moves to the next key. It returns false at the end and after an error.
func (l *liveWalk) next() bool {
	if l.change == nil && l.kv.Key != nil {
		l.step() // the last key was the engine's
	}
	for l.err == nil && (l.found || len(l.changed) > 0) {
		order := l.order()
		if order < 0 {
			l.kv, l.state, l.change = l.engine.Item.KV, l.ahead, nil
			return true
		}
		l.change, l.changed = l.changed[0], l.changed[1:]
		if order == 0 { // the engine has an older version
			l.step()
		}
		if l.change.exists {
			l.kv, l.state = l.change.kv(), l.change.keyState
			l.kv.Key, l.kv.Value = []byte(l.change.meta.key), l.change.value
			return true
		}
	}
	l.kv = KV{}
	return false
}

// order compares the key of the engine's walker with the first changed key in the
// direction of the walk. An end is behind every key.
func (l *liveWalk) order() int {
	switch {
	case len(l.changed) == 0:
		return -1
	case !l.found:
		return 1
	}
	order := strings.Compare(string(l.engine.Item.KV.Key), l.changed[0].meta.key)
	if l.reverse {
		return -order
	}
	return order
}

// meta returns the metadata of the key that the walk is on, and puts it into the cache,
// where a key with a change must be.
func (l *liveWalk) meta() *keyMeta {
	if l.change != nil {
		return l.change.meta
	}
	m := &keyMeta{key: string(l.kv.Key), keyState: l.state}
	l.x.cache.put(m)
	return m
}

func (l *liveWalk) close() { l.engine.Close() }

func inRange[K string | []byte](key K, start, end []byte) bool {
	return string(key) >= string(start) && (end == nil || string(key) < string(end))
}

// current is the state of the executor as a transaction sees it, with the overlay.
type current struct{ *executor }

func (x current) span() (oldest, newest uint64) { return x.now.Compact, x.now.Revision }

func (x current) get(key []byte, revision uint64, keysOnly bool) (kv KV, exists bool, err error) {
	if revision != 0 {
		return x.getAt(key, revision)
	}
	m, err := x.lookup(key)
	if err != nil {
		return KV{}, false, err
	}
	s := x.state(m)
	if !s.exists {
		return KV{}, false, nil
	}
	kv = s.kv()
	if !keysOnly {
		kv.Value, err = x.value(m)
	}
	return kv, true, err
}

// getAt returns a pair as of a revision that exists. The changes of a key since the last
// commit to the engine are a list from the newest back.
func (x current) getAt(key []byte, revision uint64) (kv KV, exists bool, err error) {
	m, err := x.lookup(key)
	if err != nil {
		return KV{}, false, err
	}
	for at := m.pending; at > 0; {
		c := &x.changes[at-1]
		if c.mod <= revision {
			kv = c.kv()
			kv.Value = c.value
			return kv, c.exists, nil
		}
		at = c.before
	}
	v, mod, _, err := x.newest(key, revision)
	if errors.Is(err, ErrKeyNotFound) {
		return KV{}, false, nil
	}
	if err != nil {
		return KV{}, false, err
	}
	kv = v.KV(mod)
	kv.Value = v.Value
	return kv, !v.Deleted, nil
}

func (x current) walk(r Range, fn func(kv *KV) (bool, error)) error {
	w, err := x.liveWalk(r, false)
	if err != nil {
		return err
	}
	defer w.close()
	for w.next() {
		if more, err := fn(&w.kv); err != nil || !more {
			return err
		}
	}
	return w.err
}
