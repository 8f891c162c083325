package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/kvd-io/kvd"

// allowed has, for each package, the packages of this module that it may
// import. A package that is not listed may not exist.
var allowed = map[string][]string{
	"cmd/kvd":                           {"internal/audit", "internal/cli/accounts", "internal/backup", "internal/rights", "internal/access", "internal/cli", "internal/cli/operator", "internal/etcdapi", "internal/etcdapi/gateway", "internal/budget", "internal/settings", "internal/frontdoor", "internal/logsink", "internal/httpapi", "internal/certs", "internal/node", "internal/metrics", "internal/loadgen", "internal/api", "internal/jwt", "internal/httpapi/meter"},
	"internal/settings":                 {"internal/limits", "internal/memberurl"},
	"internal/connlimit":                {},
	"internal/link":                     {},
	"internal/audit":                    {"internal/access", "internal/api", "internal/kvstore", "internal/kvstore/guard", "internal/rights"},
	"internal/budget":                   {"internal/limits"},
	"internal/padded":                   {},
	"internal/pace":                     {"internal/budget"},
	"internal/frontdoor":                {"internal/connlimit", "internal/link", "internal/settings", "internal/certs", "internal/http1", "internal/httpapi", "internal/etcdapi", "internal/api"},
	"internal/etcdapi":                  {"internal/arrival", "internal/audit", "internal/link", "internal/etcdapi/answer", "internal/etcdapi/codec", "internal/etcdapi/recipes", "internal/etcdapi/watchrpc", "internal/watch", "internal/kvstore", "internal/api", "internal/budget", "internal/limits", "internal/memberurl", "internal/pace", "internal/padded", "internal/access", "internal/etcdapi/authrpc", "internal/rights"},
	"internal/etcdapi/answer":           {"internal/watch", "internal/kvstore", "internal/api", "internal/budget", "internal/access"},
	"internal/etcdapi/recipes":          {"internal/watch", "internal/kvstore", "internal/rights"},
	"internal/etcdapi/etcdtest":         {"internal/access", "internal/certs", "internal/etcdapi", "internal/freeport", "internal/frontdoor", "internal/httpapi", "internal/kvstore", "internal/node", "internal/settings"},
	"internal/logsink":                  {"internal/settings"},
	"internal/metrics":                  {"internal/node", "internal/raftnode", "internal/api"},
	"internal/node":                     {"internal/rights", "internal/access", "internal/lessor", "internal/raftnode", "internal/catchup", "internal/roster", "internal/datadir", "internal/peers", "internal/limits", "internal/certs", "internal/kvstore", "internal/kvstore/engine", "internal/watch", "internal/api", "internal/memberurl", "internal/repeat", "internal/connlimit", "internal/pace", "internal/scrub", "internal/founding"},
	"internal/httpapi":                  {"internal/audit", "internal/access", "internal/rights", "internal/httpapi/door", "internal/httpapi/accounts", "internal/httpapi/batch", "internal/httpapi/browser", "internal/httpapi/cursor", "internal/httpapi/dialect", "internal/httpapi/feed", "internal/httpapi/param", "internal/httpapi/reply", "internal/httpapi/ui", "internal/watch", "internal/opjson", "internal/kvstore", "internal/api", "internal/memberurl", "internal/limits", "internal/budget", "internal/pace"},
	"internal/httpapi/accounts":         {"internal/audit", "internal/access", "internal/httpapi/param", "internal/httpapi/reply", "internal/opjson", "internal/kvstore", "internal/rights", "internal/api", "internal/budget"},
	"internal/httpapi/batch":            {"internal/httpapi/reply", "internal/opjson", "internal/kvstore", "internal/api", "internal/limits", "internal/budget"},
	"internal/httpapi/browser":          {"internal/api"},
	"internal/httpapi/cursor":           {"internal/kvstore"},
	"internal/httpapi/dialect":          {"internal/api"},
	"internal/httpapi/door":             {"internal/audit", "internal/access", "internal/api", "internal/httpapi/param", "internal/kvstore", "internal/link", "internal/rights"},
	"internal/httpapi/feed":             {"internal/budget", "internal/httpapi/reply", "internal/pace", "internal/watch", "internal/kvstore"},
	"internal/httpapi/meter":            {"internal/api"},
	"internal/httpapi/param":            {"internal/opjson", "internal/kvstore", "internal/api", "internal/limits"},
	"internal/httpapi/reply":            {"internal/opjson", "internal/kvstore", "internal/api", "internal/limits", "internal/budget"},
	"internal/httpapi/ui":               {},
	"internal/etcdapi/authrpc":          {"internal/etcdapi/answer", "internal/kvstore", "internal/rights"},
	"internal/jwt":                      {},
	"internal/etcdapi/codec":            {},
	"internal/etcdapi/gateway":          {"internal/etcdapi/codec", "internal/budget", "internal/pace"},
	"internal/etcdapi/watchrpc":         {"internal/etcdapi/codec", "internal/budget", "internal/pace", "internal/watch", "internal/kvstore", "internal/rights"},
	"internal/opjson":                   {"internal/kvstore", "internal/limits"},
	"internal/http1":                    {"internal/arrival"},
	"internal/arrival":                  {},
	"internal/loadgen":                  {},
	"internal/certs":                    {},
	"internal/limits":                   {},
	"internal/memberurl":                {},
	"internal/datadir":                  {"internal/limits"},
	"internal/peers":                    {"internal/limits", "internal/memberurl", "internal/repeat"},
	"internal/repeat":                   {},
	"internal/backup":                   {"internal/datadir", "internal/kvstore", "internal/padded"},
	"internal/founding":                 {"internal/datadir"},
	"internal/scrub":                    {"internal/api", "internal/kvstore/engine"},
	"internal/statemachine":             {},
	"internal/raftlog":                  {"internal/limits"},
	"internal/lessor":                   {},
	"internal/roster":                   {"internal/limits", "internal/statemachine"},
	"internal/catchup":                  {"internal/raftlog", "internal/repeat", "internal/roster"},
	"internal/raftnode":                 {"internal/catchup", "internal/roster", "internal/repeat", "internal/datadir", "internal/raftlog", "internal/peers", "internal/limits", "internal/statemachine", "internal/memberurl"},
	"internal/watch":                    {"internal/kvstore"},
	"internal/kvstore":                  {"internal/kvstore/tally", "internal/kvstore/body", "internal/kvstore/changelog", "internal/kvstore/command", "internal/kvstore/engine", "internal/kvstore/guard", "internal/kvstore/hot", "internal/kvstore/layout", "internal/kvstore/once", "internal/kvstore/rows", "internal/kvstore/statehash", "internal/kvstore/ticket", "internal/kvstore/timeline", "internal/kvstore/waiters", "internal/kvstore/walk", "internal/kvstore/wire", "internal/limits", "internal/rights", "internal/statemachine"},
	"internal/kvstore/body":             {"internal/kvstore/wire", "internal/limits"},
	"internal/kvstore/changelog":        {"internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/wire", "internal/limits"},
	"internal/kvstore/command":          {"internal/kvstore/wire", "internal/limits", "internal/rights"},
	"internal/kvstore/layout":           {"internal/kvstore/command", "internal/kvstore/wire"},
	"internal/kvstore/statehash":        {"internal/kvstore/changelog", "internal/kvstore/command", "internal/kvstore/layout"},
	"internal/kvstore/rows":             {"internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/statehash"},
	"internal/kvstore/hot":              {"internal/kvstore/command"},
	"internal/kvstore/ticket":           {"internal/kvstore/layout"},
	"internal/kvstore/timeline":         {"internal/kvstore/engine", "internal/kvstore/layout"},
	"internal/kvstore/once":             {"internal/kvstore/command", "internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/statehash", "internal/kvstore/wire"},
	"internal/kvstore/walk":             {"internal/kvstore/command", "internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/wire"},
	"internal/kvstore/tally":            {"internal/kvstore/changelog", "internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/walk"},
	"internal/kvstore/wire":             {},
	"internal/kvstore/waiters":          {},
	"internal/kvstore/engine":           {},
	"internal/kvstore/engine/crashdisk": {"internal/kvstore/engine"},
	"internal/api":                      {},
	"internal/rights":                   {},
	"internal/access":                   {"internal/api", "internal/kvstore/command", "internal/kvstore/guard", "internal/rights"},
	"internal/kvstore/guard":            {"internal/kvstore/command", "internal/kvstore/engine", "internal/kvstore/layout", "internal/kvstore/rows", "internal/rights"},
	"internal/arch":                     {},
	"internal/cli":                      {"client", "internal/transfer", "internal/etcdfile"},
	"internal/etcdfile":                 {},
	"internal/transfer":                 {"client"},
	"internal/cli/accounts":             {"internal/cli", "internal/transfer", "client"},
	"internal/cli/operator":             {"internal/cli", "client"},
	"client":                            {},
	"internal/freeport":                 {},
	"kvdtest":                           {"internal/access", "client", "internal/certs", "internal/freeport", "internal/settings", "internal/frontdoor", "internal/httpapi", "internal/node", "internal/kvstore"},
	"internal/proof":                    {},
}

