package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/settings"
)

// TestCommandsInDocuments: every command line of kvd in a document names a command that
// exists, flags that it has, with values of their kind, and as many arguments as it takes.
// The end-to-end tests run what can be run as it stands; this holds the rest, which names
// machines and files of the reader.
func TestCommandsInDocuments(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commandsOf(string(text)) {
			found[filepath.Base(file)]++
			if err := accepts(c.words); err != nil {
				t.Errorf("%s:%d: kvd %s: %v", file, c.line, strings.Join(c.words, " "), err)
			}
		}
	}
	for _, must := range []string{"README.md", "deploy.md", "security.md", "operations.md", "etcd.md", "cli.md"} {
		if found[must] == 0 {
			t.Errorf("no command was found in %s", must)
		}
	}
	t.Logf("%v", found)
}

// accepts reports whether kvd takes a command line.
func accepts(words []string) error {
	cmd, rest, err := rootCommand(environment{}).Find(settings.NormaliseArguments(words))
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return fmt.Errorf("there is no %s %s", cmd.Name(), args[0])
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// A command that is wrong is found to be.
func TestAcceptsNoOther(t *testing.T) {
	const text = "```\nkvd kv put a b   # fine\nnothing | KVD_NAME=x kvd kv list 'a b' --limit 3 > kvd && sudo kvd \\\n  --data-dir x\n```\n kvd kv not in a block\n"
	all := commandsOf(text)
	if len(all) != 3 || !slices.Equal(all[1].words, []string{"kv", "list", "a b", "--limit", "3"}) || !slices.Equal(all[2].words, []string{"--data-dir", "x"}) || all[2].line != 4 {
		t.Fatalf("%+v", all)
	}
	for line, want := range map[string]bool{
		"kv put a b": true, "kv put": false, "kv putt a b": false, "kv put a b --ttl 30s": true, "kv put a b --tll 30s": false, "kv list --limit x": false,
		"--listen-client http://127.0.0.1:1": true, "--listen-clients http://127.0.0.1:1": false, "snapshot verify": false,
	} {
		if err := accepts(strings.Fields(line)); (err == nil) != want {
			t.Errorf("kvd %s: %v", line, err)
		}
	}
}

// docCommand is a command line of kvd, without its name.
type docCommand struct {
	line  int
	words []string
}

// variable matches a variable of a shell. A number is of any kind.
var variable = regexp.MustCompile(`\$[a-z]+`)

// word matches a word of a shell, a separator of commands, or a redirection.
var word = regexp.MustCompile(`[0-9]?[<>]+(?:&[0-9])?|(?:'[^']*'|"[^"]*"|\\.|[^\s'"|&;<>()#\\]|[^\s]#)+|[|&;()]+|#.*`)

// commandsOf returns the command lines of kvd in the blocks of code.
func commandsOf(text string) (out []docCommand) {
	inBlock, joined := false, ""
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "```") {
			inBlock = !inBlock
			continue
		}
		if !inBlock {
			continue
		}
		if begun, more := strings.CutSuffix(line, `\`); more {
			joined += begun + " "
			continue
		}
		line, joined = strings.TrimPrefix(joined+line, "$ "), ""
		out = append(out, commandsIn(line, i+1)...)
	}
	return out
}

var redirection = regexp.MustCompile(`^[0-9]?[<>]`)

func commandsIn(line string, number int) (out []docCommand) {
	first, skip := true, false // whether a command may begin, and whether a file name comes
	var current *docCommand
	for _, w := range word.FindAllString(line, -1) {
		switch {
		case strings.ContainsAny(w[:1], "|&;()"):
			first, current = true, nil
		case w[0] == '#':
			return out
		case redirection.MatchString(w):
			skip = !strings.Contains(w, "&")
		case skip:
			skip = false
		case current != nil && w == "…": // stands for anything
		case current != nil:
			current.words = append(current.words, strings.NewReplacer("'", "", `"`, "").Replace(variable.ReplaceAllString(w, "1")))
		case first && (w == "kvd" || strings.HasSuffix(w, "/kvd")):
			out = append(out, docCommand{line: number})
			current = &out[len(out)-1]
		case first && (w == "sudo" || strings.Contains(w, "=")):
		default:
			first = false
		}
	}
	return out
}
