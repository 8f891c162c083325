package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

const testDir = "/data/engine"

// generationOf gives tests the current generation.
func generationOf(e Engine) *generation {
	return e.(*pebbleEngine).current.Load()
}

// waitDurable flushes and waits for the disk.
func waitDurable(t testing.TB, e Engine) {
	t.Helper()
	must(t, generationOf(e).flush(e.(*pebbleEngine).failure))
}

func wantDurable(t *testing.T, e Engine, want map[string]string) {
	t.Helper()
	s := e.Durable()
	wantContent(t, s, want)
	for _, key := range []string{"a", "b", "c"} {
		if value, found := want[key]; found {
			wantValue(t, s, key, value)
		} else {
			wantAbsent(t, s, key)
		}
	}
	must(t, s.Close())
}

func TestPebbleOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "engine")
	e := mustOpen(t, dir, PebbleOptions{})
	set(t, e, "a", "1")
	must(t, e.Close())

	e = mustOpen(t, dir, PebbleOptions{})
	wantContent(t, e, map[string]string{"a": "1"})
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		return set([]byte("b"), []byte("2"))
	}))
	names, err := filepath.Glob(filepath.Join(dir, "db-*"))
	must(t, err)
	if len(names) != 1 {
		t.Fatalf("the old database is still there: %v", names)
	}
	if _, err := OpenPebble(dir, PebbleOptions{}); err == nil {
		t.Fatal("a second engine opened the same directory")
	}
	must(t, e.Close())

	e = mustOpen(t, dir, PebbleOptions{})
	wantContent(t, e, map[string]string{"b": "2"})
	must(t, e.Close())
}

func TestDurableShowsOnlyFlushed(t *testing.T) {
	e := mustOpen(t, testDir, PebbleOptions{FS: vfs.NewMem()})
	set(t, e, "a", "1")
	wantDurable(t, e, nil)
	waitDurable(t, e)
	wantDurable(t, e, map[string]string{"a": "1"})
	commit(t, e, func(b WriteBatch) {
		b.Set([]byte("a"), []byte("2"))
		b.Set([]byte("b"), []byte("2"))
	})
	wantDurable(t, e, map[string]string{"a": "1"})
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		return set([]byte("c"), []byte("3"))
	}))
	wantDurable(t, e, map[string]string{"c": "3"})
	must(t, e.Close())
}

func TestDurableIsOneState(t *testing.T) {
	e := mustOpen(t, testDir, PebbleOptions{FS: vfs.NewMem()})
	commit(t, e, func(b WriteBatch) {
		b.Set([]byte("a"), []byte("1"))
		b.Set([]byte("b"), []byte("1"))
		b.Set([]byte("x@1"), []byte("1"))
	})
	waitDurable(t, e)
	s := e.Durable()
	commit(t, e, func(b WriteBatch) {
		b.Set([]byte("a"), []byte("2"))
		b.Delete([]byte("b"))
		b.Set([]byte("c"), []byte("2"))
	})
	waitDurable(t, e)
	must(t, generationOf(e).db.Compact(t.Context(), []byte("a"), []byte("z"), false))

	wantContent(t, s, map[string]string{"a": "1", "b": "1", "x@1": "1"})
	wantValue(t, s, "a", "1")
	wantAbsent(t, s, "c")
	wantAbsent(t, s, "x")
	wantValue(t, s, "b", "1")
	it, err := s.Iter([]byte("b"), []byte("c"))
	must(t, err)
	must(t, s.Close())
	if !it.First() || string(it.Key()) != "b" || it.Next() {
		t.Fatal("a bounded iterator must outlive its snapshot")
	}
	must(t, it.Close())
	wantDurable(t, e, map[string]string{"a": "2", "c": "2", "x@1": "1"})
	must(t, e.Close())
}

// TestFilters counts on prefixComparer: a lookup of versions within one prefix
// must not read tables that lack the prefix.
func TestFilters(t *testing.T) {
	e := mustOpen(t, testDir, PebbleOptions{FS: vfs.NewMem(), Comparer: prefixComparer()})
	for i := range 1000 {
		set(t, e, testKey(2*i)+"@1", "1")
	}
	waitDurable(t, e)
	db := generationOf(e).db
	before := db.Metrics().Filter
	const lookups = 200
	for i := range lookups {
		prefix := testKey(2*i + 1)
		it, err := e.Iter([]byte(prefix+"@0"), []byte(prefix+"@9"))
		must(t, err)
		if it.First() || it.SeekGE([]byte(prefix+"@3")) {
			t.Fatalf("found %q", it.Key())
		}
		must(t, it.Close())
	}
	if hits := db.Metrics().Filter.Hits - before.Hits; hits < lookups {
		t.Fatalf("the filters saved %d reads of %d", hits, 2*lookups)
	}
	must(t, e.Close())
}