// exceptions are single files with imports beyond their package's: the
// offline tools look at one part of the house without starting a node, and
// serving takes the store's default settings.
var exceptions = map[string][]string{
	"cmd/kvd/doctor.go":        {"internal/datadir"},
	"cmd/kvd/main_test.go":     {"internal/datadir"},
	"cmd/kvd/metrics_test.go":  {"internal/raftnode"},
	"cmd/kvd/deploy_test.go":   {"internal/kvstore"},
	"cmd/kvd/etcd.go":          {"internal/kvstore"},
	"cmd/kvd/serve.go":         {"internal/kvstore"},
	"cmd/kvd/snapshot.go":      {"internal/kvstore", "internal/roster"},
	"cmd/kvd/snapshot_save.go": {"internal/kvstore"},
}

// testsToo has what the tests of a package may import beside it, and beside
// internal/freeport and internal/proof, which are for tests.
var testsToo = map[string][]string{
	// Its examples run against real nodes.
	"client":  {"kvdtest"},
	"kvdtest": {"internal/api"},
	// So do the tests of the commands.
	"internal/cli":          {"kvdtest"},
	"internal/transfer":     {"kvdtest"},
	"internal/cli/operator": {"kvdtest"},
	"internal/cli/accounts": {"kvdtest"},
	// They run on a real store, and behind the reader of small requests.
	"internal/httpapi": {"internal/kvstore/engine", "internal/http1", "internal/rights", "internal/httpapi/meter", "internal/link"},
	// Members begin with what was restored.
	"internal/node": {"internal/backup"},
	// They restore backups into a store.
	"internal/backup": {"internal/kvstore/engine"},
	// They look for secrets in backups.
	"cmd/kvd": {"internal/kvstore/body"},
	// It runs before a real node.
	"internal/etcdapi/gateway": {"internal/etcdapi", "internal/node", "internal/kvstore", "internal/api", "internal/access"},
	// They run on a real store.
	"internal/etcdapi/watchrpc": {"internal/kvstore/engine"},
	// The simulator runs real stores, with their watches and leases, some of them on disks
	// whose power it cuts, and the face of etcd before them.
	"internal/raftnode": {"internal/access", "internal/api", "internal/etcdapi", "internal/kvstore", "internal/kvstore/engine", "internal/kvstore/engine/crashdisk", "internal/lessor", "internal/rights", "internal/scrub", "internal/watch"},
	// They run on real nodes.
	"internal/etcdapi": {"internal/etcdapi/etcdtest", "internal/certs", "internal/node"},
	// A gate that is open answers from a store.
	"internal/frontdoor": {"internal/kvstore"},
}

