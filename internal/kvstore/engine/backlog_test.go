package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// stuckFS holds up the creation of tables until it gets an outcome.
type stuckFS struct {
	outcome chan error
}

func (s stuckFS) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
		return <-s.outcome
	}
	return nil
}

func (s stuckFS) String() string { return "stuck" }

// messages is a Logger that passes on messages about stalled writes.
type messages chan string

func (m messages) Infof(format string, args ...any) {
	if len(args) == 1 && format == "%s" {
		if s, ok := args[0].(string); ok && strings.HasPrefix(s, "writes ") {
			m <- s
		}
	}
}

func (m messages) Errorf(string, ...any) {}

func TestCommitWaitsForStuckDisk(t *testing.T) {
	for _, test := range []struct {
		name    string
		outcome error
	}{
		{"that recovers", nil},
		{"that fails", errBadDisk},
	} {
		t.Run(test.name, func(t *testing.T) { testStuckDisk(t, test.outcome) })
	}
}

func testStuckDisk(t *testing.T, outcome error) {
	const memTableBytes, waits = 64 << 10, "writes stalled until the disk catches up"
	disk := stuckFS{make(chan error)}
	said := make(messages, 1000)
	e := mustOpen(t, testDir, PebbleOptions{
		FS:            errorfs.Wrap(vfs.NewMem(), disk),
		MemTableBytes: memTableBytes,
		Logger:        said,
	})
	committed, written := make(chan error, 1), 0
	go func() {
		b := e.NewWriteBatch()
		var err error
		for len(said) == 0 && err == nil {
			b.Set([]byte(testKey(written)), make([]byte, 1000))
			written++
			err = b.Commit()
		}
		committed <- errors.Join(err, b.Close())
	}()
	if got := <-said; got != waits {
		t.Fatalf("said %q", got)
	}
	said <- waits // for the loop above
	select {
	case err := <-committed:
		t.Fatalf("Commit returned on a stuck disk: %v", err)
	case disk.outcome <- outcome:
	}
	close(disk.outcome)
	if err := <-committed; !errors.Is(err, outcome) {
		t.Fatalf("Commit: %v; want %v", err, outcome)
	}
	if limit := (maxMemTables + 1) * memTableBytes / 1000; written > limit {
		t.Errorf("%d batches of 1 kB were taken; want at most %d", written, limit)
	}
	if err := e.Close(); !errors.Is(err, outcome) {
		t.Errorf("Close: %v; want %v", err, outcome)
	}
}
