package main

import (
	"bufio"
	"embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed known/*.txt
var knownFiles embed.FS

// difference is a line of a list in known/: a test that is expected not to
// pass on kvd, and why.
type difference struct {
	// what happens: "fails" or "skip". What fails is run and must fail. What is
	// skipped is not run, because it would need something that kvd lacks as a
	// whole, or because it would take the suite down with it.
	what  string
	test  string // the full name, as go test prints it
	nodes string // the size of the cluster to which the line applies, or "any"
	why   string
}

// known reads the list of a suite. A suite without a list has no differences.
func known(suite string) ([]difference, error) {
	text, err := knownFiles.ReadFile("known/" + suite + ".txt")
	if err != nil {
		return nil, nil //nolint:nilerr // there is no such list
	}
	return parseKnown(suite, string(text))
}

func parseKnown(suite, text string) (list []difference, _ error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		d, err := parseDifference(line)
		if err != nil {
			return nil, fmt.Errorf("known/%s.txt:%d: %w", suite, n, err)
		}
		if slices.ContainsFunc(list, d.sameTest) {
			return nil, fmt.Errorf("known/%s.txt:%d: %s is listed twice", suite, n, d.test)
		}
		list = append(list, d)
	}
	return list, lines.Err()
}

func parseDifference(line string) (difference, error) {
	f := strings.SplitN(line, " ", 4)
	if len(f) < 4 {
		return difference{}, fmt.Errorf("%q is not: fails|skip TEST NODES REASON", line)
	}
	d := difference{what: f[0], test: f[1], nodes: f[2], why: strings.TrimSpace(f[3])}
	if d.what != "fails" && d.what != "skip" {
		return d, fmt.Errorf("%q is neither fails nor skip", d.what)
	}
	if _, err := strconv.Atoi(d.nodes); err != nil && d.nodes != "any" {
		return d, fmt.Errorf("%q is neither a number of nodes nor any", d.nodes)
	}
	return d, nil
}

func (d difference) sameTest(other difference) bool {
	return d.test == other.test && (d.nodes == other.nodes || d.nodes == "any" || other.nodes == "any")
}

func (d difference) appliesTo(nodes int) bool {
	return d.nodes == "any" || d.nodes == strconv.Itoa(nodes)
}

// skipPattern returns the value of go test's -skip for the list, or "".
func skipPattern(list []difference) string {
	var names []string
	for _, d := range list {
		if d.what == "skip" {
			names = append(names, anchored(d.test))
		}
	}
	return strings.Join(names, "|")
}

// anchored makes a pattern for exactly one test: go test matches each element
// of a name by itself.
func anchored(test string) string {
	var parts []string
	for p := range strings.SplitSeq(test, "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(p)+"$")
	}
	return strings.Join(parts, "/")
}

// judge compares a run with the list. It returns what is wrong: failures that
// are not listed, and listed tests that passed or did not run, so that the list
// never holds more than it must. A filtered run may leave tests out.
func judge(r *results, list []difference, filtered bool) (c counts, wrong []string) {
	c = r.count()
	expected := map[string]bool{}
	for _, d := range list {
		if d.what == "fails" {
			expected[d.test] = true
		}
	}
	failures := r.failures()
	for _, name := range failures {
		if expected[name] {
			c.listed++
		} else {
			wrong = append(wrong, name+" failed and is not listed")
		}
	}
	for _, d := range list {
		if d.what != "fails" || slices.Contains(failures, d.test) {
			continue
		}
		switch o, ran := r.outcomes[d.test]; {
		case !ran && !filtered:
			wrong = append(wrong, d.test+" is listed and did not run: take it off the list")
		case ran:
			wrong = append(wrong, fmt.Sprintf("%s is listed and ended with %q: take it off the list", d.test, o))
		}
	}
	if r.broken && len(failures) == 0 {
		wrong = append(wrong, "the package failed without a failed test")
	}
	c.wrong = len(wrong)
	return c, wrong
}
