package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// site is a place in the source, and what is planted there.
type site struct {
	id       int    // the value of KVD_MUTANT that turns it on
	name     string // file, function, kind, and text; without line numbers
	file     string
	line     int
	from, to int    // offsets of the original text
	text     string // what replaces it: the original behind a switch
}

// kinds of mutants, as they appear in the names.
const (
	kindNegate = "negate"  // a condition
	kindBound  = "bound"   // < for <=, and the like
	kindArith  = "arith"   // + for -
	kindDrop   = "drop"    // a call or an assignment
	kindError  = "swallow" // return err
)

// finder collects the sites of one file.
type finder struct {
	set    *token.FileSet
	source []byte
	file   string
	fn     string
	sites  []site
	// within has the ranges that already have a site: mutants do not nest, because
	// the text of the outer one would contain that of the inner one.
	taken [][2]int
}

// sitesOf returns the sites of a package's program files that match one of the
// patterns.
func sitesOf(dir string, patterns []string) (map[string][]byte, []site, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	sources := make(map[string][]byte)
	var all []site
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") || !matches(filepath.Base(name), patterns) {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, nil, err
		}
		found, err := sitesIn(name, source)
		if err != nil {
			return nil, nil, err
		}
		sources[name] = source
		all = append(all, found...)
	}
	return sources, all, nil
}

func matches(name string, patterns []string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := filepath.Match(p, name)
		return err == nil && ok
	})
}

func sitesIn(name string, source []byte) ([]site, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, name, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &finder{set: set, source: source, file: name}
	for _, d := range tree.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil && fn.Name.Name != "init" {
			f.fn = functionName(fn)
			ast.Inspect(fn.Body, f.visit)
		}
	}
	number(f.sites)
	return f.sites, nil
}

func functionName(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if generic, ok := t.(*ast.IndexExpr); ok {
		t = generic.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// number makes the names unique: the second of two equal ones gets "#2".
func number(sites []site) {
	seen := make(map[string]int)
	for i := range sites {
		name := sites[i].name
		if seen[name]++; seen[name] > 1 {
			sites[i].name = fmt.Sprintf("%s #%d", name, seen[name])
		}
	}
}

// visit is called for each node from the outside in. The smallest ones are the most
// telling, so an expression with a comparison in it is left to the comparison.
func (f *finder) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		f.binary(n)
	case *ast.IfStmt:
		if !hasComparison(n.Cond) {
			f.add(kindNegate, n.Cond, "mutantNot(%d, "+f.text(n.Cond)+")")
		}
	case *ast.ExprStmt:
		if call, ok := n.X.(*ast.CallExpr); ok && !isPanic(call) && !hasFunction(call) {
			f.add(kindDrop, n, "if !mutantOn(%d) { "+f.text(n)+" }")
		}
	case *ast.AssignStmt:
		if n.Tok == token.ASSIGN && len(n.Lhs) == 1 && !hasFunction(n) {
			if _, ok := n.Lhs[0].(*ast.SelectorExpr); ok {
				f.add(kindDrop, n, "if !mutantOn(%d) { "+f.text(n)+" }")
			}
		}
	case *ast.ReturnStmt:
		if k := len(n.Results); k > 0 {
			if id, ok := n.Results[k-1].(*ast.Ident); ok && id.Name == "err" {
				f.add(kindError, id, "mutantErr(%d, err)")
			}
		}
	}
	return true
}

func (f *finder) binary(n *ast.BinaryExpr) {
	if hasFunction(n) {
		return
	}
	x, y := f.text(n.X), f.text(n.Y)
	switch n.Op {
	case token.LSS, token.LEQ, token.GTR, token.GEQ:
		name := map[token.Token]string{token.LSS: "Less", token.LEQ: "LessEqual", token.GTR: "Greater", token.GEQ: "GreaterEqual"}[n.Op]
		f.add(kindBound, n, "mutant"+name+"(%d, "+x+", "+y+")")
	case token.EQL, token.NEQ:
		f.add(kindNegate, n, "mutantNot(%d, "+x+" "+n.Op.String()+" "+y+")")
	case token.ADD:
		f.add(kindArith, n, "mutantPlus(%d, "+x+", "+y+")")
	case token.SUB:
		f.add(kindArith, n, "mutantMinus(%d, "+x+", "+y+")")
	}
}

// hasComparison reports whether a part of the expression gets a mutant of its own.
func hasComparison(e ast.Expr) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		if b, ok := n.(*ast.BinaryExpr); ok && b.Op != token.LAND && b.Op != token.LOR {
			found = true
		}
		return !found
	})
	return found
}

