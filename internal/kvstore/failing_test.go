package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
)

var errPlanted = errors.New("the engine fails at this call")

// failingEngine fails at one of the calls that read or commit, and not before or after.
type failingEngine struct {
	engine.Engine
	calls, failAt int
	reads         int // calls of Get and Iter
}

func (f *failingEngine) call() error {
	if f.calls++; f.calls == f.failAt {
		return errPlanted
	}
	return nil
}

func (f *failingEngine) failed() bool { return f.failAt > 0 && f.calls >= f.failAt }

func (f *failingEngine) Get(dst, key []byte) ([]byte, error) {
	return failingReader{f, f.Engine}.Get(dst, key)
}

func (f *failingEngine) Iter(lower, upper []byte) (engine.Iterator, error) {
	return failingReader{f, f.Engine}.Iter(lower, upper)
}

func (f *failingEngine) Snapshot() engine.Snapshot {
	s := f.Engine.Snapshot()
	return failingSnapshot{failingReader{f, s}, s}
}

func (f *failingEngine) NewWriteBatch() engine.WriteBatch {
	return failingBatch{f.Engine.NewWriteBatch(), f}
}

func (f *failingEngine) Replace(fill func(set func(key, value []byte) error) error) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.Engine.Replace(func(set func(key, value []byte) error) error {
		return fill(func(key, value []byte) error {
			if err := f.call(); err != nil {
				return err
			}
			return set(key, value)
		})
	})
}

type failingReader struct {
	f *failingEngine
	r engine.Reader
}

func (r failingReader) Get(dst, key []byte) ([]byte, error) {
	r.f.reads++
	if err := r.f.call(); err != nil {
		return dst, err
	}
	return r.r.Get(dst, key)
}

func (r failingReader) Iter(lower, upper []byte) (engine.Iterator, error) {
	r.f.reads++
	if err := r.f.call(); err != nil {
		return nil, err
	}
	it, err := r.r.Iter(lower, upper)
	return &failingIterator{Iterator: it, f: r.f}, err
}

type failingSnapshot struct {
	failingReader
	s engine.Snapshot
}

func (s failingSnapshot) Close() error { return s.s.Close() }

type failingBatch struct {
	engine.WriteBatch
	f *failingEngine
}

func (b failingBatch) Commit() error {
	if err := b.f.call(); err != nil {
		return err
	}
	return b.WriteBatch.Commit()
}

// failingIterator ends a walk with an error, like one that meets a block that it cannot
// read.
type failingIterator struct {
	engine.Iterator
	f   *failingEngine
	err error
}

func (it *failingIterator) move(step func() bool) bool {
	if it.err == nil {
		it.err = it.f.call()
	}
	return it.err == nil && step()
}

func (it *failingIterator) First() bool { return it.move(it.Iterator.First) }
func (it *failingIterator) Last() bool  { return it.move(it.Iterator.Last) }
func (it *failingIterator) Next() bool  { return it.move(it.Iterator.Next) }
func (it *failingIterator) Prev() bool  { return it.move(it.Iterator.Prev) }

func (it *failingIterator) SeekGE(key []byte) bool {
	return it.move(func() bool { return it.Iterator.SeekGE(key) })
}

func (it *failingIterator) SeekLT(key []byte) bool {
	return it.move(func() bool { return it.Iterator.SeekLT(key) })
}

func (it *failingIterator) SeekPrefixGE(key []byte) bool {
	return it.move(func() bool { return it.Iterator.SeekPrefixGE(key) })
}

func (it *failingIterator) Err() error { return errors.Join(it.err, it.Iterator.Err()) }

// useOf is one use of a store.
type useOf struct {
	name string
	do   func(s *Store) error
}

// applies applies commands, each in an entry of its own.
func applies(name string, commands ...Command) useOf {
	return useOf{name, func(s *Store) error {
		for _, c := range commands {
			e := []Entry{entryOf(s.Position().Index+1, c)}
			if err := s.Apply(e); err != nil {
				return err
			}
			if r := e[0].Results[0].(*Result); r.Outcome == Invalid {
				return fmt.Errorf("a use that means nothing: %s", r.Detail)
			}
		}
		return nil
	}}
}

// filled is what a store has before it is used.
var filled = applies("fill",
	grant(1, 60_000), grant(2, 60_000), grant(3, 60_000), putBound("bound", 1), putBound("lent", 2),
	put("a", "1"), put("b", "text"), put("c/1", "x"), put("c/2", "y"), put("c/3", "z"), put("a", "2"), remove("c/3"),
	ask("l", 1), ask("l", 2), ask("m", 2), ask("m", 3),
	Command{Op: OpLock, Key: []byte("own"), TTLMillis: 60_000}, keyed("first", incr("n", 1)),
	tick(1000), put("d", "1"), put("d", "2"),
)

