package kvstore

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// readAt resolves the revision to read at against what is visible.
func (v *visible) readAt(revision uint64) (uint64, error) {
	switch {
	case revision == 0:
		return v.revision, nil
	case revision > v.revision:
		return 0, &FutureRevisionError{Revision: v.revision}
	case revision < v.compact:
		return 0, &CompactedError{CompactRevision: v.compact}
	}
	return revision, nil
}

// iterAt opens an iterator that has all of a revision between the bounds, and
// returns which revision that is. History may be compacted between choosing
// the revision and opening the iterator, so the compact revision is looked at
// again after that. Where point is set, the lower bound is made that of the
// revision.
func (s *Store) iterAt(revision uint64, lower, upper []byte, point bool) (engine.Iterator, uint64, error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	for {
		at, err := s.visible.Load().readAt(revision)
		if err != nil {
			return nil, 0, err
		}
		if point {
			setRevision(lower, at)
		}
		it, err := s.eng.Iter(lower, upper)
		if err != nil {
			return nil, 0, fmt.Errorf("read from the engine: %w", err)
		}
		if at >= s.CompactRevision() {
			return it, at, nil
		}
		// The newest has moved on, or the old one is gone: see above.
		if err := it.Close(); err != nil {
			return nil, 0, fmt.Errorf("read from the engine: %w", err)
		}
	}
}

// Get returns a key as of a revision (0: the newest), and the revision it was
// read at. Errors: ErrKeyNotFound, *CompactedError, *FutureRevisionError.
func (s *Store) Get(key []byte, revision uint64) (KV, uint64, error) {
	lower, upper := pointBounds(make([]byte, 0, pointBoundsLen(key)), key, revision)
	it, at, err := s.iterAt(revision, lower, upper, true)
	if err != nil {
		return KV{}, 0, err
	}
	defer it.Close()
	if !it.First() {
		if err := it.Err(); err != nil {
			return KV{}, 0, fmt.Errorf("read from the engine: %w", err)
		}
		return KV{}, at, ErrKeyNotFound
	}
	_, mod, err := splitVersionKey(it.Key())
	if err != nil {
		return KV{}, 0, err
	}
	v, err := decodeVersion(it.Value())
	if err != nil {
		return KV{}, 0, err
	}
	if v.deleted {
		return KV{}, at, ErrKeyNotFound
	}
	kv := v.kv(mod)
	kv.Key, kv.Value = key, bytes.Clone(v.value)
	return kv, at, nil
}

func (v *version) kv(mod uint64) KV {
	return KV{CreateRevision: v.create, ModRevision: mod, Version: v.version, Lease: v.lease}
}

// List calls fn with the keys of a range as of one revision, in order, until
// fn returns false, and returns that revision. Keys and values are valid only
// during the call. It needs constant memory, and does not see later changes.
func (s *Store) List(r Range, fn func(Item) (more bool, err error)) (uint64, error) {
	lower, upper := versionBounds(r.Start, r.End)
	it, at, err := s.iterAt(r.Revision, lower, upper, false)
	if err != nil {
		return 0, err
	}
	w := walker{it: it, r: r, at: at}
	defer w.close()
	for w.next() {
		more, err := fn(w.item)
		if err != nil || !more {
			return at, err
		}
	}
	if w.err != nil {
		return 0, fmt.Errorf("read from the engine: %w", w.err)
	}
	return at, nil
}

// Count counts the keys of a range, with a delimiter the groups and the keys
// outside of groups.
func (s *Store) Count(r Range) (n, revision uint64, err error) {
	r.KeysOnly = true
	revision, err = s.List(r, func(Item) (bool, error) {
		n++
		return true, nil
	})
	return n, revision, err
}

// walker walks the live keys of a range at one revision.
type walker struct {
	it      engine.Iterator
	r       Range
	at      uint64
	item    Item
	err     error
	valid   bool // the iterator stands on the version to look at next
	started bool
	prefix  []byte
	key     []byte
	value   []byte
	seek    []byte
	// found, where not nil, hears of each live version, with its size in the
	// engine, while the iterator stands on it.
	found func(mod uint64, v *version, stored int)
}

func (w *walker) close() { _ = w.it.Close() }

// next moves to the next item.
func (w *walker) next() bool {
	if !w.started {
		w.started = true
		if w.r.Reverse {
			w.valid = w.it.Last()
		} else {
			w.valid = w.it.First()
		}
	}
	for w.valid {
		found, err := w.look()
		if err != nil {
			w.err = err
			return false
		}
		if found {
			return true
		}
	}
	w.err = w.it.Err()
	return false
}

