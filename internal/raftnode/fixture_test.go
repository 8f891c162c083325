package raftnode

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/raftlog"
)

// segmentsOf makes the segments of the WAL as small as the test needs.
func segmentsOf(t testing.TB, bytes int64) {
	t.Helper()
	before := wal.SegmentSizeBytes
	wal.SegmentSizeBytes = bytes
	t.Cleanup(func() { wal.SegmentSizeBytes = before })
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
			t.Errorf("%s was made", name)
		}
	}
}

// killed returns what a kill of the process leaves of the directory: all that
// was written, synced or not.
func killed(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func entryAt(index, term uint64, size int) *raftpb.Entry {
	data := fmt.Appendf(nil, "entry %d of term %d ", index, term)
	for len(data) < size {
		data = append(data, byte('a'+len(data)%26))
	}
	return &raftpb.Entry{Index: new(index), Term: new(term), Type: raftpb.EntryNormal.Enum(), Data: data}
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

func mustSave(t testing.TB, d raftlog.Disk, hs *raftpb.HardState, ents ...*raftpb.Entry) {
	t.Helper()
	if err := d.Save(hs, ents); err != nil {
		t.Fatalf("Save: %v", err)
	}
}

func confChangeEntry(t *testing.T, index uint64, cc *raftpb.ConfChangeV2) *raftpb.Entry {
	t.Helper()
	data, err := proto.Marshal(cc)
	if err != nil {
		t.Fatal(err)
	}
	return &raftpb.Entry{Index: new(index), Term: new(uint64(1)), Type: raftpb.EntryConfChangeV2.Enum(), Data: data}
}

// noDisk is a raftlog.Disk that keeps nothing.
type noDisk struct{}

func (noDisk) Save(*raftpb.HardState, []*raftpb.Entry) error { return nil }

func (noDisk) SaveSnapshot(*raftpb.Snapshot) error { return nil }

func entriesOf(term uint64, from, to uint64) (ents []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		ents = append(ents, &raftpb.Entry{Index: new(i), Term: new(term)})
	}
	return ents
}
