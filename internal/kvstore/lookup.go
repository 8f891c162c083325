package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// lookup returns the metadata of a key, from the cache or the engine.
func (s *Store) lookup(key []byte) (*keyMeta, error) {
	if m := s.cache.get(key); m != nil {
		return m, nil
	}
	m := &keyMeta{key: string(key)}
	v, mod, stored, err := s.newest(key)
	switch {
	case errors.Is(err, ErrKeyNotFound):
	case err != nil:
		return nil, err
	default:
		s.learn(m, mod, &v, stored)
	}
	s.cache.put(m)
	return m, nil
}

// learn fills in the metadata from the newest version in the engine.
func (s *Store) learn(m *keyMeta, mod uint64, v *version, stored int64) {
	m.mod = mod
	if v.deleted {
		return
	}
	m.exists, m.stored = true, uint32(stored)
	m.create, m.version, m.lease, m.size = v.create, v.version, v.lease, uint32(len(v.value))
	s.scratch.plain = append(s.scratch.plain[:0], m.key...)
	m.hash = s.hasher.key(s.scratch.plain, mod, v)
}

// newest reads the newest version of a key from the engine, a deletion
// included. The value is valid until the next call.
func (s *Store) newest(key []byte) (v version, mod uint64, stored int64, err error) {
	it, err := s.committed()
	if err != nil {
		return version{}, 0, 0, fmt.Errorf("look a key up: %w", err)
	}
	s.scratch.key = appendVersionKey(s.scratch.key[:0], key, math.MaxUint64)
	found := it.SeekPrefixGE(s.scratch.key)
	if err := it.Err(); err != nil {
		return version{}, 0, 0, fmt.Errorf("look a key up: %w", err)
	}
	if !found {
		return version{}, 0, 0, ErrKeyNotFound
	}
	prefix, mod, err := splitVersionKey(it.Key())
	if err != nil {
		return version{}, 0, 0, err
	}
	if !bytes.HasPrefix(s.scratch.key, prefix) {
		return version{}, 0, 0, ErrKeyNotFound
	}
	stored = int64(len(it.Key()) + len(it.Value()))
	s.scratch.found = append(s.scratch.found[:0], it.Value()...)
	v, err = decodeVersion(s.scratch.found)
	return v, mod, stored, err
}

// committed is an iterator over the versions that are in the engine. Opening
// one costs as much as a look-up, so that one serves a whole batch.
func (s *Store) committed() (engine.Iterator, error) {
	if s.lookups != nil {
		return s.lookups, nil
	}
	it, err := s.eng.Iter([]byte{tableVersion}, []byte{tableVersion + 1})
	if err != nil {
		return nil, err
	}
	s.lookups = it
	return it, nil
}

// closeLookups ends the look-ups of a batch.
func (s *Store) closeLookups() error {
	if s.lookups == nil {
		return nil
	}
	err := s.lookups.Close()
	s.lookups = nil
	return err
}
