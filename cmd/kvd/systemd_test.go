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

// next is the next datagram, in lines.
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

// TestNotify: what a service manager hears in the life of a node, over a
// socket with a file and one without.
func TestNotify(t *testing.T) {
	names := []string{filepath.Join(t.TempDir(), "notify")}
	if _, err := os.Stat("/proc/net/unix"); err == nil { // where there is Linux, there are abstract sockets
		names = append(names, fmt.Sprintf("@kvd-test-%d", os.Getpid()))
	}
	for _, name := range names {
		f := newFakeSystemd(t, name)
		p := startNodeIn(t, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=300000"}, nil)
		lines := f.await("READY=1")
		if !slices.Contains(lines, "EXTEND_TIMEOUT_USEC=30000000") {
			t.Errorf("%s: a starting node asks for no more time: %q", name, lines)
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
			t.Errorf("%s: no time with a reload: %q", name, lines)
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
	return api.Status{Role: "follower", Term: 7, Leader: 2, Applied: 122, Commit: 123}, nil
}

// TestHungNodeIsNotReported: the pings stop with the node's loop.
func TestHungNodeIsNotReported(t *testing.T) {
	f := newFakeSystemd(t, filepath.Join(t.TempDir(), "notify"))
	s, err := newSupervisor([]string{"NOTIFY_SOCKET=" + f.name, "WATCHDOG_USEC=30000000", "WATCHDOG_PID=" + strconv.Itoa(os.Getpid())}, os.Getpid(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	n := new(hangingNode)
	s.node = n
	s.report(t.Context())
	if got := f.next(); !slices.Equal(got, []string{"WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=follower, term 7, applied 122 of 123"}) {
		t.Errorf("it tells %q", got)
	}
	n.hangs.Store(true)
	s.report(t.Context())
	s.stopping()
	if got := f.next(); got[0] != "STOPPING=1" {
		t.Errorf("a node that hangs is told of: %q", got)
	}
	s.close()
}

func TestNoSupervisor(t *testing.T) {
	s, err := newSupervisor([]string{"PATH=/bin"}, 1, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.watch(nil)
	s.ready()
	s.reloading()
	s.reloaded()
	s.stopping()
	s.close()
	for _, socket := range []string{"vsock:2:1234", filepath.Join(t.TempDir(), "none")} {
		if s, err := newSupervisor([]string{"NOTIFY_SOCKET=" + socket}, 1, zap.NewNop()); err == nil || s == nil || s.conn != nil {
			t.Errorf("%s: %v", socket, err)
		}
	}
	gone := newFakeSystemd(t, filepath.Join(t.TempDir(), "gone"))
	if s, err = newSupervisor([]string{"NOTIFY_SOCKET=" + gone.name, "WATCHDOG_USEC=1000", "WATCHDOG_PID=1"}, 2, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if s.ping || s.pace != reportPace {
		t.Error("the watchdog of another process was taken for this one's")
	}
	if err := gone.conn.Close(); err != nil {
		t.Fatal(err)
	}
	s.ready() // nobody listens, and that is all
	s.close()
}
