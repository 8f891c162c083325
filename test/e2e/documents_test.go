package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// docRunner runs the examples of documents, one after the other, in a directory of their
// own, as if kvd were installed.
type docRunner struct {
	t   *testing.T
	dir string
	env []string
	// toNodes turns the ports in a document into those of the nodes, and toDocument back.
	toNodes, toDocument *strings.Replacer
}

// The ports of clients in documents.
var docPorts = []string{"12380", "22380", "32380"}

// newDocRunner returns a runner against the nodes of a cluster. If there are fewer than a
// document has, the last one stands for the others.
func newDocRunner(t *testing.T, c *cluster) *docRunner {
	t.Helper()
	requireTool(t, "curl")
	r := &docRunner{t: t, dir: t.TempDir()}
	var toNodes, toDocument, endpoints []string
	for i, port := range docPorts {
		m := c.nodes[min(i, len(c.nodes)-1)]
		own := strconv.Itoa(m.clientPort)
		toNodes = append(toNodes, port, own)
		if i < len(c.nodes) {
			toDocument, endpoints = append(toDocument, own, port), append(endpoints, m.url())
		}
	}
	r.toNodes, r.toDocument = strings.NewReplacer(toNodes...), strings.NewReplacer(append(toDocument, "\r", "")...)
	bin := filepath.Join(r.dir, ".bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(bin, "kvd")); err != nil {
		t.Fatal(err)
	}
	r.write(".curlrc", "silent\nmax-time = 20\n")
	r.env = environment("CURL_HOME="+r.dir, "PATH="+bin+":"+os.Getenv("PATH"), "NO_COLOR=1", "KVD_ENDPOINTS="+strings.Join(endpoints, ","))
	return r
}

// write makes a file, which may be a script.
func (r *docRunner) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(r.toNodes.Replace(text)), 0o700); err != nil {
		r.t.Fatal(err)
	}
}

// shell runs a command line and returns what it prints. What it leaves in the background
// is ended with the test.
func (r *docRunner) shell(line string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", r.toNodes.Replace(line))
	cmd.Dir, cmd.Env = r.dir, r.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	endGroup := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // most groups have ended
	cmd.Cancel = func() error { endGroup(); return nil }
	out, _ := cmd.CombinedOutput() // a status that matters is printed
	if cmd.Process != nil {
		r.t.Cleanup(endGroup)
	}
	if ctx.Err() != nil {
		r.t.Errorf("%s: does not end within %v", line, patience)
	}
	return r.toDocument.Replace(string(out))
}

// document is a Markdown file: files and examples, in order.
func (r *docRunner) document(path string) (count int) {
	r.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range docFiles(string(text)) {
		r.write(f.name, f.text)
	}
	all := examples(string(text))
	r.examples(path, all)
	return len(all)
}

// examples runs the examples of a document.
func (r *docRunner) examples(path string, all []example) {
	r.t.Helper()
	for i := range all {
		e := &all[i]
		r.t.Logf("%s:%d: %s", path, e.line, e.command)
		if got := r.shell(e.command); !e.matches(got) {
			r.t.Errorf("%s:%d: %s\nprints %s\nwant   %s", path, e.line, e.command, got, e.output)
		}
	}
}

// docFile is a file in a document: a block of code with a name beside its language.
type docFile struct{ name, text string }

func docFiles(text string) (out []docFile) {
	inFile := false
	for line := range strings.Lines(text) {
		info, isFence := strings.CutPrefix(line, "```")
		_, name, named := strings.Cut(strings.TrimSpace(info), " ")
		switch {
		case isFence && inFile:
			inFile = false
		case isFence && named:
			inFile = true
			out = append(out, docFile{name: name})
		case inFile:
			out[len(out)-1].text += line
		}
	}
	return out
}

// docBlock is a fenced block of a document.
type docBlock struct {
	line  int
	info  string   // language, and the name of a file
	lines []string // with lines that end in \ joined
}

func docBlocks(t testing.TB, path string) (out []docBlock) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, path))
	if err != nil {
		t.Fatal(err)
	}
	in, joined := false, ""
	for i, line := range strings.Split(string(text), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && in:
			in = false
		case fence:
			in = true
			out = append(out, docBlock{line: i + 1, info: info})
		case in && strings.HasSuffix(line, "\\"):
			joined += strings.TrimSuffix(line, "\\")
		case in:
			b := &out[len(out)-1]
			b.lines, joined = append(b.lines, joined+line), ""
		}
	}
	return out
}

// blockWith returns the lines of the block whose first line begins with a text.
func blockWith(t testing.TB, path, first string) []string {
	t.Helper()
	for _, b := range docBlocks(t, path) {
		if len(b.lines) > 0 && strings.HasPrefix(b.lines[0], first) {
			return b.lines
		}
	}
	t.Fatalf("%s has no block that begins with %q", path, first)
	return nil
}

func TestRecipes(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			if count := newDocRunner(t, newCluster(t, n)).document("../../docs/recipes.md"); count < 40 {
				t.Errorf("only %d examples were found", count)
			}
		})
	}
}

func TestDocumentFiles(t *testing.T) {
	all := docFiles("a\n```console\n$ x\n```\n```sh a.sh\n#!/bin/sh\nx\n```\n```sh\nno\n```\n```sh b.sh\ny\n```\n")
	if len(all) != 2 || all[0] != (docFile{"a.sh", "#!/bin/sh\nx\n"}) || all[1] != (docFile{"b.sh", "y\n"}) {
		t.Errorf("%q", all)
	}
}
