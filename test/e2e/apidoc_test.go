package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
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

// TestAPIDocument runs the examples of docs/api.md in order against a node without
// data. Revisions count from the first example on, so a new one in the middle changes
// those after it.
func TestAPIDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	requireTool(t, "curl")
	c := newCluster(t, 1)
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".curlrc"), []byte("silent\nshow-error\nmax-time = 20\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(c.node(1).clientPort)
	all := examples(string(text))
	for i := range all {
		e := &all[i]
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(e.command, "12380", port))
		cmd.Env = append(os.Environ(), "CURL_HOME="+home)
		out, _ := cmd.CombinedOutput() // an example may end a stream with a timeout
		got := strings.NewReplacer("\r", "", port, "12380").Replace(string(out))
		if !e.matches(got) {
			t.Errorf("docs/api.md:%d: %s\nprints %s\nwant   %s", e.line, e.command, got, e.output)
		}
	}
	if len(all) < 30 {
		t.Errorf("only %d examples were found", len(all))
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
