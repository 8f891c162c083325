package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestNthSync lets the N-th sync of a thread fail, or kills the process there, for one N
// after the other: in the first start of a node, and later while it cuts segments and
// saves snapshots. Whatever was acknowledged is there after a restart, which is never
// refused.
func TestNthSync(t *testing.T) {
	long(t)
	t.Parallel()
	requireTool(t, "strace")
	begin := time.Now()
	most := map[string]int{sizeFull: 8, sizeHuge: 60}[runSize]
	if most == 0 {
		most = 3
	}
	runs, acked := 0, int64(0)
	for _, how := range []string{"error=EIO", "signal=KILL"} {
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s fresh %v", how, fresh), func(t *testing.T) {
				s := newSyncSweep(t)
				for n := 1; n <= most; n++ {
					s.try(fmt.Sprintf("%s:when=%d", how, n), fresh)
				}
				runs += s.runs
				for _, c := range s.clients {
					acked += c.writes.Load()
				}
				if s.hit == 0 {
					t.Error("no fault was ever met")
				}
			})
		}
	}
	t.Logf("%d runs in %v, %d writes acknowledged", runs, time.Since(begin).Round(time.Second), acked)
	proof.Record(t, proof.Result{
		Suite: "N-th sync failing, and kill at it", Runs: int64(runs), Operations: acked, Seconds: time.Since(begin).Seconds(), Promises: []string{"durable"},
		Replay: "KVD_E2E=huge go test -run '^TestNthSync$' ./test/e2e",
	})
}

type syncSweep struct {
	t *testing.T
	// after is called when the process has ended, before it is started again; and complain
	// says what is wrong: errorf of the test, unless that is a control.
	after     func()
	complain  func(format string, args ...any)
	m         *member
	clients   []*counter
	runs, hit int
}

func newSyncSweep(t *testing.T) *syncSweep {
	s := &syncSweep{t: t, after: func() {}, complain: t.Errorf, m: newIdleCluster(t, 1, powerFlags...).node(1)}
	for i := range 3 {
		s.clients = append(s.clients, &counter{key: fmt.Sprint("counter", i), padding: strings.Repeat("p", 30_000)})
	}
	return s
}

// try runs the node with the fault, until it meets that or has done some work.
func (s *syncSweep) try(fault string, fresh bool) {
	t, m := s.t, s.m
	t.Helper()
	if fresh && len(m.runs) > 0 {
		m.stop()
		if err := os.RemoveAll(m.dir); err != nil {
			t.Fatal(err)
		}
		for _, c := range s.clients {
			c.acked.Store(0)
			c.tried.Store(0)
		}
	} else if len(m.runs) > 0 {
		m.stop()
	}
	p := startProcess(t, "strace of "+m.String(), t.TempDir(), "strace", append([]string{"-f", "-qq", "--seccomp-bpf", "-e", "trace=fsync,fdatasync",
		"-e", "inject=fsync,fdatasync:" + fault, "-o", "/dev/null", binary}, slices.Clone(m.args)...)...)
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for _, c := range s.clients {
		clients.Go(func() { c.run(ctx, []*member{m}) })
	}
	enough := func() bool {
		done := int64(0)
		for _, c := range s.clients {
			done += c.acked.Load()
		}
		return done > int64(60*(s.runs+1)) || fresh && done > 60
	}
	eventually(t, "the fault, or some work", func() error {
		if p.running() && !enough() {
			return fmt.Errorf("%s:\n%s", fault, p.output.tail(3))
		}
		return nil
	})
	if !p.running() {
		s.hit++
	}
	cancel()
	clients.Wait()
	p.abandon()
	if strings.Contains(p.output.String(), "data directory refused") {
		s.complain("%s: refused:\n%s", fault, p.output.tail(5))
	}
	s.runs++
	// strace may leave the node running for a moment.
	eventually(t, "the port is free", func() error {
		if !portFree(m.clientPort) || !portFree(m.peerPort) {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	s.after()
	restart(m)
	for _, c := range s.clients {
		var n int64
		eventually(t, "read "+c.key, func() error {
			a := get(m, "/v1/kv/"+c.key)
			if a.err == nil && a.status == 404 {
				return nil
			}
			if a.err != nil || a.status != 200 {
				return fmt.Errorf("%v", a)
			}
			_, err := fmt.Sscan(a.body, &n)
			return err
		})
		if least := c.acked.Load(); n < least || n > c.tried.Load() {
			s.complain("%s: %s is %d; %d was acknowledged, %d sent", fault, c.key, n, least, c.tried.Load())
		}
		c.acked.Store(n)
	}
}

// TestControlNthSync: a disk that has kept nothing since the last start, whatever it said
// about its syncs, is noticed.
func TestControlNthSync(t *testing.T) {
	long(t)
	t.Parallel()
	requireTool(t, "strace")
	begin := time.Now()
	s := newSyncSweep(t)
	s.try("signal=KILL:when=40", true)
	s.m.stop()
	before := readDirectory(t, s.m.dir)
	restart(s.m)
	var said []string
	s.complain = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	s.after = func() { before.lay(t, s.m.dir) }
	for n := 1; n <= 10 && len(said) == 0; n++ {
		s.try(fmt.Sprintf("signal=KILL:when=%d", 10*n), false)
		if len(said) > 0 {
			t.Logf("after %d runs: %s", n, said[0])
			proof.Caught(t, "N-th sync failing, and kill at it", "the disk keeps nothing of what was synced", n, begin)
		}
	}
	if len(said) == 0 {
		t.Error("not noticed")
	}
}
