package walk

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// Range selects keys at one revision.
type Range struct {
	// Start and End bound the keys: Start <= key < End. A nil End is open.
	Start, End []byte
	// Revision is the revision to read at. 0 means the newest.
	Revision uint64
	// Reverse walks from the greatest key down.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
	// A Delimiter folds keys into groups, as a directory listing does: keys that
	// contain it after their first GroupAfter bytes and agree up to and including
	// its first occurrence there become one Item. An empty Delimiter folds nothing.
	Delimiter  []byte
	GroupAfter int
}

// Item is one result of a range read: a pair, or the common prefix of a group.
type Item struct {
	KV    command.KV
	Group []byte // not nil if the item is a group; KV is empty then
}

// VersionAt returns the version that the iterator is on. Its value is valid until the
// iterator moves.
func VersionAt(it engine.Iterator) (v layout.Version, mod uint64, err error) {
	_, mod, err = layout.SplitVersionKey(it.Key())
	if err != nil {
		return layout.Version{}, 0, err
	}
	v, err = layout.DecodeVersion(mod, it.Value())
	return v, mod, err
}

// Walker walks the keys of a range that exist at one revision.
type Walker struct {
	it      engine.Iterator
	r       Range
	at      uint64
	Item    Item  // of the last Next that returned true, valid until the next one
	Err     error // why Next returned false; nil at the end
	valid   bool  // the iterator is on the version to look at next, unless passing is set
	passing bool  // it is on the version of the item and has to pass its key first
	started bool
	prefix  []byte // of the current key in table v
	Key     []byte // the current key as the user wrote it
	value   []byte // a copy in the reverse direction, where the iterator has moved on
	seek    []byte // scratch for the key of a seek
	// ended, if not nil, says why the walk should stop. Asking costs as much as a
	// step, so it is asked once the work since the last time reaches WorkPerLook.
	ended func() error
	work  int
	// Found, if not nil, is called with each live version and its size in the
	// engine while the iterator is on it.
	Found func(mod uint64, v *layout.Version, stored int)
}

// New returns a walker over what the iterator has, which it closes; ended may be nil.
func New(it engine.Iterator, r Range, at uint64, ended func() error) Walker {
	return Walker{it: it, r: r, at: at, ended: ended}
}

// WorkPerLook is the work between two looks at the context: about a millisecond of
// keys, or of copying values.
const WorkPerLook = 256

// checkEnded counts a key, and every 4 KiB of the last value as another.
func (w *Walker) checkEnded() error {
	if w.work += 1 + len(w.Item.KV.Value)>>12; w.work < WorkPerLook || w.ended == nil {
		return nil
	}
	w.work = 0
	return w.ended()
}

// Close closes the iterator.
func (w *Walker) Close() { _ = w.it.Close() }

// Next moves to the next item. It returns false at the end and after an error.
func (w *Walker) Next() bool {
	if !w.started {
		w.started = true
		if w.r.Reverse {
			w.valid = w.it.Last()
		} else {
			w.valid = w.it.First()
		}
	}
	if w.passing {
		w.passing = false
		w.skip()
	}
	for w.valid {
		if err := w.checkEnded(); err != nil {
			w.Err = err
			return false
		}
		found, err := w.look()
		if err != nil {
			w.Err = err
			return false
		}
		if found {
			return true
		}
	}
	w.Err = w.it.Err()
	return false
}

// Count returns how many items the walk has, in place of it.
func (w *Walker) Count() (n uint64, err error) {
	if len(w.r.Delimiter) > 0 {
		w.r.Reverse, w.r.KeysOnly = false, true
		for w.Next() {
			n++
		}
		return n, w.Err
	}
	return w.CountUpTo(math.MaxUint64)
}

// CountUpTo returns how many keys the walk has, and stops after a number of them: Ahead has
// what it would go on with, also after it was told to end. It walks forward, without a
// delimiter, and looks at no more of a version than tells whether the key exists.
func (w *Walker) CountUpTo(most uint64) (n uint64, err error) {
	if !w.started {
		w.r.Reverse, w.started, w.valid = false, true, w.it.First()
	}
	for w.valid && n < most {
		if err := w.checkEnded(); err != nil {
			return n, err
		}
		prefix, rev, err := layout.SplitVersionKey(w.it.Key())
		if err != nil {
			return 0, err
		}
		w.prefix = append(w.prefix[:0], prefix...)
		if rev > w.at && !w.seekVersion() { // no version is old enough
			if err := w.it.Err(); err != nil {
				return 0, err
			}
			w.seekNext()
			continue
		}
		exists, err := layout.Exists(w.it.Value())
		if err != nil {
			return 0, err
		}
		if exists {
			n++
		}
		w.skip()
	}
	return n, w.it.Err()
}

// Ahead returns the key that comes next, which may not exist at the revision, or nil at the
// end. It is valid until the walk goes on.
func (w *Walker) Ahead() ([]byte, error) {
	if !w.valid {
		return nil, nil
	}
	prefix, _, err := layout.SplitVersionKey(w.it.Key())
	if err != nil {
		return nil, err
	}
	w.Key = layout.UnescapePrefix(w.Key[:0], prefix)
	return w.Key, nil
}

