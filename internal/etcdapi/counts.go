package etcdapi

import (
	"container/list"
	"sync"
)

// maxCounts bounds the counts that are remembered. Each is about a listing that a client
// reads in pages, and has two keys.
const maxCounts = 1024

// countCache remembers how many keys ranges have at a revision, which never changes.
//
// A client of etcd gets the number of all keys of a range with each page of it, and lists
// at the revision of the first page, from which the store moves away. So the first page
// leaves the count of the rest here, under the key where the next page begins, and each page
// leaves one for its successor. They are forgotten in the order of their last use. It is
// safe for concurrent use.
type countCache struct {
	mu struct {
		sync.Mutex // held for a look-up
		byRange    map[countKey]*list.Element
		used       *list.List // of *counted, the last used first
	}
}

// countKey is a range at a revision.
type countKey struct {
	revision   uint64
	start, end string
	endless    bool
}

type counted struct {
	countKey
	keys uint64
}

func newCountCache() *countCache {
	c := new(countCache)
	c.mu.byRange, c.mu.used = make(map[countKey]*list.Element), list.New()
	return c
}

func keyOfCount(revision uint64, start, end []byte) countKey {
	return countKey{revision, string(start), string(end), end == nil}
}

// get returns the number of keys of a range, if it is known.
func (c *countCache) get(revision uint64, start, end []byte) (keys uint64, known bool) {
	k := keyOfCount(revision, start, end)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.byRange[k]
	if e == nil {
		return 0, false
	}
	c.mu.used.MoveToFront(e)
	return e.Value.(*counted).keys, true
}

// put remembers the number of keys of a range.
func (c *countCache) put(revision uint64, start, end []byte, keys uint64) {
	k := keyOfCount(revision, start, end)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.byRange[k] != nil {
		return // it cannot have changed
	}
	c.mu.byRange[k] = c.mu.used.PushFront(&counted{k, keys})
	if c.mu.used.Len() > maxCounts {
		oldest := c.mu.used.Remove(c.mu.used.Back()).(*counted)
		delete(c.mu.byRange, oldest.countKey)
	}
}
