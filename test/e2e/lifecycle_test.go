package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestRestartCleanStop: acknowledged writes survive a graceful stop, and
// revisions continue from where they were.
func TestRestartCleanStop(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	before := put(t, c.node(1), "k", "v")
	for range 2 {
		c.stopAll()
		restart(c.nodes...)
		for _, m := range c.nodes {
			expectValue(t, m, "k", "v")
		}
	}
	if after := put(t, c.node(2), "k2", "v"); after != before+1 {
		t.Errorf("the revision was %d, the next write got %d", before, after)
	}
}

// TestSingleNodeCampaignsAtOnce: a single node has nobody to wait for, however
// long the election timeout is.
func TestSingleNodeCampaignsAtOnce(t *testing.T) {
	t.Parallel()
	c := newIdleCluster(t, 1, "--heartbeat-interval", "1s", "--election-timeout", "50s")
	m := c.node(1)
	for _, round := range []string{"first start", "restart", "restart after a kill"} {
		m.start()
		if err := poll(40*time.Second, m.ready); err != nil {
			t.Fatalf("%s: not ready before the election timeout is over: %v", round, err)
		}
		m.process().expectOutput(t, "ready to serve client requests")
		put(t, m, "k", round)
		if round == "first start" {
			m.stop()
		} else {
			m.kill()
		}
	}
	m.start()
	if err := poll(40*time.Second, m.ready); err != nil {
		t.Fatal(err)
	}
}

// TestSecondProcessNamesDirectory: two processes on one directory would corrupt
// it. The second one refuses to start and names the directory.
func TestSecondProcessNamesDirectory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	first := c.node(1)
	peer := "http://" + loopback(freePort(t))
	second := startProcess(t, "second process", t.TempDir(), binary, "--id", "1", "--cluster", peer,
		"--port", fmt.Sprint(freePort(t)), "--data-dir", first.dir)
	t.Cleanup(second.abandon)
	if code := second.exitCode(t); code == 0 {
		t.Error("it ended as if nothing were wrong")
	}
	if !strings.Contains(second.output.String(), first.dir) {
		t.Errorf("it does not name the directory %s:\n%s", first.dir, second.output.tail(10))
	}
	put(t, first, "k", "the first one goes on")
}

// TestSIGTERMHandsLeadershipOver: a leader that is asked to stop hands over
// first, so that the others need not detect its absence. It sees its successor
// in office before it exits.
func TestSIGTERMHandsLeadershipOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	for range 3 {
		put(t, c.node(1), "k", "v")
		old := c.leader()
		before, err := old.status()
		if err != nil {
			t.Fatal(err)
		}
		old.stop()
		next := c.leader()
		put(t, next, "k", "w")
		after, err := next.status()
		if err != nil || after.Term != before.Term+1 {
			t.Errorf("handing over is one election: term %d, then %d (%v)", before.Term, after.Term, err)
		}
		if seen := lastLeader(t, old.process()); seen != next.id {
			t.Errorf("the leader ended with %d in office, its successor is %d\n%s", seen, next.id, old.process().output.tail(20))
		}
		restart(old)
	}
}

// lastLeader returns the last leader named in the log of a process.
func lastLeader(t *testing.T, p *process) (leader uint64) {
	t.Helper()
	for line := range strings.Lines(p.output.String()) {
		var entry struct {
			Message string `json:"msg"`
			Leader  uint64 `json:"leader"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("the log has a line that is no JSON: %q", line)
		} else if entry.Message == "raft position changed" {
			leader = entry.Leader
		}
	}
	return leader
}

// TestPausedLeaderServesNoStaleRead freezes the leader. When it resumes, it still
// believes that it is the leader, and finds reads waiting. It must not answer any
// of them with the state from before the pause.
func TestPausedLeaderServesNoStaleRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	answered := 0
	for round := range 5 {
		key := fmt.Sprint("k", round)
		old := c.leader()
		put(t, old, key, "old")
		old.pause()
		next := c.leader() // of the running members
		put(t, next, key, "new")
		reads := queueReads(old, key, 16)
		old.resume()
		answered += judgeQueuedReads(t, old, reads)
		eventually(t, "the old leader follows", func() error {
			_, err := c.agreedLeader()
			return err
		})
		expectValue(t, old, key, "new")
	}
	t.Logf("%d queued reads were answered with a value, all fresh", answered)
}

// queueReads sends reads that a paused node will find when it resumes. It
// returns once they have been sent.
func queueReads(m *member, key string, n int) chan answer {
	out := make(chan answer, n)
	var begun sync.WaitGroup
	for range n {
		begun.Add(1)
		go func() {
			begun.Done()
			out <- get(m, "/v1/kv/"+key+"?timeout=5s")
		}()
	}
	begun.Wait()
	return out
}

func judgeQueuedReads(t *testing.T, m *member, reads chan answer) (answered int) {
	t.Helper()
	for range cap(reads) {
		switch a := <-reads; {
		case a.err == nil && a.status == 200 && a.body == "new":
			answered++
		case a.err == nil && a.status == 200:
			t.Errorf("%v, the leader of the past, answers %v", m, a)
		case a.err == nil && a.status != 503:
			t.Errorf("%v answers %v", m, a)
		}
	}
	return answered
}

// TestUnusableDirectory: a node whose directory is unusable does not start.
func TestUnusableDirectory(t *testing.T) {
	t.Parallel()
	file := tempFile(t, "file", []byte("not a directory"))
	p := startProcess(t, "kvd", t.TempDir(), binary, "--id", "1", "--cluster", "http://"+loopback(freePort(t)),
		"--port", fmt.Sprint(freePort(t)), "--data-dir", filepath.Join(file, "data"))
	t.Cleanup(p.abandon)
	if code := p.exitCode(t); code == 0 {
		t.Error("it ended as if nothing were wrong")
	}
	if !strings.Contains(p.output.String(), file) {
		t.Errorf("it does not name the directory:\n%s", p.output.tail(10))
	}
}

// TestSecondSignalStopsAtOnce: a second signal ends the process immediately.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	m := c.node(1)
	put(t, m, "k", "v")
	m.process().signal(t, syscall.SIGINT)
	m.process().signal(t, syscall.SIGINT)
	code := m.process().exitCode(t)
	if code != 0 && code != 1 && code != 128+int(syscall.SIGINT) {
		t.Errorf("the exit code is %d\n%s", code, m.process().output.tail(10))
	}
	m.expect(m.process(), code)
	restart(m)
	expectValue(t, m, "k", "v")
}

// TestSilentConnectionsDelayNoStop: browsers and HTTP libraries connect in
// advance. A stop does not wait for connections without a request.
func TestSilentConnectionsDelayNoStop(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, quick...)
	m := c.node(1)
	for range 3 {
		conn, err := net.Dial("tcp", loopback(m.clientPort))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	m.stop()
	if strings.Contains(m.process().output.String(), "cut off") {
		t.Errorf("it waited for requests that nobody made:\n%s", m.process().output.tail(10))
	}
	restart(m)
}
