package engine

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/btree"
)

// treeDegree balances the depth of the tree against the cost of copying a node after
// a clone.
const treeDegree = 32

// maxWritesInPlace bounds how long a commit holds up readers, to about a millisecond.
const maxWritesInPlace = 1000

// pairOverheadBytes is what a pair costs in addition to its bytes: its place in a node
// that is three quarters full, and the rounding of its allocation.
const pairOverheadBytes = 64

// pair is a key and its value in one allocation. It does not change, so clones of the
// tree share it.
type pair struct {
	data      []byte
	keyLength int
}

func newPair(key, value []byte) pair {
	data := make([]byte, 0, len(key)+len(value))
	data = append(data, key...)
	return pair{append(data, value...), len(key)}
}

// keyOnly returns a pair to search for, which shares the memory of key.
func keyOnly(key []byte) pair { return pair{key, len(key)} }

func (p pair) key() []byte   { return p.data[:p.keyLength:p.keyLength] }
func (p pair) value() []byte { return p.data[p.keyLength:] }

func (p pair) sizeBytes() int64 { return int64(len(p.data)) + pairOverheadBytes }

func pairLess(a, b pair) bool {
	return bytes.Compare(a.key(), b.key()) < 0
}

type pairTree = btree.BTreeG[pair]

// memoryEngine is a copy-on-write tree. The package comment says why it is cloned when
// a reader asks and not after each commit.
type memoryEngine struct {
	// mu is held for reading by point reads, and for writing by commits and by the
	// first reader after a commit, which makes the clone. Iterators and snapshots
	// work on the clone without it.
	mu struct {
		sync.RWMutex
		tree *pairTree // nil once the engine is closed
		view *pairTree // a clone of tree in its current state, or nil
	}
	sizeBytes atomic.Int64
}

// NewMemory returns an engine that keeps everything in memory.
func NewMemory() Engine {
	e := &memoryEngine{}
	e.mu.tree = newTree()
	return e
}

func newTree() *pairTree {
	return btree.NewG(treeDegree, pairLess)
}

func (e *memoryEngine) Name() string { return "memory" }

func (e *memoryEngine) Get(dst, key []byte) ([]byte, error) {
	e.mu.RLock()
	p, err := find(e.mu.tree, key)
	e.mu.RUnlock()
	if err != nil {
		return dst, err
	}
	return append(dst, p.value()...), nil
}

func (e *memoryEngine) Iter(lower, upper []byte) (Iterator, error) {
	return e.view().Iter(lower, upper)
}

func (e *memoryEngine) Snapshot() Snapshot { return e.view() }

func (e *memoryEngine) view() treeSnapshot {
	e.mu.RLock()
	view := e.mu.view
	e.mu.RUnlock()
	if view != nil {
		return treeSnapshot{view}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.view == nil && e.mu.tree != nil {
		e.mu.view = e.mu.tree.Clone()
	}
	return treeSnapshot{e.mu.view}
}

func (e *memoryEngine) Durable() Snapshot { return nil }

func (e *memoryEngine) Flush() error { return nil }

func (e *memoryEngine) Stats() Stats { return Stats{} }

// SizeBytes estimates the memory of the current content. Pairs that only open
// snapshots still hold are not counted.
func (e *memoryEngine) SizeBytes() int64 { return e.sizeBytes.Load() }

func (e *memoryEngine) Replace(fill func(set func(key, value []byte) error) error) error {
	if e.closed() {
		return ErrClosed
	}
	next, size := newTree(), int64(0)
	err := fill(func(key, value []byte) error {
		size += put(next, newPair(key, value))
		return nil
	})
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	e.setTree(next)
	e.sizeBytes.Store(size)
	return nil
}

func (e *memoryEngine) setTree(t *pairTree) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.tree, e.mu.view = t, nil
}

func (e *memoryEngine) closed() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.mu.tree == nil
}

