package kvstore

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
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

// putNumbered puts the keys 00000, 00001, and so on, in the first entry of a store.
func putNumbered(t *testing.T, s *Store, keys int) {
	t.Helper()
	all := make([]Command, keys)
	for i := range all {
		all[i] = put(fmt.Sprintf("%05d", i), "")
	}
	must(t, s.Apply([]Entry{entryOf(1, all...)}))
}

// TestWalkEndsWithItsContext: a walk stops soon after its context has ended, whether
// it finds something or passes over what nobody sees.
func TestWalkEndsWithItsContext(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 20 * walk.WorkPerLook
	putNumbered(t, s, keys)
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
			s.tally = tally.New(2 * keys) // so that the count is a walk
			ctx = &countedContext{Context: context.Background(), until: keys}
			if _, _, err := s.Count(ctx, r); err != nil || ctx.asked != keys/walk.WorkPerLook {
				t.Errorf("%v, asked %d times for %d keys", err, ctx.asked, keys)
			}
		})
	}
}

// TestKnownKeysAreNotWalkedOver: the second count of a part of the keys looks at few of
// them, at the newest revision and at one before.
func TestKnownKeysAreNotWalkedOver(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 100 * walk.WorkPerLook
	putNumbered(t, s, keys)
	looks := func(r Range, want uint64) int {
		t.Helper()
		ctx := &countedContext{Context: context.Background(), until: keys}
		n, _, err := s.Count(ctx, r)
		if err != nil || n != want {
			t.Fatalf("count %s to %s at %d: %d, %v; want %d", r.Start, r.End, r.Revision, n, err, want)
		}
		return ctx.asked
	}
	few := 5 * tally.Grain / walk.WorkPerLook
	if n := looks(Range{}, keys); n > few {
		t.Errorf("a count of everything asked %d times", n)
	}
	part := Range{Start: []byte("00100"), End: []byte("20100")}
	if n := looks(part, 20000); n < 20000/walk.WorkPerLook {
		t.Errorf("the first count asked %d times: it cannot have looked at all keys", n)
	}
	before := s.Revision()
	do(t, s, remove("00200"), put("10000x", ""), put("10000y", ""), put("00300", "again"), deleteRange("30000", "30010"))
	for _, c := range []struct {
		r    Range
		want uint64
	}{
		{part, 20001},
		{Range{Start: []byte("01500"), End: []byte("19000")}, 17502},
		{Range{Start: []byte("01500"), End: []byte("19000"), Revision: before}, 17500},
		{Range{Start: part.Start, End: part.End, Revision: before + 1}, 19999},
	} {
		if n := looks(c.r, c.want); n > few {
			t.Errorf("count %s to %s at %d asked %d times", c.r.Start, c.r.End, c.r.Revision, n)
		}
	}
}

