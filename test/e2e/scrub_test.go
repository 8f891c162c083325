package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScrubMendsARottenStore changes bytes on the disk of a running member that nobody
// reads. The process finds them, rebuilds its store from another member, and serves
// again, all by itself; clients of the others notice nothing.
func TestScrubMendsARottenStore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, append([]string{"--scrub-interval", "2s", "--snapshot-checkpoint-bytes", "64KiB"}, quick...)...)
	victim := c.leader()
	for i := range 40 {
		put(t, victim, fmt.Sprint("k", i), strings.Repeat(fmt.Sprint(i, " "), 2000))
	}
	const found, rebuilt = "damaged block in the store", "store rebuilt"
	output := func() string { return victim.process().output.String() }
	// A flush or a compaction that is still to come may take the table away, or read it
	// before the scrub does. Either way the table goes, and another one can rot.
	for attempt := 1; !strings.Contains(output(), found); attempt++ {
		if attempt > 5 {
			t.Fatalf("the scrub never was the first to read what had rotted:\n%s", output())
		}
		table := largestTable(t, victim.dir)
		if !rotTable(t, table) {
			continue
		}
		eventually(t, "the rotten table goes", func() error {
			if _, err := os.Stat(table); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %v: %s", table, err, victim.process().output.tail(20))
			}
			return nil
		})
		eventually(t, "the member serves after it", victim.ready)
	}
	victim.process().expectOutput(t, rebuilt)
	eventually(t, "the member serves again", victim.ready)
	for i := range 40 {
		expectValue(t, victim, fmt.Sprint("k", i), strings.Repeat(fmt.Sprint(i, " "), 2000))
	}
	put(t, victim, "after", "v")
	eventually(t, "the metric", func() error {
		if n := metric(t, victim, "kvd_store_damaged_copies"); n != fmt.Sprint(strings.Count(output(), rebuilt)) {
			return fmt.Errorf("%s damaged copies", n)
		}
		return nil
	})
	if len(victim.runs) != 1 {
		t.Errorf("it took %d processes", len(victim.runs))
	}
}

// largestTable waits for a table in the store of a member, and returns the largest one.
func largestTable(t *testing.T, dir string) (largest string) {
	t.Helper()
	eventually(t, "a table with the values", func() error {
		tables, err := filepath.Glob(filepath.Join(dir, "store", "db-*", "*.sst"))
		if err != nil {
			return err
		}
		var size int64
		for _, table := range tables {
			if info, err := os.Stat(table); err == nil && info.Size() > size {
				largest, size = table, info.Size()
			}
		}
		if size < 2000 {
			return fmt.Errorf("the largest table has %d bytes", size)
		}
		return nil
	})
	return largest
}

// rotTable changes some bytes of a file, in place, and reports whether there was one.
func rotTable(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 32), info.Size()/3); err != nil {
		t.Fatal(err)
	}
	return true
}
