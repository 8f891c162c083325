package arch

import (
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

const maxMarkdownColumns = 160

// markdown returns the text of every Markdown file of the repository by its
// path from the root.
func markdown(t *testing.T) map[string]string {
	t.Helper()
	root := moduleRoot(t)
	out := make(map[string]string)
	for _, dir := range []string{".", "docs", "docs/adr"} {
		names, err := filepath.Glob(filepath.Join(root, dir, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			out[path.Join(dir, filepath.Base(name))] = string(text)
		}
	}
	if len(out) < 15 {
		t.Errorf("only %d Markdown files were found; the test looks in the wrong place", len(out))
	}
	return out
}

// prose calls f for each line of Markdown that is not part of a code block.
func prose(text string, f func(number int, line string)) {
	inCode := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inCode = !inCode
			continue
		}
		if !inCode {
			f(i+1, line)
		}
	}
}

// TestMarkdownColumns bounds the lines of Markdown, except in code blocks and
// tables.
func TestMarkdownColumns(t *testing.T) {
	for name, text := range markdown(t) {
		report(t, wideLines(name, text))
	}
}

func wideLines(name, text string) (violations []string) {
	prose(text, func(number int, line string) {
		if n := utf8.RuneCountInString(line); n > maxMarkdownColumns && !strings.HasPrefix(strings.TrimSpace(line), "|") {
			violations = append(violations, fmt.Sprintf("%s:%d has %d columns, more than %d", name, number, n, maxMarkdownColumns))
		}
	})
	return violations
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#+ +(.*)$`)
	notSlug = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestLinks: a relative link in Markdown leads to a file of the repository and,
// after #, to a heading of it.
func TestLinks(t *testing.T) {
	root := moduleRoot(t)
	files := markdown(t)
	seen := 0
	for name, text := range files {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			seen++
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, m[1])
			}
			if anchor != "" && !slices.Contains(anchors(files[file]), anchor) {
				t.Errorf("%s links to %s, but %s has no such heading", name, m[1], file)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d links were found", seen)
	}
}

// anchors returns the fragments that GitHub gives to the headings.
func anchors(text string) (out []string) {
	prose(text, func(_ int, line string) {
		if m := heading.FindStringSubmatch(line); m != nil {
			out = append(out, strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
		}
	})
	return out
}

// TestArchitectureNamesWhatExists: whatever ARCHITECTURE.md puts in backquotes
// and looks like a name of the program is one. A reader who searches for it
// finds it.
func TestArchitectureNamesWhatExists(t *testing.T) {
	d := declared(sources(t))
	text := markdown(t)["ARCHITECTURE.md"]
	violations, seen := d.unknownNames("ARCHITECTURE.md", text, func(file string) bool {
		_, err := os.Stat(filepath.Join(moduleRoot(t), file))
		return err == nil
	})
	report(t, violations)
	if seen < 60 {
		t.Errorf("only %d names were found", seen)
	}
}

// TestRecordsAreNumbered: the decision records are numbered from 1 without a
// gap or a repetition, and each heading has the number of its file.
func TestRecordsAreNumbered(t *testing.T) {
	files := markdown(t)
	next := 1
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Dir(name) != "docs/adr" {
			continue
		}
		if want := fmt.Sprintf("%04d-", next); !strings.HasPrefix(path.Base(name), want) {
			t.Errorf("%s does not have the next number, %s", name, want)
		}
		if want := fmt.Sprintf("# %d. ", next); !strings.HasPrefix(files[name], want) {
			t.Errorf("%s does not begin with %q", name, want)
		}
		next++
	}
}

