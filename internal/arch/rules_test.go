package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// Bounds that make somebody stop and think before a package, a type or an
// interface grows further.
const (
	maxPackageLines     = 5000
	maxMethods          = 45
	maxInterfaceMethods = 5
	maxSharedLines      = 12
)

// largePackages may have more non-test lines than maxPackageLines.
var largePackages = map[string]exception{
	"internal/raftnode": {6000, "46 names cross between the core and its loops, and the simulator drives both: a wall there would be all doors"},
}

// largeTypes may have more methods than maxMethods.
var largeTypes = map[string]exception{}

// largeInterfaces may have more methods than maxInterfaceMethods.
var largeInterfaces = map[string]exception{
	"internal/kvstore/engine.Engine":   {11, "the store uses all of it, and one conformance suite holds both engines to all of it"},
	"internal/kvstore/engine.Iterator": {11, "a cursor needs both ends, seeks and steps in both directions, its pair, its error and its end; the store uses all of them"},
	"internal/raftnode.StateMachine":   {6, "a replica has one: the apply loop and the snapshotter each use about half, and the simulator's machine implements all of it"},
	"internal/raftnode.OfflineMachine": {7, "a StateMachine that can be closed"},
}

// sharedLines has pairs of files, joined by a space in alphabetical order, that
// may have more lines in common than maxSharedLines.
var sharedLines = map[string]exception{}

// An exception raises a bound for one name.
type exception struct {
	limit  int
	reason string
}

// measure holds sizes against a bound and its exceptions. A name in the table
// that is not above the bound is a violation too.
func measure(what string, sizes map[string]int, bound int, exceptions map[string]exception) []string {
	var out []string
	for name, n := range sizes {
		limit := bound
		if e, ok := exceptions[name]; ok {
			limit = e.limit
		}
		if n > limit {
			out = append(out, fmt.Sprintf("%s has %d %s, more than %d", name, n, what, limit))
		}
	}
	for name, e := range exceptions {
		if sizes[name] <= bound {
			out = append(out, fmt.Sprintf("the exception for %s is not needed: it has %d %s", name, sizes[name], what))
		}
		if e.reason == "" {
			out = append(out, fmt.Sprintf("the exception for %s lacks a reason", name))
		}
	}
	slices.Sort(out)
	return out
}

func report(t *testing.T, violations []string) {
	t.Helper()
	for _, v := range violations {
		t.Error(v)
	}
}

// program returns the files that are not tests.
func program(files []source) []source {
	return slices.DeleteFunc(slices.Clone(files), func(s source) bool { return s.test })
}

// TestPackagesStaySmall bounds the non-test lines of each package.
func TestPackagesStaySmall(t *testing.T) {
	report(t, measure("non-test lines", packageLines(sources(t)), maxPackageLines, largePackages))
}

func packageLines(files []source) map[string]int {
	out := make(map[string]int)
	for _, s := range program(files) {
		out[s.pkg] += len(s.lines)
	}
	return out
}

// TestTypesStaySmall bounds the methods of each type, over all files of its
// package.
func TestTypesStaySmall(t *testing.T) {
	report(t, measure("methods", methods(sources(t)), maxMethods, largeTypes))
}

func methods(files []source) map[string]int {
	out := make(map[string]int)
	for _, s := range program(files) {
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				out[s.pkg+"."+receiver(f)]++
			}
		}
	}
	return out
}

// receiver returns the name of a method's type, without its pointer and its
// type parameters.
func receiver(f *ast.FuncDecl) string {
	e := f.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return fmt.Sprintf("%T", e)
		}
	}
}

// TestInterfacesStaySmall bounds the methods of each interface: an interface
// belongs to its user, and a user that needs more than five methods of another
// part usually wants to be two users.
func TestInterfacesStaySmall(t *testing.T) {
	report(t, measure("methods", interfaceMethods(sources(t)), maxInterfaceMethods, largeInterfaces))
}

