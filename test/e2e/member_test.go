package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestWipedMemberNeitherVotesNorAcknowledges loses the disk of a member. With an
// empty directory, it could vote a second time in a term, or help to form a
// quorum although it has forgotten what it acknowledged. It must do neither, and
// must state the remedy.
func TestWipedMemberNeitherVotesNorAcknowledges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	put(t, c.node(1), "k", "before")
	wiped, other, rest := c.node(3), c.node(2), c.node(1)
	wiped.stop()
	other.stop()
	if err := os.RemoveAll(wiped.dir); err != nil {
		t.Fatal(err)
	}
	p := wiped.start()
	// One member with the log and one without are not a quorum.
	eventually(t, "the member that is left has no leader", func() error { return noLeader(rest) })
	for i := range 5 {
		a := send(rest, "PUT", "/v1/kv/k?timeout=500ms", fmt.Sprint("with the wiped member ", i))
		expectStatus(t, a, 503)
		if err := noLeader(rest); err != nil {
			t.Fatalf("a wiped member has voted: %v", err)
		}
	}
	if a := get(wiped, "/readyz"); a.err == nil && a.status == 200 {
		t.Fatalf("the wiped member says that it is ready: %v", a)
	}
	if !p.running() && p.cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("the wiped member ended with %v", p.cmd.ProcessState)
	}
	other.start()
	wiped.expectExit(3)
	for _, text := range []string{"emove", "add", "id"} {
		if !strings.Contains(p.output.String(), text) {
			t.Errorf("the refusal does not name the remedy (%q):\n%s", text, p.output.tail(10))
		}
	}
	c.awaitReady()
	expectValue(t, rest, "k", "before")
	t.Run("the remedy works", func(t *testing.T) {
		wiped.noDoctor = true
		c.remove(rest, wiped)
		replaced := c.add()
		replaced.start()
		replaced.awaitReady()
		c.awaitVoter(replaced)
		expectValue(t, replaced, "k", "before")
	})
}

func noLeader(m *member) error {
	st, err := m.status()
	if err == nil && st.Leader != 0 {
		err = fmt.Errorf("the leader is %d in term %d", st.Leader, st.Term)
	}
	return err
}

// TestMemberDownDuringChangeFindsItsWayBack changes the membership while a member
// is down, so that it restarts under a leader that it does not know.
func TestMemberDownDuringChangeFindsItsWayBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	put(t, c.node(1), "k", "1")
	sleeper, gone, stays := c.node(3), c.node(2), c.node(1)
	sleeper.kill()
	added := c.add()
	added.start()
	added.awaitReady()
	c.awaitVoter(added)
	c.remove(stays, gone)
	moveLeader(t, c, added)
	put(t, added, "k", "2")
	sleeper.start()
	sleeper.awaitReady()
	expectValue(t, sleeper, "k", "2")
	if st, err := sleeper.status(); err != nil || st.Leader != added.id {
		t.Errorf("the member that slept follows %d (%v), the leader is %d", st.Leader, err, added.id)
	}
	// Now it counts: together with the new member, it forms the quorum.
	stays.kill()
	put(t, sleeper, "k", "3")
	expectValue(t, added, "k", "3")
	restart(stays)
}

// moveLeader hands leadership to the member.
func moveLeader(t *testing.T, c *cluster, to *member) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v leads", to), func() error {
		leader, err := c.agreedLeader()
		if err != nil || leader == to {
			return err
		}
		return fmt.Errorf("%v leads; handing over: %v", leader, send(leader, "POST", fmt.Sprintf("/v1/leader?to=%d", to.id), ""))
	})
}

// TestRemovedWhileDown: a member that was removed while it was down learns this
// from the others and exits with 0.
func TestRemovedWhileDown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	down := c.node(3)
	down.stop()
	c.remove(c.node(1), down)
	p := down.start()
	down.expectExit(0)
	if !strings.Contains(p.output.String(), "removed") {
		t.Errorf("it does not say why it ends:\n%s", p.output.tail(10))
	}
	expectRefusedAsRemoved(t, down)
	put(t, c.node(2), "k", "goes on")
}

// TestLeaderRemovesItself removes the leader through the leader itself.
func TestLeaderRemovesItself(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	put(t, c.node(1), "k", "v")
	leader := c.leader()
	c.remove(leader, leader)
	rest := c.leader()
	expectValue(t, rest, "k", "v")
	t.Run("its id never returns", func(t *testing.T) {
		a := send(rest, "POST", fmt.Sprintf("/%d", leader.id), leader.peerURL())
		expectStatus(t, a, 409)
		if a.code() != "member_removed" {
			t.Errorf("the code is %q", a.code())
		}
	})
}

// TestNoLeaderAnswers503: without a quorum, a request is refused within its
// timeout, with Retry-After.
func TestNoLeaderAnswers503(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	put(t, c.node(1), "k", "v")
	left := c.followers()[0]
	var down []*member
	for _, m := range c.nodes {
		if m != left {
			m.kill()
			down = append(down, m)
		}
	}
	eventually(t, "the member that is left has no leader", func() error { return noLeader(left) })
	for _, method := range []string{"PUT", "GET", "DELETE"} {
		begin := time.Now()
		a := send(left, method, "/v1/kv/k?timeout=700ms", "x")
		t.Logf("%s is refused after %v", method, time.Since(begin))
		expectStatus(t, a, 503)
		if a.header.Get("Retry-After") == "" || a.code() != "no_leader" && a.code() != "read_timeout" {
			t.Errorf("%s: code %q, Retry-After %q", method, a.code(), a.header.Get("Retry-After"))
		}
	}
	a := get(left, "/v1/kv/k?consistency=stale")
	if a.status != 200 || a.body != "v" {
		t.Errorf("a stale read needs no leader, but: %v", a)
	}
	restart(down...)
	expectValue(t, left, "k", "v")
}
