package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"strings"
	"testing"
)

// tells are phrases that no native speaker would write, or that docs/style.md
// rules out. They are searched in Markdown, in comments and in the strings of
// the program.
var tells = []*regexp.Regexp{
	regexp.MustCompile(`\b[Cc]an not\b`),
	regexp.MustCompile(`\bfor ever\b`),
	regexp.MustCompile(`\b[Hh]ears? of\b`),
	regexp.MustCompile(`\bof itself\b`),
	regexp.MustCompile(`\b[Pp]olite(ly)?\b`),
	regexp.MustCompile(`\bsome (milli)?seconds\b`),
	regexp.MustCompile(`\bin work\b`),
	regexp.MustCompile(`\bsays of\b`),
	regexp.MustCompile(`\b[Ww]here (there is )?none( is)?\b`),
	regexp.MustCompile(`(%q|%s|%d|%v|\b(it|that|which|who)) is no [a-z]`),
	regexp.MustCompile(`\bsuch as [0-9]`),
	regexp.MustCompile(`\b[Oo]f whom\b`),
}

// TestWording searches for tells.
func TestWording(t *testing.T) {
	for name, text := range markdown(t) {
		prose(text, func(number int, line string) {
			report(t, tellsIn(fmt.Sprintf("%s:%d", name, number), line))
		})
	}
	for _, s := range sources(t) {
		if s.pkg != "internal/arch" {
			report(t, s.tells())
		}
	}
}

func tellsIn(where, text string) (violations []string) {
	for _, tell := range tells {
		if found := tell.FindString(text); found != "" {
			violations = append(violations, fmt.Sprintf("%s: %q; see docs/style.md", where, found))
		}
	}
	return violations
}

// tells judges the comments of a file, and the strings unless it is a test.
func (s source) tells() (violations []string) {
	for _, g := range s.tree.Comments {
		text := strings.Join(strings.Fields(g.Text()), " ")
		violations = append(violations, tellsIn(fmt.Sprintf("%s:%d", s.file, s.lineOf(g.Pos())), text)...)
	}
	if s.test {
		return violations
	}
	ast.Inspect(s.tree, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			violations = append(violations, tellsIn(fmt.Sprintf("%s:%d", s.file, s.lineOf(lit.Pos())), lit.Value)...)
		}
		return true
	})
	return violations
}
