package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/settings"
)

// printedBy runs a command line that succeeds and returns what it prints.
func printedBy(t *testing.T, args ...string) string {
	t.Helper()
	code, out, stderr := kvd(args...)
	if code != exitOK || stderr != "" {
		t.Errorf("%v: exit code %d: %s", args, code, stderr)
	}
	return out
}

// TestHelpFitsItsColumns: the help of every command, and the full one.
func TestHelpFitsItsColumns(t *testing.T) {
	var lines [][]string
	var visit func(cmd *cobra.Command, path []string)
	visit = func(cmd *cobra.Command, path []string) {
		lines = append(lines, append(path[:len(path):len(path)], "--help"))
		for _, sub := range cmd.Commands() {
			visit(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	visit(rootCommand(environment{}), nil)
	lines = append(lines, []string{"--" + helpAll}, []string{"completion", "--help"})
	if len(lines) < 15 {
		t.Errorf("only %d commands were found", len(lines))
	}
	for _, args := range lines {
		out := printedBy(t, args...)
		if !strings.Contains(out, "Usage:\n  kvd") || !strings.Contains(out, "show this help") {
			t.Errorf("%v: it is not a help:\n%s", args, out)
		}
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpColumns {
				t.Errorf("%v: %d columns: %s", args, n, line)
			}
		}
	}
}

// TestHelpShowsSettings: --help shows the common settings under their titles,
// --help-all every setting, and neither shows etcd's names for them.
func TestHelpShowsSettings(t *testing.T) {
	for _, c := range []struct {
		args []string
		rare bool
	}{
		{[]string{"--help"}, false},
		{[]string{"--help-all"}, true},
		{[]string{"--help", "--help-all"}, true},
	} {
		out := printedBy(t, c.args...)
		has := func(name string) bool { return strings.Contains(out, "      --"+name+" ") }
		for _, g := range settings.Groups() {
			if !strings.Contains(out, "\n"+g.Title+":\n") {
				t.Errorf("%v: the title %q is missing", c.args, g.Title)
			}
			for _, name := range g.Common {
				if !has(name) {
					t.Errorf("%v: --%s is missing", c.args, name)
				}
			}
			for _, name := range g.Rare {
				if has(name) != c.rare {
					t.Errorf("%v: shows --%s: %v", c.args, name, !c.rare)
				}
			}
		}
		if has("initial-cluster") || strings.Contains(out, "rarely used flags are hidden") == c.rare {
			t.Errorf("%v prints\n%s", c.args, out)
		}
	}
}

// TestHelpShowsFlagsNamedLikeSettings: a command's own --name is not the setting.
func TestHelpShowsFlagsNamedLikeSettings(t *testing.T) {
	for _, args := range [][]string{{"member", "add"}, {"lease", "grant"}} {
		out := printedBy(t, append(args, "--help")...)
		for _, flag := range []string{"      --id ID ", "      --name NAME "} {
			if !strings.Contains(out, flag) {
				t.Errorf("%v: %s is missing:\n%s", args, flag, out)
			}
		}
		if strings.Contains(out, "All settings of a node") {
			t.Errorf("%v does not take the settings of a node:\n%s", args, out)
		}
	}
	if out := printedBy(t, "snapshot", "restore", "--help"); !strings.Contains(out, "All settings of a node") {
		t.Errorf("restore takes the settings of a node:\n%s", out)
	}
}

// TestHelpTellsNoZeroes: "by default it waits as long as it takes (default 0s)" would be
// two defaults.
func TestHelpTellsNoZeroes(t *testing.T) {
	for _, args := range [][]string{{"lock"}, {"kv", "put"}, {"kv", "get"}} {
		if out := printedBy(t, append(args, "--help")...); strings.Contains(out, "(default 0") {
			t.Errorf("%v:\n%s", args, out)
		}
	}
}

func TestWrap(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		"a bc def":              "a bc|def",
		"abcdefgh i":            "abcdefgh|i",
		"  a  b c d e f\ng hij": "a b c|d e f|g hij",
	} {
		if got := strings.Join(wrap(text, 5), "|"); got != want {
			t.Errorf("%q is wrapped as %q, want %q", text, got, want)
		}
	}
}

// TestUnknownCommands: a mistyped subcommand gets the one that was meant, any
// other the list.
func TestUnknownCommands(t *testing.T) {
	for args, want := range map[string]string{
		"docter x":        `unknown command "docter" for "kvd"; did you mean doctor?`,
		"snapshot verfy":  `unknown command "verfy" for "kvd snapshot"; did you mean verify?`,
		"serve":           `unknown command "serve" for "kvd"; the commands are auth, bench, cert`,
		"bench qqqq":      `the commands are batch, get, mixed, put`,
		"cert":            `kvd cert needs a subcommand: init`,
		"snapshot":        `kvd snapshot needs a subcommand: inspect, restore, save, verify`,
		"config":          `kvd config needs a subcommand: check, show`,
		"bench":           `kvd bench needs a subcommand: batch, get, mixed, put`,
		"completion":      `kvd completion needs a subcommand: bash, fish, powershell, zsh`,
		"completion tcsh": `unknown command "tcsh" for "kvd completion"; `,
		"version 2":       `kvd version takes no arguments, but got "2"`,
		"bench put twice": `kvd bench put takes no arguments, but got "twice"`,
	} {
		var stderr bytes.Buffer
		if code := run(environment{args: strings.Fields(args), stdout: &stderr, stderr: &stderr}); code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d: %s", args, code, stderr.String())
		}
	}
}

// A command must not propose the very flag that it refused.
func TestUnknownFlagOfACommand(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"healthcheck --port 1", "unknown flag: --port\n"},
		{"doctor --data-dir x", "unknown flag: --data-dir\n"},
		{"healthcheck --endpont http://127.0.0.1:1", "did you mean --endpoint?"},
		{"bench put --conections 4", "did you mean --connections?"},
		{"config check --pot 1", "did you mean --port?"},
		{"--data-dri x", "did you mean --data-dir?"},
	} {
		code, _, stderr := kvd(strings.Fields(c.args)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("kvd %s: exit code %d: %s, want %q", c.args, code, stderr, c.want)
		}
	}
}

// namedFlag finds flags in texts; etcd's and those of other programs are not
// kvd's to check, so the texts searched are those that speak to kvd's operator.
var namedFlag = regexp.MustCompile("(?:^|[\\s`(\"])--([a-z][a-z-]*[a-z])")

// TestFlagsInAlertsExist: kvd --help lists each flag
// that it names.
func TestFlagsInAlertsExist(t *testing.T) {
	help := printedBy(t, "--help")
	b, err := os.ReadFile("../../deploy/prometheus/kvd.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	named := namedFlag.FindAllStringSubmatch(string(b), -1)
	if len(named) < 3 {
		t.Errorf("only %d flags were found in the alerts", len(named))
	}
	for _, m := range named {
		if !strings.Contains(help, " --"+m[1]+" ") {
			t.Errorf("an alert names --%s, which kvd --help does not show", m[1])
		}
	}
}
