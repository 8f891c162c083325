// Command tally reads the output of "go test -json". It prints the result of each
// package and the output of failed tests. It appends the numbers of passed, failed
// and skipped tests to the file named by its first argument, and an excerpt of each
// failure to the one named by its second.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// event is one line of "go test -json".
type event struct {
	Action     string
	Package    string
	ImportPath string // set instead of Package in build events
	Test       string
	Elapsed    float64
	Output     string
}

type counts struct{ passed, failed, skipped int }

// tally collects the output of each test until its result is known.
type tally struct {
	total    counts
	pkg      map[string]*counts
	output   map[string]*strings.Builder
	failures strings.Builder // the excerpts
}

const (
	module = "github.com/kvd-io/kvd/"
	// Limits of the excerpt of a failure.
	excerptLines, excerptColumns = 15, 400
)

// crash matches the line after which the details follow. Otherwise, they are at the end.
var crash = regexp.MustCompile(`^(panic: |fatal error: |WARNING: DATA RACE)`)

func main() {
	t := tally{pkg: make(map[string]*counts), output: make(map[string]*strings.Builder)}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		t.take(e)
	}
	if err := lines.Err(); err != nil {
		fmt.Println("read the output of go test:", err)
		t.total.failed++
	}
	if err := errors.Join(add(os.Args[1], fmt.Sprintln(t.total.passed, t.total.failed, t.total.skipped)), add(os.Args[2], t.failures.String())); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if t.total.failed > 0 {
		os.Exit(1)
	}
}

func (t *tally) take(e event) {
	key := e.Package + e.ImportPath + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if t.output[key] == nil {
			t.output[key] = &strings.Builder{}
		}
		t.output[key].WriteString(e.Output)
	case "build-fail":
		fmt.Print(t.outputOf(key))
		t.excerpt(e.ImportPath, t.outputOf(key))
	case "pass", "fail", "skip":
		if e.Test != "" {
			t.endTest(e, key)
		} else {
			t.endPackage(e, key)
		}
		delete(t.output, key)
	}
}

func (t *tally) endTest(e event, key string) {
	c := t.counts(e.Package)
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		fmt.Printf("skipped: %s %s\n%s", e.Package, e.Test, t.outputOf(key))
	case "fail":
		c.failed++
		fmt.Printf("FAILED: %s %s\n%s", e.Package, e.Test, t.outputOf(key))
		t.excerpt(e.Package+" "+e.Test, t.outputOf(key))
	}
}

// excerpt keeps some lines of a failure. A test that failed only because its subtests
// did has none.
func (t *tally) excerpt(name, output string) {
	var lines []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- FAIL: ") {
			lines = append(lines, line[:min(len(line), excerptColumns)])
		}
	}
	if len(lines) == 0 {
		return
	}
	begin := slices.IndexFunc(lines, crash.MatchString)
	if begin < 0 {
		begin = max(0, len(lines)-excerptLines)
	}
	fmt.Fprintln(&t.failures, strings.TrimPrefix(name, module))
	for _, line := range lines[begin:min(begin+excerptLines, len(lines))] {
		fmt.Fprintf(&t.failures, "    %s\n", line)
	}
}

// endPackage counts a package that failed without a failed test (for example,
// because it does not compile) as one failure.
func (t *tally) endPackage(e event, key string) {
	c := t.counts(e.Package)
	if e.Action == "fail" && c.failed == 0 {
		c.failed++
		t.excerpt(e.Package, t.outputOf(key))
	}
	if c.failed > 0 {
		fmt.Print(t.outputOf(key))
	}
	if *c != (counts{}) {
		fmt.Printf("%-5s %s %.1fs: %d passed, %d failed, %d skipped\n", e.Action, strings.TrimPrefix(e.Package, module), e.Elapsed, c.passed, c.failed, c.skipped)
	}
	t.total.passed += c.passed
	t.total.failed += c.failed
	t.total.skipped += c.skipped
}

func (t *tally) counts(pkg string) *counts {
	if t.pkg[pkg] == nil {
		t.pkg[pkg] = &counts{}
	}
	return t.pkg[pkg]
}

func (t *tally) outputOf(key string) string {
	if b := t.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// add appends to a file.
func add(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
