package datadir

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// logOf returns the directory of a process that was killed after 40 entries, in
// one segment. The watermark covers the first 10, as if the others had been
// written within the last second.
func logOf(t testing.TB, size int) string {
	t.Helper()
	segmentsOf(t, 64<<10)
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 10, 1, size)...)
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	for i := uint64(11); i <= 40; i++ {
		mustSave(t, d, hardStateAt(1, 1, i-1), entryAt(i, 1, size))
	}
	return killed(t, d.dir)
}

// segmentedLog is like logOf, but with several segments.
func segmentedLog(t testing.TB) string {
	t.Helper()
	segmentsOf(t, 4<<10)
	d := mustCreateLog(t, t.TempDir())
	for i := uint64(1); i <= 100; i++ {
		mustSave(t, d, hardStateAt(1, 1, i-1), entryAt(i, 1, 100))
	}
	if err := d.writeWatermark(); err != nil {
		t.Fatal(err)
	}
	if names, err := listSuffix(walDir(d.dir), ".wal"); err != nil || len(names) < 4 {
		t.Fatalf("segments %v, %v: too few for the test", names, err)
	}
	return killed(t, d.dir)
}

func TestGuardWholeLogIsClean(t *testing.T) {
	for name, dir := range map[string]string{"one segment": logOf(t, 100), "many segments": segmentedLog(t)} {
		g, err := guardLog(walDir(dir))
		if err != nil || g.verdict != logClean {
			t.Fatalf("%s: %v (%s), %v", name, g.verdict, g.reason, err)
		}
		_, state := mustOpenLog(t, dir)
		if got := lastOf(state); got != g.shape.last {
			t.Errorf("%s: the guard saw %d entries, the WAL has %d", name, g.shape.last, got)
		}
		if state.HardState.GetCommit() != g.hardState.commit || state.Repaired != "" {
			t.Errorf("%s: hard state %v, guard %v, repaired %q", name, state.HardState, g.hardState, state.Repaired)
		}
	}
}

func TestGuardZeroedSectorInTheMiddle(t *testing.T) {
	whole := logOf(t, 100)
	_, _, end := lastSegmentPath(t, whole)
	last := end/walSector - 1 // the last one with another sector behind it
	for sector := 1; sector < last; sector++ {
		dir := killed(t, whole)
		path, _, _ := lastSegmentPath(t, dir)
		zeroAt(t, path, sector*walSector, (sector+1)*walSector)
		mustRefuse(t, dir, "another")
	}
}

// TestGuardZeroedSectorInTheLastRecord: a missing sector of the last entry is what
// a torn write leaves, whether or not the hard state behind it reached the disk.
func TestGuardZeroedSectorInTheLastRecord(t *testing.T) {
	whole := logOf(t, 3000)
	_, frames, end := lastSegmentPath(t, whole)
	entry, state := frames[len(frames)-2], frames[len(frames)-1]
	for sector := entry/walSector + 1; sector < state/walSector; sector++ {
		for _, lost := range []bool{false, true} {
			dir := killed(t, whole)
			path, _, _ := lastSegmentPath(t, dir)
			change(t, path, func(b []byte) []byte {
				clear(b[sector*walSector : (sector+1)*walSector])
				if lost {
					clear(b[state/walSector*walSector : end])
				}
				return b
			})
			mustRepairOnce(t, dir, 39)
		}
	}
}

func TestGuardZeroedLengthWord(t *testing.T) {
	whole := logOf(t, 100)
	_, frames, _ := lastSegmentPath(t, whole)
	for _, frame := range frames[2:] {
		dir := killed(t, whole)
		path, _, _ := lastSegmentPath(t, dir)
		zeroAt(t, path, frame, frame+walFrameHead)
		refused := mustRefuse(t, dir, "zero")
		if refused.Offset != int64(frame) || refused.File != path {
			t.Errorf("the refusal is about %s at byte %d, the damage is at %d", refused.File, refused.Offset, frame)
		}
	}
}

func TestGuardMissingLastSegment(t *testing.T) {
	dir := segmentedLog(t)
	path, _, _ := lastSegmentPath(t, dir)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, "the last segment is missing")
}

func TestGuardMissingSegmentInTheMiddle(t *testing.T) {
	dir := segmentedLog(t)
	names, err := listSuffix(walDir(dir), ".wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(walDir(dir), names[1])); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, "log segment 1, which precedes")
}

func TestGuardMissingFirstSegments(t *testing.T) {
	dir := segmentedLog(t)
	names, err := listSuffix(walDir(dir), ".wal")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(walDir(dir), names[0])); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, "none of its snapshots is readable")
}