func TestCloseNamesOpenReaders(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	s := e.Snapshot()
	if err := e.Close(); err == nil || !strings.Contains(err.Error(), "still open") {
		t.Fatalf("Close with an open snapshot: %v", err)
	}
	wantValue(t, s, "a", "1")
	must(t, s.Close())
	e = mustOpen(t, testDir, PebbleOptions{FS: fs})
	wantContent(t, e, map[string]string{"a": "1"})
	must(t, e.Close())
}

func TestOldGenerationGoesWithItsLastReader(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	first, second := e.Snapshot(), e.Durable()
	must(t, e.Replace(func(func(key, value []byte) error) error { return nil }))
	must(t, first.Close())
	if _, err := fs.Stat(testDir + "/db-000001"); err != nil {
		t.Fatalf("a database in use was removed: %v", err)
	}
	must(t, second.Close())
	if _, err := fs.Stat(testDir + "/db-000001"); err == nil {
		t.Fatal("the old database is still there")
	}
	must(t, e.Close())
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, fs vfs.FS)
		opts  PebbleOptions
		want  string
	}{
		{"CURRENT lost", func(t *testing.T, fs vfs.FS) {
			must(t, fs.Remove(testDir+"/CURRENT"))
		}, PebbleOptions{}, "may be incomplete or obsolete"},
		{"CURRENT damaged", func(t *testing.T, fs vfs.FS) {
			writeTestFile(t, fs, testDir+"/CURRENT", "db-00")
		}, PebbleOptions{}, "damaged"},
		{"CURRENT torn", func(t *testing.T, fs vfs.FS) {
			writeTestFile(t, fs, testDir+"/CURRENT", "db-000002")
		}, PebbleOptions{}, "damaged"},
		{"database lost", func(t *testing.T, fs vfs.FS) {
			must(t, fs.RemoveAll(testDir+"/db-000002"))
		}, PebbleOptions{}, "db-000002"},
		{"other comparer", func(*testing.T, vfs.FS) {}, PebbleOptions{Comparer: prefixComparer()}, "comparer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fs := vfs.NewMem()
			e := mustOpen(t, testDir, PebbleOptions{FS: fs})
			must(t, e.Replace(func(set func(key, value []byte) error) error {
				return set([]byte("a"), nil)
			}))
			must(t, e.Close())
			test.spoil(t, fs)
			test.opts.FS = fs
			_, err := OpenPebble(testDir, test.opts)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("opened with error %v; want one about %q", err, test.want)
			}
		})
	}
}

func writeTestFile(t *testing.T, fs vfs.FS, path, content string) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write([]byte(content))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// faultyFS fails the operations that match, once it is told to.
type faultyFS struct {
	on    atomic.Bool
	match func(op errorfs.Op) bool
}

var errBadDisk = errors.New("bad disk")

func (f *faultyFS) MaybeError(op errorfs.Op) error {
	if f.on.Load() && f.match(op) {
		return errBadDisk
	}
	return nil
}

func (f *faultyFS) String() string { return "faulty" }

func isSync(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
}

