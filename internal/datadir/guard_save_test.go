package datadir

import (
	"fmt"
	"math/bits"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

const diskPage = 4096 // what a file system writes at once

// lostParts returns a copy of the directory in which the chosen parts of the last
// segment between from and to never reached the disk. A part that also holds
// older bytes keeps them.
func lostParts(t testing.TB, whole string, from, to, size int, lost func(part int) bool) string {
	t.Helper()
	dir := killed(t, whole)
	path, _, _ := lastSegmentPath(t, whole)
	change(t, filepath.Join(walDir(dir), filepath.Base(path)), func(b []byte) []byte {
		for part := from / size; part*size < to; part++ {
			if lost(part - from/size) {
				clear(b[max(from, part*size):min((part+1)*size, len(b))])
			}
		}
		return b
	})
	return dir
}

// savesOf returns a log whose last save is the given one, and where that begins
// and ends in the last segment. Everything before it is in the watermark.
func savesOf(t *testing.T, n uint64, size int) (whole string, from, to int) {
	t.Helper()
	segmentsOf(t, 1<<20)
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 10, 1, 100)...)
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	_, _, from = lastSegmentPath(t, d.dir)
	mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(11, 10+n, 1, size)...)
	_, _, to = lastSegmentPath(t, d.dir)
	return killed(t, d.dir), from, to
}

// TestGuardPowerLossInOneSave: the power fails before the fsync of one save has
// ended, and the disk has written some of its pages and not others, in any order.
// Nothing of the save was acknowledged, so the member must start.
func TestGuardPowerLossInOneSave(t *testing.T) {
	for _, c := range []struct {
		name string
		n    uint64
		size int
	}{
		{"one entry of 40 KB", 1, 40_000}, {"three entries of 6 KB", 3, 6000},
		{"eight entries of 600 bytes", 8, 600}, {"200 entries of 60 bytes", 200, 60},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole, from, to := savesOf(t, c.n, c.size)
			pages := min((to-1)/diskPage-from/diskPage+1, 7)
			for lost := uint(1); lost < 1<<pages; lost++ { // every subset of the first pages
				dir := lostParts(t, whole, from, to, diskPage, func(p int) bool { return p < pages && lost>>p&1 == 1 })
				mustStartAfterPowerLoss(t, dir, fmt.Sprintf("pages %b", lost), bits.OnesCount(lost) == 1)
			}
			for part := range (to-1)/walSector - from/walSector + 1 { // each sector
				dir := lostParts(t, whole, from, to, walSector, func(p int) bool { return p == part })
				mustStartAfterPowerLoss(t, dir, fmt.Sprintf("sector %d", part), part%64 == 0)
			}
		})
	}
}

// mustStartAfterPowerLoss demands the verdict torn, or clean if nothing but the
// end is missing; with open, also a start that repairs it once.
func mustStartAfterPowerLoss(t *testing.T, dir, lost string, open bool) {
	t.Helper()
	x, err := inspect(dir)
	if err != nil || x.refused != nil {
		t.Fatalf("%s lost: %v, %v", lost, x.refused, err)
	}
	if x.log.shape.last < 10 {
		t.Fatalf("%s lost: the log ends at entry %d, and entry 10 was acknowledged", lost, x.log.shape.last)
	}
	if open && x.log.torn() {
		mustRepairOnce(t, dir, x.log.shape.last)
	}
}

// TestGuardDamageInAnEarlierSave: a save that another one follows was synced, and
// its entries may have been acknowledged. Damage in it is never taken for a torn
// write, even where it takes the end of the save with it, and even if neither
// save is in the watermark.
func TestGuardDamageInAnEarlierSave(t *testing.T) {
	segmentsOf(t, 1<<20)
	for _, size := range []int{60, 600, 6000} {
		t.Run(fmt.Sprintf("entries of %d bytes", size), func(t *testing.T) {
			d := mustCreateLog(t, t.TempDir())
			mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 10, 1, 100)...)
			if err := d.writeWatermark(); err != nil {
				t.Fatal(err)
			}
			_, _, from := lastSegmentPath(t, d.dir)
			last := uint64(10)
			for range 3 {
				n := uint64(12_000/size + 1)
				mustSave(t, d, nil, entriesAt(last+1, last+n, 1, size)...)
				last += n
			}
			_, _, to := lastSegmentPath(t, d.dir)
			mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(last+1, last+uint64(12_000/size+1), 1, size)...)
			whole := killed(t, d.dir)
			for _, part := range []int{walSector, diskPage} {
				for p := range (to-1)/part - from/part + 1 {
					at := (from/part + p) * part
					dir := killed(t, whole)
					path, _, _ := lastSegmentPath(t, whole)
					zeroAt(t, filepath.Join(walDir(dir), filepath.Base(path)), max(at, walSector), at+part) // whatever save a byte belongs to
					if p%7 == 0 {
						mustRefuse(t, dir, "another record follows")
						continue
					}
					if x, err := inspect(dir); err != nil || x.refused == nil {
						t.Fatalf("%d bytes at byte %d lost, the last save begins at %d: verdict %v, %v", part, at, to, x.log.verdict, err)
					}
				}
			}
		})
	}
}