func TestGuardEmptyLastSegment(t *testing.T) {
	for name, f := range map[string]func([]byte) []byte{
		"no bytes":         func([]byte) []byte { return nil },
		"zeros":            func(b []byte) []byte { clear(b); return b },
		"checksum only":    func(b []byte) []byte { clear(b[16:]); return b },
		"half a head":      func(b []byte) []byte { return b[:20] },
		"a sector of head": func(b []byte) []byte { clear(b[:walSector]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := segmentedLog(t)
			path, _, _ := lastSegmentPath(t, dir)
			change(t, path, f)
			mustRefuse(t, dir, path)
		})
	}
}

// TestGuardFlippedBitInTheLastRecord: a complete record that does not match its
// checksum was changed after it was written, wherever it is. etcd's repair would
// not touch it either.
func TestGuardFlippedBitInTheLastRecord(t *testing.T) {
	whole := logOf(t, 100)
	_, frames, end := lastSegmentPath(t, whole)
	refuseEveryFlip(t, whole, frames[len(frames)-1], end)
}

func TestGuardFlippedBitInTheMiddle(t *testing.T) {
	whole := logOf(t, 100)
	_, frames, _ := lastSegmentPath(t, whole)
	refuseEveryFlip(t, whole, frames[0], frames[3])   // the head and the empty snapshot
	refuseEveryFlip(t, whole, frames[20], frames[22]) // an entry and a hard state
}

// refuseEveryFlip flips every bit of a range. It asks only the guard, because
// opening the log each time would take too long.
func refuseEveryFlip(t *testing.T, whole string, from, to int) {
	t.Helper()
	dir := killed(t, whole)
	path, _, _ := lastSegmentPath(t, dir)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, to-from)
	if _, err := f.ReadAt(b, int64(from)); err != nil {
		t.Fatal(err)
	}
	for bit := range len(b) * 8 {
		at := int64(from + bit/8)
		if _, err := f.WriteAt([]byte{b[bit/8] ^ 1<<(bit%8)}, at); err != nil {
			t.Fatal(err)
		}
		x, err := inspect(dir)
		if err != nil {
			t.Fatal(err)
		}
		if x.refused == nil {
			t.Fatalf("bit %d of byte %d (%d in the record) flipped: %v", bit%8, at, bit/8, x.log.verdict)
		}
		if _, err := f.WriteAt(b[bit/8:bit/8+1], at); err != nil {
			t.Fatal(err)
		}
	}
}

// mustRepairOnce opens a directory with a torn tail twice. The first start reports
// the repair, and the second one has nothing to report.
func mustRepairOnce(t *testing.T, dir string, last uint64) {
	t.Helper()
	report, err := Examine(dir)
	if err != nil || report.Refused != nil || report.TornFile == "" {
		t.Fatalf("the doctor says %s, %v; want a torn tail", report.Verdict(), err)
	}
	d, state, err := openLog(zap.NewNop(), dir)
	if err != nil {
		t.Fatalf("OpenLog: %v", err)
	}
	if state.Repaired == "" || lastOf(state) != last {
		t.Fatalf("last entry %d, want %d; repaired: %q", lastOf(state), last, state.Repaired)
	}
	mustSave(t, d, nil, entryAt(last+1, 1, 50))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, state, err = openLog(zap.NewNop(), dir)
	if err != nil {
		t.Fatalf("OpenLog after the repair: %v", err)
	}
	if state.Repaired != "" || lastOf(state) != last+1 {
		t.Fatalf("after the repair: last entry %d, want %d; repaired: %q", lastOf(state), last+1, state.Repaired)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestGuardTornTailAtEveryLengthIsRepairedOnce(t *testing.T) {
	segmentsOf(t, 16<<10)
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 20, 1, 50)...)
	mustSave(t, d, nil, entryAt(21, 1, 61)) // with padding
	whole := readTree(t, d.dir)
	path, frames, end := lastSegmentPath(t, d.dir)
	name, _ := filepath.Rel(d.dir, path)
	b := whole[name]
	entry, state := frames[len(frames)-2], frames[len(frames)-1]
	for length := entry + 1; length < end; length++ {
		whole[name] = b[:length]
		switch {
		case length < state:
			mustRepairOnce(t, writeTree(t, t.TempDir(), whole), 20)
		case length > state:
			mustRepairOnce(t, writeTree(t, t.TempDir(), whole), 21)
		}
	}
}

