package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A test for each known bug of raftexample. Two more are subtests elsewhere: "no
// limit on bodies" in TestValueLimit, and "restart after removal does not
// rejoin" in TestWalkthrough4RemoveMember.

// Bug: PUT answered 204 before the value was committed.
func TestRaftexampleBug204BeforeCommit(t *testing.T) {
	t.Parallel()
	t.Run("no quorum, no 204", func(t *testing.T) {
		c := newCluster(t, 3, quick...)
		leader := c.leader()
		others := c.followers()
		for _, m := range others {
			m.pause()
		}
		a := send(leader, "PUT", "/k?timeout=1s", "never acknowledged")
		if a.err != nil || a.status != 504 && a.status != 503 {
			t.Errorf("with a quorum that sleeps the answer is %v", a)
		}
		for _, m := range others {
			m.resume()
		}
	})
	t.Run("what got 204 survives kill -9", func(t *testing.T) {
		c := newCluster(t, 1, quick...)
		m := c.node(1)
		for i := range 5 {
			expectStatus(t, send(m, "PUT", fmt.Sprintf("/k%d", i), "acknowledged"), 204)
			m.kill()
			restart(m)
			for j := range i + 1 {
				expectValue(t, m, fmt.Sprintf("k%d", j), "acknowledged")
			}
		}
	})
}

// Bug: errors of the WAL and of storage were ignored. Here the disk is full.
func TestRaftexampleBugErrorsIgnored(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "100m")
	c := newIdleCluster(t, 1, append([]string{"--snapshot-checkpoint-bytes", "1GiB"}, quick...)...)
	m := c.node(1)
	m.dir = filepath.Join(dir, "data")
	m.args = append(m.raftexampleArgs(c.peerList()), c.flags...)
	m.start()
	m.awaitReady()
	const size = 256 << 10
	acknowledged := fillUntilRefused(t, m, size)
	// Whatever it did then, once there is room again, all acknowledged writes are
	// there.
	m.endAnyhow()
	growDisk(t, dir, "1g")
	restart(m)
	expectFilled(t, m, 0, acknowledged, size)
	t.Logf("%d writes of %d bytes were acknowledged before the disk was full", acknowledged, size)
}

// fillUntilRefused returns how many writes were acknowledged.
func fillUntilRefused(t *testing.T, m *member, size int) int {
	t.Helper()
	for i := range 1000 {
		a := send(m, "PUT", "/v1/kv/"+fillKey(i), fillValue(i, size))
		if a.err != nil || a.status != 201 {
			t.Logf("write %d: %v", i, a)
			return i
		}
	}
	t.Fatal("250 MiB fit on a disk of 100 MiB")
	return 0
}

// endAnyhow ends a process that may already have exited with an error.
func (m *member) endAnyhow() {
	m.t.Helper()
	p := m.process()
	p.signal(m.t, syscall.SIGTERM)
	code := p.exitCode(m.t)
	m.t.Logf("%s ended with %d:\n%s", p.name, code, p.output.tail(3))
	m.expect(p, code)
}

// Bug: reads were served from the memory of whichever node was asked.
func TestRaftexampleBugStaleReads(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	for i := range 300 {
		writer, reader := c.nodes[i%3], c.nodes[(i/3)%3]
		value := fmt.Sprint(i)
		put(t, writer, "k", value)
		expectValue(t, reader, "k", value)
	}
}

// Bug: the snapshot was JSON, which destroyed values that are not valid UTF-8.
// Two more paths through a snapshot are tested here: a restart from one, and a
// new member that receives one.
func TestRaftexampleBugNonUTF8Values(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"pebble", "memory"} {
		t.Run(engine, func(t *testing.T) {
			c := newCluster(t, 1, append([]string{"--engine", engine}, small...)...)
			m := c.node(1)
			putBinary(t, m)
			fill(t, m, 0, 32, 64<<10) // several checkpoints later
			m.kill()
			restart(m)
			expectBinary(t, m)
			added := c.add()
			added.start()
			added.awaitReady()
			c.awaitVoter(added)
			expectBinary(t, added)
			expectFilled(t, added, 0, 32, 64<<10)
			if !anyWrote(c, builtSnapshot) {
				t.Error("the new member got no snapshot, so that this proves nothing")
			}
		})
	}
}

