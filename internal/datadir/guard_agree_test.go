package datadir

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// mustAgree compares the guard with etcd's own reader on an undamaged log: both
// must find the same last entry, hard state and snapshots.
func mustAgree(t testing.TB, dir string) *guardReport {
	t.Helper()
	g, err := guardLog(walDir(dir))
	if err != nil || g.verdict != logClean {
		t.Fatalf("the guard says %v at byte %d of %s (%s), %v", g.verdict, g.offset, g.file, g.reason, err)
	}
	known, err := wal.ValidSnapshotEntries(zap.NewNop(), walDir(dir))
	if err != nil || len(known) == 0 {
		t.Fatalf("etcd finds the snapshots %v, %v", known, err)
	}
	valid := g.validSnapshots()
	for i, s := range known {
		if len(valid) != len(known) || valid[i].index != s.GetIndex() || valid[i].term != s.GetTerm() {
			t.Fatalf("the guard finds the snapshots %v, etcd %v", valid, known)
		}
	}
	from := known[len(known)-1]
	state, err := wal.Verify(zap.NewNop(), walDir(dir), from)
	if err != nil {
		t.Fatalf("etcd's verification: %v", err)
	}
	if got := (hardStateRecord{state.GetTerm(), state.GetVote(), state.GetCommit()}); got != g.hardState {
		t.Fatalf("the guard's hard state is %v, etcd's %v", g.hardState, got)
	}
	entries := readByEtcd(t, dir, from)
	if last := from.GetIndex() + uint64(len(entries)); last < g.shape.last {
		t.Fatalf("the guard's last entry is %d, etcd's %d", g.shape.last, last)
	}
	for _, e := range entries {
		if i := e.GetIndex(); i <= g.shape.last && g.shape.termAt(i) != e.GetTerm() {
			t.Fatalf("entry %d is of term %d for the guard, of %d for etcd", i, g.shape.termAt(i), e.GetTerm())
		}
	}
	return g
}

func readByEtcd(t testing.TB, dir string, from *walpb.Snapshot) []*raftpb.Entry {
	t.Helper()
	w, err := wal.OpenForRead(zap.NewNop(), walDir(dir), from)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		t.Fatalf("etcd's reading: %v", err)
	}
	return entries
}

// TestGuardAgreesWithEtcdOnBigEntries uses frames of sizes around a sector, around
// a page of the writer, and above its buffer of 1 MiB, in several segments.
func TestGuardAgreesWithEtcdOnBigEntries(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	segmentsOf(t, 1<<20)
	index := uint64(0)
	for _, size := range []int{0, 1, 30, 511, 512, 513, 4095, 4096, 4097, 100_000, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3 << 20, 10} {
		for range 3 {
			index++
			mustSave(t, d, hardStateAt(1, 1, index-1), entryAt(index, 1, size))
		}
		if size == 4097 {
			mustAgree(t, d.dir)
		}
	}
	if g := mustAgree(t, d.dir); g.shape.last != index || len(g.segments) < 6 {
		t.Errorf("%d entries in %d segments", g.shape.last, len(g.segments))
	}
}

// TestGuardAgreesWithEtcdAfterCrashAndReopenCycles: the chain of checksums
// continues across segments, restarts and repairs.
func TestGuardAgreesWithEtcdAfterCrashAndReopenCycles(t *testing.T) {
	segmentsOf(t, 4<<10)
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 9))
		d := mustCreateLog(t, t.TempDir())
		mustSaveSnapshot(t, d, 1, 1) // as a bootstrap does
		last, repairs := uint64(1), 0
		for range 12 {
			term := d.hardState.GetTerm() + rng.Uint64N(2)
			for range 3 + rng.IntN(12) {
				last++
				mustSave(t, d, hardStateAt(term, 1, last-1), entryAt(last, term, rng.IntN(900)))
			}
			if rng.IntN(3) == 0 {
				mustSaveSnapshot(t, d, last-1, d.shape.termAt(last-1))
			}
			dir := killed(t, d.dir)
			mustAgree(t, dir)
			if rng.IntN(2) == 0 {
				last, repairs = tearOff(t, dir, last), repairs+1
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			var state LogState
			if d, state = mustOpenLog(t, dir); lastOf(state) != last {
				t.Fatalf("seed %d: last entry %d, want %d", seed, lastOf(state), last)
			}
			mustAgree(t, dir)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if g := mustAgree(t, d.dir); len(g.segments) < 4 || repairs == 0 {
			t.Errorf("seed %d: %d segments, %d repairs: too few for the test", seed, len(g.segments), repairs)
		}
	}
}