// TestGuardTornTailOfMissingSectors: of a write of several sectors, only some
// reached the disk.
func TestGuardTornTailOfMissingSectors(t *testing.T) {
	segmentsOf(t, 64<<10)
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 20, 1, 50)...)
	_, _, before := lastSegmentPath(t, d.dir)
	mustSave(t, d, hardStateAt(1, 1, 20), entriesAt(21, 26, 1, 700)...)
	whole := killed(t, d.dir)
	path, frames, end := lastSegmentPath(t, whole)
	for sector := before/walSector + 1; sector <= end/walSector; sector++ {
		dir := killed(t, whole)
		torn := filepath.Join(walDir(dir), filepath.Base(path))
		zeroAt(t, torn, sector*walSector, end)
		kept := uint64(0)
		for i, f := range frames {
			next := end
			if i+1 < len(frames) {
				next = frames[i+1]
			}
			b, err := os.ReadFile(torn)
			if err != nil {
				t.Fatal(err)
			}
			if rec, _, what := decodeFrame(b, f); what == "" && next <= sector*walSector && rec.kind == walEntry {
				kept++
			}
		}
		mustRepairOnce(t, dir, kept)
	}
}

// TestGuardTornTailWithAWALInside: the value of a key may be a piece of a WAL. In
// a torn record it must not be mistaken for a later record.
func TestGuardTornTailWithAWALInside(t *testing.T) {
	other := logOf(t, 50)
	path, frames, end := lastSegmentPath(t, other)
	inner, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for shift := range 8 {
		d := mustCreateLog(t, t.TempDir())
		mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 5, 1, 50)...)
		e := entryAt(6, 1, 0)
		e.Data = append(bytes.Repeat([]byte{'x'}, shift), inner[frames[3]:end]...)
		mustSave(t, d, nil, e)
		dir := killed(t, d.dir)
		path, _, end := lastSegmentPath(t, dir)
		zeroAt(t, path, (end/walSector-1)*walSector, end)
		mustRepairOnce(t, dir, 5)
	}
}

// TestGuardRecordAfterATornOneIsCorruption: a record that is followed by a later
// write was synced and may have been acknowledged.
func TestGuardRecordAfterATornOneIsCorruption(t *testing.T) {
	segmentsOf(t, 64<<10)
	d := mustCreateLog(t, t.TempDir())
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 5, 1, 50)...)
	mustSave(t, d, nil, entryAt(6, 1, 3000))
	_, frames, _ := lastSegmentPath(t, d.dir)
	at := frames[len(frames)-2]
	mustSave(t, d, nil, entryAt(7, 1, 3000))
	dir := killed(t, d.dir)
	path, _, _ := lastSegmentPath(t, dir)
	zeroAt(t, path, (at/walSector+2)*walSector, (at/walSector+3)*walSector)
	if refused := mustRefuse(t, dir, "another record follows"); refused.Offset != int64(at) {
		t.Errorf("refused at byte %d, the damage is in the record at %d", refused.Offset, at)
	}
}

