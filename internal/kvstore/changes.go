package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// noteChanges collects the changes of the current call for the observer, in three
// allocations.
func (x *executor) noteChanges() {
	if len(x.changes) == 0 {
		return
	}
	revisions, keyBytes := uint64(0), 0
	last := uint64(0)
	for i := range x.changes {
		if c := &x.changes[i]; c.mod != last {
			revisions, last = revisions+1, c.mod
		}
		keyBytes += len(x.changes[i].meta.key)
	}
	out := make([]Change, 0, revisions)
	events := make([]Event, len(x.changes))
	keys := make([]byte, 0, keyBytes)
	from := 0
	for i := range x.changes {
		keys = x.changes[i].event(&events[i], keys)
		if i+1 == len(x.changes) || x.changes[i+1].mod != x.changes[i].mod {
			out = append(out, Change{Revision: x.changes[i].mod, Events: events[from : i+1 : i+1]})
			from = i + 1
		}
	}
	x.observations = out
}

// event sets e to what the change is for a watch. The key is appended to keys, which
// has room for it.
func (c *change) event(e *Event, keys []byte) []byte {
	at := len(keys)
	keys = append(keys, c.meta.key...)
	e.Deleted = !c.exists
	if e.Deleted {
		e.KV.ModRevision = c.mod
	} else {
		e.KV = c.kv()
		e.KV.Value = c.value
	}
	e.KV.Key = keys[at:len(keys):len(keys)]
	return keys
}

// Bounds of one look at the change log: the changed keys and the bytes of their values
// after which no further revision is begun. A watch takes no more in one step, so more would
// be read for nothing.
const (
	lookChanges = 256
	lookBytes   = 32 << 10
)

// Changes calls fn with the changes from a revision on, in order and without a gap, until
// fn returns false or an error, or readers see no further one. It returns the newest
// revision that they saw: one up to it that fn did not get changed nothing. The changes
// have no previous pairs; keys and values may be kept. The error is a *CompactedError if
// the changes from the revision on are no longer all there. That may turn out in the middle.
//
// It reads in steps, none of which pins the engine for long, however long fn takes. A
// revision is one Change, however many keys it changed.
func (s *Store) Changes(ctx context.Context, from uint64, fn func(Change) (more bool, err error)) (newest uint64, err error) {
	for {
		changes, newest, err := lookAtChanges(ctx, s, from)
		if err != nil {
			return 0, err
		}
		for i := range changes {
			if more, err := fn(changes[i]); err != nil || !more {
				return newest, err
			}
			from = changes[i].Revision + 1
		}
		if len(changes) == 0 || from > newest {
			return newest, nil
		}
	}
}

// lookAtChanges returns the next changes from a revision on, and the newest revision that
// readers saw.
func lookAtChanges(ctx context.Context, s *Store, from uint64) (changes []Change, newest uint64, err error) {
	p, err := pin(ctx, s)
	if err != nil {
		return nil, 0, err
	}
	changes, err = p.changes(max(from, layout.FirstRevision))
	return changes, p.at, errors.Join(err, p.snapshot.Close())
}

// changes returns the changes from a revision on, within the bounds of one look.
func (p *pinned) changes(from uint64) (out []Change, err error) {
	if from < p.compact {
		return nil, &CompactedError{CompactRevision: p.compact}
	}
	if from > p.at {
		return nil, nil
	}
	keys, size := 0, 0
	err = changelog.Each(p.snapshot, from, p.at, func(revision uint64, c *changelog.Change) (bool, error) {
		if n := len(out); n == 0 || out[n-1].Revision != revision {
			if keys >= lookChanges || size >= lookBytes {
				return false, nil
			}
			out = append(out, Change{Revision: revision})
		}
		e, err := p.event(revision, c)
		if err != nil {
			return false, err
		}
		last := &out[len(out)-1]
		last.Events = append(last.Events, e)
		keys, size = keys+1, size+len(e.KV.Value)
		return true, p.ctx.Err()
	})
	return out, err
}

// event returns a change with the value from table v.
func (p *pinned) event(revision uint64, c *changelog.Change) (Event, error) {
	e := Event{Deleted: c.Deleted, KV: KV{ModRevision: revision}}
	if !c.Deleted {
		b, err := p.snapshot.Get(nil, layout.AppendVersionKey(nil, c.Key, revision))
		if err != nil {
			return Event{}, fmt.Errorf("read a change of revision %d: %w", revision, err)
		}
		v, err := layout.DecodeVersion(revision, b)
		if err != nil {
			return Event{}, err
		}
		e.KV = v.KV(revision)
		e.KV.Value = v.Value
	}
	e.KV.Key = bytes.Clone(c.Key)
	return e, nil
}