// foreign has the packages of others, by prefix, that a package must not
// import.
var foreign = map[string][]string{
	"internal/kvstore":          {"go.etcd.io", "net", "math/rand", "crypto/rand", "os", "go.uber.org/zap"},
	"internal/kvstore/engine":   {"go.etcd.io", "net"},
	"internal/lessor":           {"go.etcd.io", "github.com/cockroachdb/pebble", "net", "os"},
	"internal/watch":            {"go.etcd.io", "github.com/cockroachdb/pebble", "net", "os"},
	"internal/roster":           {"github.com/cockroachdb/pebble", "net", "os"},
	"internal/catchup":          {"github.com/cockroachdb/pebble", "net", "os"},
	"internal/raftlog":          {"github.com/cockroachdb/pebble", "net"},
	"internal/raftnode":         {"github.com/cockroachdb/pebble"},
	"internal/peers":            {"github.com/cockroachdb/pebble"},
	"internal/datadir":          {"github.com/cockroachdb/pebble", "net"},
	"internal/httpapi":          {"go.etcd.io", "github.com/cockroachdb/pebble"},
	"internal/httpapi/accounts": {"go.etcd.io", "github.com/cockroachdb/pebble", "os"},
	"internal/httpapi/batch":    {"go.etcd.io", "github.com/cockroachdb/pebble"},
	"internal/httpapi/browser":  {"go.etcd.io", "github.com/cockroachdb/pebble", "os"},
	"internal/httpapi/cursor":   {"go.etcd.io", "github.com/cockroachdb/pebble", "net", "os"},
	"internal/httpapi/dialect":  {"go.etcd.io", "github.com/cockroachdb/pebble", "os"},
	"internal/httpapi/feed":     {"go.etcd.io", "github.com/cockroachdb/pebble"},
	"internal/httpapi/param":    {"go.etcd.io", "github.com/cockroachdb/pebble", "os"},
	"internal/httpapi/reply":    {"go.etcd.io", "github.com/cockroachdb/pebble"},
	"internal/httpapi/ui":       {"go.etcd.io", "github.com/cockroachdb/pebble", "os"},
	"internal/api":              {"go.etcd.io", "net", "os"},
}

