package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is one run of a program. Its owner ends it by its own pid, and its
// output is kept.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *capture
	done   chan struct{} // closed once it has exited
	err    error         // of Wait, valid after done
}

// killed is the exit code of a process that a signal ended.
const killed = -1

func startProcess(t testing.TB, name, dir, path string, args ...string) *process {
	t.Helper()
	return startProcessWith(t, environment(), name, dir, path, args...)
}

func startProcessWith(t testing.TB, env []string, name, dir, path string, args ...string) *process {
	t.Helper()
	p := &process{name: name, output: &capture{}, done: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Env = dir, env
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = processAttributes()
	// A descendant that holds the output open must not keep Wait from returning.
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// environment is this process's environment without settings of kvd.
func environment(more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KVD_") })
	return append(env, more...)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends a signal to this process only. It is not an error if the process
// has exited.
func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("%v to %s: %v", s, p.name, err)
	}
}

// exitCode waits for the process to exit.
func (p *process) exitCode(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("%s does not end within %v\n%s", p.name, patience, p.output.tail(40))
		return 0
	}
}

// expectExit fails the test unless the process exits with the code.
func (p *process) expectExit(t testing.TB, code int) {
	t.Helper()
	if got := p.exitCode(t); got != code {
		t.Fatalf("%s ended with exit code %d (%v), want %d\n%s", p.name, got, p.cmd.ProcessState, code, p.output.tail(40))
	}
}

// expectOutput waits until the process has written the text.
func (p *process) expectOutput(t testing.TB, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s writes %q", p.name, text), func() error {
		if strings.Contains(p.output.String(), text) {
			return nil
		}
		err := fmt.Errorf("its output ends with:\n%s", p.output.tail(20))
		if !p.running() {
			return hopeless{err}
		}
		return err
	})
}

// abandon kills the process, whatever state it is in.
func (p *process) abandon() {
	if p.running() {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// memory returns a field of /proc/PID/status in bytes, for example VmHWM, the
// peak resident memory of the process.
func (p *process) memory(t testing.TB, field string) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, field+": %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatalf("no %s in /proc/%d/status", field, p.pid())
	return 0
}

// forgetPeak resets VmHWM to the current size.
func (p *process) forgetPeak(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// capture keeps the end of the output of a process.
type capture struct {
	mu struct {
		sync.Mutex
		data []byte
	}
}

// captureLimit bounds the kept output: enough for the log of any test.
const captureLimit = 8 << 20

var _ io.Writer = (*capture)(nil)

func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.data = append(c.mu.data, b...)
	if n := len(c.mu.data); n > captureLimit {
		c.mu.data = append(c.mu.data[:0], c.mu.data[n-captureLimit/2:]...)
	}
	return len(b), nil
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.mu.data)
}

// tail returns the last lines.
func (c *capture) tail(lines int) string {
	all := bytes.Split(bytes.TrimRight([]byte(c.String()), "\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