var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)(?:/([^`]*))?`")

// TestDocumentsNameTests: every test that a document names exists, and so does
// the subtest. docs/security.md rests its claims on them.
func TestDocumentsNameTests(t *testing.T) {
	d := declared(sources(t))
	seen := 0
	for name, text := range markdown(t) {
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			seen++
			if !d.words[m[1]] || m[2] != "" && !d.words[m[2]] {
				t.Errorf("%s names %s, which does not exist", name, m[0])
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d tests are named", seen)
	}
}

// TestArchitectureDrawsTheGraph: the table of packages in ARCHITECTURE.md has
// the imports of the table in arch_test.go.
func TestArchitectureDrawsTheGraph(t *testing.T) {
	drawn := make(map[string][]string)
	prose(markdown(t)["ARCHITECTURE.md"], func(_ int, line string) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			return
		}
		pkg := strings.Trim(cells[1], " `")
		if !strings.HasPrefix(pkg, "internal/") && !strings.HasPrefix(pkg, "cmd/") {
			return
		}
		drawn[pkg] = []string{}
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			name := m[1]
			if _, public := allowed[name]; !public {
				name = "internal/" + name
			}
			drawn[pkg] = append(drawn[pkg], name)
		}
	})
	for pkg, may := range allowed {
		if pkg == "internal/arch" || !strings.Contains(pkg, "/") {
			continue
		}
		got, ok := drawn[pkg]
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(may)); !ok || !slices.Equal(got, want) {
			t.Errorf("ARCHITECTURE.md draws %s with imports %v, the table in arch_test.go has %v", pkg, got, want)
		}
		delete(drawn, pkg)
	}
	for pkg := range drawn {
		t.Errorf("ARCHITECTURE.md draws %s, which arch_test.go does not know", pkg)
	}
}

// declarations are the names of the program.
type declarations struct {
	packages map[string]bool            // last elements of their paths
	files    map[string]bool            // base names
	members  map[string]map[string]bool // package or type → what it declares
	words    map[string]bool            // every identifier that occurs
}

func declared(files []source) *declarations {
	d := &declarations{
		packages: make(map[string]bool),
		files:    make(map[string]bool),
		members:  make(map[string]map[string]bool),
		words:    make(map[string]bool),
	}
	for _, s := range files {
		d.packages[path.Base(s.pkg)] = true
		d.files[path.Base(s.file)] = true
		d.addFile(s)
	}
	return d
}

func (d *declarations) add(of, name string) {
	if d.members[of] == nil {
		d.members[of] = make(map[string]bool)
	}
	d.members[of][name] = true
}

func (d *declarations) addFile(s source) {
	pkg := path.Base(s.pkg)
	ast.Inspect(s.tree, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.Ident:
			d.words[x.Name] = true
		case *ast.BasicLit: // words of the contract, and environment variables
			if text, err := strconv.Unquote(x.Value); err == nil {
				d.words[text] = true
			}
		}
		return true
	})
	for _, decl := range s.tree.Decls {
		switch x := decl.(type) {
		case *ast.FuncDecl:
			if x.Recv != nil {
				d.add(receiver(x), x.Name.Name)
			} else {
				d.add(pkg, x.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range x.Specs {
				d.addSpec(pkg, spec)
			}
		}
	}
}

func (d *declarations) addSpec(pkg string, spec ast.Spec) {
	switch x := spec.(type) {
	case *ast.ValueSpec:
		for _, n := range x.Names {
			d.add(pkg, n.Name)
		}
	case *ast.TypeSpec:
		d.add(pkg, x.Name.Name)
		var fields *ast.FieldList
		switch body := x.Type.(type) {
		case *ast.StructType:
			fields = body.Fields
		case *ast.InterfaceType:
			fields = body.Methods
		default:
			return
		}
		for _, f := range fields.List {
			for _, n := range f.Names {
				d.add(x.Name.Name, n.Name)
			}
		}
	}
}

var (
	quoted     = regexp.MustCompile("`([^`]+)`")
	goName     = regexp.MustCompile(`^[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,2}$`)
	fileOrPath = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)
	extension  = regexp.MustCompile(`\.(go|md|json|yaml)$`)
)

// unknownNames judges the quoted words of a document: pkg.Name, Type.method,
// pkg.Type.method, a name alone, a file, or a path. It leaves everything else
// alone: commands, flags, routes, patterns.
func (d *declarations) unknownNames(doc, text string, exists func(file string) bool) (violations []string, seen int) {
	complain := func(number int, name, why string) {
		violations = append(violations, fmt.Sprintf("%s:%d names %s, %s", doc, number, name, why))
	}
	prose(text, func(number int, line string) {
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			name := strings.TrimSuffix(m[1], "()")
			switch {
			case extension.MatchString(name) && fileOrPath.MatchString(name) && !strings.HasPrefix(name, "/"):
				seen++
				if !d.files[name] && !exists(name) && !exists("internal/"+name) && !runtimeFiles[name] {
					complain(number, name, "a file that does not exist")
				}
			case goName.MatchString(name):
				seen++
				if !d.knows(strings.Split(name, ".")) {
					complain(number, name, "which nothing in the program declares")
				}
			case strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/"):
				seen++
				if !exists(strings.TrimSuffix(name, "/")) {
					complain(number, name, "a path that does not exist")
				}
			}
		}
	})
	return violations, seen
}

