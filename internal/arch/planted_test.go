package arch

import (
	"fmt"
	"strings"
	"testing"
)

// plant parses a file that exists only here.
func plant(t *testing.T, file, text string) source {
	t.Helper()
	s, err := newSource(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// repeat writes f(0) to f(n-1), each on a line of its own.
func repeat(n int, f func(i int) string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(f(i))
		b.WriteByte('\n')
	}
	return b.String()
}

func statement(i int) string { return fmt.Sprintf("\tx = append(x, %d)", i) }

// TestRulesGoRed hands each rule a violation just beyond its bound, and the
// same thing just within it.
func TestRulesGoRed(t *testing.T) {
	function := func(n int) string {
		return "package p\nfunc f() (x []int) {\n" + repeat(n, statement) + "\treturn\n}\n"
	}
	for _, c := range []struct {
		name    string
		rule    func() []string
		violate bool
	}{
		{"package too large", func() []string {
			return measure("lines", packageLines([]source{plant(t, "a/a.go", function(maxPackageLines-3))}), maxPackageLines, nil)
		}, true},
		{"package just fits", func() []string {
			return measure("lines", packageLines([]source{plant(t, "a/a.go", function(maxPackageLines-5))}), maxPackageLines, nil)
		}, false},
		{"tests do not count", func() []string {
			return measure("lines", packageLines([]source{plant(t, "a/a_test.go", function(maxPackageLines))}), maxPackageLines, nil)
		}, false},
		{"too many methods in two files", func() []string {
			return measure("methods", methods(methodFiles(t, maxMethods, 1)), maxMethods, nil)
		}, true},
		{"methods just fit", func() []string {
			return measure("methods", methods(methodFiles(t, maxMethods-1, 1)), maxMethods, nil)
		}, false},
		{"interface too large by what it embeds", func() []string {
			return measure("methods", interfaceMethods([]source{plant(t, "a/a.go", "package p\ntype I interface { J; A(); B(); C() }\ntype J interface { D(); E(); F() }\n")}), maxInterfaceMethods, nil)
		}, true},
		{"interface just fits", func() []string {
			return measure("methods", interfaceMethods([]source{plant(t, "a/a.go", "package p\ntype I interface { J; A(); B() }\ntype J interface { D(); E(); F() }\n")}), maxInterfaceMethods, nil)
		}, false},
		{"exception that is not needed", func() []string {
			return measure("lines", map[string]int{"a": 3}, 5, map[string]exception{"a": {9, "was large once"}})
		}, true},
		{"exception without a reason", func() []string {
			return measure("lines", map[string]int{"a": 7}, 5, map[string]exception{"a": {9, ""}})
		}, true},
		{"two package comments", func() []string {
			return packageComments([]source{plant(t, "a/a.go", "// Package p is here.\npackage p\n"), plant(t, "a/doc.go", "// Package p is there.\npackage p\n")})
		}, true},
		{"no package comment", func() []string { return packageComments([]source{plant(t, "a/a.go", "package p\n")}) }, true},
		{"written twice", func() []string { return pairOf(t, function(maxSharedLines), nil) }, true},
		{"written twice, excused", func() []string {
			return pairOf(t, function(maxSharedLines), map[string]exception{"a/a.go b/b.go": {0, "generated"}})
		}, false},
		{"written twice, but short", func() []string { return pairOf(t, function(maxSharedLines-3), nil) }, false},
		{"excuse for what is not written twice", func() []string {
			return pairOf(t, function(1), map[string]exception{"a/a.go b/b.go": {0, "generated"}})
		}, true},
		{"error with a capital", planted(t, `return errors.New("Bad thing")`), true},
		{"error with a period", planted(t, `return fmt.Errorf("open %s: %w"+" now.", f, err)`), true},
		{"helper with a capital", planted(t, `return refuse(f, "Bad thing %d", 1)`), true},
		{"log message with a capital", planted(t, `l.Info("Snapshot installed", x)`), true},
		{"errors as they should be", planted(t, `use(errors.New("SIGHUP came"), errors.New("--port is 0"), errors.New("Pebble failed"), errors.New("a. b"), refuse("X", "%q is bad"))`), false},
		{"wide line", func() []string { return wideLines("a.md", strings.Repeat("ä", maxMarkdownColumns+1)) }, true},
		{"line just fits", func() []string { return wideLines("a.md", strings.Repeat("ä", maxMarkdownColumns)) }, false},
		{"wide code and table", func() []string {
			long := strings.Repeat("x", 2*maxMarkdownColumns)
			return wideLines("a.md", "| "+long+"\n```\n"+long+"\n```\n")
		}, false},
		{"tell in a comment across lines", func() []string {
			return plant(t, "a/a.go", "package p\n\n// f can\n// not be called.\nfunc f() {}\n").tells()
		}, true},
		{"tell in a string", func() []string { return plant(t, "a/a.go", "package p\n\nconst c = `%q is no number`\n").tells() }, true},
		{"tell in the string of a test", func() []string { return plant(t, "a/a_test.go", "package p\n\nconst c = `%q is no number`\n").tells() }, false},
		{"no tell", func() []string {
			return plant(t, "a/a.go", "package p\n\n// There is no other.\nconst c = `there is no leader`\n").tells()
		}, false},
		{"names that do not exist", named(t, "`p.absent`"), true},
		{"method that does not exist", named(t, "`T.absent`"), true},
		{"file that does not exist", named(t, "`absent.go`"), true},
		{"names that exist", named(t, "`p.T`, `T.field`, `T.method`, `p.T.method()`, `field`, `a.go`, `--flag`, `GET /v1`"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.rule(); len(got) > 0 != c.violate {
				t.Errorf("violations %q", got)
			}
		})
	}
}

// methodFiles makes a type with methods in two files, half of them with a
// pointer receiver.
func methodFiles(t *testing.T, inFirst, inSecond int) []source {
	text := func(letter string, n int) string {
		return "package p\n" + repeat(n, func(i int) string {
			return fmt.Sprintf("func (r %sT) %s%d() {}", strings.Repeat("*", i%2), letter, i)
		})
	}
	return []source{plant(t, "a/a.go", "package p\ntype T struct{}\n"), plant(t, "a/b.go", text("a", inFirst)), plant(t, "a/c.go", text("b", inSecond))}
}

func pairOf(t *testing.T, text string, exceptions map[string]exception) []string {
	out, _ := repetitions([]source{plant(t, "a/a.go", text), plant(t, "b/b.go", text)}, exceptions)
	return out
}

// planted judges one statement, in a package with a helper that makes errors.
func planted(t *testing.T, statement string) func() []string {
	return func() []string {
		out, seen := messages([]source{plant(t, "a/a.go", "package p\nfunc refuse(file, format string, args ...any) *RefusedError { return nil }\nfunc f() error {\n"+statement+"\n}\n")})
		if seen == 0 {
			t.Error("no message was found")
		}
		return out
	}
}

// named judges a line of a document against a small program.
func named(t *testing.T, line string) func() []string {
	return func() []string {
		d := declared([]source{plant(t, "internal/p/a.go", "package p\ntype T struct{ field int }\nfunc (t *T) method() {}\n")})
		out, seen := d.unknownNames("doc.md", line, func(string) bool { return false })
		if seen == 0 {
			t.Error("no name was found")
		}
		return out
	}
}
