package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// raisedBy is how far a restore raises the revision, as docs/backup.md says.
const raisedBy = 1_000_000_000

// drillScript returns the commands of the drill in docs/backup.md as one script. A line
// of its own separates the output of the steps. Ports are those that are free here.
func drillScript(t testing.TB) (script string, steps int) {
	t.Helper()
	page, err := os.ReadFile("../../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(page), -1)
	var b strings.Builder
	b.WriteString("set -eu\ntrap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n")
	for _, block := range blocks {
		b.WriteString("echo " + stepMark + "\n" + block[1])
	}
	ports := make(map[string]string)
	script = regexp.MustCompile(`\b[123]23(79|80)\b`).ReplaceAllStringFunc(b.String(), func(port string) string {
		if ports[port] == "" {
			ports[port] = strconv.Itoa(freePort(t))
		}
		return ports[port]
	})
	if strings.Contains(script, "--data-dir one --port") { // without --listen-peer it takes the default port
		script = strings.ReplaceAll(script, "kvd --data-dir", "kvd --listen-peer http://"+loopback(freePort(t))+" --data-dir")
	}
	return script, len(blocks)
}

const stepMark = "=== next step ==="

// TestBackupDrill types the drill of docs/backup.md and reads what it prints.
func TestBackupDrill(t *testing.T) {
	t.Parallel()
	requireTool(t, "bash")
	script, steps := drillScript(t)
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(environment(), "PATH="+pathWithKvd(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, script)
	}
	parts := strings.Split(string(out), stepMark+"\n")[1:]
	if len(parts) != steps || steps != 5 {
		t.Fatalf("%d steps of %d:\n%s", len(parts), steps, out)
	}
	for i, want := range [][]string{
		{`"mod_revision":5`},
		{"backup.kvd is intact", "revision    5", "kvd1", `"quota_bytes"`},
		{},
		{`"key":"color-1","value":"red"`, `"key":"color-3","value":"red"`, `"create_revision":3,"mod_revision":5,"version":2`,
			fmt.Sprintf(`"mod_revision":%d`, raisedBy+6), `"code":"revision_compacted"`, fmt.Sprintf(`"compact_revision":%d`, raisedBy+5),
			`"type":"put","key":"color-4","value":"blue"`},
		{`"key":"color-3"`, fmt.Sprintf(`"mod_revision":%d`, raisedBy+6), `"healthy":true`},
	} {
		for _, text := range want {
			if !strings.Contains(parts[i], text) {
				t.Errorf("step %d does not print %q:\n%s", i+1, text, parts[i])
			}
		}
	}
	if strings.Contains(parts[4], "color-4") || strings.Contains(parts[4], `"hashes_agree":false`) {
		t.Errorf("the cluster of three: %s", parts[4])
	}
}

// pathWithKvd is a PATH on which kvd is the binary under test.
func pathWithKvd(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	path, err := filepath.Abs(binary)
	if err == nil {
		err = os.Symlink(path, filepath.Join(dir, "kvd"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}

// kvdCommand runs a command of the binary to its end.
func kvdCommand(t testing.TB, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Env = t.TempDir(), environment()
	b, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func mustRun(t testing.TB, args ...string) string {
	t.Helper()
	out, code := kvdCommand(t, args...)
	if code != 0 {
		t.Fatalf("kvd %v: exit code %d\n%s", args, code, out)
	}
	return out
}

// TestBackupWithoutQuorum: two of three members are gone for good. What the third has
// can be saved only as it is, and becomes a new cluster, which the old member refuses.
func TestBackupWithoutQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	left := c.node(3)
	for i := range 50 {
		put(t, c.leader(), fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
	expectValue(t, left, "k49", "v49")
	before, err := left.status()
	if err != nil {
		t.Fatal(err)
	}
	c.node(1).kill()
	c.node(2).kill()
	file := filepath.Join(t.TempDir(), "backup")
	if out, code := kvdCommand(t, "snapshot", "save", left.url(), file); code != 1 || !strings.Contains(out, "503") {
		t.Errorf("a linearizable backup without a quorum: exit code %d\n%s", code, out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the failed backup left a file")
	}
	mustRun(t, "snapshot", "save", "--stale", c.node(1).url(), left.url(), file)

	one := newIdleCluster(t, 1, quick...)
	m := one.node(1)
	mustRun(t, "snapshot", "restore", file, "--cluster", m.peerURL(), "--data-dir", m.dir)
	m.start()
	m.awaitReady()
	for i := range 50 {
		expectValue(t, m, fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
	if got, want := put(t, m, "after", "v"), before.Revision+raisedBy+1; got != want {
		t.Errorf("the next revision is %d, want %d", got, want)
	}
	restart(c.node(1), c.node(2)) // for the full check of the old cluster
}

// TestRestoreKilled kills a restore, and the first starts after it, at any moment. In
// the end a restore succeeds, and nothing of the backup is missing.
func TestRestoreKilled(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	src := newCluster(t, 1, quick...)
	fill(t, src.node(1), 0, 200, 16<<10)
	before, err := src.node(1).status()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	mustRun(t, "snapshot", "save", src.node(1).url(), file)

	c := newIdleCluster(t, 3, quick...)
	for _, m := range c.nodes {
		interrupted := restoreKilled(t, random, m, file)
		t.Logf("%v: %d restores were interrupted", m, interrupted)
	}
	for range 6 {
		for _, m := range c.nodes {
			m.start()
		}
		pause(random, 600*time.Millisecond)
		for _, m := range c.nodes {
			m.kill()
		}
	}
	restart(c.nodes...)
	expectFilled(t, c.node(2), 0, 200, 16<<10)
	if got := put(t, c.node(3), "after", "v"); got != before.Revision+raisedBy+1 {
		t.Errorf("the next revision is %d after %d", got, before.Revision)
	}
}

// restoreKilled restores until it was not killed, and returns how often it was.
func restoreKilled(t testing.TB, random *rand.Rand, m *member, file string) (interrupted int) {
	t.Helper()
	args := []string{"snapshot", "restore", file, "--id", strconv.FormatUint(m.id, 10), "--cluster", m.args[3], "--data-dir", m.dir}
	for range 8 {
		cmd := exec.Command(binary, args...)
		cmd.Env = environment()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pause(random, 60*time.Millisecond)
		_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
		if err := cmd.Wait(); err == nil {
			return interrupted
		}
		if _, err := os.Stat(filepath.Join(m.dir, "member.json")); err == nil {
			return interrupted + 1 // killed after its last step
		}
		interrupted++
		if _, err := os.Stat(filepath.Join(m.dir, "seed.db")); err != nil {
			continue
		}
		if p := m.start(); p.exitCode(t) != 3 {
			t.Error("a node starts from a half restored directory")
		}
		m.expect(m.process(), 3)
	}
	mustRun(t, args...)
	return interrupted
}

// pause waits for a random time. It chooses when to kill, and synchronizes nothing.
func pause(random *rand.Rand, limit time.Duration) {
	<-time.After(time.Duration(random.Int64N(int64(limit))))
}
