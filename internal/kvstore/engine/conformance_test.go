package engine

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// testedEngine is one way to open an engine.
type testedEngine struct {
	name string
	open func(t *testing.T) Engine
	// reopen closes the engine and opens it again. It is nil if nothing would be
	// left.
	reopen func(t *testing.T, e Engine) Engine
}

func testedEngines() []testedEngine {
	return []testedEngine{
		{name: "memory", open: func(*testing.T) Engine { return NewMemory() }},
		testedPebble("pebble", nil),
		testedPebble("pebble with prefixes", prefixComparer()),
	}
}

func testedPebble(name string, c *pebble.Comparer) testedEngine {
	fs := vfs.NewMem()
	opts := PebbleOptions{FS: fs, Comparer: c, CacheBytes: 1 << 20, MemTableBytes: 64 << 10}
	dirs := 0
	open := func(t *testing.T) Engine {
		return mustOpen(t, fmt.Sprintf("/data/%d", dirs), opts)
	}
	return testedEngine{
		name: name,
		open: func(t *testing.T) Engine {
			dirs++
			return open(t)
		},
		reopen: func(t *testing.T, e Engine) Engine {
			must(t, e.Close())
			return open(t)
		},
	}
}

// prefixComparer splits keys at '@'. In byte order '@' comes before the
// letters of which the tests' keys consist, as the order of prefixes demands.
func prefixComparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "kvd.test.prefix"
	c.Split = func(key []byte) int {
		if n := bytes.IndexByte(key, '@'); n >= 0 {
			return n
		}
		return len(key)
	}
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	c.Successor = func(dst, a []byte) []byte { return append(dst, a...) }
	return &c
}

func TestEngines(t *testing.T) {
	for _, tested := range testedEngines() {
		t.Run(tested.name, func(t *testing.T) { testEngine(t, tested) })
	}
}

func testEngine(t *testing.T, tested testedEngine) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, e Engine)
	}{
		{"get, set, delete", testGetSetDelete},
		{"later write wins", testLaterWriteWins},
		{"batch is atomic and reusable", testBatch},
		{"large batch", testLargeBatch},
		{"arguments are copied", testArgumentsAreCopied},
		{"iterator", testIterator},
		{"iterator on an empty engine", testEmptyIterator},
		{"iterator is stable", testIteratorIsStable},
		{"snapshot is isolated", testSnapshot},
		{"replace", testReplace},
		{"replace that fails", testReplaceFails},
		{"batch from before replace", testBatchAcrossReplace},
		{"concurrent readers", testConcurrentReaders},
		{"size", testSize},
		{"closed", testClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := tested.open(t)
			test.run(t, e)
			must(t, e.Close())
		})
	}
	t.Run("random history", func(t *testing.T) { testRandomHistory(t, tested) })
}

func testGetSetDelete(t *testing.T, e Engine) {
	wantAbsent(t, e, "a")
	set(t, e, "a", "1")
	set(t, e, "b", "")
	wantValue(t, e, "a", "1")
	wantValue(t, e, "b", "")
	got, err := e.Get([]byte("prefix:"), []byte("a"))
	if err != nil || string(got) != "prefix:1" {
		t.Fatalf("Get appended to dst: %q, %v", got, err)
	}
	set(t, e, "a", "2")
	wantValue(t, e, "a", "2")
	commit(t, e, func(b WriteBatch) { b.Delete([]byte("a")); b.Delete([]byte("absent")) })
	wantAbsent(t, e, "a")
	got, err = e.Get([]byte("kept"), []byte("a"))
	if !errors.Is(err, ErrNotFound) || string(got) != "kept" {
		t.Fatalf("Get of an absent key: %q, %v", got, err)
	}
}

