package tally

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
)

// fixture is an engine with keys of revision 2, and a tally of them.
type fixture struct {
	*testing.T
	eng    engine.Engine
	src    Source
	prefix string
	tally  *Tally
}

func newFixture(t *testing.T, prefix string, keys int, grain int64) *fixture {
	t.Helper()
	f := &fixture{T: t, eng: engine.NewMemory(), prefix: prefix, tally: New(grain)}
	f.src = Source{Newest: 2, Compact: 1, Keys: uint64(keys), At: 2}
	writes := f.eng.NewWriteBatch()
	for i := range keys {
		v := layout.Version{Create: 2, Version: 1}
		writes.Set(layout.AppendVersionKey(nil, f.key(i), 2), layout.AppendVersion(nil, 2, &v))
	}
	if err := writes.Commit(); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) key(i int) []byte { return fmt.Appendf(nil, "%s%07d", f.prefix, i) }

func (f *fixture) pin() (Source, error) {
	src := f.src
	src.Snapshot = f.eng.Snapshot()
	return src, nil
}

// count checks a count, and that the tally is in order.
func (f *fixture) count(start, end []byte, want uint64) {
	f.Helper()
	n, _, err := f.tally.Count(context.Background(), start, end, f.pin)
	if err != nil || n != want {
		f.Fatalf("counted %d, %v; want %d", n, err, want)
	}
	f.check()
}

func (f *fixture) check() {
	f.Helper()
	if bytes := f.tally.bytes(); bytes > maxBytes {
		f.Fatalf("buckets of %d bytes", bytes)
	}
	for i, b := range f.tally.buckets {
		if i > 0 && b.start <= f.tally.buckets[i-1].start {
			f.Fatalf("bucket %d starts with %q, after %q", i, b.start, f.tally.buckets[i-1].start)
		}
	}
}

// hookedContext calls looked when it is asked whether it has ended, and waits before somebody
// waits for that.
type hookedContext struct {
	context.Context
	looked func() error
	waits  func()
}

func (c *hookedContext) Err() error { return c.looked() }

func (c *hookedContext) Done() <-chan struct{} {
	c.waits()
	return nil
}

// endsAfter is a context that ends after a number of looks.
func endsAfter(looks int) *hookedContext {
	return &hookedContext{waits: func() {}, looked: func() error {
		if looks--; looks < 0 {
			return context.DeadlineExceeded
		}
		return nil
	}}
}

// TestCountsTakeTurns: a count that walks over many keys lets another one pass.
func TestCountsTakeTurns(t *testing.T) {
	const keys = 3 * looksPerTurn * walk.WorkPerLook
	f := newFixture(t, "", keys, Grain)
	waits, other := 0, make(chan error)
	ctx := &hookedContext{looked: func() error { return nil }}
	ctx.waits = func() { // without the turn
		if waits++; waits != 2 {
			return
		}
		go func() {
			n, _, err := f.tally.Count(context.Background(), f.key(1), f.key(2000), f.pin)
			if n != 1999 {
				err = errors.Join(err, fmt.Errorf("counted %d", n))
			}
			other <- err
		}()
		if err := <-other; err != nil {
			t.Error(err)
		}
	}
	n, _, err := f.tally.Count(ctx, f.key(1), nil, f.pin)
	if err != nil || n != keys-1 {
		t.Errorf("counted %d, %v; want %d", n, err, keys-1)
	}
	if waits < 3 {
		t.Errorf("a walk over %d keys took %d turns", keys, waits)
	}
	f.check()
}

// TestAWalkIsKept: counts whose context ends long before they have walked over their range
// come to its end together.
func TestAWalkIsKept(t *testing.T) {
	const keys = 40 * walk.WorkPerLook
	for _, grain := range []int64{1, 100, walk.WorkPerLook, Grain, keys / 4} {
		f := newFixture(t, "", keys, grain)
		for attempt := 1; ; attempt++ {
			n, _, err := f.tally.Count(endsAfter(10), f.key(1), f.key(keys-1), f.pin)
			f.check()
			if err == nil {
				if n != keys-2 || attempt < 4 {
					t.Errorf("grain %d: attempt %d counted %d, want %d", grain, attempt, n, keys-2)
				}
				break
			}
			if !errors.Is(err, context.DeadlineExceeded) || attempt > 10 {
				t.Fatalf("grain %d: attempt %d: %v", grain, attempt, err)
			}
		}
	}
}

