package datadir

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// replacementFor returns a directory with a finished copy that belongs to another
// cluster.
func replacementFor(t *testing.T) (dir string, r *Replacement) {
	t.Helper()
	segmentsOf(t, 64<<10)
	dir = filepath.Join(t.TempDir(), "data")
	d := mustOpenDir(t, dir)
	if err := d.Claim(1, 7, 0, "one"); err != nil {
		t.Fatal(err)
	}
	l := mustCreateLog(t, dir)
	mustSave(t, l, hardStateAt(2, 1, 3), entriesAt(1, 4, 2, 20)...)
	if err := errors.Join(l.Close(), d.MarkStarted(), os.MkdirAll(filepath.Join(dir, "store", "deep"), 0o700)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "store", "deep", "000001.sst"), "a table")
	writeFile(t, filepath.Join(dir, "store", "CURRENT"), "old")
	before := readTree(t, dir)
	r, err := d.NewReplacement()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range maps.Clone(before) {
		if name != "lock" {
			before[filepath.Join(recoveryName, name)] = b
		}
	}
	sameTree(t, before, readTree(t, dir))
	id, _ := d.Identity()
	id.ClusterID = 8
	if err := r.ResetLog(id); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(r.Path, "store", "CURRENT"), "new")
	fresh, _, err := OpenLog(zap.NewNop(), r.Path, Owner{MemberID: 1, ClusterID: 8})
	if err != nil {
		t.Fatal(err)
	}
	mustSaveSnapshot(t, fresh, 5, 3)
	if err := errors.Join(fresh.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, r
}

// copyOf returns a copy of a directory under the same name, as a crash leaves it.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestReplacementCrashAtEachStep checks D7: before the plan exists, the directory is
// the old one; afterwards a start is refused, and the next run completes it.
func TestReplacementCrashAtEachStep(t *testing.T) {
	dir, r := replacementFor(t)
	d := mustOpenDir(t, copyOf(t, dir))
	if id, _ := d.Identity(); id.ClusterID != 7 {
		t.Errorf("before the plan the directory belongs to %+v", id)
	}
	completed := copyOf(t, dir)
	if err := (&Replacement{dir: completed, Path: filepath.Join(completed, recoveryName), Backup: filepath.Join(completed, filepath.Base(r.Backup))}).Complete(); err != nil {
		t.Fatal(err)
	}
	want := readTree(t, completed)
	for name, content := range map[string]string{
		"store/CURRENT": "new", "store/deep/000001.sst": "a table", filepath.Base(r.Backup) + "/store/CURRENT": "old",
	} {
		if string(want[name]) != content {
			t.Errorf("%s is %q, want %q", name, want[name], content)
		}
	}
	if d = mustOpenDir(t, completed); d.identity.ClusterID != 8 {
		t.Errorf("afterwards the directory belongs to %+v", d.identity)
	}
	delete(want, "lock")

	steps := len(recoverySteps(dir, r.Backup))
	for done := range steps {
		crashed := copyOf(t, dir)
		backup := filepath.Join(crashed, filepath.Base(r.Backup))
		writeFile(t, planPath(crashed), `{"backup":"`+filepath.Base(r.Backup)+`"}`)
		for i, step := range recoverySteps(crashed, backup)[:done] {
			if err := step(); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		_, err := Open(crashed)
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "run kvd recover") {
			t.Errorf("after %d steps a start says %v", done, err)
		}
		if report, err := Examine(crashed); err != nil || report.Refused == nil {
			t.Errorf("after %d steps Examine: %v, %v", done, report, err)
		}
		d, finished, err := OpenForRecovery(crashed)
		if err != nil || finished != backup {
			t.Fatalf("after %d steps: %s, %v", done, finished, err)
		}
		_ = d.Close()
		got := readTree(t, crashed)
		delete(got, "lock")
		if !maps.EqualFunc(want, got, func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Errorf("completed after %d steps, the directory differs", done)
		}
	}
}

func TestReplacementDamagedPlan(t *testing.T) {
	for _, plan := range []string{"", "{", `{"backup":""}`, `{"backup":"../elsewhere"}`} {
		dir, _ := replacementFor(t)
		writeFile(t, planPath(dir), plan)
		before := readTree(t, dir)
		var refused *RefusedError
		if _, _, err := OpenForRecovery(dir); !errors.As(err, &refused) {
			t.Errorf("plan %q: %v", plan, err)
		}
		before["lock"] = readTree(t, dir)["lock"]
		sameTree(t, before, readTree(t, dir))
	}
}