// source is one parsed file.
type source struct {
	file   string // path from the root
	pkg    string
	test   bool
	tree   *ast.File
	lines  []string
	lineOf func(token.Pos) int
}

// newSource parses the text of a file, whose path is relative to the root.
func newSource(file string, text []byte) (source, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, text, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	return source{
		file:   file,
		pkg:    path.Dir(file),
		test:   strings.HasSuffix(file, "_test.go"),
		tree:   tree,
		lines:  strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"),
		lineOf: func(p token.Pos) int { return set.Position(p).Line },
	}, nil
}

// parsed keeps what sources returns: every test here looks at the same files.
var parsed struct {
	sync.Once
	sources []source
	err     error
}

// sources returns every Go file of the module, parsed. Modules nested in it
// (bench) are not part of it.
func sources(t *testing.T) []source {
	t.Helper()
	root := moduleRoot(t)
	parsed.Do(func() { parsed.sources, parsed.err = parseAll(root) })
	if parsed.err != nil {
		t.Fatal(parsed.err)
	}
	return parsed.sources
}

func parseAll(root string) ([]source, error) {
	var out []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(root, rel, d.Name())
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		s, err := newSource(filepath.ToSlash(rel), text)
		if err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// enter decides whether a directory belongs to the module.
func enter(root, rel, base string) error {
	if rel == "." {
		return nil
	}
	if strings.HasPrefix(base, ".") || base == "testdata" || base == "kvd-data" {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(root, rel, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// imports returns the import paths of a file.
func (s source) imports(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, i := range s.tree.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatalf("%s: %v", s.file, err)
		}
		out = append(out, p)
	}
	return out
}

// selectors calls f for each expression x.name where x is a plain name.
func (s source) selectors(f func(x, name string)) {
	ast.Inspect(s.tree, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok {
				f(x.Name, sel.Sel.Name)
			}
		}
		return true
	})
}

// TestImports holds every import of this module's packages, in tests too,
// against the graph. Packages under test/ drive the whole, and are free.
func TestImports(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range sources(t) {
		if s.pkg == "test" || strings.HasPrefix(s.pkg, "test/") {
			continue
		}
		seen[s.pkg] = true
		may, ok := allowed[s.pkg]
		if !ok {
			t.Errorf("%s: package %s has no place in the graph", s.file, s.pkg)
			continue
		}
		for _, p := range s.imports(t) {
			own, ok := strings.CutPrefix(p, module+"/")
			if !ok || own == s.pkg || slices.Contains(may, own) || slices.Contains(exceptions[s.file], own) ||
				s.test && (own == "internal/freeport" || own == "internal/proof" || slices.Contains(testsToo[s.pkg], own)) {
				continue
			}
			t.Errorf("%s imports %s, which %s may not", s.file, own, s.pkg)
		}
	}
	for _, pkg := range []string{"cmd/kvd", "internal/httpapi", "internal/node", "internal/raftnode", "internal/kvstore", "internal/kvstore/engine"} {
		if !seen[pkg] {
			t.Errorf("package %s was not found; the test looks in the wrong place", pkg)
		}
	}
}

