package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestRecover loses two of three members for good. The data of the third becomes
// a new cluster. The lost members cannot talk to it, with or without their old
// data, and new members can.
func TestRecover(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"pebble", "memory"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			recoverFrom(t, engine)
		})
	}
}

func recoverFrom(t *testing.T, engine string) {
	c := newCluster(t, 3, append([]string{"--engine", engine}, quick...)...)
	left, dead, wiped := c.node(3), c.node(2), c.node(1)
	var revision uint64
	for i := range 50 {
		revision = put(t, c.leader(), fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
	expectValue(t, left, "k49", "v49") // so it has all of them
	dead.kill()
	wiped.kill()
	left.kill()

	if out, code := recoverDir(left.dir); code != 2 || !strings.Contains(out, "--yes") {
		t.Fatalf("without a terminal: exit code %d\n%s", code, out)
	}
	out, code := recoverDir(left.dir, "--yes")
	for _, text := range []string{"member 3", "revision", "LOST", "never return", wiped.peerURL(), dead.peerURL(), "before-recovery-"} {
		if !strings.Contains(out, text) {
			t.Errorf("it does not say %q:\n%s", text, out)
		}
	}
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}

	restart(left) // with its previous command line
	for i := range 50 {
		expectValue(t, left, fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
	if after := put(t, left, "after", "recovery"); after != revision+1 {
		t.Errorf("revision %d follows %d", after, revision)
	}

	// The lost members come back: one with its data, one without.
	old := dead.start()
	old.expectOutput(t, "cluster ID mismatch")
	if a := get(dead, "/v1/kv/k0?timeout=300ms"); a.status == 200 {
		t.Errorf("a member of the lost cluster serves: %v", a)
	}
	dead.stop()
	if err := os.RemoveAll(wiped.dir); err != nil {
		t.Fatal(err)
	}
	fresh := wiped.start()
	wiped.expectExit(3)
	fresh.expectOutput(t, "--join "+left.peerURL())

	// New members.
	for range 2 {
		m := c.place(uint64(len(c.nodes) + 1))
		c.nodes = append(c.nodes, m)
		m.args = append([]string{"--join", left.peerURL(), "--listen-client", m.url(), "--listen-peer", m.peerURL(),
			"--data-dir", m.dir, "--engine", engine}, quick...)
		m.start()
		m.awaitReady()
		c.awaitVoter(m)
		expectValue(t, m, "k49", "v49")
	}
	dead.noDoctor, wiped.noDoctor = true, true
}

func recoverDir(dir string, more ...string) (string, int) {
	cmd := exec.Command(binary, append([]string{"recover", dir}, more...)...)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return err.Error(), killed
	}
	return string(out), cmd.ProcessState.ExitCode()
}
