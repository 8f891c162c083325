package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// lookup returns the metadata of a key, from the cache or the engine. An absent key
// has metadata too, so that the next put of it does not ask the engine again.
func (x *executor) lookup(key []byte) (*keyMeta, error) {
	if m := x.cache.get(key); m != nil {
		return m, nil
	}
	m := &keyMeta{key: string(key)}
	v, mod, stored, err := x.newest(key, math.MaxUint64)
	switch {
	case errors.Is(err, ErrKeyNotFound):
	case err != nil:
		return nil, err
	default:
		x.learn(m, mod, &v, stored)
	}
	x.cache.put(m)
	return m, nil
}

// learn sets the metadata from the newest version in the engine.
func (x *executor) learn(m *keyMeta, mod uint64, v *layout.Version, stored int64) {
	m.mod = mod
	if v.Deleted {
		return
	}
	m.keyState = stateOf(v, mod)
	m.stored = uint32(stored)
	x.scratch.plain = append(x.scratch.plain[:0], m.key...)
	m.hash = x.hasher.Key(x.scratch.plain, mod, v)
}

// stateOf returns the state of a key of which v is the version of a revision, but for the
// size in the engine and the hash.
func stateOf(v *layout.Version, mod uint64) keyState {
	return keyState{mod: mod, create: v.Create, version: v.Version, lease: v.Lease, attributes: v.Attributes, size: uint32(len(v.Value)), exists: !v.Deleted}
}

// newest reads the newest version of a key up to a revision from the engine, which may
// be a deletion. The value is valid until the next call.
func (x *executor) newest(key []byte, at uint64) (v layout.Version, mod uint64, stored int64, err error) {
	it, err := x.committed()
	if err != nil {
		return layout.Version{}, 0, 0, fmt.Errorf("look up key: %w", err)
	}
	x.scratch.key = layout.AppendVersionKey(x.scratch.key[:0], key, at)
	found := it.SeekPrefixGE(x.scratch.key)
	if err := it.Err(); err != nil {
		return layout.Version{}, 0, 0, fmt.Errorf("look up key: %w", err)
	}
	if !found {
		return layout.Version{}, 0, 0, ErrKeyNotFound
	}
	prefix, mod, err := layout.SplitVersionKey(it.Key())
	if err != nil {
		return layout.Version{}, 0, 0, err
	}
	if !bytes.HasPrefix(x.scratch.key, prefix) {
		return layout.Version{}, 0, 0, ErrKeyNotFound
	}
	stored = int64(len(it.Key()) + len(it.Value()))
	x.scratch.found = append(x.scratch.found[:0], it.Value()...)
	v, err = layout.DecodeVersion(mod, x.scratch.found)
	return v, mod, stored, err
}

// committed returns an iterator over the versions in the engine. Opening one costs
// as much as a lookup, so one serves all entries of a call. It does not see the
// writes being collected; their keys are in the cache until they are committed.
func (x *executor) committed() (engine.Iterator, error) {
	if x.lookups != nil {
		return x.lookups, nil
	}
	it, err := x.eng.Iter([]byte{layout.TableVersion}, []byte{layout.TableVersion + 1})
	if err != nil {
		return nil, err
	}
	x.lookups = it
	return it, nil
}

// closeLookups closes the iterator of committed, if there is one.
func (x *executor) closeLookups() error {
	if x.lookups == nil {
		return nil
	}
	err := x.lookups.Close()
	x.lookups = nil
	return err
}
