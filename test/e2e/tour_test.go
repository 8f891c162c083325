package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tourStep is a block of docs/tour.md: an example for the shell, or one in Go.
type tourStep struct {
	line    int
	console []example // of a console block
	code    string    // of a block in Go
	prints  string    // what the comments in it say
}

// tourSteps returns the blocks of the tour in order, and the Go code that they share.
func tourSteps(text string) (steps []tourStep, setup string) {
	lines := strings.SplitAfter(text, "\n")
	for i := 0; i < len(lines); i++ {
		info, isFence := strings.CutPrefix(strings.TrimSpace(lines[i]), "```")
		if !isFence {
			continue
		}
		begin := i + 1
		for i++; strings.TrimSpace(lines[i]) != "```"; i++ {
		}
		body := strings.Join(lines[begin:i], "")
		switch info {
		case "console":
			console := examples("```console\n" + body + "```\n")
			for n := range console {
				console[n].line += begin - 1
			}
			steps = append(steps, tourStep{line: begin, console: console})
		case "go":
			steps = append(steps, tourStep{line: begin, code: body, prints: printed(body)})
		case "go setup":
			setup = body
		}
	}
	return steps, setup
}

// printed returns what the comments in the code say that it prints.
func printed(code string) (out string) {
	for line := range strings.Lines(code) {
		if _, said, ok := strings.Cut(line, "// prints "); ok {
			out += strings.TrimSpace(said) + "\n"
		}
	}
	return out
}

// buildTour makes a program of the blocks in Go. Its argument is the number of the block
// to run.
func buildTour(t *testing.T, steps []tourStep, setup string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(`package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/kvd-io/kvd/client"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

var _ = errors.Is

func main() {
` + setup + "\tswitch os.Args[1] {\n")
	for i, s := range steps {
		if s.code != "" {
			fmt.Fprintf(&b, "case %q:\n%s", fmt.Sprint(i), s.code)
		}
	}
	b.WriteString("\t}\n}\n")
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "tour")
	if err := os.WriteFile(source, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// From here, the import of the client is that of this module.
	cmd := exec.Command("go", "build", "-o", program, source)
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the Go code of the tour: %v\n%s\n%s", err, out, b.String())
	}
	return program
}

// TestTour runs docs/tour.md, block by block, against one node and against three.
func TestTour(t *testing.T) {
	const path = "../../docs/tour.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	steps, setup := tourSteps(string(text))
	program := buildTour(t, steps, setup)
	inGo := 0
	for _, s := range steps {
		if s.code != "" {
			inGo++
		}
	}
	if len(steps) < 25 || inGo < 9 || setup == "" {
		t.Errorf("only %d blocks, %d of them in Go", len(steps), inGo)
	}
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			r := newDocRunner(t, newCluster(t, n))
			for i, s := range steps {
				r.examples(path, s.console)
				if s.code == "" {
					continue
				}
				if got := r.shell(fmt.Sprintf("%s %d", program, i)); got != s.prints || got == "" {
					t.Errorf("%s:%d: %s\nprints %s\nwant   %s", path, s.line, s.code, got, s.prints)
				}
			}
		})
	}
}
