package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// segmentsOf sets the size of new WAL segments for the duration of a test.
func segmentsOf(t testing.TB, bytes int64) {
	t.Helper()
	before := wal.SegmentSizeBytes
	wal.SegmentSizeBytes = bytes
	t.Cleanup(func() { wal.SegmentSizeBytes = before })
}

var testMetadata = []byte("metadata of the test")

func mustCreateLog(t testing.TB, dir string) *Log {
	t.Helper()
	if wal.SegmentSizeBytes > 1<<20 {
		segmentsOf(t, 64<<10)
	}
	d, err := createLog(zap.NewNop(), dir, testMetadata)
	if err != nil {
		t.Fatalf("createLog: %v", err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func mustOpenLog(t testing.TB, dir string) (*Log, LogState) {
	t.Helper()
	d, state, err := openLog(zap.NewNop(), dir)
	if err != nil {
		t.Fatalf("openLog: %v", err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, state
}

// mustRefuse opens a directory that must be refused, and returns the refusal. It
// checks D5, and that the doctor agrees.
func mustRefuse(t testing.TB, dir string, reason string) *RefusedError {
	t.Helper()
	before := readTree(t, dir)
	report, err := Examine(dir)
	if err != nil {
		t.Fatalf("Examine: %v", err)
	}
	d, _, err := openLog(zap.NewNop(), dir)
	if err == nil {
		_ = d.Close()
	}
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("openLog: %v, want a refusal about %q", err, reason)
	}
	if !strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "remove and re-add this member") {
		t.Errorf("refusal %q does not name %q, the file and the remedy", err, reason)
	}
	if report.Refused == nil || report.Refused.Error() != err.Error() {
		t.Errorf("the doctor says %q, a start says %q", report.Verdict(), err)
	}
	sameTree(t, before, readTree(t, dir))
	return refused
}

func readTree(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(t testing.TB, want, got map[string][]byte) {
	t.Helper()
	for name := range want {
		if b, ok := got[name]; !ok || !bytes.Equal(b, want[name]) {
			t.Errorf("%s was changed", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s was created", name)
		}
	}
}

func writeTree(t testing.TB, dir string, files map[string][]byte) string {
	t.Helper()
	for _, d := range []string{walDir(dir), snapDir(dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// killed returns a copy of the directory as a killed process leaves it: with
// everything that was written, synced or not.
func killed(t testing.TB, dir string) string {
	t.Helper()
	return writeTree(t, t.TempDir(), readTree(t, dir))
}

func entryAt(index, term uint64, size int) *raftpb.Entry {
	data := fmt.Appendf(nil, "entry %d of term %d ", index, term)
	for len(data) < size {
		data = append(data, byte('a'+len(data)%26))
	}
	return &raftpb.Entry{Index: new(index), Term: new(term), Type: raftpb.EntryNormal.Enum(), Data: data}
}

func entriesAt(first, last, term uint64, size int) (ents []*raftpb.Entry) {
	for i := first; i <= last; i++ {
		ents = append(ents, entryAt(i, term, size))
	}
	return ents
}

func hardStateAt(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

func snapshotAt(index, term uint64) *raftpb.Snapshot {
	return &raftpb.Snapshot{
		Data:     fmt.Appendf(nil, "snapshot at %d", index),
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}},
	}
}

func mustSave(t testing.TB, d *Log, hs *raftpb.HardState, ents ...*raftpb.Entry) {
	t.Helper()
	if err := d.Save(hs, ents); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

func mustSaveSnapshot(t testing.TB, d *Log, index, term uint64) {
	t.Helper()
	if err := d.SaveSnapshot(snapshotAt(index, term)); err != nil {
		t.Fatalf("SaveSnapshot: %v", err)
	}
}

// lastSegmentPath returns the path of the newest segment, the offsets of its
// records, and the end of the last one.
func lastSegmentPath(t testing.TB, dir string) (path string, frames []int, end int) {
	t.Helper()
	names, err := listSuffix(walDir(dir), ".wal")
	if err != nil || len(names) == 0 {
		t.Fatalf("segments %v, %v", names, err)
	}
	path = filepath.Join(walDir(dir), names[len(names)-1])
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frames, end = framesOf(t, b)
	return path, frames, end
}

func framesOf(t testing.TB, b []byte) (frames []int, end int) {
	t.Helper()
	for end < len(b) && !(&segment{data: b}).zeroWordAt(end) {
		_, next, what := decodeFrame(b, end)
		if what != "" {
			t.Fatalf("at byte %d: %s", end, what)
		}
		frames = append(frames, end)
		end = next
	}
	return frames, end
}

// change rewrites a file.
func change(t testing.TB, path string, f func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func zeroAt(t testing.TB, path string, from, to int) {
	t.Helper()
	change(t, path, func(b []byte) []byte {
		clear(b[from:to])
		return b
	})
}

func lastOf(state LogState) uint64 {
	if n := len(state.Entries); n > 0 {
		return state.Entries[n-1].GetIndex()
	}
	return state.Snapshot.GetMetadata().GetIndex()
}
