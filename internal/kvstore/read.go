package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
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

// pinned calls read with an engine state that has all of a revision: history
// may be compacted between choosing the revision and opening the iterator, so
// the compact revision is looked at again after that. read opens the iterator
// and returns how to go on.
func (s *Store) pinned(revision uint64, open func(at uint64) error, abandon func()) (uint64, error) {
	for {
		at, err := s.visible.Load().readAt(revision)
		if err != nil {
			return 0, err
		}
		if err := open(at); err != nil {
			return 0, err
		}
		if at >= s.CompactRevision() {
			return at, nil
		}
		abandon() // the newest has moved on, or the old one is gone: see above
	}
}

// Get returns a key as of a revision (0: the newest), and the revision it was
// read at. Errors: ErrKeyNotFound, *CompactedError, *FutureRevisionError.
func (s *Store) Get(key []byte, revision uint64) (KV, uint64, error) {
	var it engine.Iterator
	at, err := s.pinned(revision, func(at uint64) (err error) {
		lower, upper := pointBounds(make([]byte, 0, len(key)+16), key, at)
		it, err = s.eng.Iter(lower, upper)
		return err
	}, func() { _ = it.Close() })
	if err != nil {
		return KV{}, 0, readErr(err)
	}
	defer it.Close()
	if !it.First() {
		if err := it.Err(); err != nil {
			return KV{}, 0, readErr(err)
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

func readErr(err error) error {
	var compacted *CompactedError
	var future *FutureRevisionError
	if errors.As(err, &compacted) || errors.As(err, &future) {
		return err
	}
	return fmt.Errorf("read from the engine: %w", err)
}

func (v *version) kv(mod uint64) KV {
	return KV{CreateRevision: v.create, ModRevision: mod, Version: v.version, Lease: v.lease}
}

// List calls fn with the keys of a range as of one revision, in order, until
// fn returns false, and returns that revision. Keys and values are valid only
// during the call. It needs constant memory, and does not see later changes.
func (s *Store) List(r Range, fn func(Item) (more bool, err error)) (uint64, error) {
	var w *walker
	at, err := s.pinned(r.Revision, func(at uint64) (err error) {
		w, err = newWalker(s.eng, r, at)
		return err
	}, func() { w.close() })
	if err != nil {
		return 0, readErr(err)
	}
	defer w.close()
	for w.next() {
		more, err := fn(w.item)
		if err != nil || !more {
			return at, err
		}
	}
	if w.err != nil {
		return 0, readErr(w.err)
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
	seek    []byte
}

func newWalker(r engine.Reader, rng Range, at uint64) (*walker, error) {
	lower, upper := versionBounds(rng.Start, rng.End)
	it, err := r.Iter(lower, upper)
	if err != nil {
		return nil, err
	}
	return &walker{it: it, r: rng, at: at}, nil
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
	if w.r.Reverse || rev > w.at {
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
	if group := w.group(); group != nil {
		w.item = Item{Group: group}
		w.skipGroup(group)
		return true, nil
	}
	w.item = Item{KV: v.kv(rev)}
	w.item.KV.Key = w.key
	if !w.r.KeysOnly {
		// The iterator moves on before the item is used.
		w.item.KV.Value = append([]byte(nil), v.value...)
	}
	w.skip()
	return true, nil
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

// skip moves to the next key in the direction of the walk.
func (w *walker) skip() {
	if w.r.Reverse {
		w.seekNext()
		return
	}
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
	after := PrefixEnd(first) // the table's byte is below 0xFF: never nil
	w.valid = w.it.SeekGE(after)
}
