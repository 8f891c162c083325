package datadir

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

func TestLogFreshLog(t *testing.T) {
	dir := t.TempDir()
	if hasLog(dir) {
		t.Fatal("an empty directory has a log")
	}
	d := mustCreateLog(t, dir)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := createLog(zap.NewNop(), dir, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second log over the first: %v", err)
	}
	_, state := mustOpenLog(t, dir)
	if string(state.metadata) != string(testMetadata) || state.Snapshot != nil || lastOf(state) != 0 || state.HardState.GetTerm() != 0 {
		t.Errorf("%+v", state)
	}
}

// TestLogFreshLogWithoutWatermark: the process may die after it has created the
// log and before it has written the first watermark.
func TestLogFreshLogWithoutWatermark(t *testing.T) {
	dir := t.TempDir()
	if err := mustCreateLog(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(watermarkPath(dir)); err != nil {
		t.Fatal(err)
	}
	mustOpenLog(t, dir)
}

// TestLogAgainstModel writes everything that a member may write, in random order,
// kills the process at random moments, and compares the log with a plain model.
func TestLogAgainstModel(t *testing.T) {
	segmentsOf(t, 8<<10)
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &logModel{rng: rand.New(rand.NewPCG(seed, 1)), hs: hardStateAt(1, 0, 0), base: snapshotRecord{}}
			m.disk = mustCreateLog(t, t.TempDir())
			mustSave(t, m.disk, m.hs)
			for range 150 {
				m.step(t)
			}
			m.kill(t)
		})
	}
}

// logModel is a log in memory; entries[i] has index base.index+1+i.
type logModel struct {
	rng     *rand.Rand
	disk    *Log
	now     time.Time
	hs      *raftpb.HardState
	base    snapshotRecord // of the log
	newest  uint64         // snapshot
	entries []*raftpb.Entry
}

func (m *logModel) last() uint64 { return m.base.index + uint64(len(m.entries)) }

func (m *logModel) step(t *testing.T) {
	switch n := m.rng.IntN(100); {
	case n < 60:
		m.write(t)
	case n < 70:
		m.commit(t)
	case n < 78:
		m.checkpoint(t)
	case n < 82:
		m.install(t)
	case n < 90:
		m.now = m.now.Add(time.Second)
		if err := m.disk.UpdateWatermark(m.now); err != nil {
			t.Fatal(err)
		}
	case n < 94:
		m.kill(t)
	default:
		if err := m.disk.Purge(2); err != nil {
			t.Fatal(err)
		}
	}
}

// write appends entries, sometimes in a new term and over uncommitted ones.
func (m *logModel) write(t *testing.T) {
	term := m.hs.GetTerm()
	first := m.last() + 1
	if m.rng.IntN(8) == 0 {
		term++
		first -= m.rng.Uint64N(m.last() - m.hs.GetCommit() + 1)
	}
	ents := entriesAt(first, first+m.rng.Uint64N(5), term, m.rng.IntN(700))
	m.entries = append(m.entries[:first-m.base.index-1:first-m.base.index-1], ents...)
	m.hs = hardStateAt(term, 1, m.hs.GetCommit())
	mustSave(t, m.disk, m.hs, ents...)
}

func (m *logModel) commit(t *testing.T) {
	commit := m.hs.GetCommit() + m.rng.Uint64N(m.last()-m.hs.GetCommit()+1)
	m.hs = hardStateAt(m.hs.GetTerm(), m.hs.GetVote(), commit)
	mustSave(t, m.disk, m.hs)
}

func (m *logModel) checkpoint(t *testing.T) {
	index := m.hs.GetCommit()
	if index <= m.newest || index <= m.base.index {
		return
	}
	mustSaveSnapshot(t, m.disk, index, m.entries[index-m.base.index-1].GetTerm())
	m.newest = index
}

// install receives a snapshot from beyond the commit index: it contains entries
// that the log lacks, or has in another version.
func (m *logModel) install(t *testing.T) {
	at := snapshotRecord{index: m.hs.GetCommit() + 1 + m.rng.Uint64N(m.last()-m.hs.GetCommit()+10), term: m.hs.GetTerm() + 1}
	mustSaveSnapshot(t, m.disk, at.index, at.term)
	m.base, m.newest, m.entries = at, at.index, nil
	m.hs = hardStateAt(at.term, 0, at.index)
}