// Bug: the ids of membership changes started at 0 again after a restart, so later
// changes were mistaken for earlier ones.
func TestRaftexampleBugConfChangeIDsRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, quick...)
	m := c.node(1)
	var urls []string
	for round := range 3 {
		id := uint64(round + 2)
		urls = append(urls, "http://"+loopback(freePort(t)))
		a := send(m, "POST", "/v1/members", fmt.Sprintf(`{"id":%d,"peer_urls":[%q],"learner":true}`, id, urls[round]))
		expectStatus(t, a, 201)
		expectMembers(t, m, round+2)
		m.kill()
		restart(m)
		expectMembers(t, m, round+2)
	}
	for round := range 3 {
		expectStatus(t, send(m, "DELETE", fmt.Sprintf("/v1/members/%d", round+2), ""), 204)
		m.kill()
		restart(m)
		expectMembers(t, m, 3-round)
	}
}

func expectMembers(t *testing.T, m *member, n int) {
	t.Helper()
	members, err := m.members()
	if err != nil || len(members) != n {
		t.Fatalf("%v knows %+v (%v), want %d members", m, members, err, n)
	}
}

// Bug: the URLs of added members came only from the log, so they were forgotten
// after a snapshot and a restart.
func TestRaftexampleBugMemberURLsForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, small...)
	added := c.add()
	added.start()
	added.awaitReady()
	c.awaitVoter(added)
	fill(t, c.leader(), 0, 64, 64<<10) // the log with the change is gone
	for _, m := range c.nodes {
		m.kill()
	}
	restart(c.nodes...) // with their original flags
	for _, m := range c.nodes {
		expectURL(t, m, added)
	}
	moveLeader(t, c, added)
	put(t, c.node(1), "k", "v")
	expectValue(t, added, "k", "v")
}

func expectURL(t *testing.T, m, of *member) {
	t.Helper()
	members, err := m.members()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range members {
		if x.ID == of.id && len(x.PeerURLs) == 1 && x.PeerURLs[0] == of.peerURL() {
			return
		}
	}
	t.Errorf("%v does not know that %v is at %s: %+v", m, of, of.peerURL(), members)
}

// Bug: the whole snapshot was built in memory. Here, memory on both sides grows
// by a fraction of the snapshot's size.
func TestRaftexampleBugSnapshotInMemory(t *testing.T) {
	const values, size = 1024, 128 << 10
	const total = values * size
	c := newCluster(t, 1, small...)
	sender := c.node(1)
	fill(t, sender, 0, values, size)
	sender.process().forgetPeak(t)
	before := sender.process().memory(t, "VmHWM")
	receiver := c.add()
	receiver.start()
	receiver.awaitReady()
	c.awaitVoter(receiver)
	if !anyWrote(c, builtSnapshot) {
		t.Error("no snapshot was sent, so that this proves nothing")
	}
	grown := sender.process().memory(t, "VmHWM") - before
	received := receiver.process().memory(t, "VmHWM")
	t.Logf("for a snapshot of %d MiB the sender's memory grew from %d by at most %d MiB, the receiver's is at most %d MiB",
		total>>20, before>>20, grown>>20, received>>20)
	if grown > total*3/4 { // much of it is uncollected garbage
		t.Error("the sender seems to hold the snapshot in memory")
	}
	expectFilled(t, receiver, 0, values, size)
}

// Bug: WAL segments and snapshots were kept forever.
func TestRaftexampleBugFilesNeverPurged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, small...)
	m := c.node(1)
	const values, size = 832, 256 << 10 // 208 MiB, in segments of 64 MiB
	fill(t, m, 0, values, size)
	eventually(t, "old files are removed", func() error {
		counts := countFiles(t, m.dir, ".wal", ".snap")
		if counts[".wal"] > 3 || counts[".snap"] > 4 {
			return fmt.Errorf("there are %v", counts)
		}
		if counts[".wal"] == 0 {
			return hopeless{fmt.Errorf("there is no log in %s", m.dir)}
		}
		return nil
	})
	restart := func() { m.kill(); m.start(); m.awaitReady() }
	restart()
	expectFilled(t, m, 0, values, size)
}

// countFiles counts the files of a directory tree by extension.
func countFiles(t *testing.T, dir string, endings ...string) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		for _, e := range endings {
			if strings.HasSuffix(path, e) {
				counts[e]++
			}
		}
		return nil // files come and go meanwhile
	})
	if err != nil {
		t.Fatal(err)
	}
	return counts
}
