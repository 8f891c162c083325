package sidebyside

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout = 30 * time.Second
	stepTimeout  = 30 * time.Second
)

// target is a running server, a cluster by itself.
type target struct {
	name, address string
	bin, dir      string
}

// start starts an executable that takes etcd's flags, and waits until it serves.
func start(t *testing.T, name, executable, bin string) *target {
	t.Helper()
	peer := "http://" + freeAddress(t)
	return startWith(t, name, executable, bin, "--name", "default", "--data-dir", filepath.Join(t.TempDir(), "data"), "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
}

// startWith is start with all flags but those for clients of etcd.
func startWith(t *testing.T, name, executable, bin string, flags ...string) *target {
	t.Helper()
	a := &target{name: name, address: freeAddress(t), bin: bin, dir: t.TempDir()}
	client := "http://" + a.address
	log, err := os.Create(filepath.Join(a.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(executable) == "kvd" {
		flags = append(flags, "--listen-etcd", client)
	} else {
		flags = append(flags, "--listen-client-urls", client, "--advertise-client-urls", client)
	}
	cmd := exec.Command(executable, flags...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the log of %s:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for a.request(ctx, "GET /health") != "200 {\"health\":\"true\",\"reason\":\"\"}\n" {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("%s does not serve", name)
		}
	}
	if err := os.Mkdir(filepath.Join(a.dir, "work"), 0o755); err != nil {
		t.Fatal(err)
	}
	return a
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run carries out a step and returns the answer.
func (a *target) run(ctx context.Context, command string) string {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if line, ok := strings.CutPrefix(command, "$ "); ok {
		return a.shell(ctx, line)
	}
	return a.request(ctx, command)
}

// shell runs a command line. Both outputs are one, and the exit code comes last if it is
// not 0.
func (a *target) shell(ctx context.Context, line string) string {
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Dir = filepath.Join(a.dir, "work")
	cmd.Env = []string{"PATH=" + a.bin + ":" + os.Getenv("PATH"), "HOME=" + a.dir, "ETCDCTL_ENDPOINTS=" + a.address, "URL=http://" + a.address}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	text := string(out)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		text += fmt.Sprintf("exit %d\n", exit.ExitCode())
	case err != nil:
		text += err.Error() + "\n"
	}
	return text
}

// request sends a request and returns the status and the body, or as many lines of it as
// are asked for.
func (a *target) request(ctx context.Context, command string) string {
	method, rest, _ := strings.Cut(command, " ")
	lines := 0
	if number, ok := strings.CutPrefix(rest, "#"); ok {
		count, path, _ := strings.Cut(number, " ")
		lines, _ = strconv.Atoi(count)
		rest = path
	}
	path, body, _ := strings.Cut(rest, " ")
	r, err := http.NewRequestWithContext(ctx, method, "http://"+a.address+path, strings.NewReader(body))
	if err != nil {
		return err.Error() + "\n"
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error() + "\n"
	}
	defer answer.Body.Close()
	out := strconv.Itoa(answer.StatusCode) + " "
	if lines > 0 {
		for scan := bufio.NewScanner(answer.Body); lines > 0 && scan.Scan(); lines-- {
			out += scan.Text() + "\n"
		}
		return out
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return out + err.Error() + "\n"
	}
	return out + strings.TrimSuffix(string(text), "\n") + "\n"
}
