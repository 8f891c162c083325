package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// small are flags that make members release their log soon, so that a member
// that was away needs a snapshot.
var small = append([]string{"--snapshot-checkpoint-bytes", "256KiB", "--snapshot-catch-up-bytes", "64KiB"}, quick...)

// builtSnapshot is the log message of the sender of a snapshot.
const builtSnapshot = "snapshot for a follower built"

// TestSnapshotCatchUp keeps a follower away until the log that it lacks has been
// released. It catches up by snapshot while writes continue.
func TestSnapshotCatchUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, small...)
	leader := c.leader()
	away := c.followers()[0]
	putBinary(t, leader)
	put(t, leader, "deleted", "while away")
	away.kill()
	expectStatus(t, send(leader, "DELETE", "/v1/kv/deleted", ""), 200)
	fill(t, leader, 0, 96, 64<<10) // 6 MiB, with values as large as the whole kept log
	w := startWriter(leader)
	away.start()
	away.awaitReady()
	eventually(t, "writes go on meanwhile", func() error { return w.written(200) })
	acknowledged := w.stop(t)
	if !anyWrote(c, builtSnapshot) {
		t.Error("no snapshot was sent: the follower caught up from the log, which proves nothing")
	}
	expectValue(t, away, w.key, acknowledged)
	expectFilled(t, away, 0, 96, 64<<10)
	expectStatus(t, get(away, "/v1/kv/deleted"), 404)
	t.Run("non-UTF-8 values survive the snapshot", func(t *testing.T) { expectBinary(t, away) })
	t.Run("after a restart of all", func(t *testing.T) {
		for _, m := range c.nodes {
			m.kill()
		}
		restart(c.nodes...)
		expectBinary(t, away)
		expectFilled(t, away, 0, 96, 64<<10)
	})
}

// TestSnapshotKilledWhileCatchingUp kills the follower repeatedly while it is
// catching up, and the sender once.
func TestSnapshotKilledWhileCatchingUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, small...)
	away := c.followers()[0]
	random := seeded(t)
	for round := range 4 {
		away.kill()
		leader := c.leader()
		fill(t, leader, round*32, 32, 64<<10)
		built := strings.Count(leader.process().output.String(), builtSnapshot)
		away.start()
		// At some moment between its start and the end of the restore.
		look, looked := random.IntN(20), 0
		eventually(t, "the moment of the kill", func() error {
			looked++
			if strings.Count(leader.process().output.String(), builtSnapshot) > built || looked > 20+look {
				return nil
			}
			return fmt.Errorf("no snapshot was built yet")
		})
		away.kill()
		if round == 2 {
			leader.kill()
			leader.start()
			leader.awaitReady()
		}
		restart(away)
		expectFilled(t, away, 0, (round+1)*32, 64<<10)
	}
	if !anyWrote(c, builtSnapshot) {
		t.Error("no snapshot was sent, which proves nothing")
	}
}

// ballastBytes is the size of a put for releaseLog.
const ballastBytes = 64 << 10

// releaseLog sends puts that are refused, which are in the log and change nothing, until
// no running member keeps the log that a member lacks that is down. How much of it they
// keep depends on sizes, on the pace of checkpoints, and on snapshots that are on their way,
// so where it begins is looked up rather than assumed.
func (c *cluster) releaseLog(t testing.TB, refused func()) {
	t.Helper()
	refused() // what the member that is down may have in its log is committed now
	had := uint64(0)
	for _, m := range c.live() {
		eventually(t, "a status", func() error {
			st, err := m.status()
			had = max(had, st.Commit)
			return err
		})
	}
	// A member that went down while it caught up is waited for, for two minutes.
	err := poll(3*time.Minute, func() error {
		refused()
		for _, m := range c.live() {
			switch first, err := m.firstOfLog(); {
			case err != nil:
				return err
			case first <= had+1:
				return fmt.Errorf("the log of %v begins at %d, and the member that is down may have it up to %d", m, first, had)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("the log is not released: %v", err)
	}
}

// firstOfLog returns the index at which the log begins that a member can send to others.
func (m *member) firstOfLog() (uint64, error) {
	const name = "kvd_raft_log_first_index"
	a := get(m, "/metrics")
	for line := range strings.Lines(a.body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			first, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return uint64(first), err
		}
	}
	return 0, fmt.Errorf("%v does not export %s: %.100v", m, name, a)
}

// count returns how often the processes of the cluster have logged the text.
func (c *cluster) count(text string) (n int) {
	for _, m := range c.nodes {
		for _, p := range m.runs {
			n += strings.Count(p.output.String(), text)
		}
	}
	return n
}

// anyWrote reports whether any process of the cluster has logged the text.
func anyWrote(c *cluster, text string) bool { return c.count(text) > 0 }

// fillKey and fillValue return the data of fill; values do not compress well.
func fillKey(i int) string { return fmt.Sprintf("fill/%06d", i) }

func fillValue(i, size int) string {
	state := uint64(i)*0x9e3779b97f4a7c15 + 1
	b := make([]byte, size)
	for j := range b {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		b[j] = byte(state)
	}
	return string(b)
}

// fill writes n values of the given size, a few at a time.
func fill(t testing.TB, m *member, first, n, size int) {
	t.Helper()
	const clients = 8
	errs := make(chan error, clients)
	for client := range clients {
		go func() {
			for i := first + client; i < first+n; i += clients {
				if err := fillOne(m, i, size); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

func fillOne(m *member, i, size int) error {
	return poll(patience, func() error {
		a := send(m, "PUT", "/v1/kv/"+fillKey(i)+"?timeout=20s", fillValue(i, size))
		if a.err == nil && (a.status == 200 || a.status == 201) {
			return nil
		}
		err := fmt.Errorf("fill through %v: %v", m, a)
		if a.status == 503 || a.status == 429 {
			return err
		}
		return hopeless{err}
	})
}

// expectFilled reads every value back.
func expectFilled(t testing.TB, m *member, first, n, size int) {
	t.Helper()
	for i := first; i < first+n; i++ {
		a := get(m, "/v1/kv/"+fillKey(i)+"?timeout=20s")
		if a.err != nil || a.status != 200 || a.body != fillValue(i, size) {
			t.Fatalf("%v answers %s with %v", m, fillKey(i), a)
		}
	}
}

// writer writes to one key, one write after the other.
type writer struct {
	key     string
	stopped chan struct{}
	done    sync.WaitGroup
	mu      struct {
		sync.Mutex
		count int
		last  string // acknowledged
		err   error
	}
}

func startWriter(m *member) *writer {
	w := &writer{key: "written", stopped: make(chan struct{})}
	w.done.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-w.stopped:
				return
			default:
				w.write(m, fmt.Sprint("value ", i))
			}
		}
	})
	return w
}

func (w *writer) write(m *member, value string) {
	a := send(m, "PUT", "/v1/kv/"+w.key, value)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case a.err == nil && (a.status == 200 || a.status == 201):
		w.mu.count++
		w.mu.last = value
	case a.status != 503:
		w.mu.err = fmt.Errorf("a write through %v: %v", m, a)
	}
}

// written returns nil once n writes have been acknowledged.
func (w *writer) written(n int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.count < n {
		return fmt.Errorf("%d writes", w.mu.count)
	}
	return nil
}

// stop stops the writes and returns the value of the last one.
func (w *writer) stop(t testing.TB) string {
	t.Helper()
	close(w.stopped)
	w.done.Wait()
	if w.mu.err != nil {
		t.Error(w.mu.err)
	}
	return w.mu.last
}
