// Package proof records the results of test suites, so that figures in documents need not be
// copied by hand. Only tests use it.
//
// With the environment variable KVD_PROOF set to a directory, each call of Record
// writes one JSON document there. "go run ./test/proof" runs the suites that way and builds
// a table from the documents; docs/testing.md describes them. Without the variable, nothing
// is written.
package proof

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Variable is the environment variable with the directory.
const Variable = "KVD_PROOF"

// Result is what one test adds to the figures of its suite. Results of the same suite
// are added up.
type Result struct {
	// Suite is the row of the table, for example, "simulation" or "power cuts". Without
	// one, the result belongs to the suite that runs the test, with its promises.
	Suite string `json:"suite"`
	// Runs counts what was begun anew: seeds, cuts, cases of damage, mutants.
	Runs int64 `json:"runs"`
	// Operations counts what was done and judged within the runs: requests, events,
	// records. It is 0 if a run is one operation.
	Operations int64 `json:"operations"`
	// Seconds is how much time passed: of the virtual clock if Simulated, otherwise of
	// the real one.
	Seconds   float64 `json:"seconds"`
	Simulated bool    `json:"simulated"`
	// Violations counts what must not be. A test that fails counts as at least one.
	Violations int64 `json:"violations"`
	// Controls counts the bugs that were planted, and Caught those that the suite
	// noticed.
	Controls int64 `json:"controls"`
	Caught   int64 `json:"caught"`
	// Planted describes the bug of a control, Tries is how many seeds, cuts, or other
	// cases it took until the suite noticed it, and Broken is what it broke, if that has
	// a name. They make a row in docs/testing.md.
	Planted string `json:"planted,omitempty"`
	Tries   int64  `json:"tries,omitempty"`
	Broken  string `json:"broken,omitempty"`
	// Promises are the promises of the README that the result is about, by their
	// names in test/proof.
	Promises []string `json:"promises,omitempty"`
	// Test is the test that recorded it, and Replay how to repeat it.
	Test   string `json:"test"`
	Replay string `json:"replay,omitempty"`
}

// Record writes the result down when the test has ended, so that whatever fails until
// then counts.
func Record(t testing.TB, r Result) {
	dir := os.Getenv(Variable)
	if dir == "" {
		return
	}
	t.Helper()
	t.Cleanup(func() {
		r.Test = t.Name()
		if t.Failed() {
			r.Violations = max(r.Violations, 1)
		}
		if err := Write(dir, r); err != nil {
			t.Errorf("record the result of %s: %v", r.Suite, err)
		}
	})
}

// Judged records operations that a judge has found no fault with, for a test that its suite
// counts as a run.
func Judged(t testing.TB, operations int) {
	t.Helper()
	Record(t, Result{Operations: int64(operations)})
}

// Caught records that a suite noticed a planted bug after so many tries, counted from the
// beginning.
func Caught(t testing.TB, suite, planted string, tries int, begin time.Time) {
	t.Helper()
	Record(t, Result{Suite: suite, Controls: 1, Caught: 1, Planted: planted, Tries: int64(tries), Seconds: time.Since(begin).Seconds()})
}

// Write puts a result into the directory, for programs that are not tests.
func Write(dir string, r Result) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	number.Lock()
	number.n++
	name := fmt.Sprintf("%d-%d.json", os.Getpid(), number.n)
	number.Unlock()
	return os.WriteFile(filepath.Join(dir, name), append(text, '\n'), 0o644)
}

// number tells the documents of one process apart.
var number struct {
	sync.Mutex
	n int
}

// Read returns all results in the directory.
func Read(dir string) ([]Result, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []Result
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var r Result
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, r)
	}
	return out, nil
}