// TestGuardLostEndOfAnEarlierSave: the damage takes the hard state that ends an
// earlier save and the beginning of the last one, in one sector. Only the number
// of the last save shows that there were two.
func TestGuardLostEndOfAnEarlierSave(t *testing.T) {
	segmentsOf(t, 64<<10)
	for size := 100; size < 100+walSector; size += 8 {
		d := mustCreateLog(t, t.TempDir())
		mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 2, 1, 100)...)
		if err := d.writeWatermark(); err != nil {
			t.Fatal(err)
		}
		mustSave(t, d, nil, entryAt(3, 1, size))
		_, _, to := lastSegmentPath(t, d.dir)
		mustSave(t, d, nil, entryAt(4, 1, 3000), entryAt(5, 1, 50))
		dir := killed(t, d.dir)
		path, _, _ := lastSegmentPath(t, dir)
		zeroAt(t, path, (to-1)/walSector*walSector, (to-1)/walSector*walSector+walSector)
		mustRefuse(t, dir, "another record follows")
	}
}

// TestGuardRefusesADamagedInstalledSnapshot: once a received snapshot is in the
// log, the leader may count on it, so its record is never cut off as torn.
func TestGuardRefusesADamagedInstalledSnapshot(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 5), entriesAt(1, 10, 1, 500)...)
	_, _, from := lastSegmentPath(t, d.dir)
	mustSaveSnapshot(t, d, 1000, 2)
	dir := killed(t, d.dir)
	path, _, to := lastSegmentPath(t, dir)
	zeroAt(t, path, from, to)
	mustRefuse(t, dir, "this member had reached term 2")
}

// TestLogEverySaveEndsWithItsNumber: each save ends with a hard state, even if
// raft gave none, and the numbers leave no gap, also across restarts. A commit
// index alone is not a save of its own.
func TestLogEverySaveEndsWithItsNumber(t *testing.T) {
	segmentsOf(t, 64<<10)
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, nil, entryAt(1, 1, 30))
	mustSave(t, d, hardStateAt(2, 1, 0))
	mustSave(t, d, hardStateAt(2, 1, 1)) // only a commit index
	mustSave(t, d, nil, entriesAt(2, 4, 2, 30)...)
	mustSaveSnapshot(t, d, 1, 1)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, state := mustOpenLog(t, dir)
	if got := state.HardState.ProtoReflect().GetUnknown(); len(got) > 0 {
		t.Errorf("raft gets the number of the save: %x", got)
	}
	mustSave(t, d, nil, entryAt(5, 2, 30))
	var got []string
	path, frames, _ := lastSegmentPath(t, dir)
	change(t, path, func(b []byte) []byte {
		for _, f := range frames[segmentHead:] {
			rec, _, _ := decodeFrame(b, f)
			if s, save, ok := rec.hardState(); rec.kind == walState && ok {
				got = append(got, fmt.Sprintf("state %d/%d/%d #%d", s.term, s.vote, s.commit, save))
			} else {
				got = append(got, map[uint64]string{walEntry: "entry", walSnapshot: "snapshot"}[rec.kind])
			}
		}
		return b
	})
	want := "[snapshot entry state 1/0/0 #1 state 2/1/0 #2 entry entry entry state 2/1/1 #3 snapshot state 2/1/1 #4 " +
		"snapshot state 2/1/1 #5 entry state 2/1/1 #6]"
	if fmt.Sprint(got) != want {
		t.Errorf("the log is\n%v, want\n%v", got, want)
	}
}

// TestLogRaisesATornTerm: a crash between the entries of a save and its hard state
// leaves a log whose last term is above the hard state's. The peers refuse the
// messages of such a member, and it theirs. A start raises the term, and has it
// on disk before raft sees it.
func TestLogRaisesATornTerm(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 1), entriesAt(1, 3, 1, 30)...)
	if err := d.wal.Save(new(raftpb.HardState), entriesAt(3, 4, 3, 30)); err != nil {
		t.Fatal(err)
	}
	dir := killed(t, d.dir)
	_, state := mustOpenLog(t, dir)
	if hs := state.HardState; hs.GetTerm() != 3 || hs.GetVote() != 0 || hs.GetCommit() != 1 || lastOf(state) != 4 {
		t.Errorf("opened with term %d, vote %d, commit %d and %d entries", hs.GetTerm(), hs.GetVote(), hs.GetCommit(), lastOf(state))
	}
	if g, err := guardLog(walDir(killed(t, dir))); err != nil || g.hardState != (hardStateRecord{term: 3, commit: 1}) {
		t.Errorf("on disk: %+v, %v", g.hardState, err)
	}
}

func BenchmarkLogSave(b *testing.B) {
	for _, size := range []int{100, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d := mustCreateLog(b, b.TempDir())
			segmentsOf(b, segmentBytes)
			mustSave(b, d, hardStateAt(1, 1, 0))
			index := uint64(0)
			for b.Loop() {
				index++
				mustSave(b, d, nil, entryAt(index, 1, size))
			}
		})
	}
}
