package datadir

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// crashAfter is a step of saving a snapshot, after which power may fail.
type crashAfter struct {
	name string
	do   func(t *testing.T, d *Log, s *raftpb.Snapshot)
	want uint64 // index of the snapshot that the next start begins with; 0 means the saved one
}

// crashSteps lists the steps from a body to a snapshot that is in effect.
var crashSteps = []crashAfter{
	{"half a body", func(t *testing.T, d *Log, s *raftpb.Snapshot) {
		writeFile(t, d.BodyPath(s.GetMetadata().GetIndex())+".tmp", "bo")
	}, 10},
	{"body", func(t *testing.T, d *Log, s *raftpb.Snapshot) {
		writeFile(t, d.BodyPath(s.GetMetadata().GetIndex()), "body")
	}, 10},
	{".snap file", func(t *testing.T, d *Log, s *raftpb.Snapshot) {
		if err := d.snaps.SaveSnap(s); err != nil {
			t.Fatal(err)
		}
	}, 10},
	{"WAL record", func(t *testing.T, d *Log, s *raftpb.Snapshot) {
		m := s.GetMetadata()
		if err := d.wal.SaveSnapshot(&walpb.Snapshot{Index: new(m.GetIndex()), Term: new(m.GetTerm()), ConfState: m.GetConfState()}); err != nil {
			t.Fatal(err)
		}
	}, 10},
	{"hard state", func(t *testing.T, d *Log, s *raftpb.Snapshot) {
		if err := errors.Join(d.wal.Save(committing(d.hardState, s.GetMetadata()), nil), d.wal.Sync()); err != nil {
			t.Fatal(err)
		}
	}, 0},
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotCrashAtEachStep: until its hard state is written, a snapshot is not
// in effect (D2). The next start begins with the one before, loses no entry, and
// accepts the same snapshot again.
func TestSnapshotCrashAtEachStep(t *testing.T) {
	for name, s := range map[string]*raftpb.Snapshot{"checkpoint": snapshotAt(20, 1), "received": snapshotAt(500, 3)} {
		d := mustCreateLog(t, t.TempDir())
		mustSave(t, d, hardStateAt(1, 1, 15), entriesAt(1, 30, 1, 20)...)
		mustSaveSnapshot(t, d, 10, 1)
		if err := d.writeWatermark(); err != nil {
			t.Fatal(err)
		}
		for _, step := range crashSteps {
			step.do(t, d, s)
			t.Run(name+"/"+step.name, func(t *testing.T) { crashedSnapshot(t, killed(t, d.dir), s, step.want) })
		}
	}
}

func crashedSnapshot(t *testing.T, dir string, s *raftpb.Snapshot, want uint64) {
	index := s.GetMetadata().GetIndex()
	last := uint64(30)
	if want == 0 {
		want, last = index, max(index, last)
	}
	d, state := mustOpenLog(t, dir)
	if at := state.Snapshot.GetMetadata().GetIndex(); at != want || lastOf(state) != last {
		t.Fatalf("begins with the snapshot at %d, want %d; last entry %d, want %d", at, want, lastOf(state), last)
	}
	if _, err := os.Stat(d.BodyPath(index)); (err == nil) != (want == index) {
		t.Errorf("the body of the snapshot at %d while the one at %d is in effect: %v", index, want, err)
	}
	if err := errors.Join(d.SaveSnapshot(s), d.Close()); err != nil {
		t.Fatal(err)
	}
	if _, state = mustOpenLog(t, dir); state.Snapshot.GetMetadata().GetIndex() != index || lastOf(state) != max(index, last) {
		t.Errorf("the second time: snapshot at %d, last entry %d", state.Snapshot.GetMetadata().GetIndex(), lastOf(state))
	}
}

// TestSnapshotFileCutAtEveryLength: etcd writes a .snap file in place, so a crash
// may leave half of one.
func TestSnapshotFileCutAtEveryLength(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 20), entriesAt(1, 30, 1, 20)...)
	mustSaveSnapshot(t, d, 10, 1)
	if err := d.snaps.SaveSnap(snapshotAt(20, 1)); err != nil {
		t.Fatal(err)
	}
	files := readTree(t, d.dir)
	name := filepath.Join("snap", hex16(1)+"-"+hex16(20)+".snap")
	for whole := files[name]; len(files[name]) > 0; {
		files[name] = whole[:len(files[name])-1]
		_, state := mustOpenLog(t, writeTree(t, t.TempDir(), maps.Clone(files)))
		if at := state.Snapshot.GetMetadata().GetIndex(); at != 10 || lastOf(state) != 30 {
			t.Fatalf("with %d bytes of the file: snapshot at %d, last entry %d", len(files[name]), at, lastOf(state))
		}
	}
}

// TestSnapshotFilesAllGone: without any .snap file, only the beginning of the log
// can take their place. Once that has been purged, a start is refused.
func TestSnapshotFilesAllGone(t *testing.T) {
	segmentsOf(t, 4<<10)
	d := mustCreateLog(t, t.TempDir())
	for i := uint64(1); i <= 60; i++ {
		mustSave(t, d, hardStateAt(1, 1, i), entryAt(i, 1, 200))
	}
	mustSaveSnapshot(t, d, 40, 1)
	mustSaveSnapshot(t, d, 50, 1)
	gone := killed(t, d.dir)
	removeAll(t, snapDir(gone))
	if _, state := mustOpenLog(t, gone); state.Snapshot != nil || len(state.Entries) != 60 {
		t.Errorf("from the beginning: snapshot %v, %d entries", state.Snapshot, len(state.Entries))
	}
	if err := d.Purge(2); err != nil {
		t.Fatal(err)
	}
	gone = killed(t, d.dir)
	removeAll(t, snapDir(gone))
	mustRefuse(t, gone, "none of its snapshots is readable")
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	if err := removeFiles(dir, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
}

type failingBody struct{ after string }

var errBody = errors.New("the view is broken")

func (b failingBody) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, b.after)
	return int64(n), errors.Join(err, errBody)
}

// TestSnapshotBodyIsWholeOrMissing: a body appears under its name completely or not
// at all, and replaces an older one.
func TestSnapshotBodyIsWholeOrMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.snap.db")
	if _, err := WriteBody(path, failingBody{"half"}); !errors.Is(err, errBody) {
		t.Fatalf("%v", err)
	}
	if left := readTree(t, filepath.Dir(path)); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
	writeFile(t, path+".tmp", strings.Repeat("what a crash left ", 10))
	for _, content := range []string{"first body", "second"} {
		size, err := WriteBody(path, bytes.NewBufferString(content))
		if b, rerr := os.ReadFile(path); err != nil || rerr != nil || size != int64(len(content)) || string(b) != content {
			t.Errorf("%q of %d bytes, %v, %v", b, size, err, rerr)
		}
	}
	if _, err := WriteBody(path, failingBody{"third"}); !errors.Is(err, errBody) {
		t.Fatalf("%v", err)
	}
	if left := readTree(t, filepath.Dir(path)); len(left) != 1 || string(left["x.snap.db"]) != "second" {
		t.Errorf("%d files are left, the body is %q", len(left), left["x.snap.db"])
	}
}