// TestOpenEndsWhicheverSyncFails: Pebble flushes while it opens, and repeats that until it
// succeeds. A disk that has failed must end the opening. (If the sync of a directory fails
// after the switch to a new manifest, Pebble ends the process itself.)
func TestOpenEndsWhicheverSyncFails(t *testing.T) {
	mem := vfs.NewCrashableMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: mem})
	set(t, e, "a", "1")
	waitDurable(t, e)
	set(t, e, "b", "2")
	for n := int64(1); ; n++ {
		var syncs atomic.Int64
		faults := &faultyFS{match: func(op errorfs.Op) bool {
			return isSync(op) && (strings.Contains(op.Path, "MANIFEST") || strings.HasSuffix(op.Path, ".sst")) && syncs.Add(1) == n
		}}
		faults.on.Store(true)
		crashed := mem.CrashClone(vfs.CrashCloneCfg{})
		opened, err := OpenPebble(testDir, PebbleOptions{FS: errorfs.Wrap(crashed, faults)})
		if syncs.Load() < n {
			must(t, err)
			faults.on.Store(false) // Close syncs, too
			must(t, opened.Close())
			break
		}
		t.Logf("sync %d: %v", n, err)
		if err == nil {
			if err = opened.Close(); err == nil {
				t.Errorf("sync %d failed, and nobody was told", n)
			}
		}
		if IsDamage(err) {
			t.Errorf("sync %d: %v is called damage", n, err)
		}
	}
	must(t, e.Close())
}

func TestFailedFlushIsFatal(t *testing.T) {
	for _, test := range []struct {
		name  string
		match func(op errorfs.Op) bool
	}{
		{"table not created", func(op errorfs.Op) bool {
			return op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst")
		}},
		{"table not synced", func(op errorfs.Op) bool {
			return isSync(op) && strings.HasSuffix(op.Path, ".sst")
		}},
		{"manifest not synced", func(op errorfs.Op) bool {
			return isSync(op) && strings.Contains(op.Path, "MANIFEST")
		}},
	} {
		t.Run(test.name, func(t *testing.T) { testFailedFlush(t, test.match) })
	}
}

func testFailedFlush(t *testing.T, match func(op errorfs.Op) bool) {
	mem := vfs.NewCrashableMem()
	faults := &faultyFS{match: match}
	fatal := make(chan error, 2)
	e := mustOpen(t, testDir, PebbleOptions{
		FS:      errorfs.Wrap(mem, faults),
		OnFatal: func(err error) { fatal <- err },
	})
	set(t, e, "a", "1")
	waitDurable(t, e)
	set(t, e, "a", "2")
	faults.on.Store(true)
	must(t, e.Flush())
	// Pebble turns the manifest's error into text.
	if err := <-fatal; !strings.Contains(err.Error(), errBadDisk.Error()) {
		t.Errorf("OnFatal got %v", err)
	}
	faults.on.Store(false)

	wantValue(t, e, "a", "2")
	if _, err := e.Durable().Get(nil, []byte("a")); err == nil {
		t.Error("Durable answered after the failure")
	}
	b := e.NewWriteBatch()
	b.Set([]byte("b"), nil)
	for name, err := range map[string]error{
		"Commit":  b.Commit(),
		"Flush":   e.Flush(),
		"Replace": e.Replace(nil),
		"Close":   errors.Join(b.Close(), e.Close()),
	} {
		if err == nil {
			t.Errorf("%s succeeded after the failure", name)
		}
	}
	if len(fatal) != 0 {
		t.Errorf("OnFatal was called again, with %v", <-fatal)
	}
	wantAfterCrash(t, mem.CrashClone(vfs.CrashCloneCfg{}), "1")
	// The process may end without the machine: then what was written before
	// the failure is there, synced or not.
	wantAfterCrash(t, mem, "1", "2")
}

// wantAfterCrash opens what a crash left and checks the value of "a".
func wantAfterCrash(t *testing.T, fs vfs.FS, allowed ...string) {
	t.Helper()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	got, err := e.Get(nil, []byte("a"))
	must(t, err)
	must(t, generationOf(e).db.Compact(t.Context(), []byte("a"), []byte("b"), false))
	must(t, e.Close())
	for _, a := range allowed {
		if string(got) == a {
			return
		}
	}
	t.Errorf("found %q; want one of %q", got, allowed)
}

// TestFailedSwitchIsFatal has CURRENT renamed but not surely so.
func TestFailedSwitchIsFatal(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var renamed atomic.Bool
	faults := &faultyFS{match: func(op errorfs.Op) bool {
		if op.Kind == errorfs.OpRename && strings.Contains(op.Path, currentName) {
			renamed.Store(true)
		}
		return renamed.Load() && isSync(op) && op.Path == testDir
	}}
	fatal := make(chan error, 2)
	e := mustOpen(t, testDir, PebbleOptions{
		FS:      errorfs.Wrap(mem, faults),
		OnFatal: func(err error) { fatal <- err },
	})
	set(t, e, "a", "1")
	waitDurable(t, e)
	faults.on.Store(true)
	err := e.Replace(func(set func(key, value []byte) error) error {
		return set([]byte("a"), []byte("2"))
	})
	if !errors.Is(err, errBadDisk) || !errors.Is(<-fatal, errBadDisk) {
		t.Fatalf("Replace: %v", err)
	}
	faults.on.Store(false)
	if err := e.Close(); err == nil {
		t.Error("Close succeeded after the failure")
	}
	wantAfterCrash(t, mem.CrashClone(vfs.CrashCloneCfg{}), "1")
	wantAfterCrash(t, mem, "2")
}

