package watch

import "sync/atomic"

// window has the most recent changes, without a gap. The lock of the hub protects it;
// kept is also added to by readers.
type window struct {
	list []*change // in the order of revisions; those before head are gone
	head int
	// floor is the revision before the first in the list.
	floor uint64
	// size is the sum over change.size, at most limit.
	size, limit int
	// kept is the sum over change.kept, at most keptPerByte times limit.
	kept atomic.Int64
}

// keptPerByte is what the window may hold in forms and previous pairs for each byte of
// its changes. JSON of a change is about as large as the change itself, so there is room
// for two forms; what finds no room is encoded again by each stream.
const keptPerByte = 2

// add appends a change and drops the oldest ones beyond the limit. A change that exceeds
// the limit by itself is not kept at all: streams read it from disk.
func (w *window) add(c *change) {
	w.list = append(w.list, c)
	w.size += c.size
	for w.size > w.limit {
		w.drop()
	}
}

// drop removes the oldest change.
func (w *window) drop() {
	c := w.list[w.head]
	w.list[w.head] = nil
	w.head++
	w.floor = c.revision
	w.size -= c.size
	c.gone = true
	w.kept.Add(-c.kept.Load())
	if w.head == len(w.list) {
		w.list, w.head = w.list[:0], 0
	} else if w.head > 256 && w.head > len(w.list)/2 {
		n := copy(w.list, w.list[w.head:])
		clear(w.list[n:])
		w.list, w.head = w.list[:n], 0
	}
}

// reset empties the window. The next change will be the one after the revision.
func (w *window) reset(revision uint64) {
	for w.head < len(w.list) {
		w.drop()
	}
	w.list, w.head, w.floor = nil, 0, revision
}

// read copies the changes from a revision above the floor through to, as many as out has
// room for.
func (w *window) read(from, to uint64, out []*change) []*change {
	if from > to {
		return out[:0]
	}
	first := w.head + int(from-w.floor-1)
	n := min(int(to-from)+1, cap(out))
	return append(out[:0], w.list[first:first+n]...)
}

// keep counts bytes that are to be kept with a change, and reports whether they may be.
// What no longer is in the window is not worth keeping.
func (h *Hub) keep(c *change, n int) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	w := &h.window
	if c.gone {
		return false
	}
	if w.kept.Add(int64(n)) > keptPerByte*int64(w.limit) {
		w.kept.Add(int64(-n))
		return false
	}
	c.kept.Add(int64(n))
	return true
}
