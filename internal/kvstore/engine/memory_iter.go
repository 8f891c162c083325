package engine

import (
	"bytes"
	"slices"
)

// A tree can only be walked by callback, so an iterator fetches a few pairs at a time
// and then searches for its place again. It fetches more each time: most iterators
// are opened to read one or two pairs, and long walks should not search often.
const (
	firstFetch = 4
	maxFetch   = 128
)

// treeIter walks a tree that does not change.
type treeIter struct {
	tree         *pairTree
	lower, upper []byte

	// chunk is a run of adjacent pairs in the order of their keys. The iterator is on
	// chunk[at]. If at is outside the chunk, it is on no key, and off says at which
	// end of the range it is.
	chunk []pair
	at    int
	off   side
	fetch int // how many pairs to fetch next
}

// side is where an iterator is that is on no key.
type side int

const (
	unpositioned side = iota
	beforeFirst
	afterLast
)

func newTreeIter(t *pairTree, lower, upper []byte) *treeIter {
	return &treeIter{tree: t, lower: bytes.Clone(lower), upper: bytes.Clone(upper), fetch: firstFetch}
}

func (i *treeIter) First() bool {
	i.fetch = firstFetch
	return i.loadFrom(i.lower, true)
}

func (i *treeIter) Last() bool {
	i.fetch = firstFetch
	return i.loadBelow(i.upper)
}

func (i *treeIter) SeekGE(key []byte) bool {
	i.fetch = firstFetch
	if i.lower != nil && bytes.Compare(key, i.lower) < 0 {
		key = i.lower
	}
	return i.loadFrom(key, true)
}

// SeekPrefixGE is SeekGE: a tree in memory needs no filters.
func (i *treeIter) SeekPrefixGE(key []byte) bool { return i.SeekGE(key) }

func (i *treeIter) SeekLT(key []byte) bool {
	i.fetch = firstFetch
	if i.upper != nil && bytes.Compare(key, i.upper) > 0 {
		key = i.upper
	}
	if len(key) == 0 {
		// Nothing is below the empty key, but loadBelow would take it for no bound.
		return i.leave(beforeFirst)
	}
	return i.loadBelow(key)
}

func (i *treeIter) Next() bool {
	switch {
	case i.onKey() && i.at+1 < len(i.chunk):
		i.at++
		return true
	case i.onKey():
		return i.loadFrom(i.Key(), false)
	case i.off == afterLast:
		return false
	}
	return i.First()
}

func (i *treeIter) Prev() bool {
	switch {
	case i.onKey() && i.at > 0:
		i.at--
		return true
	case i.onKey():
		return i.loadBelow(i.Key())
	case i.off == beforeFirst:
		return false
	}
	return i.Last()
}

func (i *treeIter) onKey() bool { return i.at < len(i.chunk) }

func (i *treeIter) Key() []byte {
	if !i.onKey() {
		return nil
	}
	return i.chunk[i.at].key()
}

func (i *treeIter) Value() []byte {
	if !i.onKey() {
		return nil
	}
	return i.chunk[i.at].value()
}

func (i *treeIter) Err() error { return nil }

func (i *treeIter) Close() error {
	i.tree, i.chunk = nil, nil
	return nil
}

// loadFrom fetches the pairs from key up, including key itself or not, and moves to the
// first.
func (i *treeIter) loadFrom(key []byte, inclusive bool) bool {
	chunk := i.chunk[:0]
	i.tree.AscendGreaterOrEqual(keyOnly(key), func(p pair) bool {
		if i.upper != nil && bytes.Compare(p.key(), i.upper) >= 0 {
			return false
		}
		if inclusive || !bytes.Equal(p.key(), key) {
			chunk = append(chunk, p)
		}
		return len(chunk) < i.fetch
	})
	i.accept(chunk)
	if len(chunk) == 0 {
		return i.leave(afterLast)
	}
	i.at = 0
	return true
}

// loadBelow fetches the pairs below key, or the last ones if key is nil, and moves to
// the last.
func (i *treeIter) loadBelow(key []byte) bool {
	chunk := i.chunk[:0]
	collect := func(p pair) bool {
		if bytes.Compare(p.key(), i.lower) < 0 {
			return false
		}
		if key == nil || !bytes.Equal(p.key(), key) {
			chunk = append(chunk, p)
		}
		return len(chunk) < i.fetch
	}
	if key == nil {
		i.tree.Descend(collect)
	} else {
		i.tree.DescendLessOrEqual(keyOnly(key), collect)
	}
	slices.Reverse(chunk)
	i.accept(chunk)
	if len(chunk) == 0 {
		return i.leave(beforeFirst)
	}
	i.at = len(chunk) - 1
	return true
}

func (i *treeIter) accept(chunk []pair) {
	i.chunk = chunk
	i.off = unpositioned
	i.fetch = min(2*i.fetch, maxFetch)
}

func (i *treeIter) leave(to side) bool {
	i.chunk = i.chunk[:0]
	i.at = 0
	i.off = to
	return false
}
