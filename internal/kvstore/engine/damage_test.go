package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestDamageIsTold: missing files are damage, whatever Pebble calls it; what the
// machine did not allow is not.
func TestDamageIsTold(t *testing.T) {
	for _, name := range []string{"db-000001/MANIFEST-*", "db-000001/*.sst", "CURRENT"} {
		dir := filledPebble(t)
		removeAll(t, filepath.Join(dir, name))
		for _, readOnly := range []bool{true, false} {
			if _, err := OpenPebble(dir, PebbleOptions{ReadOnly: readOnly}); !IsDamage(err) {
				t.Errorf("without %s (read only: %v): %v", name, readOnly, err)
			}
		}
	}
	for _, e := range circumstances {
		if err := damage(fmt.Errorf("open: %w", &os.PathError{Op: "open", Path: "x", Err: e})); IsDamage(err) {
			t.Errorf("%v is called damage", e)
		}
	}
	if err := damage(&os.PathError{Op: "read", Path: "x", Err: syscall.EIO}); !IsDamage(err) {
		t.Errorf("an unreadable sector is not called damage: %v", err)
	}
}

// TestRottenBlockIsDamage: a block that rotted on disk is found only when it is read.
func TestRottenBlockIsDamage(t *testing.T) {
	dir := filledPebble(t)
	tables, err := filepath.Glob(filepath.Join(dir, "db-000001", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	for _, table := range tables {
		b, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for i := 100; i < len(b)/2; i += 100 {
			b[i] ^= 0x55
		}
		if err := os.WriteFile(table, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fatal := make(chan error, 1)
	e, err := OpenPebble(dir, PebbleOptions{OnFatal: func(err error) { fatal <- err }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Get(nil, []byte("key 00000"))
	if err == nil || errors.Is(err, ErrNotFound) || !IsDamage(err) {
		t.Errorf("read: %v", err)
	}
	if err := <-fatal; !IsDamage(err) {
		t.Errorf("the owner is told %v", err)
	}
	_ = e.Close()
}

// failingSyncs fails all syncs of files and directories.
type failingSyncs struct{}

func (failingSyncs) String() string { return "fail syncs" }

func (failingSyncs) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData {
		return syscall.EIO
	}
	return nil
}

// TestFailedSyncIsNoDamage: an engine that cannot be opened because the disk does not
// take something has whole files. Its owner must not give them up.
func TestFailedSyncIsNoDamage(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Close())
	if _, err := OpenPebble(testDir, PebbleOptions{FS: errorfs.Wrap(fs, failingSyncs{})}); !errors.Is(err, syscall.EIO) || IsDamage(err) {
		t.Errorf("%v", err)
	}
	for _, err := range []error{unwritten(syscall.EIO), fmt.Errorf("open db: %w", unwritten(syscall.EIO))} {
		if IsDamage(damage(err)) {
			t.Errorf("%v is called damage", err)
		}
	}
	e = mustOpen(t, testDir, PebbleOptions{FS: fs})
	wantValue(t, e, "a", "1")
	must(t, e.Close())
}

// TestFailedCreateIsNoDamage: neither is a file that cannot be created, named, or removed,
// whichever of those that an open touches.
func TestFailedCreateIsNoDamage(t *testing.T) {
	changes := []errorfs.OpKind{
		errorfs.OpCreate, errorfs.OpReuseForWrite, errorfs.OpLink, errorfs.OpRename, errorfs.OpRemove, errorfs.OpRemoveAll, errorfs.OpMkdirAll, errorfs.OpOpenDir,
	}
	whole := vfs.NewCrashableMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: whole})
	set(t, e, "a", "1")
	must(t, e.Close())
	failed := 0
	for n := int64(1); ; n++ {
		var done atomic.Int64
		nth := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if slices.Contains(changes, op.Kind) && done.Add(1) == n {
				return &os.PathError{Op: "change", Path: op.Path, Err: syscall.EIO}
			}
			return nil
		})
		fs := whole.CrashClone(vfs.CrashCloneCfg{})
		e, err := OpenPebble(testDir, PebbleOptions{FS: errorfs.Wrap(fs, nth)})
		if err == nil {
			_ = e.Close() // which may meet the n-th change
		}
		if done.Load() < n {
			break
		}
		if err != nil {
			failed++
		}
		if IsDamage(err) {
			t.Errorf("change %d: %v is called damage", n, err)
		}
	}
	if failed < 5 {
		t.Errorf("only %d changes made an open fail", failed)
	}
}

// TestFailedOpenLeavesNothingRunning: nothing may compact a database that could not be
// opened, and whose files are released.
func TestFailedOpenLeavesNothingRunning(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Close())
	// The options are written near the end, when the database has its scheduler.
	noOptions := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".dbtmp") {
			return syscall.EIO
		}
		return nil
	})
	if _, err := OpenPebble(testDir, PebbleOptions{FS: errorfs.Wrap(fs, noOptions)}); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if bytes.Contains(stacks, []byte("periodicGranter")) {
		t.Error("the scheduler of Pebble still runs")
	}
}

// TestReadOnlyChangesNothing opens an engine as the doctor does.
func TestReadOnlyChangesNothing(t *testing.T) {
	dir := filledPebble(t)
	before := treeOf(t, dir)
	e, err := OpenPebble(dir, PebbleOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Get(nil, []byte("key 00007")); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if after := treeOf(t, dir); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// filledPebble returns the directory of a closed engine with a table.
func filledPebble(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	e, err := OpenPebble(dir, PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewWriteBatch()
	for i := range 500 {
		b.Set(fmt.Appendf(nil, "key %05d", i), bytes.Repeat([]byte{byte(i)}, 300))
	}
	if err := errors.Join(b.Commit(), b.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func removeAll(t *testing.T, pattern string) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
}

// treeOf lists the files with size and time of the last change.
func treeOf(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() && info.Name() != "LOCK" { // Pebble opens that one anew
			out = append(out, fmt.Sprint(path, info.Size(), info.ModTime().UnixNano()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