// uses has something for each way in which a store reads its engine.
func uses() []useOf {
	ctx := context.Background()
	ignore := func(err, expected error) error {
		if errors.Is(err, expected) && !errors.Is(err, errPlanted) {
			return nil
		}
		return err
	}
	every := func(Item) (bool, error) { return true, nil }
	previous := put("b", "more")
	previous.ReturnPrevious = true
	keep, unless := putBound("a", 3), put("d", "2")
	keep.KeepValue, keep.Value, unless.UnlessEqual = true, nil, true
	read := txnOf(Txn{If: []Compare{compareMod("a", 4)}, Then: []Command{get("a"), {Op: OpList, Key: []byte("c/"), End: []byte("c0")}}, Else: []Command{get("b"), {Op: OpList, Key: []byte("a"), End: []byte("z")}}})
	return []useOf{
		applies("keys", previous, keep, unless, appendTo("b", "tail"), appendTo("new", "t"), incr("n", 2), remove("c/1")),
		applies("ranges", deleteRange("c/", "c0"), txnOf(Txn{Then: []Command{deleteRange("a", "c"), put("z", "1")}})),
		applies("transactions", read, txnOf(Txn{If: []Compare{{Key: []byte("a"), End: []byte("z"), Target: CompareVersion, Relation: Greater}}, Then: []Command{put("x", "1"), get("x")}, Else: []Command{remove("b")}})),
		applies("once", keyed("first", incr("n", 1)), keyed("second", incr("n", 1))),
		applies("leases", grant(9, 1000), grant(1, 1000), putTTL("short", 1000), revoke(1), expire(1<<40, 2), revoke(77)),
		applies("locks", ask("l", 1), Command{Op: OpLock, Key: []byte("l"), Lease: 3}, Command{Op: OpLock, Key: []byte("m"), Lease: 3}, ask("l", 3), unlock("l", 2), unlock("l", 1), unlock("m", 2), unlock("none", 1)),
		applies("lock delay", Command{Op: OpLeaseGrant, Lease: 20, TTLMillis: 1000, Grant: &LeaseOptions{LockDelayMillis: 1000}}, ask("del", 20), ask("del", 3), expire(1<<40, 20)),
		{"get", func(s *Store) error { _, _, err := s.Get([]byte("b"), 0); return err }},
		{"get of the past", func(s *Store) error { _, _, err := s.Get([]byte("d"), s.Revision()-1); return err }},
		{"get nothing", func(s *Store) error { _, _, err := s.Get([]byte("absent"), 0); return ignore(err, ErrKeyNotFound) }},
		{"list", func(s *Store) error { _, err := s.List(ctx, Range{}, every); return err }},
		{"list backward", func(s *Store) error { _, err := s.List(ctx, Range{Reverse: true}, every); return err }},
		{"list groups", func(s *Store) error { _, err := s.List(ctx, Range{Delimiter: []byte("/")}, every); return err }},
		{"count", func(s *Store) error {
			_, _, err := s.Count(ctx, Range{Start: []byte("c/"), End: []byte("c0")})
			return err
		}},
		{"count of many", func(s *Store) error {
			s.tally = tally.New(1)
			for _, r := range []Range{{Start: []byte("b")}, {Start: []byte("c/"), End: []byte("d")}, {Start: []byte("b"), Revision: s.Revision() - 1}} {
				if _, _, err := s.Count(ctx, r); err != nil {
					return err
				}
			}
			return nil
		}},
		{"read transaction", func(s *Store) error { _, err := s.ReadTxn(ctx, read.Txn, anyRoom); return err }},
		{"select", func(s *Store) error {
			_, err := NewEvaluator(s).Select(ctx, []byte("a"), []byte("z"), Read{}, func(int64) bool { return true })
			return err
		}},
		{"hash of the past", func(s *Store) error { _, err := NewEvaluator(s).PairsHash(ctx, s.Revision()-1); return err }},
		{"changes", func(s *Store) error {
			_, err := s.Changes(ctx, s.CompactRevision(), func(Change) (bool, error) { return true, nil })
			return err
		}},
		{"lease", func(s *Store) error { _, err := s.Lease(1); return err }},
		{"leases", func(s *Store) error { _, err := s.Leases(0, 100); return err }},
		{"keys of a lease", func(s *Store) error { _, _, err := s.LeaseKeys(1, nil, 100); return err }},
		{"lock", func(s *Store) error { _, _, err := s.Lock([]byte("l"), 100); return err }},
		{"locks", func(s *Store) error { _, _, err := s.Locks(nil, 100); return err }},
		{"records", func(s *Store) error { return withView(s, func(v *View) error { _, err := v.Records(); return err }) }},
		{"scan", func(s *Store) error { return withView(s, func(v *View) error { _, err := v.ScanHash(); return err }) }},
		{"body", func(s *Store) error {
			return withView(s, func(v *View) error { _, err := v.WriteTo(io.Discard); return err })
		}},
		{"backup", func(s *Store) error {
			return withView(s, func(v *View) error { _, err := v.WriteBackup(io.Discard); return err })
		}},
		{"restore", func(s *Store) error {
			var b bytes.Buffer
			if err := withView(s, func(v *View) error { _, err := v.WriteTo(&b); return err }); err != nil {
				return err
			}
			return s.Restore(&b)
		}},
		{"compaction", func(s *Store) error {
			e := []Entry{entryOf(s.Position().Index+1, Command{Op: OpCompact, Revision: s.Revision()})}
			if err := s.Apply(e); err != nil {
				return err
			}
			for {
				if more, err := s.Maintain(); err != nil || !more {
					return err
				}
			}
		}},
	}
}