// look examines the key that the iterator is on, and sets the item if the key exists at
// the revision; else, it moves on to the next key.
func (w *Walker) look() (found bool, err error) {
	prefix, rev, err := layout.SplitVersionKey(w.it.Key())
	if err != nil {
		return false, err
	}
	w.prefix = append(w.prefix[:0], prefix...)
	if w.r.Reverse {
		return w.lookBack(rev)
	}
	if rev > w.at {
		if !w.seekVersion() {
			w.seekNext() // no version is old enough
			return false, w.it.Err()
		}
		if _, rev, err = layout.SplitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
	}
	v, err := layout.DecodeVersion(rev, w.it.Value())
	if err != nil {
		return false, err
	}
	if v.Deleted {
		w.skip()
		return false, nil
	}
	w.Key = layout.UnescapePrefix(w.Key[:0], w.prefix)
	if w.takeGroup() {
		return true, nil
	}
	if w.Found != nil {
		w.Found(rev, &v, len(w.it.Key())+len(w.it.Value()))
	}
	w.Item = Item{KV: v.KV(rev)}
	w.Item.KV.Key = w.Key
	if !w.r.KeysOnly {
		w.Item.KV.Value = v.Value
	}
	w.passing = true // the iterator has the value until then
	return true, nil
}

// lookBack is look for the reverse direction. Stepping over all versions of a key
// leaves the iterator on the key before, without a seek.
func (w *Walker) lookBack(rev uint64) (found bool, err error) {
	seen, at := false, uint64(0) // the newest version so far that the revision sees
	for range fewVersions {
		if rev <= w.at {
			seen, at = true, rev
			w.value = append(w.value[:0], w.it.Value()...)
		}
		if w.valid = w.it.Prev(); !w.valid || !bytes.HasPrefix(w.it.Key(), w.prefix) {
			return w.takeBack(seen, at)
		}
		if _, rev, err = layout.SplitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
	}
	if seen = w.seekVersion(); seen {
		if _, at, err = layout.SplitVersionKey(w.it.Key()); err != nil {
			return false, err
		}
		w.value = append(w.value[:0], w.it.Value()...)
	} else if err := w.it.Err(); err != nil {
		return false, err
	}
	w.seekNext()
	return w.takeBack(seen, at)
}

// takeBack sets the item from the version in w.value, if one was seen. The iterator
// is on the key before already.
func (w *Walker) takeBack(seen bool, rev uint64) (found bool, err error) {
	if !seen {
		return false, nil
	}
	v, err := layout.DecodeVersion(rev, w.value)
	if err != nil || v.Deleted {
		return false, err
	}
	w.Key = layout.UnescapePrefix(w.Key[:0], w.prefix)
	if w.takeGroup() {
		return true, nil
	}
	w.Item = Item{KV: v.KV(rev)}
	w.Item.KV.Key = w.Key
	if !w.r.KeysOnly {
		w.Item.KV.Value = v.Value
	}
	return true, nil
}

// takeGroup sets the item to the group of the current key, if it is in one, and moves
// past all keys of the group.
func (w *Walker) takeGroup() bool {
	group := w.group()
	if group == nil {
		return false
	}
	w.Item = Item{Group: group}
	w.skipGroup(group)
	return true
}

// seekVersion moves to the newest version of the current key that the revision sees,
// and reports whether there is one.
func (w *Walker) seekVersion() bool {
	w.seek = binary.BigEndian.AppendUint64(append(w.seek[:0], w.prefix...), ^w.at)
	return w.it.SeekGE(w.seek) && bytes.HasPrefix(w.it.Key(), w.prefix)
}

// fewVersions is the number of versions of a key to step over before a seek is
// cheaper.
const fewVersions = 4

// skip moves to the next key in a forward walk.
func (w *Walker) skip() {
	for range fewVersions {
		if w.valid = w.it.Next(); !w.valid || !bytes.HasPrefix(w.it.Key(), w.prefix) {
			return
		}
	}
	w.seekNext()
}

// seekNext moves to the next key, wherever the iterator is now.
func (w *Walker) seekNext() {
	if w.r.Reverse {
		w.valid = w.it.SeekLT(w.prefix)
		return
	}
	w.seek = layout.AfterPrefix(w.seek[:0], w.prefix)
	w.valid = w.it.SeekGE(w.seek)
}

// group returns the group of the current key, or nil if it is in none.
func (w *Walker) group() []byte {
	if len(w.r.Delimiter) == 0 || len(w.Key) < w.r.GroupAfter {
		return nil
	}
	i := bytes.Index(w.Key[w.r.GroupAfter:], w.r.Delimiter)
	if i < 0 {
		return nil
	}
	return bytes.Clone(w.Key[:w.r.GroupAfter+i+len(w.r.Delimiter)])
}

// skipGroup moves past all keys that begin with the group.
func (w *Walker) skipGroup(group []byte) {
	first := layout.AppendEscaped([]byte{layout.TableVersion}, group)
	if w.r.Reverse {
		w.valid = w.it.SeekLT(first)
		return
	}
	after := layout.Prefix(first).End() // never nil, since the byte of the table is below 0xFF
	w.valid = w.it.SeekGE(after)
}
