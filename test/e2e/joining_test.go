package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// newSet prepares n nodes that all have the same command line but for their own name and
// URLs, like the pods of a StatefulSet. The first three are those of --join.
func newSet(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	c := newIdleCluster(t, n)
	var list []string
	for _, m := range c.nodes[:3] {
		list = append(list, m.peerURL())
	}
	for i, m := range c.nodes {
		m.args = append([]string{
			"--join", strings.Join(list, ","), "--name", fmt.Sprintf("kvd-%d", i), "--data-dir", m.dir,
			"--listen-client", m.url(), "--listen-peer", m.peerURL(),
		}, append(flags, quick...)...)
	}
	return c
}

// joined waits until the node serves as a voter, and takes over its id.
func (c *cluster) joined(m *member) {
	c.t.Helper()
	m.awaitReady()
	st, err := m.status()
	if err != nil {
		c.t.Fatal(err)
	}
	m.id = st.ID
	c.awaitVoter(m)
}

// wipe empties the directory of a node that does not run.
func (m *member) wipe() {
	m.t.Helper()
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Fatal(err)
	}
}

// TestStatefulSet takes a set of nodes through its life: started in an odd order, scaled
// up, with a lost volume, scaled down, and up again.
func TestStatefulSet(t *testing.T) {
	t.Parallel()
	c := newSet(t, 4, "--remove-dead-after", "3s")
	for _, i := range []int{2, 0, 1} {
		c.nodes[i].start()
	}
	for i, m := range c.nodes[:3] {
		c.joined(m)
		if m.id != uint64(i+1) {
			t.Errorf("kvd-%d is member %d", i, m.id)
		}
	}
	put(t, c.nodes[0], "k", "v")
	expectMembers(t, c.nodes[0], 3)
	t.Run("scale up", func(t *testing.T) {
		c.nodes[3].start()
		c.joined(c.nodes[3])
		expectMembers(t, c.nodes[0], 4)
	})
	t.Run("lost volume", func(t *testing.T) {
		m := c.nodes[1]
		before := m.id
		m.kill()
		m.wipe()
		m.start()
		c.joined(m)
		if m.id <= before {
			t.Errorf("member %d came back as %d", before, m.id)
		}
		expectMembers(t, m, 4)
		expectValue(t, m, "k", "v")
	})
	t.Run("scale down and up", func(t *testing.T) {
		m := c.nodes[3]
		before := m.id
		m.stop()
		eventually(t, "the leader removes it", func() error {
			members, err := c.nodes[0].members()
			if err != nil || len(members) != 3 {
				return fmt.Errorf("members %+v (%v)", members, err)
			}
			return nil
		})
		m.wipe() // as with whenScaled: Delete
		m.start()
		c.joined(m)
		if m.id <= before {
			t.Errorf("member %d came back as %d", before, m.id)
		}
		expectValue(t, m, "k", "v")
	})
}

// A member that finds itself removed for its silence must end, and must not come back by
// itself.
func TestRiotNodesRemovedAutomatically(t *testing.T) {
	t.Parallel()
	c := newRaftd(t, 3, "--remove-dead-after", "3s")
	dead := c.followers()[0]
	dead.kill()
	rest := c.live()
	eventually(t, "the leader removes the dead node", func() error {
		if peers := riotAdmin[[]string](t, rest[0], "peer"); len(peers) != 2 {
			return fmt.Errorf("peers %v", peers)
		}
		return nil
	})
	expectCurlStatus(t, 200, "", "-XPOST", local(rest[1], "/riot?key=a"), "-d", "1")
	expectCurlStatus(t, 200, "1", local(rest[0], "/riot?key=a"))
	dead.start()
	dead.removed = true
	dead.expectExit(0)
	t.Run("never below the quorum that is alive", func(t *testing.T) {
		rest[1].pause()
		// Nothing can be removed now, for longer than the silence that counts as death.
		a := send(rest[0], "PUT", "/v1/kv/k?timeout=5s", "v")
		if a.status != 503 && a.status != 504 {
			t.Errorf("one of two members writes: %v", a)
		}
		rest[1].resume()
		c.leader()
		expectMembers(t, rest[0], 2)
		put(t, rest[1], "k", "v")
	})
}
