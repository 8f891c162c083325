package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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

// TestHolderAtATerminal: however the outputs of kvd lock are redirected, Ctrl-C reaches its
// command once, by the terminal or by kvd lock, which then frees the lock and exits with the
// command's status; and the command reads what is typed.
func TestHolderAtATerminal(t *testing.T) {
	c := newCluster(t, 1, quick...)
	for what, typed := range map[string]struct{ keys, command string }{
		"interrupted": {"\x03", `n=0; trap "n=\$((n+1))" INT; echo $$ >pid.new; mv pid.new pid; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.3; exit $((40+n))`},
		"typed":       {"hello\n", `echo $$ >pid.new; mv pid.new pid; read x; [ "$x" = hello ] && exit 41`},
	} {
		for _, redirected := range []string{"", " 2>err", " >out 2>err"} {
			t.Run(what+redirected, func(t *testing.T) { holdAtTerminal(t, c.node(1), typed.keys, typed.command, redirected) })
		}
	}
}

func holdAtTerminal(t *testing.T, m *member, keys, command, redirected string) {
	keyboard, terminal := openTerminal(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+binary+" lock job --ttl 5s -- sh -c '"+command+"'"+redirected)
	cmd.Dir, cmd.Env = dir, environment("KVD_ENDPOINTS="+m.url())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitPid(t, filepath.Join(dir, "pid"))
	if _, err := keyboard.WriteString(keys); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 41 {
		t.Errorf("%v, want 41", err)
	}
	if a := get(m, "/v1/locks/job"); a.status != 404 {
		t.Errorf("the lock afterwards: %v", a)
	}
}

// openTerminal returns both ends of a terminal.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	fd := int(keyboard.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	terminal, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return keyboard, terminal
}