func TestGuardFilesThatAreNotSegments(t *testing.T) {
	dir := segmentedLog(t)
	if err := os.WriteFile(filepath.Join(walDir(dir), "1-2.wal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, "not the name of a log segment")
}

// TestGuardRecordsOutOfPlace: the checksum does not cover a record's type. An
// entry that is taken for a hard state would change term and commit index.
func TestGuardRecordsOutOfPlace(t *testing.T) {
	g := &guardReport{shape: logShape{known: true}}
	take := func(kind uint64, n int, data []byte) string {
		return g.take(walRecord{kind: kind, data: data}, n, true)
	}
	entry := func(index, term uint64) []byte { return []byte{8, 0, 16, byte(term), 24, byte(index), 34, 1, 'x'} }
	state := func(term, vote, commit uint64) []byte { return []byte{8, byte(term), 16, byte(vote), 24, byte(commit)} }
	for _, step := range []struct {
		name string
		kind uint64
		n    int
		data []byte
		ok   bool
	}{
		{"metadata first", walMetadata, 0, nil, false},
		{"checksum", walCRC, 0, nil, true},
		{"entry for metadata", walEntry, 1, entry(1, 1), false},
		{"metadata", walMetadata, 1, nil, true},
		{"entry", walEntry, 2, entry(1, 1), true},
		{"checksum in the middle", walCRC, 3, nil, false},
		{"gap", walEntry, 3, entry(3, 1), false},
		{"entry", walEntry, 3, entry(2, 2), true},
		{"term back", walEntry, 4, entry(3, 1), false},
		{"state", walState, 4, state(2, 1, 1), true},
		{"committed entry again", walEntry, 5, entry(1, 2), false},
		{"state back", walState, 5, state(1, 1, 1), false},
		{"other vote", walState, 5, state(2, 3, 1), false},
		{"no vote anymore", walState, 5, state(2, 0, 1), false},
		{"entry as a state", walState, 5, entry(3, 2), false},
		{"state as an entry", walEntry, 5, state(2, 1, 1), false},
		{"overwrite", walEntry, 5, entry(2, 3), true},
	} {
		what := take(step.kind, step.n, step.data)
		if (what == "") != step.ok {
			t.Errorf("%s: %q", step.name, what)
		}
	}
}

// FuzzBootGuard damages a directory in arbitrary ways. Opening it either refuses,
// or finds everything that was written, at least up to the watermark.
func FuzzBootGuard(f *testing.F) {
	before := wal.SegmentSizeBytes
	wal.SegmentSizeBytes = 4 << 10
	f.Cleanup(func() { wal.SegmentSizeBytes = before })
	whole, names, written := damagedOriginal(f)
	for i := range byte(len(names)) {
		f.Add([]byte{i, 0, 3, 5, 1, 0})   // flip
		f.Add([]byte{i, 1, 2, 0, 2, 0})   // zero a sector
		f.Add([]byte{i, 2, 1, 200, 0, 0}) // truncate
		f.Add([]byte{i, 3, 0, 0, 0, 0})   // remove
		f.Add([]byte{i, 4, 1, 0, 4, 8})   // copy
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		b := make([]byte, 6*(1+rng.IntN(3)))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, damage []byte) {
		files := make(map[string][]byte, len(whole))
		for name, b := range whole {
			files[name] = bytes.Clone(b)
		}
		for ; len(damage) >= 6; damage = damage[6:] {
			damageFile(files, names[int(damage[0])%len(names)], damage[1:6])
		}
		checkDamaged(t, writeTree(t, t.TempDir(), files), written)
	})
}

// damagedOriginal returns the files of a directory with several segments and
// snapshots and a watermark that is a little old.
func damagedOriginal(t testing.TB) (whole map[string][]byte, names []string, written []string) {
	d := mustCreateLog(t, t.TempDir())
	written = make([]string, 81)
	for i := uint64(1); i <= 80; i++ {
		e := entryAt(i, 1+i/30, int(40+i%3*300))
		written[i] = string(e.GetData())
		mustSave(t, d, hardStateAt(1+i/30, 2, i-1), e)
		if i == 20 || i == 45 {
			mustSaveSnapshot(t, d, i-3, 1+(i-3)/30)
		}
		if i == 60 {
			if err := d.writeWatermark(); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole = readTree(t, d.dir)
	for _, name := range []string{"watermark", "wal/0.tmp"} {
		if _, ok := whole[name]; ok {
			names = append(names, name)
		}
	}
	for _, dir := range []string{"wal", "snap"} {
		files, err := os.ReadDir(filepath.Join(d.dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			names = append(names, filepath.Join(dir, f.Name()))
		}
	}
	return whole, names, written
}

func damageFile(files map[string][]byte, name string, op []byte) {
	b := files[name]
	at := 0
	if len(b) > 0 {
		at = (int(op[1])<<8 | int(op[2])) % len(b)
	}
	switch op[0] % 6 {
	case 0:
		if len(b) > 0 {
			b[at] ^= 1 << (op[3] % 8)
		}
	case 1:
		at -= at % walSector
		clear(b[at:min(at+walSector*(1+int(op[3]%3)), len(b))])
	case 2:
		files[name] = b[:at]
	case 3:
		delete(files, name)
	case 4:
		copy(b[at:], b[min(int(op[3])*64, len(b)):min(int(op[3])*64+int(op[4])*16, len(b))])
	case 5:
		clear(b[at:min(at+int(op[3]), len(b))])
	}
}

func checkDamaged(t *testing.T, dir string, written []string) {
	t.Helper()
	mark, _ := readWatermark(dir)
	report, derr := Examine(dir)
	d, state, err := openLog(zap.NewNop(), dir)
	if derr == nil && (err == nil) != (report.Refused == nil) {
		t.Errorf("the doctor says %s, the start says %v", report.Verdict(), err)
	}
	if err != nil {
		return
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if mark == nil || lastOf(state) < mark.Index || state.HardState.GetTerm() < mark.Term {
		t.Fatalf("opened with %d entries in term %d, the watermark is %+v", lastOf(state), state.HardState.GetTerm(), mark)
	}
	if at := state.Snapshot.GetMetadata().GetIndex(); at != 0 && at != 17 && at != 42 {
		t.Errorf("the snapshot is at %d", at)
	}
	next := state.Snapshot.GetMetadata().GetIndex() + 1
	for _, e := range state.Entries {
		if e.GetIndex() != next || string(e.GetData()) != written[next] {
			t.Fatalf("entry %d in place of entry %d, with %d bytes of data", e.GetIndex(), next, len(e.GetData()))
		}
		next++
	}
}