// apply makes writes visible together. Many writes are made to a clone first, so that
// readers do not wait for all of them: a range delete is 100,000.
func (e *memoryEngine) apply(writes []memoryWrite) error {
	if len(writes) > maxWritesInPlace {
		return e.applyAside(writes)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.tree == nil {
		return ErrClosed
	}
	e.mu.view = nil
	e.sizeBytes.Add(writeAll(e.mu.tree, writes))
	return nil
}

// applyAside makes the writes to a clone and swaps it in. There is one writer, so
// nothing is lost between the clone and the swap.
func (e *memoryEngine) applyAside(writes []memoryWrite) error {
	e.mu.Lock()
	if e.mu.tree == nil {
		e.mu.Unlock()
		return ErrClosed
	}
	next := e.mu.tree.Clone()
	e.mu.Unlock()
	grown := writeAll(next, writes)
	e.setTree(next)
	e.sizeBytes.Add(grown)
	return nil
}

// Close releases the memory. Open snapshots stay readable.
func (e *memoryEngine) Close() error {
	e.setTree(nil)
	return nil
}

// find returns the pair of a key. A nil tree is that of a closed engine.
func find(t *pairTree, key []byte) (pair, error) {
	if t == nil {
		return pair{}, ErrClosed
	}
	p, found := t.Get(keyOnly(key))
	if !found {
		return pair{}, ErrNotFound
	}
	return p, nil
}

// writeAll makes the writes and returns by how many bytes the tree grew.
func writeAll(t *pairTree, writes []memoryWrite) int64 {
	grown := int64(0)
	for _, w := range writes {
		if w.deletes {
			grown += remove(t, w.pair)
		} else {
			grown += put(t, w.pair)
		}
	}
	return grown
}

// put stores p and returns by how many bytes the tree grew.
func put(t *pairTree, p pair) int64 {
	old, replaced := t.ReplaceOrInsert(p)
	if replaced {
		return p.sizeBytes() - old.sizeBytes()
	}
	return p.sizeBytes()
}

// remove deletes a key and returns by how many bytes the tree grew, which is at most 0.
func remove(t *pairTree, p pair) int64 {
	old, found := t.Delete(p)
	if !found {
		return 0
	}
	return -old.sizeBytes()
}

// treeSnapshot reads a tree that does not change. A nil tree is that of a closed engine.
// The garbage collector releases it, so Close does nothing.
type treeSnapshot struct {
	tree *pairTree
}

func (s treeSnapshot) Get(dst, key []byte) ([]byte, error) {
	p, err := find(s.tree, key)
	if err != nil {
		return dst, err
	}
	return append(dst, p.value()...), nil
}

func (s treeSnapshot) Iter(lower, upper []byte) (Iterator, error) {
	if s.tree == nil {
		return nil, ErrClosed
	}
	return newTreeIter(s.tree, lower, upper), nil
}

func (s treeSnapshot) Close() error { return nil }

// memoryWriteBatch lists writes in order. Set and Delete copy key and value, so the
// caller may reuse its buffers.
type memoryWriteBatch struct {
	engine *memoryEngine
	writes []memoryWrite
}

type memoryWrite struct {
	pair    pair
	deletes bool
}

func (e *memoryEngine) NewWriteBatch() WriteBatch {
	return &memoryWriteBatch{engine: e}
}

func (b *memoryWriteBatch) Set(key, value []byte) {
	b.writes = append(b.writes, memoryWrite{pair: newPair(key, value)})
}

func (b *memoryWriteBatch) Delete(key []byte) {
	b.writes = append(b.writes, memoryWrite{pair: newPair(key, nil), deletes: true})
}

func (b *memoryWriteBatch) Commit() error {
	if err := b.engine.apply(b.writes); err != nil {
		return err
	}
	b.Reset()
	return nil
}

func (b *memoryWriteBatch) Reset() {
	clear(b.writes)
	b.writes = b.writes[:0]
}

func (b *memoryWriteBatch) Close() error { return nil }
