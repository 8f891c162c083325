package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// fuzzFile keeps what campaigns of fuzzing took: each line has a directory, a target, its
// seconds of CPU time, and its executions. Lines about one target add up.
var fuzzFile = filepath.Join("docs", "fuzz.txt")

const (
	fuzzBegin = "<!-- fuzz: written by go run ./test/proof -fuzz docs/testing.md -->\n"
	fuzzEnd   = "<!-- fuzz: end -->"
)

// fuzzTarget is a fuzz target of the source, and what campaigns did with it.
type fuzzTarget struct {
	dir, name, holds    string
	inputs              int // in its corpus
	seconds, executions int64
}

var fuzzFunction = regexp.MustCompile(`(?m)((?:^//.*\n)*)^func (Fuzz\w+)\(`)

// fuzzTargets returns the targets below a directory, in order.
func fuzzTargets(root string) (out []fuzzTarget, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		dir, rerr := filepath.Rel(root, filepath.Dir(path))
		for _, m := range fuzzFunction.FindAllStringSubmatch(string(text), -1) {
			inputs, gerr := filepath.Glob(filepath.Join(filepath.Dir(path), "testdata", "fuzz", m[2], "*"))
			err = errors.Join(err, gerr)
			out = append(out, fuzzTarget{dir: filepath.ToSlash(dir), name: m[2], holds: holds(m[1], m[2]), inputs: len(inputs)})
		}
		return errors.Join(err, rerr)
	})
	slices.SortFunc(out, func(a, b fuzzTarget) int {
		return cmp.Or(strings.Compare(a.dir, b.dir), strings.Compare(a.name, b.name))
	})
	return out, err
}

// holds returns the comment of a target without its name.
func holds(comment, name string) string {
	text := strings.Join(strings.Fields(strings.ReplaceAll("\n"+comment, "\n//", " ")), " ")
	return strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(text, name), ":"), "|", `\|`)
}

// addCampaigns adds what campaigns did to the targets.
func addCampaigns(path string, targets []fuzzTarget) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var dir, name string
		var seconds, executions int64
		if _, err := fmt.Sscan(line, &dir, &name, &seconds, &executions); err != nil {
			return fmt.Errorf("%s: %q: %w", path, strings.TrimSpace(line), err)
		}
		at := slices.IndexFunc(targets, func(t fuzzTarget) bool { return t.dir == dir && t.name == name })
		if at >= 0 { // it may have been removed since
			targets[at].seconds += seconds
			targets[at].executions += executions
		}
	}
	return nil
}

// fuzzTable says what each target has to show, and how long it was run.
func fuzzTable(root, campaigns string) (string, error) {
	targets, err := fuzzTargets(root)
	if err == nil {
		err = addCampaigns(campaigns, targets)
	}
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("| target | what it does, and what has to hold | inputs | CPU minutes | executions |\n| --- | --- | --- | --- | --- |\n")
	for _, t := range targets {
		fmt.Fprintf(&b, "| `%s` %s | %s | %d | %.1f | %s |\n", strings.TrimPrefix(t.dir, "internal/"), t.name, strings.TrimSpace(t.holds), t.inputs, float64(t.seconds)/60, digits(t.executions))
	}
	return b.String(), nil
}

// writeFuzz writes the table, and adds up the lines of the campaigns.
func writeFuzz(path string) error {
	targets, err := fuzzTargets(".")
	if err == nil {
		err = addCampaigns(fuzzFile, targets)
	}
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, t := range targets {
		if t.executions > 0 {
			fmt.Fprintln(&sums, t.dir, t.name, t.seconds, t.executions)
		}
	}
	table, err := fuzzTable(".", fuzzFile)
	if err == nil {
		err = replaceBetween(path, fuzzBegin, table, fuzzEnd)
	}
	return errors.Join(err, os.WriteFile(fuzzFile, []byte(sums.String()), 0o644))
}