// kill opens the directory that the process left behind, and continues with it.
func (m *logModel) kill(t *testing.T) {
	t.Helper()
	dir := killed(t, m.disk.dir)
	if err := m.disk.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := Examine(dir)
	if err != nil || report.Verdict() != "ok" {
		t.Fatalf("Examine: %s, %v", report.Verdict(), err)
	}
	d, state := mustOpenLog(t, dir)
	m.disk = d
	if at := state.Snapshot.GetMetadata().GetIndex(); at != m.newest {
		t.Fatalf("the newest snapshot is at %d, want %d", at, m.newest)
	}
	// A commit index alone is not synced.
	if hs := state.HardState; hs.GetTerm() != m.hs.GetTerm() || hs.GetVote() != m.hs.GetVote() || hs.GetCommit() > m.hs.GetCommit() {
		t.Fatalf("hard state %v, want %v", hs, m.hs)
	}
	m.hs = state.HardState
	want := m.entries[m.newest-m.base.index:]
	if len(state.Entries) != len(want) {
		t.Fatalf("%d entries after %d, want %d", len(state.Entries), m.newest, len(want))
	}
	for i, e := range want {
		if !proto.Equal(state.Entries[i], e) {
			t.Fatalf("entry %v, want %v", state.Entries[i], e)
		}
	}
}

// TestLogSnapshotReplacesLongerLog: a snapshot replaces a follower's uncommitted
// entries, and the process dies. The WAL still returns those after the snapshot's
// index. If the follower kept its old term, it would vote for members that lack
// committed entries.
func TestLogSnapshotReplacesLongerLog(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(3, 1, 30), entriesAt(1, 50, 3, 20)...)
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	mustSaveSnapshot(t, d, 45, 5)
	_, state := mustOpenLog(t, killed(t, d.dir))
	if len(state.Entries) != 0 || state.Snapshot.GetMetadata().GetIndex() != 45 {
		t.Errorf("%d entries after the snapshot at %d", len(state.Entries), state.Snapshot.GetMetadata().GetIndex())
	}
	if hs := state.HardState; hs.GetTerm() != 5 || hs.GetVote() != 0 || hs.GetCommit() != 45 {
		t.Errorf("hard state %v", hs)
	}
}

// TestLogCheckpointKeepsTheLog: if the log contains the snapshot's last entry, the
// entries after it stay.
func TestLogCheckpointKeepsTheLog(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(3, 1, 10), entriesAt(1, 50, 3, 20)...)
	mustSaveSnapshot(t, d, 40, 3) // its commit index was not written yet
	_, state := mustOpenLog(t, killed(t, d.dir))
	if len(state.Entries) != 10 || state.HardState.GetCommit() != 40 || state.HardState.GetVote() != 1 {
		t.Errorf("%d entries, hard state %v", len(state.Entries), state.HardState)
	}
}

// TestLogSnapshotRecordWithoutCommitHasNoEffect: power fails between the record of
// a snapshot and the hard state that commits it (D2). Nothing was installed yet,
// so nothing has changed.
func TestLogSnapshotRecordWithoutCommitHasNoEffect(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(3, 1, 5), entriesAt(1, 10, 3, 20)...)
	if err := d.snaps.SaveSnap(snapshotAt(1000, 4)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.BodyPath(1000), []byte("body"), 0o600); err != nil {
		t.Fatal(err)
	}
	rec := &walpb.Snapshot{Index: new(uint64(1000)), Term: new(uint64(4)), ConfState: &raftpb.ConfState{}}
	if err := d.wal.SaveSnapshot(rec); err != nil {
		t.Fatal(err)
	}
	dir := killed(t, d.dir)
	d, state := mustOpenLog(t, dir)
	if state.Snapshot != nil || lastOf(state) != 10 {
		t.Fatalf("snapshot %v, last entry %d", state.Snapshot, lastOf(state))
	}
	if left := readTree(t, snapDir(dir)); len(left) != 0 {
		t.Errorf("%d files of the snapshot are left", len(left))
	}
	mustSave(t, d, hardStateAt(4, 2, 11), entryAt(11, 4, 20))
	if _, state = mustOpenLog(t, killed(t, dir)); lastOf(state) != 11 {
		t.Errorf("last entry %d", lastOf(state))
	}
}