func testLaterWriteWins(t *testing.T, e Engine) {
	commit(t, e, func(b WriteBatch) {
		b.Set([]byte("a"), []byte("1"))
		b.Set([]byte("a"), []byte("2"))
		b.Set([]byte("b"), []byte("1"))
		b.Delete([]byte("b"))
		b.Delete([]byte("c"))
		b.Set([]byte("c"), []byte("3"))
	})
	wantContent(t, e, map[string]string{"a": "2", "c": "3"})
}

func testBatch(t *testing.T, e Engine) {
	b := e.NewWriteBatch()
	b.Set([]byte("a"), []byte("1"))
	b.Set([]byte("b"), bytes.Repeat([]byte("x"), 1000))
	wantAbsent(t, e, "a")
	must(t, b.Commit())
	wantValue(t, e, "a", "1")
	b.Delete([]byte("a"))
	b.Reset()
	b.Set([]byte("c"), []byte("3"))
	must(t, b.Commit())
	must(t, b.Commit()) // nothing in it
	must(t, b.Close())
	wantValue(t, e, "a", "1")
	wantValue(t, e, "c", "3")
}

// testLargeBatch exceeds a memtable of the tested Pebble, and what the memory
// engine writes in place.
func testLargeBatch(t *testing.T, e Engine) {
	set(t, e, testKey(7), "old")
	set(t, e, testKey(8), "old")
	s := e.Snapshot()
	want := map[string]string{}
	b := e.NewWriteBatch()
	for i := range 2 * maxWritesInPlace {
		want[testKey(i)] = fmt.Sprintf("%0100d", i)
		b.Set([]byte(testKey(i)), []byte(want[testKey(i)]))
	}
	b.Delete([]byte(testKey(7)))
	delete(want, testKey(7))
	must(t, b.Commit())
	wantContent(t, e, want)
	wantContent(t, s, map[string]string{testKey(7): "old", testKey(8): "old"})
	must(t, s.Close())
	b.Set([]byte("z"), []byte("1"))
	must(t, b.Commit())
	must(t, b.Close())
	want["z"] = "1"
	wantContent(t, e, want)
}

func testArgumentsAreCopied(t *testing.T, e Engine) {
	key, value := []byte("a"), []byte("1")
	b := e.NewWriteBatch()
	b.Set(key, value)
	key[0], value[0] = 'z', 'z'
	must(t, b.Commit())
	must(t, b.Close())
	wantContent(t, e, map[string]string{"a": "1"})

	lower, upper := []byte("a"), []byte("b")
	it, err := e.Iter(lower, upper)
	must(t, err)
	lower[0], upper[0] = 'x', 'x'
	if !it.First() || string(it.Key()) != "a" {
		t.Fatal("a change of the bounds' memory moved the iterator's bounds")
	}
	must(t, it.Close())
}

// testIterator checks single moves; testRandomHistory checks long walks.
func testIterator(t *testing.T, e Engine) {
	for _, k := range []string{"b", "d", "f", "h"} {
		set(t, e, k, "value of "+k)
	}
	for _, test := range []struct {
		lower, upper string // empty: open
		moves, want  string
	}{
		{"", "", "F N N N N N P P", "b d f h - - h f"},
		{"", "", "L P P P P P N N", "h f d b - - b d"},
		{"c", "g", "F N N P P P N", "d f - f d - d"},
		{"c", "g", "L P P N", "f d - d"},
		{"b", "h", "F L", "b f"},
		{"", "", ">a >b >c >h >i P", "b b d h - h"},
		{"", "", "<a N <b <c <h <i P", "- b - b f h f"},
		{"c", "g", ">a >c >e >f >g P >z P", "d d f f - f - f"},
		{"c", "g", "<z <g <f <e <d N <a N", "f f d d - d - d"},
		{"x", "z", "F L >a <z N P", "- - - - - -"},
		{"d", "d", "F L >d <d", "- - - -"},
		{"g", "c", "F L", "- -"},
		{"", "", ">d N P P <f N P", "d f d b d f d"},
	} {
		if got := walk(t, e, test.lower, test.upper, test.moves); got != test.want {
			t.Errorf("[%q, %q) %s: got %s, want %s", test.lower, test.upper, test.moves, got, test.want)
		}
	}
}

