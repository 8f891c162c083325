package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kvd-io/kvd/internal/proof"
)

// patient are flags that put the election timeout, at least 50 s, beyond the
// timeout of every request: if a request succeeds, no election timeout helped.
// The slow heartbeat exposes anything that waits for a tick.
var patient = []string{"--heartbeat-interval", "1s", "--election-timeout", "50s"}

// steady is a set of clients of some members that require an answer to every
// request.
type steady struct {
	t       *testing.T
	workers sync.WaitGroup
	done    atomic.Int64
	stopped atomic.Bool
	leaving atomic.Pointer[member] // may refuse requests; its clients then leave
}

func (c *cluster) steadyLoad(t *testing.T, members ...*member) *steady {
	t.Helper()
	s := &steady{t: t}
	for _, m := range members {
		for i := range 4 {
			s.workers.Go(func() { s.work(m, fmt.Sprintf("/v1/kv/steady-%d-%d?timeout=25s", m.id, i)) })
		}
	}
	t.Cleanup(func() {
		s.stop()
		proof.Judged(t, 2*int(s.done.Load()))
	})
	s.await(100)
	return s
}

func (s *steady) work(m *member, path string) {
	for n := 0; !s.stopped.Load(); n++ {
		value := fmt.Sprint(n)
		if a := send(m, http.MethodPut, path, value); a.err != nil || a.status > 201 {
			s.judge(m, "a write", a)
			return
		}
		if a := get(m, path); a.err != nil || a.status != 200 || a.body != value {
			s.judge(m, "a read of "+value, a)
			return
		}
		s.done.Add(1)
	}
}

// judge allows a member that stops to say so. If it closes a connection at the
// moment a request is sent, the client sees only the closed connection.
func (s *steady) judge(m *member, what string, a answer) {
	if s.leaving.Load() == m && (a.err != nil || a.code() == "stopping") {
		return
	}
	s.t.Errorf("%s at %v: %v", what, m, a)
}

// await waits until the given number of further rounds have succeeded.
func (s *steady) await(n int64) {
	s.t.Helper()
	target := s.done.Load() + n
	eventually(s.t, "more requests succeed", func() error {
		if s.t.Failed() {
			return hopeless{fmt.Errorf("one failed")}
		}
		if d := s.done.Load(); d < target {
			return fmt.Errorf("%d to go", target-d)
		}
		return nil
	})
}

func (s *steady) stop() {
	s.stopped.Store(true)
	s.workers.Wait()
}

// TestKilledLeaderIsMissedAtOnce: the other members notice its broken
// connections. Their clients see no error, whatever was in flight.
func TestKilledLeaderIsMissedAtOnce(t *testing.T) {
	t.Parallel()
	killLeaders(t, newCluster(t, 3, patient...))
}

// TestKilledLeaderIsMissedAtOnceWithTLS: the leader monitor also works over
// mutual TLS.
func TestKilledLeaderIsMissedAtOnceWithTLS(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "certs")
	if out, err := exec.Command(binary, "cert", "init", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	flags := append([]string{
		"--peer-cert-file", filepath.Join(dir, "member1.pem"), "--peer-key-file", filepath.Join(dir, "member1-key.pem"),
		"--peer-ca-file", filepath.Join(dir, "ca.pem"),
	}, patient...)
	c := newIdleCluster(t, 3, flags...)
	for _, m := range c.nodes {
		for i := range m.args {
			m.args[i] = strings.ReplaceAll(m.args[i], "http://", "https://")
		}
		m.start()
	}
	c.awaitReady()
	killLeaders(t, c)
}

func killLeaders(t *testing.T, c *cluster) {
	t.Helper()
	for range 3 {
		old := c.leader()
		load := c.steadyLoad(t, c.followers()...)
		old.kill()
		load.await(100)
		load.stop()
		restart(old)
	}
}

// TestStoppedLeaderIsNotMissed: a graceful stop of the leader causes no error for
// clients of the other members. Its own clients see only that it is stopping.
func TestStoppedLeaderIsNotMissed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, patient...)
	for range 3 {
		old := c.leader()
		load := c.steadyLoad(t, c.nodes...)
		load.leaving.Store(old)
		old.process().signal(t, syscall.SIGTERM)
		old.process().expectExit(t, 0)
		load.await(100)
		load.stop()
		restart(old)
	}
}

// TestAllKilledElectAtOnce: after a power cut, the election waits for no timeout.
func TestAllKilledElectAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, patient...)
	put(t, c.leader(), "k", "v")
	for _, m := range c.nodes {
		m.kill()
	}
	restart(c.nodes...)
	c.steadyLoad(t, c.nodes...)
}
