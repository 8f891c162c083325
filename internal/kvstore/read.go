package kvstore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
)

// readAt returns the revision to read at, which is the newest for 0.
func (v *visible) readAt(revision uint64) (uint64, error) {
	switch {
	case revision == 0:
		return v.Revision, nil
	case revision > v.Revision:
		return 0, &FutureRevisionError{Revision: v.Revision}
	case revision < v.Compact:
		return 0, &CompactedError{CompactRevision: v.Compact}
	}
	return revision, nil
}

// iterAt opens an iterator between the bounds that has everything of a revision, and
// returns which revision that is. If point is set, lower is a key in table v and gets
// the revision.
//
// The compact revision is checked again once the iterator is open. Otherwise: a
// reader chooses revision 5; a compact command moves the compact revision to 9, and
// Maintain removes the versions before it; the iterator opens and finds version 7 of
// a key, or nothing, and the reader takes that for revision 5. Once the iterator is
// open, it keeps what it sees.
func (s *Store) iterAt(revision uint64, lower, upper []byte, point bool) (engine.Iterator, uint64, error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	for {
		at, err := s.visible.Load().readAt(revision)
		if err != nil {
			return nil, 0, err
		}
		if point {
			layout.SetRevision(lower, at)
		}
		it, err := s.eng.Iter(lower, upper)
		if err != nil {
			return nil, 0, fmt.Errorf("read from engine: %w", err)
		}
		if at >= s.CompactRevision() {
			return it, at, nil
		}
		// See above. The newest revision is chosen anew, an old one is refused.
		if err := it.Close(); err != nil {
			return nil, 0, fmt.Errorf("read from engine: %w", err)
		}
	}
}

// Get returns a key as of a revision (0 means the newest), and the revision that it
// was read at. The value must not be changed. Its errors are ErrKeyNotFound,
// *CompactedError, *FutureRevisionError, and those of the engine.
func (s *Store) Get(key []byte, revision uint64) (KV, uint64, error) {
	if revision != 0 {
		return s.getAt(key, revision)
	}
	newest := s.Revision()
	shard := s.hot.Shard(key)
	hot, epoch := shard.Get(key, newest)
	if hot != nil {
		return *hot, newest, nil
	}
	kv, at, err := s.getAt(key, 0)
	if err == nil {
		kept := kv
		kept.Key = bytes.Clone(key)
		shard.Put(&kept, at, epoch)
	}
	return kv, at, err
}

// getAt is Get from the engine.
func (s *Store) getAt(key []byte, revision uint64) (KV, uint64, error) {
	lower, upper := layout.PointBounds(make([]byte, 0, layout.PointBoundsLen(key)), key, revision)
	it, at, err := s.iterAt(revision, lower, upper, true)
	if err != nil {
		return KV{}, 0, err
	}
	defer it.Close()
	if !it.First() {
		if err := it.Err(); err != nil {
			return KV{}, 0, fmt.Errorf("read from engine: %w", err)
		}
		return KV{}, at, ErrKeyNotFound
	}
	v, mod, err := walk.VersionAt(it)
	if err != nil {
		return KV{}, 0, err
	}
	if v.Deleted {
		return KV{}, at, ErrKeyNotFound
	}
	kv := v.KV(mod)
	kv.Key, kv.Value = key, bytes.Clone(v.Value)
	return kv, at, nil
}

// List calls fn with the items of a range as of one revision, in order, until fn
// returns false or an error, and returns that revision. Keys and values are valid only
// during the call. List needs constant memory and does not see later changes. It
// returns the context's error soon after the context has ended, also while it walks
// over what fn never sees.
func (s *Store) List(ctx context.Context, r Range, fn func(Item) (more bool, err error)) (uint64, error) {
	lower, upper := layout.VersionBounds(r.Start, r.End)
	it, at, err := s.iterAt(r.Revision, lower, upper, false)
	if err != nil {
		return 0, err
	}
	w := walk.New(it, r, at, ctx.Err)
	defer w.Close()
	for w.Next() {
		more, err := fn(w.Item)
		if err != nil || !more {
			return at, err
		}
	}
	if w.Err != nil {
		return 0, fmt.Errorf("read from engine: %w", w.Err)
	}
	return at, nil
}

// Count returns the number of items of a range, which are its keys, or with a
// delimiter its groups and the keys outside of groups. A range of many keys is counted by
// the tally.
func (s *Store) Count(ctx context.Context, r Range) (n, revision uint64, err error) {
	lower, upper := layout.VersionBounds(r.Start, r.End)
	it, at, err := s.iterAt(r.Revision, lower, upper, false)
	if err != nil {
		return 0, 0, err
	}
	w := walk.New(it, r, at, ctx.Err)
	if len(r.Delimiter) > 0 {
		n, err = w.Count()
	} else {
		n, err = w.CountUpTo(s.tally.Few())
	}
	var ahead []byte
	if err == nil {
		ahead, err = w.Ahead()
	}
	w.Close()
	if err != nil {
		return 0, 0, fmt.Errorf("read from engine: %w", err)
	}
	if ahead == nil {
		return n, at, nil
	}
	return s.tally.Count(ctx, r.Start, r.End, func() (tally.Source, error) {
		p, at, err := pinAt(ctx, s, r.Revision)
		if err != nil {
			return tally.Source{}, err
		}
		return tally.Source{Snapshot: p.snapshot, Generation: p.generation, Newest: p.at, Compact: p.compact, Keys: p.keys, At: at}, nil
	})
}