func testEmptyIterator(t *testing.T, e Engine) {
	if got := walk(t, e, "", "", "F L N P >a <a"); got != "- - - - - -" {
		t.Fatalf("got %s", got)
	}
}

func testIteratorIsStable(t *testing.T, e Engine) {
	want := map[string]string{}
	for i := range 500 {
		want[testKey(i)] = "old"
		set(t, e, testKey(i), "old")
	}
	it, err := e.Iter(nil, nil)
	must(t, err)
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if string(it.Value()) != "old" || want[string(it.Key())] == "" {
			t.Fatalf("%q is %q", it.Key(), it.Value())
		}
		commit(t, e, func(b WriteBatch) {
			b.Set([]byte(testKey(n)), []byte("new"))
			b.Delete([]byte(testKey(499 - n)))
			b.Set([]byte(testKey(n)+"new"), nil)
		})
		n++
	}
	must(t, it.Err())
	must(t, it.Close())
	if n != len(want) {
		t.Fatalf("the iterator saw %d keys of %d", n, len(want))
	}
}

func testSnapshot(t *testing.T, e Engine) {
	set(t, e, "a", "1")
	set(t, e, "b", "1")
	s := e.Snapshot()
	commit(t, e, func(b WriteBatch) {
		b.Set([]byte("a"), []byte("2"))
		b.Delete([]byte("b"))
		b.Set([]byte("c"), []byte("2"))
	})
	must(t, e.Flush())
	wantContent(t, s, map[string]string{"a": "1", "b": "1"})
	wantContent(t, e, map[string]string{"a": "2", "c": "2"})
	wantAbsent(t, s, "c")
	it, err := s.Iter(nil, nil)
	must(t, err)
	must(t, s.Close())
	if !it.First() || string(it.Value()) != "1" {
		t.Fatal("an iterator must outlive its snapshot")
	}
	must(t, it.Close())
}

func testReplace(t *testing.T, e Engine) {
	old := map[string]string{"a": "1", "b": "1"}
	set(t, e, "a", "1")
	set(t, e, "b", "1")
	s := e.Snapshot()
	it, err := e.Iter(nil, nil)
	must(t, err)

	want := map[string]string{}
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		for i := range 3000 {
			want[testKey(i)] = "new"
			if err := set([]byte(testKey(i)), []byte("new")); err != nil {
				return err
			}
		}
		wantContent(t, e, old)
		return nil
	}))
	wantContent(t, e, want)
	wantContent(t, s, old)
	if !it.Last() || string(it.Key()) != "b" {
		t.Fatal("an iterator must outlive Replace")
	}
	must(t, it.Close())
	must(t, s.Close())

	set(t, e, "a", "3")
	want["a"] = "3"
	wantContent(t, e, want)
	must(t, e.Replace(func(func(key, value []byte) error) error { return nil }))
	wantContent(t, e, nil)
}

func testReplaceFails(t *testing.T, e Engine) {
	set(t, e, "a", "1")
	broken := errors.New("broken")
	err := e.Replace(func(set func(key, value []byte) error) error {
		must(t, set([]byte("b"), nil))
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("Replace: %v", err)
	}
	wantContent(t, e, map[string]string{"a": "1"})
	set(t, e, "c", "1")
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		return set([]byte("d"), []byte("1"))
	}))
	wantContent(t, e, map[string]string{"d": "1"})
}

func testBatchAcrossReplace(t *testing.T, e Engine) {
	b := e.NewWriteBatch()
	b.Set([]byte("a"), []byte("1"))
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		return set([]byte("b"), []byte("2"))
	}))
	b.Set([]byte("c"), []byte("3"))
	must(t, b.Commit())
	wantContent(t, e, map[string]string{"a": "1", "b": "2", "c": "3"})
	b.Delete([]byte("b"))
	must(t, b.Commit())
	must(t, b.Close())
	wantContent(t, e, map[string]string{"a": "1", "c": "3"})
}

