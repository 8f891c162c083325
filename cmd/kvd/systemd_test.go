package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
)

// fakeSystemd is the socket of a service manager.
type fakeSystemd struct {
	t    *testing.T
	conn *net.UnixConn
	name string
}

func newFakeSystemd(t *testing.T, name string) *fakeSystemd {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &fakeSystemd{t: t, conn: conn, name: name}
}

// next returns the lines of the next datagram.
func (f *fakeSystemd) next() []string {
	f.t.Helper()
	if err := f.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		f.t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := f.conn.Read(b)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Split(string(b[:n]), "\n")
}

// await reads until a datagram has a line with the prefix, and returns all
// lines up to there.
func (f *fakeSystemd) await(prefix string) (lines []string) {
	f.t.Helper()
	for {
		d := f.next()
		lines = append(lines, d...)
		if slices.ContainsFunc(d, func(l string) bool { return strings.HasPrefix(l, prefix) }) {
			return lines
		}
	}
}

// TestNotify: what a service manager is told during the life of a node, over a
// socket with a file and an abstract one.
func TestNotify(t *testing.T) {
	names := []string{filepath.Join(t.TempDir(), "notify")}
	if _, err := os.Stat("/proc/net/unix"); err == nil { // abstract sockets exist on Linux only
		names = append(names, fmt.Sprintf("@kvd-test-%d", os.Getpid()))
	}
	for _, name := range names {
		f := newFakeSystemd(t, name)
		p := startNodeIn(t, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=300000"}, nil)
		lines := f.await("READY=1")
		if !slices.Contains(lines, "EXTEND_TIMEOUT_USEC=30000000") {
			t.Errorf("%s: a starting node does not ask for more time: %q", name, lines)
		}
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "STATUS=leader, term ") }) {
			f.await("STATUS=leader, term ")
		}
		for range 3 {
			if lines := f.await("WATCHDOG=1"); slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "EXTEND") }) {
				t.Errorf("%s: a ready node asks for more time: %q", name, lines)
			}
		}
		p.signal(t, syscall.SIGHUP)
		lines = f.await("RELOADING=1")
		micros := strings.TrimPrefix(lines[len(lines)-1], "MONOTONIC_USEC=")
		if n, err := strconv.ParseInt(micros, 10, 64); err != nil || n <= 0 {
			t.Errorf("%s: a reload without its time: %q", name, lines)
		}
		f.await("READY=1")
		p.signal(t, syscall.SIGTERM)
		if lines := f.await("STOPPING=1"); slices.Contains(lines, "READY=1") {
			t.Errorf("%s: ready twice: %q", name, lines)
		}
		if code := codeOf(t, <-p.ended); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// hangingNode responds until told otherwise.
type hangingNode struct{ hangs atomic.Bool }

func (n *hangingNode) Responsive() bool { return !n.hangs.Load() }
func (n *hangingNode) Status(context.Context) (api.Status, error) {
	return api.Status{Role: "follower", Term: 7, Leader: 2, Applied: 122, Commit: 123, Lag: 1}, nil
}

// TestHungNodeIsNotReported: the pings stop with the node's loop.
func TestHungNodeIsNotReported(t *testing.T) {
	f := newFakeSystemd(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("NOTIFY_SOCKET", f.name)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	s := newSupervisor(zap.NewNop())
	n := new(hangingNode)
	s.node = n
	s.reportOnce(t.Context())
	if got := f.next(); !slices.Equal(got, []string{"WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=follower, term 7, applied 122 of 123"}) {
		t.Errorf("it reports %q", got)
	}
	n.hangs.Store(true)
	s.reportOnce(t.Context())
	s.stopping()
	if got := f.next(); got[0] != "STOPPING=1" {
		t.Errorf("a hung node is reported: %q", got)
	}
	s.close()
}

// TestNoSupervisor: a node runs without a supervisor, and with one that does not
// exist, which is logged once.
func TestNoSupervisor(t *testing.T) {
	live := func(s *supervisor) {
		s.watch(new(hangingNode))
		s.ready()
		s.reloading()
		s.reloaded()
		s.stopping()
		s.close()
	}
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_PID", "1")
	t.Setenv("WATCHDOG_USEC", "1000")
	live(newSupervisor(zap.NewNop()))
	for _, socket := range []string{"vsock:2:1234", filepath.Join(t.TempDir(), "none")} {
		core, lines := observer.New(zapcore.DebugLevel)
		t.Setenv("NOTIFY_SOCKET", socket)
		s := newSupervisor(zap.New(core))
		if s.ping || s.pace != reportPace {
			t.Error("the watchdog of another process was taken for this one's")
		}
		live(s)
		if lines.FilterMessage("failed to notify the supervisor").Len() != 1 {
			t.Errorf("%s: %v", socket, lines.All())
		}
	}
}

// TestStuckSupervisor: a supervisor that does not read delays nothing.
func TestStuckSupervisor(t *testing.T) {
	f := newFakeSystemd(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("NOTIFY_SOCKET", f.name)
	s := newSupervisor(zap.NewNop())
	for len(s.unsent) < maxUnsent { // the kernel's queue is full, and so is ours
		s.ready()
	}
	s.stopping()
	s.close()
	select {
	case <-s.sent:
		t.Fatal("the supervisor took everything without reading")
	default:
	}
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.sent
}
