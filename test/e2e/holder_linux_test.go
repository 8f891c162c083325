package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestSuspendedHolderEndsItsCommand suspends kvd lock for longer than its lock lives.
// Another process gets the lock meanwhile. Once the first one runs again, it notices, and
// ends its command before it does anything else. A holder that is killed takes its command
// with it.
func TestSuspendedHolderEndsItsCommand(t *testing.T) {
	c := newCluster(t, 3, quick...)
	dir := t.TempDir()
	env := environment("KVD_ENDPOINTS=" + c.node(1).url() + "," + c.node(2).url() + "," + c.node(3).url())
	lock := func(name string, command string) *process {
		p := startProcessWith(t, env, name, dir, binary, "lock", "job", "--ttl", "2s", "--", "sh", "-c", command)
		t.Cleanup(p.abandon)
		return p
	}
	// The command tells its pid and sleeps; exec leaves one process to look for.
	work := func(name string) string {
		return "echo $$ > " + name + ".new && mv " + name + ".new " + name + " && exec sleep 1000"
	}
	first := lock("the first holder", work("first"))
	firstPid := awaitPid(t, filepath.Join(dir, "first"))
	first.signal(t, syscall.SIGSTOP)
	second := lock("the second holder", work("second"))
	secondPid := awaitPid(t, filepath.Join(dir, "second")) // it got the lock
	first.signal(t, syscall.SIGCONT)
	first.expectExit(t, 1)
	first.expectOutput(t, "the lock job was lost")
	awaitGone(t, firstPid)
	second.signal(t, syscall.SIGKILL)
	second.expectExit(t, killed)
	awaitGone(t, secondPid)
}

// awaitPid waits for a file with the id of a process.
func awaitPid(t *testing.T, name string) (pid int) {
	t.Helper()
	eventually(t, "the command of a holder runs", func() error {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(text), &pid)
		return err
	})
	return pid
}

// awaitGone waits until a process has ended.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d ends", pid), func() error {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return nil
		}
		return fmt.Errorf("it is running: %s", state)
	})
}