// tearOff leaves half of a write at the end of the log: an entry whose middle is
// missing. It returns the index of the last entry then, which is the one before.
func tearOff(t *testing.T, dir string, last uint64) uint64 {
	t.Helper()
	d, _ := mustOpenLog(t, dir)
	before, _, _ := lastSegmentPath(t, dir)
	mustSave(t, d, nil, entryAt(last+1, d.hardState.GetTerm(), 700))
	if err := d.wal.Close(); err != nil {
		t.Fatal(err)
	}
	d.closed = true // a kill: without a new watermark
	path, frames, _ := lastSegmentPath(t, dir)
	if path != before { // the write filled the segment
		return last + 1
	}
	change(t, path, func(b []byte) []byte { return b[:frames[len(frames)-2]+300] })
	return last
}

// TestGuardAgreesWithEtcdOnEveryPrefix cuts a log after every record. Both readers
// find the same, and a start finds every entry that was acknowledged by then.
func TestGuardAgreesWithEtcdOnEveryPrefix(t *testing.T) {
	segmentsOf(t, 64<<10)
	d := mustCreateLog(t, t.TempDir())
	mustSaveSnapshot(t, d, 1, 1)
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	watermark := readTree(t, d.dir)["watermark"]
	for i := uint64(2); i <= 12; i++ {
		mustSave(t, d, hardStateAt(i, 1, i-1), entryAt(i, i, 30))
	}
	mustSaveSnapshot(t, d, 9, 9)
	mustSave(t, d, hardStateAt(15, 0, 11), entriesAt(12, 14, 15, 30)...) // takes one back
	mustSaveSnapshot(t, d, 100, 16)
	mustSave(t, d, hardStateAt(16, 2, 101), entriesAt(101, 103, 16, 30)...)
	path, frames, _ := lastSegmentPath(t, d.dir)
	files := readTree(t, d.dir)
	files["watermark"] = watermark // as of the beginning: it would refuse a shorter log
	for _, frame := range frames[len(frames)-20:] {
		dir := writeTree(t, t.TempDir(), files)
		zeroAt(t, filepath.Join(walDir(dir), filepath.Base(path)), frame, 64<<10)
		g := mustAgree(t, dir)
		_, state := mustOpenLog(t, dir)
		if lastOf(state) != g.shape.last || state.HardState.GetCommit() != g.hardState.commit || state.Repaired != "" {
			t.Errorf("cut at byte %d: last entry %d, the guard's %d; repaired %q", frame, lastOf(state), g.shape.last, state.Repaired)
		}
		mustAgree(t, dir)
	}
}

// segmentsIn returns the paths of the segments, the oldest first.
func segmentsIn(t *testing.T, dir string) (paths []string) {
	t.Helper()
	names, err := listSuffix(walDir(dir), ".wal")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		paths = append(paths, filepath.Join(walDir(dir), name))
	}
	return paths
}

