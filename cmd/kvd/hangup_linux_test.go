package main

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// awaitLine reads a terminal until a line contains the text.
func awaitLine(t *testing.T, user *os.File, text string) {
	t.Helper()
	for lines := bufio.NewScanner(user); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	t.Fatalf("the terminal ended before %q", text)
}

// TestTerminalCloses: a node that logs to a terminal stops cleanly when that closes. A
// SIGHUP while the terminal is open only reloads.
func TestTerminalCloses(t *testing.T) {
	terminal, user := newTerminal(t)
	p := startNode(t, terminal)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, user, "ready to serve client requests")
	p.signal(t, syscall.SIGHUP)
	awaitLine(t, user, "reloaded")
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGHUP) // as the shell sends it to its jobs
	select {
	case err := <-p.ended:
		if code := codeOf(t, err); code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("the node goes on without its terminal")
	}
}

// TestTerminalClosesOfANodeWithALogFile: a node whose log goes elsewhere outlives the
// terminal, and a node that gets no signal outlives it, too.
func TestTerminalClosesOfANodeWithALogFile(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	terminal, user := newTerminal(t)
	logged, silent := startNode(t, file), startNode(t, terminal)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, user, "ready to serve client requests")
	logged.awaitReady(t)
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	logged.signal(t, syscall.SIGHUP)
	// Its log lines fail from now on; this makes it write some.
	for _, p := range []*daemonProcess{logged, silent} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.client+"/v1/settings", strings.NewReader(`{"max_value_bytes":2097152}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s", resp.Status)
		}
		p.stop(t)
	}
	if text, err := os.ReadFile(file.Name()); err != nil || !strings.Contains(string(text), "reloaded") {
		t.Errorf("the node with a log file did not reload: %v\n%s", err, text)
	}
}