// runtimeFiles are created by kvd, and are not part of the repository.
var runtimeFiles = map[string]bool{"member.json": true, "recovery.json": true}

// unused are names of raft that the page explains the absence of.
var unused = map[string]bool{"Advance": true}

func (d *declarations) knows(parts []string) bool {
	switch len(parts) {
	case 1:
		return d.words[parts[0]] || d.packages[parts[0]] || unused[parts[0]]
	case 2:
		return d.members[parts[0]][parts[1]] || d.foreign(parts)
	}
	return d.packages[parts[0]] && d.members[parts[0]][parts[1]] && d.members[parts[1]][parts[2]]
}

// foreign accepts pkg.Name of other modules if the program uses it so.
func (d *declarations) foreign(parts []string) bool {
	return !d.packages[parts[0]] && d.members[parts[0]] == nil && d.words[parts[0]] && d.words[parts[1]]
}

// TestDependenciesNameTheirUsers: the column "used by" of docs/dependencies.md
// lists exactly the packages whose program imports a module, and a module that
// the program imports is not listed as needed by tests only.
func TestDependenciesNameTheirUsers(t *testing.T) {
	users := make(map[string]map[string]bool)
	for _, s := range program(sources(t)) {
		for _, p := range s.imports(t) {
			for _, module := range prefixes(p) {
				if users[module] == nil {
					users[module] = make(map[string]bool)
				}
				users[module][strings.TrimPrefix(s.pkg, "internal/")] = true
			}
		}
	}
	rows, testsOnly := 0, false
	prose(markdown(t)["docs/dependencies.md"], func(number int, line string) {
		if strings.HasPrefix(line, "For tests only") || strings.HasPrefix(line, "Tools") {
			testsOnly = true
		}
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], ".") {
			return
		}
		rows++
		module := strings.TrimSpace(cells[1])
		var want []string
		if !testsOnly {
			want = strings.Split(strings.TrimSpace(cells[2]), ", ")
			slices.Sort(want)
		}
		if got := slices.Sorted(maps.Keys(users[module])); !slices.Equal(got, want) {
			t.Errorf("docs/dependencies.md:%d: %s is used by %v, not by %v", number, module, got, want)
		}
	})
	if rows < 15 {
		t.Errorf("only %d modules were found", rows)
	}
}

// prefixes returns an import path and every path above it.
func prefixes(p string) (out []string) {
	for ; p != "."; p = path.Dir(p) {
		out = append(out, p)
	}
	return out
}

// namedTest is the name of a test in a document.
var namedTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9_]*)`")

// TestTrackRecordNamesTests: a bug whose test is gone is not held.
func TestTrackRecordNamesTests(t *testing.T) {
	const file = "docs/track-record.md"
	exists := make(map[string]bool)
	for _, s := range sources(t) {
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test {
				exists[f.Name.Name] = true
			}
		}
	}
	names := namedTest.FindAllStringSubmatch(markdown(t)[file], -1)
	if len(names) < 15 {
		t.Errorf("%s names only %d tests", file, len(names))
	}
	for _, m := range names {
		if !exists[m[1]] {
			t.Errorf("%s names %s, which does not exist", file, m[1])
		}
	}
}

// TestDockerContext: the builder of the image is sent every package that the daemon is
// built from.
func TestDockerContext(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	seen := map[string]bool{"cmd/kvd": true}
	for queue := []string{"cmd/kvd"}; len(queue) > 0; queue = queue[1:] {
		top, _, _ := strings.Cut(queue[0], "/")
		if !slices.Contains(lines, "!"+top) {
			t.Errorf(".dockerignore leaves out %s", queue[0])
		}
		for _, p := range allowed[queue[0]] {
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
}
