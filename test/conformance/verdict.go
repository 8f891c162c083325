package main

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is one line of "go test -json".
type event struct {
	Action string
	Test   string // "" for the package
	Output string
}

// outcome is what became of one test or subtest.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
	// unfinished is a test that began and of which nothing was heard again: the
	// process died, or its time was over.
	unfinished outcome = "run"
)

// results is what a run of a suite said.
type results struct {
	outcomes map[string]outcome
	// output of each test, for those that fail.
	output map[string]*strings.Builder
	// broken: the package failed, which no test need be the reason for.
	broken bool
}

// read collects the results from the output of "go test -json". Lines that are
// no events come from the go command itself and belong to the package.
func read(r io.Reader) (*results, error) {
	all := &results{outcomes: map[string]outcome{}, output: map[string]*strings.Builder{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			e = event{Action: "output", Output: lines.Text() + "\n"}
		}
		all.take(e)
	}
	return all, lines.Err()
}

func (r *results) take(e event) {
	switch e.Action {
	case "output", "build-output":
		if r.output[e.Test] == nil {
			r.output[e.Test] = &strings.Builder{}
		}
		r.output[e.Test].WriteString(e.Output)
	case "run", "pass", "fail", "skip":
		if e.Test == "" {
			r.broken = r.broken || e.Action == "fail"
			return
		}
		r.outcomes[e.Test] = outcome(e.Action)
		if e.Action == "pass" {
			delete(r.output, e.Test)
		}
	}
}

// leaves returns the tests with the outcome that have no subtest with it, in
// order. A test fails if a subtest does: only the leaves say something.
func (r *results) leaves(want outcome) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(r.outcomes)) {
		if r.outcomes[name] == want && !r.below(name, want) {
			names = append(names, name)
		}
	}
	return names
}

func (r *results) below(parent string, want outcome) bool {
	for name, o := range r.outcomes {
		if o == want && strings.HasPrefix(name, parent+"/") {
			return true
		}
	}
	return false
}

// failures are all that did not end well.
func (r *results) failures() []string {
	return slices.Concat(r.leaves(failed), r.leaves(unfinished))
}

// counts is a row of the table.
type counts struct {
	tests, subtests         int
	passed, listed, skipped int
	wrong                   int
}

// count counts tests and subtests alike, except that a test whose subtests
// fail is not a failure of its own.
func (r *results) count() (c counts) {
	for name, o := range r.outcomes {
		if strings.Contains(name, "/") {
			c.subtests++
		} else {
			c.tests++
		}
		switch o {
		case passed:
			c.passed++
		case skipped:
			c.skipped++
		}
	}
	return c
}