// TestGuardDamageInAnOlderSegment: every segment but the last was complete and
// synced before the next one began, so nothing in it can be torn.
func TestGuardDamageInAnOlderSegment(t *testing.T) {
	whole := segmentedLog(t)
	for name, f := range map[string]func(b []byte, frames []int, end int) []byte{
		"flipped bit":                 func(b []byte, frames []int, _ int) []byte { b[frames[6]+20] ^= 4; return b },
		"flipped bit in the last":     func(b []byte, _ []int, end int) []byte { b[end-12] ^= 4; return b },
		"last record gone":            func(b []byte, frames []int, _ int) []byte { return b[:frames[len(frames)-1]] },
		"last record zeroed":          func(b []byte, frames []int, _ int) []byte { clear(b[frames[len(frames)-1]:]); return b },
		"last record cut":             func(b []byte, frames []int, _ int) []byte { return b[:frames[len(frames)-1]+11] },
		"sector zeroed":               func(b []byte, _ []int, _ int) []byte { clear(b[2*walSector : 3*walSector]); return b },
		"length word zeroed":          func(b []byte, frames []int, _ int) []byte { clear(b[frames[6] : frames[6]+walFrameHead]); return b },
		"emptied":                     func([]byte, []int, int) []byte { return nil },
		"without entries":             func(b []byte, frames []int, _ int) []byte { return b[:frames[segmentHead]] },
		"checksum of the head":        func(b []byte, frames []int, _ int) []byte { b[frames[0]+walFrameHead+3] ^= 1; return b },
		"something behind the record": func(b []byte, _ []int, _ int) []byte { return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := killed(t, whole)
			path := segmentsIn(t, dir)[1]
			change(t, path, func(b []byte) []byte {
				frames, end := framesOf(t, b)
				return f(b, frames, end)
			})
			mustRefuse(t, dir, walDir(dir))
		})
	}
}

// TestGuardSegmentOfAnotherLog: a segment of another log under the right name is
// intact by itself; only the checksum that it begins with gives it away.
func TestGuardSegmentOfAnotherLog(t *testing.T) {
	dir := segmentedLog(t)
	segmentsOf(t, 4<<10)
	d := mustCreateLog(t, t.TempDir())
	for i := uint64(1); i <= 100; i++ {
		mustSave(t, d, hardStateAt(1, 2, i-1), entryAt(i, 1, 100)) // another vote
	}
	other := segmentsIn(t, d.dir)
	for i, path := range segmentsIn(t, dir) {
		if i == 0 || filepath.Base(path) != filepath.Base(other[i]) {
			continue
		}
		changed := killed(t, dir)
		b, err := os.ReadFile(other[i])
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(walDir(changed), filepath.Base(path))
		change(t, target, func([]byte) []byte { return b })
		mustRefuse(t, changed, "the segment does not continue the previous one")
	}
}

// BenchmarkGuardLog64MiB measures what the guard adds to a start with a full log.
func BenchmarkGuardLog64MiB(b *testing.B) {
	for _, size := range []int{100, 4 << 10, 512 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir := filledLog(b, size)
			b.ResetTimer()
			for b.Loop() {
				g, err := guardLog(walDir(dir))
				if err != nil || g.verdict != logClean || len(g.segments) != 1 {
					b.Fatal(g.reason, err)
				}
				b.ReportMetric(float64(g.records), "records")
			}
		})
	}
}

// filledLog returns a directory with a segment that is nearly full.
func filledLog(b *testing.B, size int) string {
	b.Helper()
	d := mustCreateLog(b, b.TempDir())
	segmentsOf(b, 64<<20)
	index := uint64(0)
	for written := 0; written < 62<<20; {
		n := uint64(max(1, (1<<20)/(size+60)))
		mustSave(b, d, hardStateAt(1, 1, index), entriesAt(index+1, index+n, 1, size)...)
		index += n
		written += int(n) * (size + 60)
	}
	dir := d.dir
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

// TestGuardTornTailOfFramesIsLinear: the guard looks at every word of a torn
// write. A value crafted to look like frames must not make that quadratic.
func TestGuardTornTailOfFramesIsLinear(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	segmentsOf(t, 16<<20)
	mustSave(t, d, hardStateAt(1, 1, 0), entryAt(1, 1, 10))
	e := entryAt(2, 1, 0)
	for len(e.Data) < 8<<20 {
		e.Data = append(e.Data, 0x10, 0x27, 0x7f, 0, 0, 0, 0, 0) // a length of nearly 8 MiB
	}
	mustSave(t, d, nil, e)
	dir := killed(t, d.dir)
	path, frames, end := lastSegmentPath(t, dir)
	zeroAt(t, path, frames[len(frames)-2]/walSector*walSector+walSector, frames[len(frames)-2]/walSector*walSector+2*walSector)
	zeroAt(t, path, end-end%walSector, end)
	begin := time.Now()
	g, err := guardLog(walDir(dir))
	if took := time.Since(begin); err != nil || !g.torn() || took > 10*time.Second {
		t.Errorf("%v (%s), %v after %v", g.verdict, g.reason, err, took)
	}
}