// TestLogSnapshotRecordBeforeBody: the .snap file is written first, so a record
// whose file is missing means damage, unless an older snapshot and the log after
// it can take its place (D4).
func TestLogSnapshotRecordBeforeBody(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(1, 20, 1, 20)...)
	mustSaveSnapshot(t, d, 10, 1)
	mustSave(t, d, hardStateAt(1, 1, 20))
	mustSaveSnapshot(t, d, 20, 1)
	dir := killed(t, d.dir)
	remove(t, snapDir(dir), "0000000000000001-0000000000000014.snap")
	_, state := mustOpenLog(t, dir)
	if at := state.Snapshot.GetMetadata().GetIndex(); at != 10 || lastOf(state) != 20 {
		t.Errorf("snapshot at %d, last entry %d", at, lastOf(state))
	}

	mustSaveSnapshot(t, d, 1000, 2) // a received one, which replaces the log
	dir = killed(t, d.dir)
	remove(t, snapDir(dir), "0000000000000002-00000000000003e8.snap")
	mustRefuse(t, dir, "the log begins after entry 1000")
}

func TestLogDamagedSnapshotFallsBackToTheOlder(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 20), entriesAt(1, 20, 1, 20)...)
	mustSaveSnapshot(t, d, 10, 1)
	mustSaveSnapshot(t, d, 20, 1)
	dir := killed(t, d.dir)
	change(t, filepath.Join(snapDir(dir), "0000000000000001-0000000000000014.snap"), func(b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	})
	_, state := mustOpenLog(t, dir)
	if at := state.Snapshot.GetMetadata().GetIndex(); at != 10 || lastOf(state) != 20 {
		t.Errorf("snapshot at %d, last entry %d", at, lastOf(state))
	}
}

// TestLogSnapshotNotFoundIsNotSwallowed: a WAL that is opened for writing does not
// report that its snapshot is missing.
func TestLogSnapshotNotFoundIsNotSwallowed(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 20), entriesAt(1, 20, 1, 20)...)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := newLog(zap.NewNop(), dir)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = d.readFrom(&walpb.Snapshot{Index: new(uint64(7)), Term: new(uint64(1))})
	var refused *RefusedError
	if !errors.Is(err, wal.ErrSnapshotNotFound) || !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
}

// TestLogSegmentCutRightAfterInstallAndRestart: if a restart forgot the index of
// the installed snapshot, the next segment would be named by a lower index, and
// the WAL would look for the snapshot's record in the wrong segment.
func TestLogSegmentCutRightAfterInstallAndRestart(t *testing.T) {
	segmentsOf(t, 4<<10)
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 5), entriesAt(1, 10, 1, 350)...)
	mustSaveSnapshot(t, d, 1000, 2)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, _ = mustOpenLog(t, dir)
	first, _ := d.lastSegment()
	for term := uint64(3); ; term++ {
		mustSave(t, d, hardStateAt(term, 1, 1000))
		if now, err := d.lastSegment(); err != nil || now != first {
			break
		}
	}
	_, state := mustOpenLog(t, killed(t, dir))
	if at := state.Snapshot.GetMetadata().GetIndex(); at != 1000 {
		t.Errorf("snapshot at %d", at)
	}
}

// TestLogHardStateSurvivesPurgeAfterRestart: an opened WAL has forgotten the hard
// state that it read, and would leave it out of the head of the next segment.
func TestLogHardStateSurvivesPurgeAfterRestart(t *testing.T) {
	segmentsOf(t, 4<<10)
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(7, 3, 0), entryAt(1, 7, 20))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, _ = mustOpenLog(t, dir)
	for i := uint64(2); i <= 60; i++ {
		mustSave(t, d, nil, entryAt(i, 7, 300))
	}
	mustSaveSnapshot(t, d, 40, 7)
	mustSaveSnapshot(t, d, 50, 7)
	if err := d.Purge(2); err != nil {
		t.Fatal(err)
	}
	_, state := mustOpenLog(t, killed(t, dir))
	if hs := state.HardState; hs.GetTerm() != 7 || hs.GetVote() != 3 || lastOf(state) != 60 {
		t.Errorf("hard state %v, last entry %d", hs, lastOf(state))
	}
}

