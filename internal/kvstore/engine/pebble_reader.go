package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleReader is what a database and a snapshot of it have in common.
type pebbleReader interface {
	Get(key []byte) ([]byte, io.Closer, error)
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

func getFrom(r pebbleReader, dst, key []byte) ([]byte, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, ErrNotFound
	}
	if err != nil {
		return dst, fmt.Errorf("engine get: %w", err)
	}
	dst = append(dst, value...)
	return dst, closer.Close()
}

type pebbleSnapshot struct {
	gen  *generation
	snap *pebble.Snapshot
}

func (s *pebbleSnapshot) Get(dst, key []byte) ([]byte, error) {
	return getFrom(s.snap, dst, key)
}

func (s *pebbleSnapshot) Iter(lower, upper []byte) (Iterator, error) {
	// The snapshot holds a reference, so the count is not zero.
	s.gen.refs.Add(1)
	return newPebbleIter(s.gen, s.snap, lower, upper)
}

func (s *pebbleSnapshot) Close() error {
	return firstError(s.snap.Close(), s.gen.release())
}

// durableSnapshot shows only what is in tables on disk. Pebble offers that view only to
// iterators, and between two iterators there can be a flush: the position read
// through the first would then not belong to the data read through the second. So one
// iterator is opened, and all reads go through it or its clones, which see the same
// state.
type durableSnapshot struct {
	gen *generation
	// mu is held while base is moved or cloned.
	mu struct {
		sync.Mutex
		base *pebble.Iterator
	}
}

func newDurableSnapshot(g *generation) Snapshot {
	base, err := g.db.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true})
	if err != nil {
		return brokenSnapshot{firstError(fmt.Errorf("engine durable: %w", err), g.release())}
	}
	s := &durableSnapshot{gen: g}
	s.mu.base = base
	return s
}

func (s *durableSnapshot) Get(dst, key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	base := s.mu.base
	if base.SeekPrefixGE(key) && bytes.Equal(base.Key(), key) {
		value, err := base.ValueAndErr()
		return append(dst, value...), err
	}
	if err := base.Error(); err != nil {
		return dst, fmt.Errorf("engine get: %w", err)
	}
	return dst, ErrNotFound
}

func (s *durableSnapshot) Iter(lower, upper []byte) (Iterator, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen.refs.Add(1)
	return newPebbleIter(s.gen, durableSource{s.mu.base}, lower, upper)
}

func (s *durableSnapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return firstError(s.mu.base.Close(), s.gen.release())
}

// iterSource opens iterators.
type iterSource interface {
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// durableSource opens iterators over the state that base sees.
type durableSource struct {
	base *pebble.Iterator
}

func (s durableSource) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	o.OnlyReadGuaranteedDurable = true
	return s.base.Clone(pebble.CloneOptions{IterOptions: o})
}

// brokenSnapshot is a snapshot of a state that cannot be read. It exists because
// Engine.Snapshot has no error: most callers would only pass it to their first read.
type brokenSnapshot struct {
	err error
}

func (s brokenSnapshot) Get(dst, _ []byte) ([]byte, error)  { return dst, s.err }
func (s brokenSnapshot) Iter(_, _ []byte) (Iterator, error) { return nil, s.err }
func (s brokenSnapshot) Close() error                       { return nil }

// pebbleIter holds a reference to its generation while it is open.
type pebbleIter struct {
	*pebble.Iterator
	gen *generation
	// lower and prefix are set if both bounds have the same prefix. All keys in
	// between have it too, so forward seeks can skip tables by their filters.
	lower, prefix []byte
	// byPrefix is true after such a seek. Pebble cannot step backward from one.
	byPrefix bool
}

// newPebbleIter opens an iterator. It takes over the caller's reference to g.
func newPebbleIter(g *generation, src iterSource, lower, upper []byte) (Iterator, error) {
	compare := g.engine.opts.Comparer.Compare
	if lower != nil && upper != nil && compare(lower, upper) > 0 {
		// The range is empty either way, but Pebble requires ordered bounds.
		lower = upper
	}
	n := commonPrefix(g.engine.opts.Comparer, lower, upper)
	it, err := src.NewIter(&pebble.IterOptions{
		LowerBound: lower, UpperBound: upper,
		// A reader of one key (n > 0) usually knows that it exists, and then the
		// filters of the last level only cost. Apply's lookups of many keys ask for
		// what is about to be written, and that may be new.
		UseL6Filters: n == 0,
	})
	if err != nil {
		return nil, firstError(fmt.Errorf("engine iterate: %w", err), g.release())
	}
	i := &pebbleIter{Iterator: it, gen: g}
	if n > 0 {
		i.lower = bytes.Clone(lower)
		i.prefix = i.lower[:n]
	}
	return i, nil
}

// commonPrefix returns the length of the prefix that both bounds have, or 0 if their
// prefixes differ.
func commonPrefix(c *pebble.Comparer, lower, upper []byte) int {
	if lower == nil || upper == nil {
		return 0
	}
	n := c.Split(lower)
	if !bytes.Equal(lower[:n], upper[:c.Split(upper)]) {
		return 0
	}
	return n
}

func (i *pebbleIter) First() bool {
	if i.prefix == nil {
		return i.Iterator.First()
	}
	return i.SeekPrefixGE(i.lower)
}

func (i *pebbleIter) SeekPrefixGE(key []byte) bool {
	i.byPrefix = true
	return i.Iterator.SeekPrefixGE(key)
}

func (i *pebbleIter) SeekGE(key []byte) bool {
	split := i.gen.engine.opts.Comparer.Split
	if i.prefix != nil && bytes.Equal(i.prefix, key[:split(key)]) {
		return i.SeekPrefixGE(key)
	}
	i.byPrefix = false
	return i.Iterator.SeekGE(key)
}

func (i *pebbleIter) Last() bool {
	i.byPrefix = false
	return i.Iterator.Last()
}

func (i *pebbleIter) SeekLT(key []byte) bool {
	i.byPrefix = false
	return i.Iterator.SeekLT(key)
}

func (i *pebbleIter) Prev() bool {
	switch {
	case !i.byPrefix:
		return i.Iterator.Prev()
	case i.Valid():
		return i.SeekLT(bytes.Clone(i.Key()))
	case i.Error() != nil:
		return false
	}
	return i.Last()
}

func (i *pebbleIter) Err() error {
	if err := i.Error(); err != nil {
		return fmt.Errorf("engine iterate: %w", err)
	}
	return nil
}

func (i *pebbleIter) Close() error {
	return firstError(i.Iterator.Close(), i.gen.release())
}
