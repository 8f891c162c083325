package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// example is a command of docs/api.md with the output that it must have.
type example struct {
	line    int
	command string
	output  string
}

// examples returns the commands in the console blocks of a document. What follows a
// command up to the next one, or the end of the block, is its output.
func examples(text string) (out []example) {
	inBlock := false
	for i, line := range strings.Split(text, "\n") {
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case strings.HasPrefix(line, "```"):
			inBlock = line == "```console"
		case !inBlock:
		case isCommand:
			out = append(out, example{line: i + 1, command: command})
		default:
			out[len(out)-1].output += line + "\n"
		}
	}
	return out
}

// matches compares an output with that of the document, where … stands for anything.
func (e *example) matches(output string) bool {
	want := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(e.output)), "…", "(?s:.*?)")
	return regexp.MustCompile("^" + want + "$").MatchString(strings.TrimSpace(output))
}

// TestAPIDocument runs the examples of docs/api.md in order against a cluster without
// data: one node, and three, each of which gets each third request. Revisions count from
// the first example on, so a new one in the middle changes those after it.
func TestAPIDocument(t *testing.T) {
	const path = "../../docs/api.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := examples(string(text))
	if len(all) < 30 {
		t.Errorf("only %d examples were found", len(all))
	}
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, n)
			r := newDocRunner(t, c)
			r.write(".curlrc", "silent\nshow-error\nmax-time = 20\n")
			for i := range all {
				own := strconv.Itoa(c.nodes[i%n].clientPort)
				r.toNodes, r.toDocument = strings.NewReplacer("12380", own), strings.NewReplacer(own, "12380", "\r", "")
				r.examples(path, all[i:i+1])
			}
		})
	}
}

func TestExamplesAreCompared(t *testing.T) {
	all := examples("text\n```console\n$ a b\nx …\ny\n$ c\n```\n$ not this\n```sh\nnor this\n```\n")
	if len(all) != 2 || all[0].command != "a b" || all[0].output != "x …\ny\n" || all[1].command != "c" || all[1].line != 6 {
		t.Fatalf("%+v", all)
	}
	for output, want := range map[string]bool{"x 1\ny": true, "x 1\nz\ny\n": true, "x 1\nz": false, "x 1\ny\nz": false, "": false} {
		if got := all[0].matches(output); got != want {
			t.Errorf("%q: %v", output, got)
		}
	}
	if all[1].matches("x") {
		t.Error("an output that is not in the document passes")
	}
}