func hasFunction(n ast.Node) (found bool) {
	ast.Inspect(n, func(n ast.Node) bool {
		_, ok := n.(*ast.FuncLit)
		found = found || ok
		return !found
	})
	return found
}

func isPanic(call *ast.CallExpr) bool {
	id, ok := call.Fun.(*ast.Ident)
	return ok && id.Name == "panic"
}

func (f *finder) text(n ast.Node) string {
	return string(f.source[f.offset(n.Pos()):f.offset(n.End())])
}

func (f *finder) offset(p token.Pos) int { return f.set.Position(p).Offset }

// add notes a site, unless it is inside of another one.
func (f *finder) add(kind string, n ast.Node, format string) {
	from, to := f.offset(n.Pos()), f.offset(n.End())
	for _, t := range f.taken {
		if from < t[1] && t[0] < to {
			return
		}
	}
	f.taken = append(f.taken, [2]int{from, to})
	var short bytes.Buffer
	if err := printer.Fprint(&short, f.set, n); err != nil {
		return
	}
	name := fmt.Sprintf("%s %s %s: %.90s", filepath.ToSlash(f.file), f.fn, kind, strings.Join(strings.Fields(short.String()), " "))
	f.sites = append(f.sites, site{name: name, file: f.file, line: f.set.Position(n.Pos()).Line, from: from, to: to, text: format})
}

// choose returns at most n of the sites, always the same ones, in the order of the
// source.
func choose(sites []site, n int) []site {
	if n > 0 && len(sites) > n {
		hash := func(s site) uint64 {
			h := fnv.New64a()
			_, _ = h.Write([]byte(s.name)) // a hash never fails
			// FNV's high bits hardly change with the last bytes.
			return h.Sum64() * 0x9E3779B97F4A7C15
		}
		sites = slices.Clone(sites)
		slices.SortFunc(sites, func(a, b site) int {
			if x, y := hash(a), hash(b); x != y {
				if x < y {
					return -1
				}
				return 1
			}
			return strings.Compare(a.name, b.name)
		})
		sites = sites[:n]
	}
	slices.SortFunc(sites, func(a, b site) int {
		if a.file != b.file {
			return strings.Compare(a.file, b.file)
		}
		return a.from - b.from
	})
	for i := range sites {
		sites[i].id = i + 1
	}
	return sites
}

// instrument puts the sites of a file behind their switches. Line numbers stay.
func instrument(file string, source []byte, sites []site) []byte {
	var out []byte
	at := 0
	for _, s := range sites {
		if s.file != file {
			continue
		}
		out = append(out, source[at:s.from]...)
		out = append(out, strings.Replace(s.text, "%d", fmt.Sprint(s.id), 1)...)
		at = s.to
	}
	return append(out, source[at:]...)
}

// switches is the file that is added to the package.
func switches(pkg string) []byte {
	return []byte("package " + pkg + `

import (
	"cmp"
	"os"
	"strconv"
	"sync"
)

var (
	mutantChosen, _ = strconv.Atoi(os.Getenv("KVD_MUTANT"))
	mutantNotes     = os.Getenv("KVD_MUTANTS_REACHED")
	mutantSeen      sync.Map
)

// mutantOn reports whether the mutant is the chosen one, and notes that it was asked.
func mutantOn(id int) bool {
	if mutantNotes != "" {
		if _, seen := mutantSeen.LoadOrStore(id, true); !seen {
			f, err := os.OpenFile(mutantNotes, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err == nil {
				_, _ = f.WriteString(strconv.Itoa(id) + "\n")
				_ = f.Close()
			}
		}
	}
	return id == mutantChosen
}

func mutantNot(id int, b bool) bool { return mutantOn(id) != b }

func mutantErr(id int, err error) error {
	if mutantOn(id) {
		return nil
	}
	return err
}

func mutantLess[T cmp.Ordered](id int, a, b T) bool {
	if mutantOn(id) {
		return a <= b
	}
	return a < b
}

func mutantLessEqual[T cmp.Ordered](id int, a, b T) bool {
	if mutantOn(id) {
		return a < b
	}
	return a <= b
}

func mutantGreater[T cmp.Ordered](id int, a, b T) bool {
	if mutantOn(id) {
		return a >= b
	}
	return a > b
}

func mutantGreaterEqual[T cmp.Ordered](id int, a, b T) bool {
	if mutantOn(id) {
		return a > b
	}
	return a >= b
}

type mutantNumber interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~float64
}

func mutantPlus[T mutantNumber](id int, a, b T) T {
	if mutantOn(id) {
		return a - b
	}
	return a + b
}

func mutantMinus[T mutantNumber](id int, a, b T) T {
	if mutantOn(id) {
		return a + b
	}
	return a - b
}
`)
}