// TestGraphHasNoCycle makes sure that the table itself is a DAG, exceptions
// included.
func TestGraphHasNoCycle(t *testing.T) {
	graph := make(map[string][]string)
	for pkg, may := range allowed {
		graph[pkg] = append(graph[pkg], may...)
	}
	for file, may := range exceptions {
		graph[path.Dir(file)] = append(graph[path.Dir(file)], may...)
	}
	done := make(map[string]bool)
	var visit func(pkg string, way []string)
	visit = func(pkg string, way []string) {
		if slices.Contains(way, pkg) {
			t.Fatalf("the graph has a cycle: %v", append(way, pkg))
		}
		if done[pkg] {
			return
		}
		for _, next := range graph[pkg] {
			visit(next, append(slices.Clone(way), pkg))
		}
		done[pkg] = true
	}
	for pkg := range graph {
		visit(pkg, nil)
	}
}

// TestForeignImports keeps raft, HTTP and randomness out of the packages that
// must not know of them.
func TestForeignImports(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, p := range s.imports(t) {
			bans := foreign[s.pkg]
			if ofStore(s.pkg) {
				bans = foreign["internal/kvstore"]
			}
			for _, prefix := range bans {
				if p == prefix || strings.HasPrefix(p, prefix+"/") {
					t.Errorf("%s imports %s, which %s must not know", s.file, p, s.pkg)
				}
			}
		}
	}
}

// TestHTTPAPIUsesOnlyTypesOfTheStore allows package httpapi the store's types,
// constants and errors, but none of its functions: it reaches the store
// through its own interfaces.
func TestHTTPAPIUsesOnlyTypesOfTheStore(t *testing.T) {
	all := sources(t)
	functions := make(map[string]bool)
	for _, s := range all {
		if s.pkg != "internal/kvstore" || s.test {
			continue
		}
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				functions[f.Name.Name] = true
			}
		}
	}
	for _, s := range all {
		if s.pkg != "internal/httpapi" && path.Dir(s.pkg) != "internal/httpapi" || s.test {
			continue
		}
		s.selectors(func(x, name string) {
			if x == "kvstore" && functions[name] {
				t.Errorf("%s calls kvstore.%s", s.file, name)
			}
		})
	}
}

// ofStore reports whether a package is the store or a part of it, but for the engine,
// which is a database.
func ofStore(pkg string) bool {
	return pkg == "internal/kvstore" || path.Dir(pkg) == "internal/kvstore" && pkg != "internal/kvstore/engine"
}

// clock are the names of package time that read or wait for the clock.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// TestStoreHasNoClock: what the store does must be the same on every replica,
// so time enters only in commands.
func TestStoreHasNoClock(t *testing.T) {
	for _, s := range sources(t) {
		if ofStore(s.pkg) && !s.test {
			s.forbidClock(t)
		}
	}
}

// TestCoreIsDeterministic: the core of raftnode, in the files core*.go, has no
// clock, file, socket or goroutine, so that the simulator can replay it.
func TestCoreIsDeterministic(t *testing.T) {
	found := 0
	for _, s := range sources(t) {
		if s.pkg != "internal/raftnode" || s.test || !strings.HasPrefix(path.Base(s.file), "core") {
			continue
		}
		found++
		s.forbidClock(t)
		for _, p := range s.imports(t) {
			if p == "os" || p == "io" || p == "net" || strings.HasPrefix(p, "net/") {
				t.Errorf("%s imports %s", s.file, p)
			}
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s starts a goroutine", s.file)
			}
			return true
		})
	}
	if found == 0 {
		t.Error("no file core*.go was found in internal/raftnode")
	}
}

func (s source) forbidClock(t *testing.T) {
	t.Helper()
	s.selectors(func(x, name string) {
		if x == "time" && slices.Contains(clock, name) {
			t.Errorf("%s uses time.%s", s.file, name)
		}
	})
}

// TestDependenciesAreJustified: docs/dependencies.md has a line for each direct
// requirement and tool of go.mod, and nothing there is replaced.
func TestDependenciesAreJustified(t *testing.T) {
	root := moduleRoot(t)
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	block, found := "", 0
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
			continue
		case fields[0] == ")":
			block = ""
		case fields[0] == "replace":
			t.Errorf("go.mod replaces a module: %s", line)
		case len(fields) == 2 && fields[1] == "(":
			block = fields[0]
		case (block == "require" || block == "tool") && !strings.HasSuffix(strings.TrimSpace(line), "// indirect"):
			found++
			if !strings.Contains(string(doc), "| "+fields[0]+" |") {
				t.Errorf("docs/dependencies.md has no line for %s", fields[0])
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d requirements were found in go.mod", found)
	}
}