func TestCorruptTableIsFatal(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	for i := range 1000 {
		set(t, e, testKey(i), fmt.Sprintf("%0100d", i))
	}
	must(t, e.Close())
	spoilTables(t, fs, testDir+"/db-000001")

	fatal := make(chan error, 1)
	e = mustOpen(t, testDir, PebbleOptions{FS: fs, OnFatal: func(err error) { fatal <- err }})
	if _, err := e.Get(nil, []byte(testKey(3))); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get from a corrupt table: %v", err)
	}
	if err := <-fatal; !strings.Contains(err.Error(), ".sst") {
		t.Errorf("OnFatal got %v", err)
	}
	if err := e.Close(); err == nil {
		t.Error("Close succeeded after the failure")
	}
}

// spoilTables flips a bit near the start of each table.
func spoilTables(t *testing.T, fs vfs.FS, dir string) {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	spoiled := 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := fs.OpenReadWrite(fs.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
		must(t, err)
		b := make([]byte, 1)
		_, err = f.ReadAt(b, 100)
		must(t, err)
		b[0] ^= 1
		_, err = f.WriteAt(b, 100)
		must(t, err)
		must(t, f.Close())
		spoiled++
	}
	if spoiled == 0 {
		t.Fatal("no table to spoil")
	}
}

// TestSeekPrefixWithoutNarrowBounds: one iterator over everything looks up
// many keys by their filters, also on the last level.
func TestSeekPrefixWithoutNarrowBounds(t *testing.T) {
	e := mustOpen(t, testDir, PebbleOptions{FS: vfs.NewMem(), Comparer: prefixComparer()})
	const keys = 1000
	for i := range keys {
		set(t, e, testKey(2*i)+"@1", "1")
	}
	waitDurable(t, e)
	db := generationOf(e).db
	must(t, db.Compact(t.Context(), []byte("a"), []byte("z"), false))
	before := db.Metrics().Filter
	it, err := e.Iter(nil, nil)
	must(t, err)
	for i := range keys {
		if !it.SeekPrefixGE([]byte(testKey(2*i)+"@0")) || string(it.Key()) != testKey(2*i)+"@1" {
			t.Fatalf("key %d: is on %q", i, it.Key())
		}
		if i > 0 && (!it.Prev() || string(it.Key()) != testKey(2*i-2)+"@1") {
			t.Fatalf("before key %d: is on %q", i, it.Key())
		}
		if it.SeekPrefixGE([]byte(testKey(2*i+1) + "@0")) {
			t.Fatalf("between keys: found %q", it.Key())
		}
	}
	must(t, it.Close())
	if hits := db.Metrics().Filter.Hits - before.Hits; hits < keys/2 {
		t.Errorf("the filters saved %d reads of %d", hits, keys)
	}
	must(t, e.Close())
}

// TestFilesHoldOneTable: the first byte of a key is its table, and no file has
// keys of two.
func TestFilesHoldOneTable(t *testing.T) {
	e := mustOpen(t, testDir, PebbleOptions{FS: vfs.NewMem()})
	for range 3 {
		for _, key := range []string{"a1", "a9", "b1", "m", "v1", "v9", "\xff", "\xff\xff"} {
			set(t, e, key, "x")
		}
		waitDurable(t, e)
	}
	levels, err := generationOf(e).db.SSTables()
	must(t, err)
	files := 0
	for _, level := range levels {
		for _, f := range level {
			files++
			if first, last := f.Smallest.UserKey, f.Largest.UserKey; first[0] != last[0] {
				t.Errorf("a file goes from %q to %q", first, last)
			}
		}
	}
	if files < 5 {
		t.Errorf("%d files", files)
	}
	must(t, e.Close())
}
