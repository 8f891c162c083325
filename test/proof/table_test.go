package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestTable: results of a suite are added up, and a violation, a control that was not
// caught, and a suite that did nothing fail the run.
func TestTable(t *testing.T) {
	rows := sum([]proof.Result{
		{Suite: "power cuts", Runs: 3, Operations: 10, Seconds: 2},
		{Suite: "power cuts", Runs: 4, Operations: 5, Seconds: 1, Controls: 2, Caught: 2},
		{Suite: "another", Runs: 1, Simulated: true},
	})
	var out bytes.Buffer
	printTable(&out, rows)
	if !strings.Contains(out.String(), "power cuts  7     15          3s real       0           2 of 2") {
		t.Errorf("the table is\n%s", &out)
	}
	if err := verdict(rows); err != nil {
		t.Error(err)
	}
	for _, bad := range []proof.Result{{Suite: "x", Runs: 1, Violations: 1}, {Suite: "x", Controls: 2, Caught: 1}, {Suite: "x"}} {
		if verdict(sum([]proof.Result{bad})) == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

// TestPromises: the table is written between its markers, and never with a violation.
func TestPromises(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(path, []byte("before\n"+promisesBegin+"old\n"+promisesEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	results := []proof.Result{{Suite: "power cuts", Runs: 3, Operations: 7, Promises: []string{"durable"}}, {Suite: "b", Runs: 2, Promises: []string{"durable"}}}
	if err := writePromises(path, results); err == nil {
		t.Error("most promises have no results, and the table was written")
	}
	for _, p := range promises {
		if p.name != "durable" {
			results = append(results, proof.Result{Suite: "c", Runs: 1, Promises: []string{p.name}})
		}
	}
	if err := writePromises(path, results); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "no violation found in 5 runs with 7 judged operations") || strings.Contains(string(text), "\nold\n") || !strings.HasSuffix(string(text), "\nafter\n") {
		t.Errorf("%s, %v", text, err)
	}
	results[0].Violations = 1
	if err := writePromises(path, results); err == nil {
		t.Error("a violation was written down as a promise kept")
	}
}

// testsBelow returns the tests below a directory with what they do, by directory.
func testsBelow(t *testing.T, root string) map[string]map[string]string {
	t.Helper()
	found := make(map[string]map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		dir, rerr := filepath.Rel(root, filepath.Dir(path))
		if found[dir] == nil {
			found[dir] = make(map[string]string)
		}
		for _, m := range regexp.MustCompile(`(?ms)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\) +\{([^\n]*\}$|.*?^\})`).FindAllStringSubmatch(string(text), -1) {
			found[dir][m[1]] = m[2]
		}
		return errors.Join(err, rerr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var root = filepath.Join("..", "..")

// TestPromisesHaveTests: the tests that the README names exist.
func TestPromisesHaveTests(t *testing.T) {
	source := testsBelow(t, root)
	for _, p := range promises {
		for _, name := range p.tests {
			if !slices.ContainsFunc(slices.Collect(maps.Values(source)), func(in map[string]string) bool { _, ok := in[name]; return ok }) {
				t.Errorf("%s: there is no %s", p.name, name)
			}
		}
	}
}

// TestSuitesHaveTests: what suites name exists, and a name is that of one test, so that no
// other one is counted.
func TestSuitesHaveTests(t *testing.T) {
	source := testsBelow(t, root)
	for _, s := range suites {
		for _, name := range s.tests {
			if err := matches(&s, name, source); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		for _, p := range s.promises {
			if !slices.ContainsFunc(promises, func(q promise) bool { return q.name == p }) {
				t.Errorf("%s: there is no promise %q", s.name, p)
			}
		}
	}
	wrong := suite{pkgs: "./test/proof ./internal/proof"}
	for _, name := range []string{"TestNothing", "Suites", "TestSuites"} {
		if matches(&wrong, name, source) == nil {
			t.Errorf("%s is taken for a test", name)
		}
	}
}

// matches checks one entry of a suite.
func matches(s *suite, name string, source map[string]map[string]string) error {
	pattern, err := regexp.Compile("^(" + name + ")$")
	if err != nil {
		return err
	}
	count := 0
	for dir, tests := range source {
		if s.pkgs != "./..." && !slices.Contains(strings.Fields(s.pkgs), "./"+filepath.ToSlash(dir)) {
			continue
		}
		for test := range tests {
			if pattern.MatchString(test) {
				count++
			}
		}
	}
	switch {
	case count == 0:
		return fmt.Errorf("there is no %s in %s", name, s.pkgs)
	case count > 1 && regexp.QuoteMeta(name) == name:
		return fmt.Errorf("%d tests have the name %s", count, name)
	}
	return nil
}

// TestVirtualTimeIsVirtual: the tests of virtual time run in bubbles, and docs/testing.md
// names their packages.
func TestVirtualTimeIsVirtual(t *testing.T) {
	source := testsBelow(t, root)
	text, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	bubble := regexp.MustCompile(`\b(synctest\.Test|inBubble|\w+InBubbles?|running|in)\(t\b`)
	for _, s := range suites {
		if !strings.HasPrefix(s.name, "virtual time") {
			continue
		}
		for _, pkg := range strings.Fields(s.pkgs) {
			dir := strings.TrimPrefix(pkg, "./")
			if !strings.Contains(string(text), "`"+dir+"`") {
				t.Errorf("docs/testing.md does not name %s", dir)
			}
			for name, body := range source[filepath.FromSlash(dir)] {
				if regexp.MustCompile(s.pattern()).MatchString(name) && !bubble.MatchString(body) {
					t.Errorf("%s of %s does not run in a bubble", name, dir)
				}
			}
		}
	}
}

// TestTableOfControlsIsCurrent: docs/testing.md has the controls of the last run that was kept,
// and each control of the source is one of them.
func TestTableOfControlsIsCurrent(t *testing.T) {
	sums, err := readSums(filepath.Join(root, sumsFile))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), controlsBegin+controlsTable(sums)+controlsEnd) {
		t.Error("the table of controls in docs/testing.md is not that of docs/proof.json: make promises")
	}
	control := regexp.MustCompile(`^Test(Contract|Virtual)?Control`)
	for dir, tests := range testsBelow(t, root) {
		for name := range tests {
			if !control.MatchString(name) || strings.HasSuffix(name, "ControlNone") {
				continue
			}
			if !slices.ContainsFunc(sums, func(r proof.Result) bool { return r.Test == name }) {
				t.Errorf("%s of %s records nothing", name, dir)
			}
		}
	}
}

// TestSums: sums of suites that were not run again stay, and controls are not added up.
func TestSums(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proof.json")
	var results []proof.Result
	for _, s := range suites {
		results = append(results, proof.Result{Suite: s.name, Runs: 2})
	}
	if err := writeSums(path, results[1:]); err == nil {
		t.Error("sums without a suite were kept")
	}
	results = append(results, proof.Result{Suite: suites[0].name, Runs: 3})
	for _, planted := range []string{"b", "a"} {
		results = append(results, proof.Result{Suite: suites[0].name, Controls: 1, Caught: 1, Planted: planted, Test: "TestX", Tries: 4, Seconds: 1.5})
	}
	if err := writeSums(path, results); err != nil {
		t.Fatal(err)
	}
	if err := writeSums(path, []proof.Result{{Suite: suites[1].name, Runs: 7}}); err != nil {
		t.Fatal(err)
	}
	sums, err := readSums(path)
	if err != nil || len(sums) != len(suites)+2 || sums[0].Runs != 5 || sums[1].Planted != "a" || sums[2].Planted != "b" || sums[3].Runs != 7 || sums[4].Runs != 2 {
		t.Errorf("%+v, %v", sums[:5], err)
	}
	if table := controlsTable(sums); !strings.Contains(table, "| a | `TestX` | 4 | 1.50 | – |\n| b |") {
		t.Errorf("the table is\n%s", table)
	}
}

// TestPromisesAreCurrent: the README has the figures of the last run that was kept.
func TestPromisesAreCurrent(t *testing.T) {
	sums, err := readSums(filepath.Join(root, sumsFile))
	if errors.Is(err, os.ErrNotExist) { // no run was kept yet, so there is nothing to say
		readme, err := os.ReadFile(filepath.Join(root, "README.md"))
		if err != nil || !strings.Contains(string(readme), promisesBegin+promisesEnd) {
			t.Errorf("README.md has figures, and %s does not exist: %v", sumsFile, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := verdict(sum(sums)); err != nil {
		t.Error(err)
	}
	table, err := promisesTable(sums)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), promisesBegin+table+promisesEnd) {
		t.Error("the table of promises in README.md is not that of docs/proof.json: make promises")
	}
}

// TestFuzzTargets: each fuzz target says what has to hold and has a corpus, and docs/testing.md
// lists it, with what campaigns did.
func TestFuzzTargets(t *testing.T) {
	targets, err := fuzzTargets(root)
	if err != nil || len(targets) < 20 {
		t.Fatalf("%d targets, %v", len(targets), err)
	}
	for _, f := range targets {
		if f.holds == "" || f.inputs == 0 {
			t.Errorf("%s of %s has %d inputs, and its comment says %q", f.name, f.dir, f.inputs, f.holds)
		}
	}
	table, err := fuzzTable(root, filepath.Join(root, fuzzFile))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil || !strings.Contains(string(text), fuzzBegin+table+fuzzEnd) {
		t.Errorf("the table of fuzz targets in docs/testing.md is not that of the source and %s: go run ./test/proof -fuzz docs/testing.md (%v)", fuzzFile, err)
	}
}

// TestCampaigns: lines about one target add up, and a line that is none is refused.
func TestCampaigns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fuzz.txt")
	targets := []fuzzTarget{{dir: "a", name: "FuzzA"}, {dir: "b", name: "FuzzA"}}
	for text, ok := range map[string]bool{"a FuzzA 30 1000\nb FuzzA 1 2\na FuzzA 60 5\nc FuzzC 1 1\n": true, "a FuzzA 30\n": false} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := addCampaigns(path, targets); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	if targets[0].seconds != 90 || targets[0].executions != 1005 || targets[1].seconds != 1 {
		t.Errorf("%+v", targets)
	}
	if got := holds("// FuzzA: one\n// two | three.\n", "FuzzA"); strings.TrimSpace(got) != `one two \| three.` {
		t.Errorf("%q", got)
	}
}

// TestShorten: of what a test says, its last lines are kept, and before them the lines that
// it wrote itself.
func TestShorten(t *testing.T) {
	var said []string
	for i := range 5 * keptLines {
		line := fmt.Sprint("goroutine ", i)
		if i == 7 || i == keptLines {
			line = fmt.Sprintf("x_test.go:%d: why", i)
		}
		said = shorten(append(said, line))
	}
	if len(said) > 3*keptLines || said[0] != "x_test.go:7: why" || said[1] != "x_test.go:100: why" || said[len(said)-1] != fmt.Sprint("goroutine ", 5*keptLines-1) {
		t.Errorf("%d lines: %q", len(said), said[:3])
	}
}

// TestCount: what go test says is counted by tests, not by subtests.
func TestCount(t *testing.T) {
	in := `{"Action":"output","Package":"p","Test":"TestA","Output":"x_test.go:1: NOT TESTED: no root\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB/sub"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p"}
`
	var out bytes.Buffer
	c, err := count(strings.NewReader(in), &out)
	if err != nil || c != (counted{1, 1, 1}) || !strings.Contains(out.String(), "NOT TESTED: no root") || !strings.Contains(out.String(), "why") {
		t.Errorf("%+v, %v, %s", c, err, &out)
	}
}