// look examines the key the iterator stands on, fills in the item if the key
// is alive at the revision, and moves on to the next key.
func (w *walker) look() (found bool, err error) {
	prefix, rev, err := splitVersionKey(w.it.Key())
	if err != nil {
		return false, err
	}
	w.prefix = append(w.prefix[:0], prefix...)
	if w.r.Reverse {
		return w.lookBack(rev)
	}
	if rev > w.at {
		if !w.seekVersion() {
			w.seekNext() // the iterator has left the key already
			return false, w.it.Err()
		}
		if _, rev, err = splitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
	}
	v, err := decodeVersion(w.it.Value())
	if err != nil {
		return false, err
	}
	if v.deleted {
		w.skip()
		return false, nil
	}
	w.key = unescapePrefix(w.key[:0], w.prefix)
	if w.takeGroup() {
		return true, nil
	}
	if w.found != nil {
		w.found(rev, &v, len(w.it.Key())+len(w.it.Value()))
	}
	w.item = Item{KV: v.kv(rev)}
	w.item.KV.Key = w.key
	if !w.r.KeysOnly {
		// The iterator moves on before the item is used.
		w.value = append(w.value[:0], v.value...)
		w.item.KV.Value = w.value
	}
	w.skip()
	return true, nil
}

// lookBack is look for the reverse direction, where the versions of a key come
// oldest first. Most keys have few; stepping over them leaves the iterator on
// the key before, without a seek.
func (w *walker) lookBack(rev uint64) (found bool, err error) {
	seen, at := false, uint64(0) // of the newest version that the revision sees
	for range fewVersions {
		if rev <= w.at {
			seen, at = true, rev
			w.value = append(w.value[:0], w.it.Value()...)
		}
		if w.valid = w.it.Prev(); !w.valid || !bytes.HasPrefix(w.it.Key(), w.prefix) {
			return w.takeBack(seen, at)
		}
		if _, rev, err = splitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
	}
	if seen = w.seekVersion(); seen {
		if _, at, err = splitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
		w.value = append(w.value[:0], w.it.Value()...)
	} else if err := w.it.Err(); err != nil {
		return false, err
	}
	w.seekNext()
	return w.takeBack(seen, at)
}

// takeBack makes the item of the version in w.value, where there is one. The
// iterator stands on the key before already.
func (w *walker) takeBack(seen bool, rev uint64) (found bool, err error) {
	if !seen {
		return false, nil
	}
	v, err := decodeVersion(w.value)
	if err != nil || v.deleted {
		return false, err
	}
	w.key = unescapePrefix(w.key[:0], w.prefix)
	if w.takeGroup() {
		return true, nil
	}
	w.item = Item{KV: v.kv(rev)}
	w.item.KV.Key = w.key
	if !w.r.KeysOnly {
		w.item.KV.Value = v.value
	}
	return true, nil
}

// takeGroup makes the item the group of the current key, where it is in one,
// and moves past all of that.
func (w *walker) takeGroup() bool {
	group := w.group()
	if group == nil {
		return false
	}
	w.item = Item{Group: group}
	w.skipGroup(group)
	return true
}

// seekVersion moves to the newest version of the current key that the revision
// sees.
func (w *walker) seekVersion() bool {
	w.seek = binary.BigEndian.AppendUint64(append(w.seek[:0], w.prefix...), ^w.at)
	return w.it.SeekGE(w.seek) && bytes.HasPrefix(w.it.Key(), w.prefix)
}

// fewVersions is how many versions of a key are stepped over before a seek is
// cheaper.
const fewVersions = 4

// skip moves to the next key of a forward walk.
func (w *walker) skip() {
	for range fewVersions {
		if w.valid = w.it.Next(); !w.valid || !bytes.HasPrefix(w.it.Key(), w.prefix) {
			return
		}
	}
	w.seekNext()
}

// seekNext moves to the next key from wherever the iterator is.
func (w *walker) seekNext() {
	if w.r.Reverse {
		w.valid = w.it.SeekLT(w.prefix)
		return
	}
	w.seek = afterPrefix(w.seek[:0], w.prefix)
	w.valid = w.it.SeekGE(w.seek)
}

// group returns the group of the current key, nil when it is in none.
func (w *walker) group() []byte {
	if len(w.r.Delimiter) == 0 || len(w.key) < w.r.GroupAfter {
		return nil
	}
	i := bytes.Index(w.key[w.r.GroupAfter:], w.r.Delimiter)
	if i < 0 {
		return nil
	}
	return bytes.Clone(w.key[:w.r.GroupAfter+i+len(w.r.Delimiter)])
}

// skipGroup moves past all keys that begin with the group.
func (w *walker) skipGroup(group []byte) {
	first := appendEscaped([]byte{tableVersion}, group)
	if w.r.Reverse {
		w.valid = w.it.SeekLT(first)
		return
	}
	after := Prefix(first).End() // the table's byte is below 0xFF: never nil
	w.valid = w.it.SeekGE(after)
}