// withView looks at the state of a store.
func withView(s *Store, look func(*View) error) error {
	v, err := s.View()
	if err != nil {
		return err
	}
	return errors.Join(look(v), v.Close())
}

// TestEveryFailedCallIsTold lets the engine fail at one call after the other. Whatever the
// store was doing must say so: an error that is swallowed is an answer that lacks a part,
// or a replica that goes its own way.
func TestEveryFailedCallIsTold(t *testing.T) {
	all := 0
	for _, use := range uses() {
		calls := 0
		for n := 1; ; n++ {
			f := &failingEngine{Engine: engine.NewMemory()}
			s := openStore(t, f, Options{})
			must(t, filled.do(s))
			f.calls, f.failAt = 0, n
			err := use.do(s)
			if !f.failed() {
				if err != nil {
					t.Errorf("%s: %v", use.name, err)
				}
				break
			}
			calls++
			if !errors.Is(err, errPlanted) {
				t.Errorf("%s: the engine failed at call %d, and the answer is %v", use.name, n, err)
			}
		}
		if calls == 0 {
			t.Errorf("%s does not read the engine", use.name)
		}
		all += calls
	}
	t.Logf("%d calls that failed", all)
}

// TestEveryFailedCallOfAnOpenIsTold does the same while a store is opened.
func TestEveryFailedCallOfAnOpenIsTold(t *testing.T) {
	eng := engine.NewMemory()
	must(t, filled.do(openStore(t, eng, Options{})))
	n := 1
	for ; ; n++ {
		f := &failingEngine{Engine: eng, failAt: n}
		_, err := Open(f, Options{})
		if !f.failed() {
			must(t, err)
			break
		}
		if !errors.Is(err, errPlanted) {
			t.Errorf("the engine failed at call %d, and the answer is %v", n, err)
		}
	}
	if n < 10 {
		t.Errorf("an open makes only %d calls", n)
	}
}

// TestCountAfterAFailure: a count that failed on its way along the change log leaves
// nothing wrong behind for the next one.
func TestCountAfterAFailure(t *testing.T) {
	part := Range{Start: []byte("b")}
	for n := 1; ; n++ {
		f := &failingEngine{Engine: engine.NewMemory()}
		s := openStore(t, f, Options{})
		s.tally = tally.New(1)
		do(t, s, put("a", ""), put("b", ""), put("c", ""), put("d", ""), put("e", ""))
		_, _, err := s.Count(context.Background(), part)
		must(t, err)
		do(t, s, put("b1", ""), put("c1", ""), remove("d"), put("f", ""))
		f.calls, f.failAt = 0, n
		keys, _, err := s.Count(context.Background(), part)
		failed := f.failed()
		if failed && !errors.Is(err, errPlanted) {
			t.Errorf("the engine failed at call %d, and the answer is %v", n, err)
		}
		if failed {
			keys, _, err = s.Count(context.Background(), part)
		}
		if err != nil || keys != 6 {
			t.Errorf("counted %d, %v after a failure at call %d; want 6", keys, err, n)
		}
		if !failed {
			return
		}
	}
}

// TestResultsAreKeptOnlyUntilTheyAreStored: the result of a request with an idempotency
// key leaves the memory once the engine has it.
func TestResultsAreKeptOnlyUntilTheyAreStored(t *testing.T) {
	f := &failingEngine{Engine: engine.NewMemory()}
	s := openStore(t, f, Options{})
	first := keyed("first", incr("n", 1))
	do(t, s, first)
	f.reads = 0
	if r := do(t, s, first); !r[0].Replayed || f.reads == 0 {
		t.Errorf("%+v, after %d reads of the engine", r[0], f.reads)
	}
}