func TestLogPurgeKeepsTwoSnapshotsAndTheLogFromTheOlder(t *testing.T) {
	segmentsOf(t, 4<<10)
	d := mustCreateLog(t, t.TempDir())
	for i := uint64(1); i <= 200; i++ {
		mustSave(t, d, hardStateAt(1, 1, i), entryAt(i, 1, 200))
		if i%25 != 0 {
			continue
		}
		if err := os.WriteFile(d.BodyPath(i), []byte("body"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustSaveSnapshot(t, d, i, 1)
		mustSaveSnapshot(t, d, i, 1) // once more, which must not release the log of the older one
		if err := d.Purge(2); err != nil {
			t.Fatal(err)
		}
		checkPurged(t, d, i)
	}
	dir := killed(t, d.dir)
	remove(t, snapDir(dir), "0000000000000001-00000000000000c8.snap")
	_, state := mustOpenLog(t, dir)
	if at := state.Snapshot.GetMetadata().GetIndex(); at != 175 || lastOf(state) != 200 || len(state.Entries) != 25 {
		t.Errorf("without the newest snapshot: at %d, %d entries up to %d", at, len(state.Entries), lastOf(state))
	}
}

func checkPurged(t *testing.T, d *Log, newest uint64) {
	t.Helper()
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil {
		t.Fatal(err)
	}
	if newest == 25 {
		if !strings.HasPrefix(names[0], "0000000000000000-") {
			t.Errorf("with one snapshot the log begins with %s", names[0])
		}
		return
	}
	older := newest - 25
	_, first, _ := parseSegmentName(names[0])
	_, second, _ := parseSegmentName(names[1])
	// If a segment begins with the snapshot's last entry, etcd keeps the one before.
	if first > older+1 || second < older {
		t.Errorf("the older snapshot is at %d, the log begins with %v", older, names[:2])
	}
	want := []string{"0000000000000001-" + hex16(older) + ".snap", "0000000000000001-" + hex16(newest) + ".snap", hex16(older) + ".snap.db", hex16(newest) + ".snap.db"}
	left := readTree(t, snapDir(d.dir))
	for _, name := range want {
		if _, ok := left[name]; !ok || len(left) != len(want) {
			t.Fatalf("%d files are left instead of %v", len(left), want)
		}
	}
}

func hex16(n uint64) string { return fmt.Sprintf("%016x", n) }

// TestEtcdBug18055TwoSnapshotsInARow: of two snapshots that were received close together,
// the body of the second was removed with what the first had made obsolete.
func TestEtcdBug18055TwoSnapshotsInARow(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 20), entriesAt(1, 20, 1, 20)...)
	mustSaveSnapshot(t, d, 10, 1)
	mustSaveSnapshot(t, d, 20, 1)
	for _, index := range []uint64{5, 15, 500} {
		if _, err := d.Snapshotter().SaveDBFrom(strings.NewReader("body"), index); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.snaps.SaveSnap(snapshotAt(500, 2)); err != nil {
		t.Fatal(err)
	}
	if err := d.Purge(2); err != nil {
		t.Fatal(err)
	}
	left := readTree(t, snapDir(d.dir))
	for name, want := range map[string]bool{
		hex16(5) + ".snap.db": false, hex16(15) + ".snap.db": true, hex16(500) + ".snap.db": true,
		hex16(1) + "-" + hex16(10) + ".snap": true, hex16(1) + "-" + hex16(20) + ".snap": true, hex16(2) + "-" + hex16(500) + ".snap": true,
	} {
		if _, ok := left[name]; ok != want {
			t.Errorf("%s: %v, want %v", name, ok, want)
		}
	}
}

// TestLogCommitWaitsForItsEntries: a Ready may commit entries that are written
// after its snapshot. A commit index without its entries would make raft panic at
// the next start (D1).
func TestLogCommitWaitsForItsEntries(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSaveSnapshot(t, d, 100, 2)
	mustSave(t, d, hardStateAt(2, 0, 103))
	_, state := mustOpenLog(t, killed(t, d.dir))
	if got := state.HardState.GetCommit(); got != 100 {
		t.Errorf("commit %d before its entries", got)
	}
	mustSave(t, d, hardStateAt(2, 0, 103), entriesAt(101, 103, 2, 10)...)
	_, state = mustOpenLog(t, killed(t, d.dir))
	if got := state.HardState.GetCommit(); got != 103 {
		t.Errorf("commit %d after its entries", got)
	}
}

func TestLogGapPanics(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 3, 1, 10)...)
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "entry 5 follows entry 3") {
			t.Errorf("panic %v", r)
		}
	}()
	_ = d.Save(nil, entriesAt(5, 5, 1, 10))
}

