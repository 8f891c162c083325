package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// verifyAll reads all files without a pause, and returns the first damage.
func verifyAll(t *testing.T, e Engine) (bytes int, err error) {
	t.Helper()
	v := e.(Verifier)
	_, files, err := v.Files()
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		if err := v.Verify(f, func(n int) error { bytes += n; return nil }); err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// TestVerifyFindsEveryFlip: whatever byte of a table or manifest changes while the
// engine is open, Verify finds it. Nobody has read it before.
func TestVerifyFindsEveryFlip(t *testing.T) {
	dir := filledPebble(t)
	e := mustOpen(t, dir, PebbleOptions{})
	defer func() { _ = e.Close() }()
	read, err := verifyAll(t, e)
	if err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	_, files, err := e.(Verifier).Files()
	must(t, err)
	size, cases := 0, 0
	for _, file := range files {
		path := filepath.Join(dir, file.Name)
		whole, err := os.ReadFile(path)
		must(t, err)
		size += len(whole)
		step := max(1, len(whole)/300)
		for at := 0; at < len(whole); at += step {
			b := bytes.Clone(whole)
			b[at] ^= 0x10
			must(t, os.WriteFile(path, b, 0o600))
			_, err := verifyAll(t, e)
			if !IsDamage(err) || !strings.Contains(err.Error(), file.Name) {
				t.Errorf("%s, byte %d of %d: %v", file.Name, at, len(whole), err)
			}
			cases++
		}
		must(t, os.WriteFile(path, whole, 0o600))
	}
	if read < size*9/10 || cases < 100 {
		t.Errorf("%d of %d bytes were read, %d cases", read, size, cases)
	}
	if _, err := verifyAll(t, e); err != nil {
		t.Errorf("undamaged again: %v", err)
	}
}

// TestVerifyFindsALostFile: a table that is gone from the disk is damage, and one that
// a compaction has removed is not.
func TestVerifyFindsALostFile(t *testing.T) {
	dir := filledPebble(t)
	e := mustOpen(t, dir, PebbleOptions{})
	defer func() { _ = e.Close() }()
	_, files, err := e.(Verifier).Files()
	must(t, err)
	table := files[0]
	for _, f := range files {
		if strings.HasSuffix(f.Name, ".sst") {
			table = f
		}
	}
	nothing := func(int) error { return nil }
	if err := e.(Verifier).Verify(File{Name: "db-000001/999999.sst", Number: 999999}, nothing); err != nil {
		t.Errorf("a table that does not count: %v", err)
	}
	must(t, os.Rename(filepath.Join(dir, table.Name), filepath.Join(dir, "elsewhere")))
	if err := e.(Verifier).Verify(table, nothing); !IsDamage(err) {
		t.Errorf("a lost table: %v", err)
	}
	must(t, os.Rename(filepath.Join(dir, "elsewhere"), filepath.Join(dir, table.Name)))
	stop := errors.New("enough")
	if err := e.(Verifier).Verify(table, func(int) error { return stop }); !errors.Is(err, stop) || IsDamage(err) {
		t.Errorf("stopped: %v", err)
	}
}

// TestVerifyCoversValueBlocks: values that Pebble keeps apart from their keys are read,
// too.
func TestVerifyCoversValueBlocks(t *testing.T) {
	dir := t.TempDir()
	e := mustOpen(t, dir, PebbleOptions{})
	for round := range 4 {
		commit(t, e, func(b WriteBatch) {
			for i := range 300 {
				b.Set([]byte(testKey(i)), bytes.Repeat([]byte{byte(i + round)}, 700))
			}
		})
		must(t, e.(*pebbleEngine).current.Load().flush(e.(*pebbleEngine).failure))
	}
	must(t, e.(*pebbleEngine).current.Load().db.Compact(t.Context(), []byte("a"), []byte("z"), false))
	read, err := verifyAll(t, e)
	must(t, err)
	levels, err := e.(*pebbleEngine).current.Load().db.SSTables(pebble.WithProperties())
	must(t, err)
	var size uint64
	for _, l := range levels {
		for _, table := range l {
			size += table.Size
		}
	}
	if uint64(read) < size*95/100 {
		t.Errorf("%d of %d bytes were read", read, size)
	}
	if s := fmt.Sprint(e.Close()); s != "<nil>" {
		t.Error(s)
	}
}