// TestAWalkBesideFullBucketsIsKept: the same where the memory is full just when a piece of
// the walk has found a single key, beside which nothing is known yet.
func TestAWalkBesideFullBucketsIsKept(t *testing.T) {
	const live, groups, dead = 4 * 1013, 24, 600
	f := newFixture(t, strings.Repeat("k", 1000), live, 4)
	writes := f.eng.NewWriteBatch()
	for i := range groups * dead {
		v := layout.Version{Create: 2, Version: 1, Deleted: i%dead != 0}
		if v.Deleted {
			v = layout.Version{Deleted: true}
		}
		writes.Set(layout.AppendVersionKey(nil, f.key(live+i), 2), layout.AppendVersion(nil, 2, &v))
	}
	if err := writes.Commit(); err != nil {
		t.Fatal(err)
	}
	f.src.Keys += groups
	f.count(f.key(0), f.key(live), live)
	if f.tally.grain != 4 {
		t.Fatal("the buckets are full already")
	}
	for attempt := 1; ; attempt++ {
		n, _, err := f.tally.Count(endsAfter(2), f.key(0), nil, f.pin)
		f.check()
		if err == nil {
			if n != live+groups || f.tally.grain == 4 {
				t.Errorf("counted %d, with buckets of %d keys", n, f.tally.grain)
			}
			return
		}
		if !errors.Is(err, context.DeadlineExceeded) || attempt > 2*groups {
			t.Fatalf("attempt %d: %v", attempt, err)
		}
	}
}

// TestMalformedKeysAreTold: a walk that comes to a key that it cannot read does not take it
// for the end.
func TestMalformedKeysAreTold(t *testing.T) {
	f := newFixture(t, "", 8, 2)
	writes := f.eng.NewWriteBatch()
	writes.Set(append([]byte{layout.TableVersion}, "0000005x"...), nil)
	if err := writes.Commit(); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if n, _, err := f.tally.Count(context.Background(), f.key(i), nil, f.pin); !errors.Is(err, layout.ErrMalformed) {
			t.Errorf("counted %d from %d, %v", n, i, err)
		}
	}
}

// TestMemoryIsBoundedAfterAnEnd: also a count that fails leaves no more than maxBytes.
func TestMemoryIsBoundedAfterAnEnd(t *testing.T) {
	f := newFixture(t, strings.Repeat("k", 1000), 3000, 1)
	for looks := range 15 {
		f.tally.buckets = nil
		_, _, err := f.tally.Count(endsAfter(looks), f.key(1), nil, f.pin)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		f.check()
	}
}

// TestGrainBeginsAnew: the tally of a new state has buckets of the first size, however large
// they had to become in the old one.
func TestGrainBeginsAnew(t *testing.T) {
	f := newFixture(t, strings.Repeat("k", 1000), 3000, 1)
	f.count(f.key(1), nil, 2999)
	if f.tally.grain == 1 {
		t.Fatal("the buckets did not grow")
	}
	f.src.Generation++
	f.count(f.key(2900), f.key(2950), 50)
	if f.tally.grain != 1 {
		t.Errorf("buckets of %d keys", f.tally.grain)
	}
}

// TestTheRestIsKnown: what a count leaves is known where the number of all keys says it.
func TestTheRestIsKnown(t *testing.T) {
	f := newFixture(t, "", 5000, 100)
	f.count(f.key(1000), f.key(2000), 1000)
	f.count(f.key(2000), nil, 3000)
	for i, b := range f.tally.buckets {
		if b.keys == unknown {
			t.Errorf("bucket %d of %d is unknown", i, len(f.tally.buckets))
		}
	}
	if n := f.tally.buckets[0].keys; n != 1000 {
		t.Errorf("%d keys in the first bucket", n)
	}
}

// TestMemoryIsBounded counts keys so long that buckets of the first size would take too
// much, in small ranges far from each other and then all but one of them.
func TestMemoryIsBounded(t *testing.T) {
	const keys = 3000
	f := newFixture(t, strings.Repeat("k", 1000), keys, 1)
	for i := 0; i < keys; i += 4 {
		f.count(f.key(i), f.key(i+2), 2)
	}
	most := f.tally.grain
	for i := range keys / 100 {
		f.count(f.key(i*100), f.key(i*100+100), 100)
	}
	f.count(f.key(1), nil, keys-1)
	f.count(nil, nil, keys)
	if most == 1 || len(f.tally.buckets) < 100 {
		t.Errorf("%d buckets of %d keys after small ranges, of %d in the end", len(f.tally.buckets), most, f.tally.grain)
	}
}
