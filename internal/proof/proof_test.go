package proof

import "testing"

// TestRecord: what is recorded can be read back, with the name of the test, and
// nothing is written without the variable.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Variable, "")
	t.Run("off", func(t *testing.T) { Record(t, Result{Suite: "nothing"}) })
	t.Setenv(Variable, dir)
	t.Run("on", func(t *testing.T) {
		Record(t, Result{Suite: "a", Runs: 2, Operations: 3, Controls: 1, Caught: 1})
		Record(t, Result{Suite: "b", Simulated: true, Seconds: 1.5})
	})
	got, err := Read(dir)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	runs := got[0].Runs + got[1].Runs
	if runs != 2 || got[0].Test != "TestRecord/on" || got[0].Violations+got[1].Violations != 0 {
		t.Errorf("%+v", got)
	}
}

// failing is a test that has failed.
type failing struct {
	testing.TB
	cleanup func()
}

func (failing) Name() string        { return "TestThatFails" }
func (failing) Failed() bool        { return true }
func (f *failing) Cleanup(g func()) { f.cleanup = g }
func (failing) Helper()             {}

// TestFailureCounts: a test that fails after it recorded its result has a violation.
func TestFailureCounts(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Variable, dir)
	f := &failing{TB: t}
	Record(f, Result{Suite: "a", Runs: 1})
	f.cleanup()
	got, err := Read(dir)
	if err != nil || len(got) != 1 || got[0].Violations != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
