package kvstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// Changes calls fn with the changes from a revision on, oldest first, until fn returns
// false or an error, or there is no newer one that readers see. It returns the newest
// revision that they saw: one up to it that fn did not get changed nothing. Changes may be
// kept, and have no previous pairs. Below the compact revision, the error is *CompactedError.
func (s *Store) Changes(ctx context.Context, from uint64, fn func(Change) (more bool, err error)) (newest uint64, err error) {
	r, err := openChanges(s, from)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for r.valid = r.log.First(); r.valid; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		c, err := r.next()
		if err != nil {
			return 0, err
		}
		if more, err := fn(c); err != nil || !more {
			return r.newest, err
		}
	}
	return r.newest, r.log.Err()
}

type changeReader struct {
	log, versions engine.Iterator
	valid         bool // the log is on a record
	newest        uint64
	key           []byte // scratch
}

// openChanges opens a reader of the changes from a revision on. The compact revision is
// looked at once both iterators are open, as in iterAt.
func openChanges(s *Store, from uint64) (r changeReader, err error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	r.newest = s.Revision()
	if r.log, err = s.eng.Iter(mutationKey(nil, from, 0), mutationKey(nil, r.newest+1, 0)); err != nil {
		return r, fmt.Errorf("read the mutation log: %w", err)
	}
	if r.versions, err = s.eng.Iter([]byte{tableVersion}, []byte{tableVersion + 1}); err != nil {
		return r, errors.Join(fmt.Errorf("read the mutation log: %w", err), r.log.Close())
	}
	if v := s.visible.Load(); from < v.compact {
		return r, errors.Join(&CompactedError{CompactRevision: v.compact}, r.close())
	}
	return r, nil
}

func (r *changeReader) close() error { return errors.Join(r.log.Close(), r.versions.Close()) }

// next reads the change that the log is on.
func (r *changeReader) next() (Change, error) {
	c := Change{Revision: binary.BigEndian.Uint64(r.log.Key()[1:])}
	for r.valid && binary.BigEndian.Uint64(r.log.Key()[1:]) == c.Revision {
		mutations, err := decodeMutations(r.log.Value())
		if err != nil {
			return c, err
		}
		for i := range mutations {
			e, err := r.event(&mutations[i], c.Revision)
			if err != nil {
				return c, err
			}
			c.Events = append(c.Events, e)
		}
		r.valid = r.log.Next()
	}
	return c, nil
}

func (r *changeReader) event(m *mutation, revision uint64) (Event, error) {
	key := []byte(m.key)
	if m.deleted {
		return Event{KV: KV{Key: key, ModRevision: revision}, Deleted: true}, nil
	}
	r.key = appendVersionKey(r.key[:0], key, revision)
	if !r.versions.SeekGE(r.key) || !bytes.Equal(r.versions.Key(), r.key) {
		return Event{}, errors.Join(fmt.Errorf("%w: a version of revision %d is missing", errLayout, revision), r.versions.Err())
	}
	v, err := decodeVersion(r.versions.Value())
	if err != nil {
		return Event{}, err
	}
	kv := v.kv(revision)
	kv.Key, kv.Value = key, bytes.Clone(v.value)
	return Event{KV: kv}, nil
}