// TestCountEndsWithItsContext: a count ends with its context wherever it is, and leaves
// nothing wrong behind.
func TestCountEndsWithItsContext(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 20 * walk.WorkPerLook
	putNumbered(t, s, keys)
	full := s.Revision()
	do(t, s, deleteRange("02000", "04000"))
	for name, c := range map[string]struct {
		r    Range
		want uint64
	}{
		"newest":   {Range{Start: []byte("00100"), End: []byte("05000")}, 2900},
		"before":   {Range{Start: []byte("00100"), End: []byte("05000"), Revision: full}, 4900},
		"the last": {Range{Start: []byte("00100")}, keys - 2100},
	} {
		t.Run(name, func(t *testing.T) {
			s.tally = tally.New(walk.WorkPerLook)
			for until := 1; ; until++ {
				ctx := &countedContext{Context: context.Background(), until: until}
				n, _, err := s.Count(ctx, c.r)
				if err == nil {
					if n != c.want || until < 5 {
						t.Errorf("counted %d after %d looks, want %d", n, until, c.want)
					}
					return
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCountMovesOnWithItsContext: a count that moves along the change log ends with its
// context. What it came to and what was known before stays.
func TestCountMovesOnWithItsContext(t *testing.T) {
	s := newStore(t, "memory")
	s.tally = tally.New(walk.WorkPerLook)
	const keys, changes = 40 * walk.WorkPerLook, 10 * walk.WorkPerLook
	putNumbered(t, s, keys)
	part := Range{Start: []byte("00100")}
	_, _, err := s.Count(context.Background(), part)
	must(t, err)
	do(t, s, deleteRange("02000", "04000"))
	for i := range changes { // a revision for each
		do(t, s, put(fmt.Sprintf("%05dx", i), ""))
	}
	const want = keys - 2100 + changes - 100
	for attempt := 1; ; attempt++ { // a walk would take more of them
		ctx := &countedContext{Context: context.Background(), until: 6}
		n, _, err := s.Count(ctx, part)
		if err == nil {
			if n != want || attempt < 2 {
				t.Errorf("attempt %d counted %d, want %d", attempt, n, want)
			}
			return
		}
		if !errors.Is(err, context.DeadlineExceeded) || attempt > 5 {
			t.Fatalf("attempt %d: %v", attempt, err)
		}
	}
}

// changingContext lets something happen whenever a count waits for its turn.
type changingContext struct {
	context.Context
	between func()
}

func (c *changingContext) Done() <-chan struct{} {
	c.between()
	return nil
}

// TestCountBetweenWrites: a count that walks over many keys, piece by piece, sees the state
// of one revision, whatever is written between the pieces.
func TestCountBetweenWrites(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 50_000
	putNumbered(t, s, keys)
	want := map[uint64]uint64{s.Revision(): keys - 100}
	turns := 0
	ctx := &changingContext{Context: context.Background(), between: func() {
		turns++
		before := want[s.Revision()]
		do(t, s, put(fmt.Sprintf("%05dx", 10_000*turns), ""), put(fmt.Sprintf("00200x%d", turns), "")) // ahead and behind
		do(t, s, remove(fmt.Sprintf("%05d", 49_000+turns)), remove(fmt.Sprintf("%05d", 300+turns)), remove(fmt.Sprintf("%05d", turns)))
		want[s.Revision()] = before
	}}
	n, at, err := s.Count(ctx, Range{Start: []byte("00100")})
	if err != nil || n != want[at] || want[at] == 0 || turns < 3 {
		t.Errorf("counted %d at %d after %d turns, %v; want %d", n, at, turns, err, want[at])
	}
}

// TestListDoesNotCopyValues: what a walk hands out is the engine's own value. A copy would
// take memory before the caller could claim any, once for each request.
func TestListDoesNotCopyValues(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("a", "value of a"), put("b", "value of b"))
	first := func() *byte {
		var at *byte
		_, err := s.List(context.Background(), Range{Start: []byte("a")}, func(it Item) (bool, error) {
			at = &it.KV.Value[0]
			return false, nil
		})
		must(t, err)
		return at
	}
	if a, b := first(), first(); a != b {
		t.Error("two walks have the same value in two places")
	}
}

// TestCountTellsMalformedKeys: a key that cannot be read is not the end of a count.
func TestCountTellsMalformedKeys(t *testing.T) {
	eng := engine.NewMemory()
	s := openStore(t, eng, Options{})
	do(t, s, put("a", ""), put("b", ""), put("c", ""), put("d", ""))
	writes := eng.NewWriteBatch()
	writes.Set(append([]byte{layout.TableVersion}, "bx"...), nil)
	must(t, writes.Commit())
	for few := range int64(4) {
		s.tally = tally.New(few + 1)
		if n, _, err := s.Count(context.Background(), Range{Start: []byte("a")}); !errors.Is(err, layout.ErrMalformed) {
			t.Errorf("counted %d after a look at %d, %v", n, few+1, err)
		}
	}
}
