package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
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
