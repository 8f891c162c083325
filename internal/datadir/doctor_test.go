package datadir

import (
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctor(t *testing.T) {
	segmentsOf(t, 8<<10)
	path := t.TempDir()
	// Most likely a misspelled name: "ok" would mean a member that is well.
	if report, err := Examine(path); err != nil || report.Verdict() != "no data of a member; a start would begin as a new one" {
		t.Fatalf("an empty directory: %s, %v", report.Verdict(), err)
	}
	dir := mustOpenDir(t, path)
	if err := errors.Join(dir.Claim(7, 0xabc, 0, "seven"), dir.Close()); err != nil {
		t.Fatal(err)
	}
	report, err := Examine(path)
	if err != nil || report.Verdict() != "ok" {
		t.Fatalf("a claimed directory without a log: %s, %v", report.Verdict(), err)
	}
	d := mustCreateLog(t, path)
	mustSave(t, d, hardStateAt(3, 7, 40), entriesAt(1, 50, 3, 300)...)
	mustSaveSnapshot(t, d, 40, 3)
	mustSave(t, d, nil, entryAt(51, 3, 2000))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before := readTree(t, path)
	if report, err = Examine(path); err != nil || report.Verdict() != "ok" {
		t.Fatalf("%s, %v", report.Verdict(), err)
	}
	text := report.String()
	for _, want := range []string{
		path, "7 (seven), cluster 0000000000000abc, new", "last entry 51", "term 3, vote 7, commit 40",
		"0000000000000003-0000000000000028.snap", "1; a start would begin with the one at entry 40", "0000000000000000-0000000000000000.wal",
		"member 7, term 3, vote 7, entry 51", "verdict     ok\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	sameTree(t, before, readTree(t, path))
}

func TestDoctorTornTail(t *testing.T) {
	dir := logOf(t, 3000)
	path, frames, end := lastSegmentPath(t, dir)
	entry := frames[len(frames)-2]
	zeroAt(t, path, (entry/walSector+1)*walSector, end)
	before := readTree(t, dir)
	report, err := Examine(dir)
	if err != nil || !strings.HasPrefix(report.Verdict(), "torn tail, which the next start cuts off: ") || report.TornOffset != int64(entry) || report.TornFile != path {
		t.Errorf("%s, %v", report.Verdict(), err)
	}
	sameTree(t, before, readTree(t, dir))
}

func TestDoctorRemovedMember(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	if err := errors.Join(d.Claim(7, 1, 0, ""), d.MarkRemoved(), d.Close()); err != nil {
		t.Fatal(err)
	}
	report, err := Examine(path)
	if err != nil || !strings.HasPrefix(report.Verdict(), "refused: "+identityPath(path)+": member 7 was removed") {
		t.Errorf("%s, %v", report.Verdict(), err)
	}
	if _, err := Open(path); err == nil || report.Refused == nil || err.Error() != report.Refused.Error() {
		t.Errorf("Open: %v; Examine: %v", err, report.Refused)
	}
}

func TestDoctorNoDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	if _, err := Examine(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

// TestDoctorAgreesWithAStart damages every file of a directory in many ways. The
// doctor and a start reach the same verdict, and the doctor changes nothing.
func TestDoctorAgreesWithAStart(t *testing.T) {
	segmentsOf(t, 4<<10)
	whole, names, written := damagedOriginal(t)
	for _, name := range names {
		for op := range byte(6) {
			for _, at := range []byte{0, 2, 8} {
				files := maps.Clone(whole)
				files[name] = bytes.Clone(whole[name])
				damageFile(files, name, []byte{op, at, 40, 9, 16})
				dir := writeTree(t, t.TempDir(), files)
				before := readTree(t, dir)
				if _, err := Examine(dir); err != nil && !strings.Contains(err.Error(), "upgrade") {
					t.Errorf("%s, damage %d at %d: %v", name, op, at, err)
				}
				sameTree(t, before, readTree(t, dir))
				checkDamaged(t, dir, written)
			}
		}
	}
}
