package kvstore

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
)

// racingEngine lets something happen right before an iterator opens.
type racingEngine struct {
	engine.Engine
	before func()
}

func (e *racingEngine) Iter(lower, upper []byte) (engine.Iterator, error) {
	if f := e.before; f != nil {
		e.before = nil
		f()
	}
	return e.Engine.Iter(lower, upper)
}

// TestReadBesideCompaction: between choosing a revision and opening the iterator, that
// revision is compacted and its versions removed. The read must not take what is left
// for the state at that revision.
func TestReadBesideCompaction(t *testing.T) {
	scene := func(t *testing.T) *Store {
		e := &racingEngine{Engine: engine.NewMemory()}
		s := openStore(t, e, Options{})
		do(t, s, put("a", "1"), put("b", "1"))
		at := s.Revision()
		do(t, s, put("a", "2"))
		e.before = func() {
			do(t, s, put("a", "3"), Command{Op: OpCompact, Revision: at + 2})
			maintainAll(t, s)
		}
		return s
	}
	t.Run("old revision", func(t *testing.T) {
		s := scene(t)
		var compacted *CompactedError
		if kv, _, err := s.Get([]byte("a"), 3); !errors.As(err, &compacted) {
			t.Errorf("got %q, %v; want a refusal", kv.Value, err)
		}
	})
	t.Run("newest revision", func(t *testing.T) {
		s := scene(t)
		if kv, at, err := s.Get([]byte("a"), 0); err != nil || string(kv.Value) != "3" || at != 5 {
			t.Errorf("got %q at %d, %v; want the newest", kv.Value, at, err)
		}
	})
	t.Run("list", func(t *testing.T) {
		s := scene(t)
		var compacted *CompactedError
		if n, _, err := s.Count(context.Background(), Range{Revision: 3}); !errors.As(err, &compacted) {
			t.Errorf("counted %d, %v; want a refusal", n, err)
		}
	})
}

// countedContext has ended once it has been asked often enough.
type countedContext struct {
	context.Context
	asked, until int
}

func (c *countedContext) Err() error {
	if c.asked++; c.asked >= c.until {
		return context.DeadlineExceeded
	}
	return nil
}

// TestWalkEndsWithItsContext: a walk stops soon after its context has ended, whether
// it finds something or passes over what nobody sees.
func TestWalkEndsWithItsContext(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 20 * walk.WorkPerLook
	e := Entry{Index: 1, Term: 1}
	for i := range keys {
		c := put(fmt.Sprintf("%05d", i), "")
		e.Commands = append(e.Commands, EncodeCommand(nil, &c))
	}
	must(t, s.Apply([]Entry{e}))
	live := s.Revision()
	do(t, s, Command{Op: OpDeleteRange})
	for name, r := range map[string]Range{
		"live": {Revision: live}, "deleted": {}, "backward": {Revision: live, Reverse: true}, "backward over deleted": {Reverse: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := &countedContext{Context: context.Background(), until: 3}
			seen := 0
			_, err := s.List(ctx, r, func(Item) (bool, error) { seen++; return true, nil })
			if !errors.Is(err, context.DeadlineExceeded) || ctx.asked != 3 || seen > 3*walk.WorkPerLook {
				t.Errorf("%v after %d keys, asked %d times", err, seen, ctx.asked)
			}
			ctx = &countedContext{Context: context.Background(), until: keys}
			if _, _, err := s.Count(ctx, r); err != nil || ctx.asked != keys/walk.WorkPerLook {
				t.Errorf("%v, asked %d times for %d keys", err, ctx.asked, keys)
			}
		})
	}
}