// testConcurrentReaders has every batch, and every Replace, write the same
// value to all keys: a reader that sees two values saw half of one.
func testConcurrentReaders(t *testing.T, e Engine) {
	const keys, rounds, readers = 20, 150, 3
	write := func(set func(key, value []byte) error, round int) error {
		for k := range keys {
			if err := set([]byte(testKey(k)), fmt.Appendf(nil, "%06d", round)); err != nil {
				return err
			}
		}
		return nil
	}
	writeBatch := func(round, times int) {
		commit(t, e, func(b WriteBatch) {
			for range times {
				must(t, write(func(k, v []byte) error { b.Set(k, v); return nil }, round))
			}
		})
	}
	writeBatch(0, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			last := ""
			for ok := true; ok; {
				select {
				case <-done:
					ok = false
				default:
				}
				value, err := readUniform(e, keys)
				if err != nil || value < last {
					t.Errorf("read %q after %q: %v", value, last, err)
					return
				}
				last = value
			}
		})
	}
	for round := 1; round <= rounds; round++ {
		switch {
		case round%50 == 0:
			must(t, e.Replace(func(set func(key, value []byte) error) error { return write(set, round) }))
		case round%5 == 0:
			writeBatch(round, maxWritesInPlace/keys+1)
		default:
			writeBatch(round, 1)
		}
		must(t, e.Flush())
	}
	close(done)
	wg.Wait()
	if got, err := readUniform(e, keys); got != fmt.Sprintf("%06d", rounds) || err != nil {
		t.Fatalf("at the end: %q, %v", got, err)
	}
}

// readUniform reads all keys in one view and returns the value they share, no
// older than one that Get saw before.
func readUniform(e Engine, keys int) (string, error) {
	before, err := e.Get(nil, []byte(testKey(0)))
	if err != nil {
		return "", err
	}
	s := e.Snapshot()
	content, err := contentOf(s)
	if err = firstError(err, s.Close()); err != nil {
		return "", err
	}
	if len(content) != keys {
		return "", fmt.Errorf("%d keys of %d", len(content), keys)
	}
	value := content[testKey(0)]
	for k, v := range content {
		if v != value || v < string(before) {
			return "", fmt.Errorf("%s is %s, the first key %s, before it was %s", k, v, value, before)
		}
	}
	return value, nil
}

func testSize(t *testing.T, e Engine) {
	empty := e.SizeBytes()
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		value := make([]byte, 1000)
		for i := range 200 {
			for j := range value {
				value[j] = byte((i + 1) * (j + 7) * 2654435761 >> 13)
			}
			if err := set([]byte(testKey(i)), value); err != nil {
				return err
			}
		}
		return nil
	}))
	grown := e.SizeBytes()
	if n := grown - empty; n < 50_000 || n > 1_000_000 {
		t.Fatalf("200 kB of values made the size grow by %d", n)
	}
	must(t, e.Replace(func(func(key, value []byte) error) error { return nil }))
	if n := e.SizeBytes(); n > grown/2 {
		t.Fatalf("the size is %d after all was removed, was %d", n, grown)
	}
}

func testClosed(t *testing.T, e Engine) {
	set(t, e, "a", "1")
	b := e.NewWriteBatch()
	must(t, e.Close())
	b.Set([]byte("b"), nil)
	if err := b.Commit(); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	must(t, b.Close())
	if _, err := e.Get(nil, []byte("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("Get: %v", err)
	}
	if _, err := e.Iter(nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Iter: %v", err)
	}
	s := e.Snapshot()
	if _, err := s.Get(nil, []byte("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("Get of a snapshot: %v", err)
	}
	must(t, s.Close())
	if err := e.Replace(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Replace: %v", err)
	}
}
