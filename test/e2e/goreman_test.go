package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// goreman supervises the nodes of the repository's Procfile in a separate
// directory.
type goreman struct {
	t       testing.TB
	walk    *walk
	path    string
	dir     string
	env     []string
	process *process
}

func startGoreman(t testing.TB, w *walk) *goreman {
	t.Helper()
	procfile, err := os.ReadFile(filepath.Join(repository, "Procfile"))
	if err != nil {
		t.Fatal(err)
	}
	g := &goreman{t: t, walk: w, path: findGoreman(t), dir: t.TempDir()}
	g.env = environment("GOREMAN_RPC_ADDR=127.0.0.1", fmt.Sprintf("GOREMAN_RPC_PORT=%d", freePort(t)))
	if err := os.WriteFile(filepath.Join(g.dir, "Procfile"), []byte(w.replaced.Replace(string(procfile))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyProgram(binary, g.binary()); err != nil {
		t.Fatal(err)
	}
	g.process = startProcessWith(t, g.env, "goreman", g.dir, g.path, "start")
	t.Cleanup(g.cleanUp)
	return g
}

// binary is where the Procfile expects kvd.
func (g *goreman) binary() string { return filepath.Join(g.dir, "bin", "kvd") }

// findGoreman returns the goreman pinned in go.mod, or the installed one.
func findGoreman(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("go", "tool", "-n", "goreman")
	cmd.Dir = repository
	out, err := cmd.Output()
	if path := strings.TrimSpace(string(out)); err == nil && path != "" {
		return buildTool(t, path)
	}
	requireTool(t, "goreman")
	return "goreman"
}

// buildTool makes sure that the path printed by "go tool -n" exists: the tool
// may not have been built yet.
func buildTool(t testing.TB, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "tool", "goreman", "version")
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build goreman: %v\n%s", err, out)
	}
	return path
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// run is goreman's remote control: goreman run start|stop NAME.
func (g *goreman) run(command, name string) {
	g.t.Helper()
	cmd := exec.Command(g.path, "run", command, name)
	cmd.Dir, cmd.Env = g.dir, g.env
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("goreman run %s %s: %v\n%s", command, name, err, out)
	}
}

// awaitReady waits for the node behind a client port of the walk-through.
func (g *goreman) awaitReady(port string) {
	g.t.Helper()
	g.walk.expectCurl("--output /dev/null --write-out %{http_code} http://127.0.0.1:"+port+"/readyz", "200")
}

// stop stops goreman, which stops its nodes, and checks what they leave behind.
func (g *goreman) stop() {
	g.t.Helper()
	g.process.signal(g.t, syscall.SIGINT)
	g.process.expectExit(g.t, 0)
	if left := g.nodes(); len(left) > 0 {
		g.t.Errorf("goreman left nodes behind: %v", left)
	}
	for id := 1; id <= 3; id++ {
		dir := filepath.Join(g.dir, "kvd-data", "cluster-"+strconv.Itoa(id))
		if out, code := doctor(dir); code != 0 {
			g.t.Errorf("kvd doctor %s ends with %d\n%s", dir, code, out)
		}
	}
}

// nodes returns the processes that run this test's own copy of kvd.
func (g *goreman) nodes() (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is well formed
	for _, link := range links {
		if exe, err := os.Readlink(link); err != nil || exe != g.binary() {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cleanUp stops goreman and the nodes, even after a failure.
func (g *goreman) cleanUp() {
	if g.process.running() {
		g.process.signal(g.t, syscall.SIGTERM)
		_ = poll(patience, func() error {
			if g.process.running() {
				return fmt.Errorf("goreman still runs")
			}
			return nil
		})
		g.process.abandon()
	}
	for _, pid := range g.nodes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if g.t.Failed() {
		g.t.Logf("goreman wrote:\n%s", g.process.output.tail(100))
	}
}