// interfaceMethods counts embedded interfaces of the same package with all
// their methods, and those of other packages as one method.
func interfaceMethods(files []source) map[string]int {
	found := make(map[string]*ast.InterfaceType)
	for _, s := range program(files) {
		for _, spec := range s.types() {
			if i, ok := spec.Type.(*ast.InterfaceType); ok {
				found[s.pkg+"."+spec.Name.Name] = i
			}
		}
	}
	var count func(pkg string, i *ast.InterfaceType) int
	count = func(pkg string, i *ast.InterfaceType) int {
		n := 0
		for _, f := range i.Methods.List {
			var embedded *ast.InterfaceType
			if id, ok := f.Type.(*ast.Ident); ok {
				embedded = found[pkg+"."+id.Name]
			}
			if embedded != nil && len(f.Names) == 0 {
				n += count(pkg, embedded)
				continue
			}
			n++
		}
		return n
	}
	out := make(map[string]int)
	for name, i := range found {
		out[name] = count(name[:strings.LastIndexByte(name, '.')], i)
	}
	return out
}

// types returns the type declarations at the top level of a file.
func (s source) types() []*ast.TypeSpec {
	var out []*ast.TypeSpec
	for _, d := range s.tree.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
			for _, spec := range g.Specs {
				out = append(out, spec.(*ast.TypeSpec))
			}
		}
	}
	return out
}

// TestPackagesHaveOneComment demands exactly one package comment in each
// package, so that there is one place that tells its algorithm and invariants.
func TestPackagesHaveOneComment(t *testing.T) {
	report(t, packageComments(sources(t)))
}

func packageComments(files []source) []string {
	commented := make(map[string][]string)
	for _, s := range files {
		names := commented[s.pkg]
		if s.tree.Doc != nil && strings.TrimSpace(s.tree.Doc.Text()) != "" {
			names = append(names, s.file)
		}
		commented[s.pkg] = names
	}
	var out []string
	for pkg, names := range commented {
		if len(names) != 1 {
			out = append(out, fmt.Sprintf("package %s has %d package comments %v; it needs one, in doc.go", pkg, len(names), names))
		}
	}
	return out
}

// TestNothingIsWrittenTwice finds runs of more than maxSharedLines lines that
// stand in two places of the program.
func TestNothingIsWrittenTwice(t *testing.T) {
	violations, _ := repetitions(sources(t), sharedLines)
	report(t, violations)
}

// repetitions returns the violations, and the number of runs it compared.
func repetitions(files []source, exceptions map[string]exception) (violations []string, runs int) {
	type place struct {
		file string
		line int
	}
	first := make(map[string]place) // run of lines → where it stands first
	excused := make(map[string]bool)
	for _, s := range program(files) {
		lines := s.tellingLines()
		for i := 0; i+maxSharedLines < len(lines); i++ {
			run := lines[i : i+maxSharedLines+1]
			here := place{s.file, run[0].number}
			at, seen := first[textOf(run)]
			if !seen {
				first[textOf(run)] = here
				continue
			}
			pair := []string{at.file, s.file}
			slices.Sort(pair)
			name := strings.Join(pair, " ")
			if _, ok := exceptions[name]; ok {
				excused[name] = true
				continue
			}
			violations = append(violations, fmt.Sprintf("%s:%d repeats more than %d lines of %s:%d",
				here.file, here.line, maxSharedLines, at.file, at.line))
			i += maxSharedLines // one report a run
		}
	}
	for name, e := range exceptions {
		if !excused[name] || e.reason == "" {
			violations = append(violations, fmt.Sprintf("the exception for %s is not needed or lacks a reason", name))
		}
	}
	return violations, len(first)
}

type numberedLine struct {
	text   string
	number int
}

func textOf(run []numberedLine) string {
	var b strings.Builder
	for _, l := range run {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// tellingLines leaves out indentation, imports, blank lines, and lines of
// nothing but brackets: they repeat everywhere and mean nothing.
func (s source) tellingLines() []numberedLine {
	var out []numberedLine
	inImports := false
	for i, line := range s.lines {
		text := strings.TrimSpace(line)
		switch {
		case text == "import (":
			inImports = true
		case inImports:
			inImports = text != ")"
		case strings.Trim(text, "{}(),;") == "":
		default:
			out = append(out, numberedLine{text, i + 1})
		}
	}
	return out
}
