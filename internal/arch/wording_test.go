package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// proper may begin an error or a log message although a capital letter comes
// first. Words with a second capital letter or a hyphen (SIGTERM, WAL,
// Content-Length) need no entry.
var proper = []string{"Pebble"}

// TestMessages: errors and log messages begin with a small letter and end
// without a period, because callers wrap the former and readers filter the
// latter. An error may have several sentences; the last one still ends without
// a period.
func TestMessages(t *testing.T) {
	violations, seen := messages(sources(t))
	report(t, violations)
	if seen < 300 {
		t.Errorf("only %d messages were found; the test looks in the wrong place", seen)
	}
}

// messages returns the violations, and the number of messages it judged.
func messages(files []source) (violations []string, seen int) {
	helpers := errorHelpers(files)
	for _, s := range program(files) {
		ast.Inspect(s.tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			at, ok := messageArgument(call, helpers)
			if !ok || at >= len(call.Args) {
				return true
			}
			first, last, ok := literalEnds(call.Args[at])
			if !ok {
				return true
			}
			seen++
			if word := startOf(first); word != "" {
				violations = append(violations, fmt.Sprintf("%s:%d: message begins with %q, not with a small letter", s.file, s.lineOf(call.Pos()), word))
			}
			if strings.HasSuffix(last, ".") && !strings.HasSuffix(last, "...") {
				violations = append(violations, fmt.Sprintf("%s:%d: message ends with a period: %q", s.file, s.lineOf(call.Pos()), last))
			}
			return true
		})
	}
	return violations, seen
}

// errorHelpers finds the functions that make an error of a parameter called
// format, and returns the position of that parameter by function name.
func errorHelpers(files []source) map[string]int {
	out := map[string]int{"errors.New": 0, "fmt.Errorf": 0}
	for _, s := range program(files) {
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !returnsError(f) {
				continue
			}
			if at := parameter(f, "format"); at >= 0 {
				out[f.Name.Name] = at
				out[s.tree.Name.Name+"."+f.Name.Name] = at
			}
		}
	}
	return out
}

func returnsError(f *ast.FuncDecl) bool {
	if f.Type.Results == nil || len(f.Type.Results.List) != 1 {
		return false
	}
	name := exprString(f.Type.Results.List[0].Type)
	return strings.HasSuffix(strings.ToLower(name), "error")
}

func parameter(f *ast.FuncDecl, name string) int {
	at := 0
	for _, field := range f.Type.Params.List {
		for _, n := range field.Names {
			if n.Name == name {
				return at
			}
			at++
		}
	}
	return -1
}

// exprString names a type or function: x, pkg.x, without pointers.
func exprString(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.StarExpr:
		return exprString(x.X)
	case *ast.SelectorExpr:
		return exprString(x.X) + "." + x.Sel.Name
	}
	return ""
}

// logMethods are the methods of a zap.Logger that write a line.
var logMethods = []string{"Debug", "Info", "Warn", "Error", "DPanic"}

// messageArgument returns which argument of a call is an error's or log line's
// text.
func messageArgument(call *ast.CallExpr, helpers map[string]int) (int, bool) {
	if at, ok := helpers[exprString(call.Fun)]; ok {
		return at, true
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return 0, ok && slices.Contains(logMethods, sel.Sel.Name)
}

// literalEnds returns the first and the last literal of a string expression
// that begins with one: of a literal, or of a sum.
func literalEnds(e ast.Expr) (first, last string, ok bool) {
	switch x := e.(type) {
	case *ast.BasicLit:
		if x.Kind != token.STRING {
			return "", "", false
		}
		text, err := strconv.Unquote(x.Value)
		return text, text, err == nil
	case *ast.BinaryExpr:
		first, _, ok = literalEnds(x.X)
		if !ok {
			return "", "", false
		}
		_, last, _ = literalEnds(x.Y)
		return first, last, true
	case *ast.ParenExpr:
		return literalEnds(x.X)
	}
	return "", "", false
}

// startOf returns the first word of a message that should begin with a small
// letter and does not, or "".
func startOf(message string) string {
	r, size := utf8.DecodeRuneInString(message)
	if !unicode.IsUpper(r) {
		return ""
	}
	end := strings.IndexFunc(message, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' && r != '-'
	})
	word := message
	if end >= 0 {
		word = message[:end]
	}
	if slices.Contains(proper, word) || strings.IndexFunc(word[size:], func(r rune) bool { return !unicode.IsLower(r) }) >= 0 {
		return ""
	}
	return word
}
