package datadir

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A damaged store moves aside, an unfinished new one does not count, and neither is a plan
// left that would rebuild the store again.
func TestRebuild(t *testing.T) {
	path := t.TempDir()
	d := mustOpenDir(t, path)
	store := StorePath(path)
	fill := func(text string) {
		t.Helper()
		if err := os.MkdirAll(store, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(store, "table"), text)
	}
	begin := func(wantAside string) {
		t.Helper()
		if err := d.PlanRebuild(); err != nil || !d.RebuildPlanned() {
			t.Fatal(err)
		}
		aside, err := d.BeginRebuild()
		if _, gone := os.Stat(store); err != nil || aside != wantAside || !d.Rebuilding() || d.RebuildPlanned() || !errors.Is(gone, os.ErrNotExist) {
			t.Fatalf("moved to %q, %v; rebuilding: %v, planned: %v, the store: %v", aside, err, d.Rebuilding(), d.RebuildPlanned(), gone)
		}
	}
	end := func() {
		t.Helper()
		if err := d.EndRebuild(); err != nil || d.Rebuilding() {
			t.Fatal(err)
		}
	}
	begin("") // there was no store
	fill("half of a new store")
	begin("")
	fill("first")
	end()
	begin(store + ".damaged-1")
	fill("second")
	end()
	end() // nothing is left to end
	if err := CanRebuild(path, 0); err != nil {
		t.Error(err)
	}
	begin(store + ".damaged-2")
	if err := CanRebuild(path, 0); err == nil || !strings.Contains(err.Error(), "replace the disk") {
		t.Errorf("a third rebuild: %v", err)
	}
	tree := readTree(t, path)
	maps.DeleteFunc(tree, func(name string, _ []byte) bool { return !strings.Contains(name, "damaged") })
	if got := slices.Sorted(maps.Keys(tree)); len(got) != 2 || string(tree[got[0]]) != "first" || string(tree[got[1]]) != "second" {
		t.Errorf("kept aside: %q", tree)
	}
}

// A store fits a log that goes on where it ends, or whose snapshot has a body.
func TestJudgeStore(t *testing.T) {
	const initial = 1
	dir := t.TempDir()
	if err := os.Mkdir(snapDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, BodyPath(dir, 30), "body")
	var refused *RefusedError
	for _, c := range []struct {
		index, snapshot, last uint64
		behind, refused       bool
	}{
		{index: 0, snapshot: initial, last: 9},
		{index: 9, snapshot: initial, last: 9},
		{index: 10, snapshot: initial, last: 9, refused: true},
		{index: 20, snapshot: 20, last: 25},
		{index: 19, snapshot: 20, last: 25, refused: true, behind: true},
		{index: 19, snapshot: 30, last: 35},
		{index: 36, snapshot: 30, last: 35, refused: true},
	} {
		err := JudgeStore(dir, initial, c.index, c.snapshot, c.last)
		if (err != nil) != c.refused || errors.As(err, &refused) != c.refused || errors.Is(err, ErrStoreBehind) != c.behind {
			t.Errorf("%+v: %v", c, err)
		}
	}
	// What cannot be looked for is no reason for another body.
	other := t.TempDir()
	writeFile(t, snapDir(other), "")
	if err := JudgeStore(other, initial, 19, 20, 25); err == nil || errors.As(err, &refused) {
		t.Errorf("without a directory of snapshots: %v", err)
	}
}

func TestKeepBody(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	defer d.Close()
	received := filepath.Join(dir, "received")
	writeFile(t, received, "body")
	if err := d.KeepBody(received, 7); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(BodyPath(dir, 7)); err != nil || string(text) != "body" {
		t.Errorf("%q, %v", text, err)
	}
	if err := d.KeepBody(received, 8); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a body that is not there: %v", err)
	}
}

// The directory of a node has an identity if it has a log.
func TestDoctorWithoutIdentity(t *testing.T) {
	empty := t.TempDir()
	report, err := Examine(empty)
	if report.JudgeMember(); err != nil || !strings.HasPrefix(report.Verdict(), "no data of a member") || !strings.Contains(report.String(), "member      none") {
		t.Errorf("an empty directory: %s, %v", &report, err)
	}
	path := t.TempDir()
	if err := mustCreateLog(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	report, err = Examine(path)
	if before := report.Verdict(); err != nil || before != "ok" {
		t.Fatalf("a log alone: %s, %v", before, err)
	}
	if report.JudgeMember(); report.Refused == nil || !strings.Contains(report.Refused.Reason, "the identity of the member is missing") {
		t.Errorf("as the directory of a node: %s", report.Verdict())
	}
	path = t.TempDir()
	dir := mustOpenDir(t, path)
	if err := errors.Join(dir.Claim(7, 0xabc, 0, "seven"), dir.Close(), mustCreateLog(t, path).Close()); err != nil {
		t.Fatal(err)
	}
	report, err = Examine(path)
	if report.JudgeMember(); err != nil || report.Verdict() != "ok" {
		t.Errorf("with its identity: %s, %v", report.Verdict(), err)
	}
}
