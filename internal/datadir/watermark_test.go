package datadir

import (
	"errors"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestWatermarkAtMostOnceASecond(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	written := func() uint64 {
		w, err := readWatermark(d.dir)
		if err != nil {
			t.Fatal(err)
		}
		return w.Index
	}
	now := time.Unix(1000, 0)
	for _, step := range []struct {
		after time.Duration
		want  uint64
	}{{0, 1}, {time.Millisecond, 1}, {998 * time.Millisecond, 1}, {time.Millisecond, 4}, {500 * time.Millisecond, 4}, {time.Second, 6}} {
		now = now.Add(step.after)
		mustSave(t, d, hardStateAt(1, 1, 0), entryAt(d.shape.last+1, 1, 10))
		if err := d.UpdateWatermark(now); err != nil {
			t.Fatal(err)
		}
		if got := written(); got != step.want {
			t.Errorf("%v later the watermark is at %d, want %d", step.after, got, step.want)
		}
	}
	mustSave(t, d, nil, entryAt(7, 1, 10))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := written(); got != 7 {
		t.Errorf("after close the watermark is at %d", got)
	}
}

// checkedAgainst opens a log whose watermark was changed, and returns the reason of
// the refusal, or "".
func checkedAgainst(t *testing.T, change func(w *watermark)) string {
	t.Helper()
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(5, 2, 10), entriesAt(1, 20, 5, 30)...)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := readWatermark(dir)
	if err != nil {
		t.Fatal(err)
	}
	change(w)
	if err := w.write(dir); err != nil {
		t.Fatal(err)
	}
	d, _, err = openLog(zap.NewNop(), dir)
	if err == nil {
		_ = d.Close()
		return ""
	}
	return mustRefuse(t, dir, "").Reason
}

func TestWatermarkAgainstTheLog(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *watermark)
		want   string
	}{
		{"exact", func(*watermark) {}, ""},
		{"older", func(w *watermark) { w.Index, w.Term, w.Vote = 3, 4, 9 }, ""},
		{"before the vote", func(w *watermark) { w.Vote = 0 }, ""},
		{"acknowledged entries are gone", func(w *watermark) { w.Index = 21 }, "the log ends at entry 20, but entry 21 was on disk"},
		{"entries of an older term are gone", func(w *watermark) { w.Index, w.Term, w.Vote = 21, 4, 1 }, "the log ends at entry 20, but entry 21 was on disk"},
		{"the term goes back", func(w *watermark) { w.Term, w.Vote = 6, 0 }, "the log is at term 5, but this member had reached term 6"},
		{"the vote goes back", func(w *watermark) { w.Vote = 3 }, "the log has a vote for member 2 in term 5, but this member voted for member 3"},
		{"the last segment is gone", func(w *watermark) { w.Segment = "0000000000000001-0000000000000015.wal" }, "the last segment is missing: the log ends with 0000000000000000-0000000000000000.wal"},
	} {
		if got := checkedAgainst(t, c.change); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestWatermarkAboveATornTail: a torn tail that contains synced entries is not
// repaired.
func TestWatermarkAboveATornTail(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 20, 1, 30)...)
	mustSave(t, d, nil, entryAt(21, 1, 3000))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	path, frames, end := lastSegmentPath(t, dir)
	zeroAt(t, path, end/walSector*walSector, end)
	if refused := mustRefuse(t, dir, "the log ends at entry 20, but entry 21 was on disk"); refused.Offset != int64(frames[len(frames)-2]) {
		t.Errorf("refused at byte %d", refused.Offset)
	}
}

// TestWatermarkFollowsEntriesTakenBack: a newer leader overwrites entries that were
// synced but never committed. The watermark is lowered first (D3), so no start is
// refused, wherever power fails.
func TestWatermarkFollowsEntriesTakenBack(t *testing.T) {
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 5), entriesAt(1, 200, 1, 10)...)
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	before := readTree(t, d.dir)
	mustSave(t, d, hardStateAt(2, 3, 5), entriesAt(101, 110, 2, 10)...)
	if _, state := mustOpenLog(t, killed(t, d.dir)); lastOf(state) != 110 {
		t.Errorf("last entry %d", lastOf(state))
	}
	// Power failed after the watermark and before the entries.
	w, err := os.ReadFile(watermarkPath(d.dir))
	if err != nil {
		t.Fatal(err)
	}
	before["watermark"] = w
	if _, state := mustOpenLog(t, writeTree(t, t.TempDir(), before)); lastOf(state) != 200 {
		t.Errorf("last entry %d", lastOf(state))
	}
}

func TestWatermarkMissingOrDamaged(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 20, 1, 30)...)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(watermarkPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := append([]byte(nil), whole...)
		b[i] ^= 1
		if err := os.WriteFile(watermarkPath(dir), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if w, err := readWatermark(dir); err == nil {
			t.Fatalf("with byte %d changed: %+v", i, w)
		}
	}
	mustRefuse(t, dir, "the watermark is damaged")
	if err := os.Remove(watermarkPath(dir)); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, "the watermark is missing")
}

// TestWatermarkWithoutALog: if the watermark knows of a log, no empty log may begin
// in its place.
func TestWatermarkWithoutALog(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 20, 1, 30)...)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(walDir(dir)); err != nil {
		t.Fatal(err)
	}
	_, _, err := OpenLog(zap.NewNop(), dir, Owner{MemberID: 1, ClusterID: 7})
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	if report, derr := Examine(dir); derr != nil || report.Refused == nil || report.Refused.Error() != err.Error() {
		t.Errorf("Examine: %s, %v", report.Verdict(), derr)
	}
}
