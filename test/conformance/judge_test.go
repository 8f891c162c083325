package main

import (
	"slices"
	"strings"
	"testing"
)

// run is the output of a suite in which some tests pass and some do not.
const run = `{"Action":"run","Test":"TestA"}
{"Action":"run","Test":"TestA/one"}
{"Action":"output","Test":"TestA/one","Output":"got 1, want 2\n"}
{"Action":"fail","Test":"TestA/one"}
{"Action":"run","Test":"TestA/two"}
{"Action":"pass","Test":"TestA/two"}
{"Action":"fail","Test":"TestA"}
{"Action":"run","Test":"TestB"}
{"Action":"pass","Test":"TestB"}
{"Action":"run","Test":"TestC"}
{"Action":"skip","Test":"TestC"}
{"Action":"run","Test":"TestD"}
{"Action":"fail"}
`

func judged(t *testing.T, list string, filtered bool) (counts, []string) {
	t.Helper()
	r, err := read(strings.NewReader(run))
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseKnown("suite", list)
	if err != nil {
		t.Fatal(err)
	}
	return judge(r, d, filtered)
}

func TestJudge(t *testing.T) {
	const both = "fails TestA/one any because\nfails TestD any because\n"
	for _, c := range []struct {
		name, list string
		filtered   bool
		wrong      []string
	}{
		{"all failures are listed", both, false, nil},
		{"nothing is listed", "", false, []string{"TestA/one failed and is not listed", "TestD failed and is not listed"}},
		{"a listed test passes", both + "fails TestB any because\n", false, []string{`TestB is listed and ended with "pass": take it off the list`}},
		{"a listed test is skipped", both + "fails TestC any because\n", false, []string{`TestC is listed and ended with "skip": take it off the list`}},
		{"a listed test did not run", both + "fails TestE any because\n", false, []string{"TestE is listed and did not run: take it off the list"}},
		{"a listed test was filtered out", both + "fails TestE any because\n", true, nil},
		{"a parent is listed in the place of its subtest", "fails TestA any because\nfails TestD any because\n", false,
			[]string{"TestA/one failed and is not listed", `TestA is listed and ended with "fail": take it off the list`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, wrong := judged(t, c.list, c.filtered)
			if !slices.Equal(wrong, c.wrong) {
				t.Errorf("got %q, want %q", wrong, c.wrong)
			}
			if got.wrong != len(c.wrong) || got.tests != 4 || got.subtests != 2 || got.passed != 2 || got.skipped != 1 {
				t.Errorf("counts %+v", got)
			}
		})
	}
}

// TestBrokenPackage: a package that does not compile has no failed test.
func TestBrokenPackage(t *testing.T) {
	r, err := read(strings.NewReader("# a compile error\n" + `{"Action":"fail"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, wrong := judge(r, nil, false); len(wrong) != 1 {
		t.Errorf("got %q", wrong)
	}
}

func TestParseKnown(t *testing.T) {
	for text, want := range map[string]string{
		"fails TestA any":                           `suite.txt:1: "fails TestA any" is not: fails|skip TEST NODES REASON`,
		"# a comment\nflaky TestA any because":      `suite.txt:2: "flaky" is neither fails nor skip`,
		"fails TestA two because":                   `"two" is neither a number of nodes nor any`,
		"fails TestA 1 because\nfails TestA any so": "TestA is listed twice",
	} {
		if _, err := parseKnown("suite", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	list, err := parseKnown("suite", "skip TestA/a|b any needs users\nfails TestB 1 because\nfails TestB 3 so\n")
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	if got := skipPattern(list); got != `^TestA$/^a\|b$` {
		t.Errorf("got pattern %s", got)
	}
	if list[1].appliesTo(3) || !list[2].appliesTo(3) || !list[0].appliesTo(7) {
		t.Error("lines apply to the wrong sizes")
	}
}

// TestLists: the lists of all suites can be read, and belong to a suite.
func TestLists(t *testing.T) {
	files, err := knownFiles.ReadDir("known")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".txt")
		if !slices.ContainsFunc(suites, func(s suite) bool { return s.name == name }) {
			t.Errorf("known/%s belongs to no suite", f.Name())
		}
		if _, err := known(name); err != nil {
			t.Error(err)
		}
	}
}
