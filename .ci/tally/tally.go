// Command tally reads the output of "go test -json". It prints the result of each
// package and the output of failed tests, and appends the numbers of passed,
// failed and skipped tests to the file named by its argument.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
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
	total  counts
	pkg    map[string]*counts
	output map[string]*strings.Builder
}

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
	if err := t.save(os.Args[1]); err != nil {
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
	}
}

// endPackage counts a package that failed without a failed test (for example,
// because it does not compile) as one failure.
func (t *tally) endPackage(e event, key string) {
	c := t.counts(e.Package)
	if e.Action == "fail" && c.failed == 0 {
		c.failed++
	}
	if c.failed > 0 {
		fmt.Print(t.outputOf(key))
	}
	if *c != (counts{}) {
		fmt.Printf("%-5s %s %.1fs: %d passed, %d failed, %d skipped\n", e.Action, e.Package, e.Elapsed, c.passed, c.failed, c.skipped)
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

func (t *tally) save(name string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, t.total.passed, t.total.failed, t.total.skipped); err != nil {
		return err
	}
	return f.Close()
}
