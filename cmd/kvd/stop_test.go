package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/settings"
)

// TestSecondSignalSaysSo: the log line about a second signal is written before
// the process exits, with an exit code that no failure has.
func TestSecondSignalSaysSo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startNode(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logged := make(chan error, 1)
	go func() { _, err := io.Copy(&log, r); logged <- err }()
	p.awaitReady(t)
	hold, answer := holdUp(t, p)
	defer hold.Close()
	p.signal(t, syscall.SIGTERM)
	awaitStopping(t, p)
	p.signal(t, syscall.SIGINT)
	if code := codeOf(t, <-p.ended); code != 128+int(syscall.SIGINT) {
		t.Errorf("exit code %d", code)
	}
	if err := <-logged; err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "second signal") {
		t.Errorf("the log does not tell why the process ended:\n%s", &log)
	}
	if n, _ := answer.Read(make([]byte, 1)); n > 0 {
		t.Error("a request in work was answered")
	}
}

// holdUp begins a request and does not finish it, which delays a stop.
func holdUp(t *testing.T, p *daemonProcess) (conn net.Conn, answer io.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.client, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "PUT /k HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
	if _, err := io.ReadFull(conn, head); err != nil || !bytes.Contains(head, []byte("100")) {
		t.Fatalf("%q, %v", head, err)
	}
	return conn, conn
}

// awaitStopping waits until the listener of the node is closed.
func awaitStopping(t *testing.T, p *daemonProcess) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.client, "http://"))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			_ = conn.Close() // nothing was sent
		}
		select {
		case <-deadline.C:
			t.Fatal("the node does not start to stop")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestPanicIsNotAUsageError: supervisors do not restart a process that exits
// with 2.
func TestPanicIsNotAUsageError(t *testing.T) {
	cmd := command(t, []string{panicInstead + "=1"})
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGABRT {
		t.Errorf("a panic ends the process with %v", cmd.ProcessState)
	}
	if !bytes.Contains(out, []byte("panic: as a test asks")) {
		t.Errorf("the trace is missing: %.300s", out)
	}
}

// TestReload: each part applies its settings, and settings that no part applies
// need a restart.
func TestReload(t *testing.T) {
	core, lines := observer.New(zapcore.DebugLevel)
	now, wrong := settings.Layer{"quota": {Text: "1GiB"}, "log-level": {Text: "warn"}}, error(nil)
	r := reloading{
		log:   zap.New(core),
		given: settings.Layer{"name": {Text: "x"}},
		again: func() (*settings.Settings, error) { return &settings.Settings{Given: now}, wrong },
	}
	var taken []string
	r.add("log-level", func(*settings.Settings) error { taken = append(taken, "level"); return nil })
	r.add("certificates", func(*settings.Settings) error { return errors.New("no such file") })
	r.run()
	for _, want := range []string{"failed for one part", "need a restart", "reloaded"} {
		if lines.FilterMessageSnippet(want).Len() != 1 {
			t.Errorf("the log does not say %q: %v", want, lines.All())
		}
	}
	late := lines.FilterMessageSnippet("restart").All()[0].ContextMap()["settings"]
	if got := late.([]any); !slices.Equal(got, []any{"--name", "--quota"}) {
		t.Errorf("a restart is needed for %v", got)
	}
	wrong = errors.New("line 7: nonsense")
	r.run()
	if len(taken) != 1 || lines.FilterMessageSnippet("nothing was changed").Len() != 1 {
		t.Errorf("invalid settings were applied: %v", lines.All())
	}
}

// TestRequestInProgressIsFinished: a request in progress when the stop begins is
// answered, and its connection ends with the response.
func TestRequestInProgressIsFinished(t *testing.T) {
	p := startNode(t, nil)
	p.awaitReady(t)
	p.put(t, "k", "v")
	hold, answer := holdUp(t, p)
	defer hold.Close()
	var stopping sync.WaitGroup
	stopping.Go(func() { p.stop(t) })
	awaitStopping(t, p)
	if _, err := io.WriteString(hold, "vv"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(answer)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 20") {
		t.Errorf("the last answer is %q, %v", b, err)
	}
	stopping.Wait()
}