// TestLogRemovesWhatACrashLeft: unfinished files would be reused without being
// truncated, and accumulate.
func TestLogRemovesWhatACrashLeft(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(1, 10, 1, 20)...)
	mustSaveSnapshot(t, d, 10, 1)
	dir := killed(t, d.dir)
	garbage := []string{
		filepath.Join(walDir(dir), "1.tmp"), filepath.Join(snapDir(dir), "tmp123"),
		filepath.Join(snapDir(dir), hex16(9)+".snap.db"), filepath.Join(snapDir(dir), hex16(10)+".snap.db.tmp"),
		filepath.Join(snapDir(dir), hex16(1)+"-"+hex16(11)+".snap"),
	}
	for _, path := range append(garbage, d2(dir, 10)) {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOpenLog(t, dir)
	for _, path := range garbage {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
	if _, err := os.Stat(d2(dir, 10)); err != nil {
		t.Errorf("the body of the snapshot: %v", err)
	}
}

func d2(dir string, index uint64) string { return (&Log{dir: dir}).BodyPath(index) }

func TestLogBodyPathIsTheSnapshotters(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	if _, err := d.Snapshotter().SaveDBFrom(strings.NewReader("body"), 77); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(d.BodyPath(77)); err != nil || string(b) != "body" {
		t.Errorf("%q, %v", b, err)
	}
	log, snaps := d.SizeBytes()
	if log == 0 || snaps != 4 {
		t.Errorf("sizes %d, %d", log, snaps)
	}
}

func TestLogOpenTwiceNamesTheDirectory(t *testing.T) {
	dir := t.TempDir()
	mustCreateLog(t, dir)
	if _, _, err := openLog(zap.NewNop(), dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second open: %v", err)
	}
}

// TestLogSnapshotFileFailsBeforeTheRecord: the .snap file must be durable before
// the WAL refers to it.
func TestLogSnapshotFileFailsBeforeTheRecord(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(1, 10, 1, 20)...)
	d.snaps = snap.New(zap.NewNop(), filepath.Join(dir, "missing"))
	if err := d.SaveSnapshot(snapshotAt(10, 1)); err == nil {
		t.Fatal("a snapshot in a missing directory")
	}
	g, err := guardLog(walDir(dir))
	if err != nil || len(g.validSnapshots()) != 1 { // the empty one
		t.Errorf("snapshots %v, %v", g.validSnapshots(), err)
	}
}

func remove(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// TestLargestRecord: an entry of the largest size is saved, and the boot guard reads it.
func TestLargestRecord(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	entry := &raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(1)), Type: raftpb.EntryNormal.Enum(), Data: make([]byte, limits.MaxEntryBytes)}
	mustSave(t, d, hardStateAt(1, 0, 0), entry)
	mustSave(t, d, hardStateAt(1, 0, 1), entryAt(2, 1, 10))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, state := mustOpenLog(t, dir); len(state.Entries) != 2 || len(state.Entries[0].GetData()) != limits.MaxEntryBytes {
		t.Errorf("%d entries are back", len(state.Entries))
	}
}
