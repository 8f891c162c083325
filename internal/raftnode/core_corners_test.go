package raftnode

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

// leading is a rig that was elected by member 2 of three.
func leading(t *testing.T) *rig {
	t.Helper()
	g := newRig(t, 3, nil)
	g.campaignDue()
	for _, vote := range []raftpb.MessageType{raftpb.MsgPreVoteResp, raftpb.MsgVoteResp} {
		g.step(&raftpb.Message{Type: vote.Enum(), From: new(uint64(2)), Term: new(uint64(initialTerm + 1))})
	}
	if !g.core.isLeader() {
		t.Fatal("it does not lead")
	}
	return g
}

// TestFreshnessNeedsLaterConfirmations: a heartbeat that was sent before a question says
// nothing about who led when the question was asked.
func TestFreshnessNeedsLaterConfirmations(t *testing.T) {
	g := leading(t)
	w := &g.core.fresh
	w.again()
	const before = 7
	w.begin()
	w.round, w.index, w.position, w.acks = w.roll.begin(), 5, before, make(map[uint64]bool)
	confirm := func(position uint64) {
		w.take(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(2)), Term: new(g.core.term), Context: binary.LittleEndian.AppendUint64(nil, position)})
	}
	g.core.out.proved = 0
	if confirm(before); g.core.out.proved != 0 {
		t.Error("an answer to an earlier heartbeat counts")
	}
	if confirm(before + 1); g.core.out.proved != 5 {
		t.Error("an answer to a later heartbeat does not count")
	}
}

// TestReadIndexAsksAQuorum: a ReadIndex asks those who answered first. If they are
// silent, the next regular heartbeat asks all, and who answers that is asked from then on.
func TestReadIndexAsksAQuorum(t *testing.T) {
	g := leading(t)
	last, _ := g.log.LastIndex()
	g.step(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), Index: new(last), Term: new(g.core.term)})
	asks := func(what string, ids ...uint64) {
		t.Helper()
		var got []uint64
		for _, m := range g.sentOf(raftpb.MsgHeartbeat) {
			got = append(got, m.GetTo())
		}
		if slices.Sort(got); !slices.Equal(got, ids) {
			t.Fatalf("%s: asked %v, want %v", what, got, ids)
		}
	}
	read := func(what string, ids ...uint64) {
		t.Helper()
		g.sent = nil
		_ = g.core.read(newReadRequest())
		g.work()
		asks(what, ids...)
	}
	answer := func(from uint64, reads int) {
		t.Helper()
		asked := g.sentOf(raftpb.MsgHeartbeat)[0]
		g.step(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(from), Term: new(g.core.term), Context: asked.GetContext()})
		if len(g.reads) != reads {
			t.Fatalf("%d rounds of reads confirmed, want %d", len(g.reads), reads)
		}
	}
	read("nobody has answered yet", 2, 3)
	answer(3, 1)
	read("member 3 has answered", 3)
	g.sent = nil
	g.core.tick()
	g.work()
	asks("member 3 is silent", 2, 3)
	answer(2, 2)
	read("member 2 has answered instead", 2)
	answer(2, 3)
	g.core.setMembership(g.core.membership)
	read("the members may have changed", 2, 3)
}

// TestSettleChangeAfterSnapshot: what an installed snapshot says about the change in
// progress.
func TestSettleChangeAfterSnapshot(t *testing.T) {
	id := roster.BatchID{Member: 1, Incarnation: 7, Sequence: 3}
	for _, c := range []struct {
		name string
		own  roster.Origin
		kept bool
	}{
		{"it did not run yet", roster.Origin{Incarnation: 7, LastChange: 2}, true},
		{"it ran", roster.Origin{Incarnation: 7, LastChange: 3}, false},
		{"its incarnation ended", roster.Origin{Incarnation: 9, LastChange: 2}, false},
	} {
		g := leading(t)
		r := &changeRequest{id: id, data: []byte("proposed"), done: make(chan error, 1)}
		g.core.changes.queue = append(g.core.changes.queue, r)
		g.core.changes.settle(c.own)
		if kept := len(g.core.changes.queue) == 1; kept != c.kept {
			t.Errorf("%s: kept %v", c.name, kept)
		}
		if !c.kept {
			if err := <-r.done; !errors.Is(err, ErrUnknown) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// TestRollCallAsksTheLearner: who is to become a voter is asked, too; a member that is to
// be removed is asked as a voter only.
func TestRollCallAsksTheLearner(t *testing.T) {
	for kind, want := range map[roster.ChangeKind]bool{roster.PromoteMember: true, roster.RemoveMember: false} {
		g := leading(t)
		g.core.out.messages = nil
		r := &changeRequest{change: roster.Change{Kind: kind, Member: roster.Member{ID: 9}}, round: g.core.roll.begin()}
		g.core.changes.callRoll(r)
		asked := make(map[uint64]bool)
		for _, m := range g.core.out.messages {
			asked[m.GetTo()] = true
		}
		if asked[9] != want || !asked[2] || !asked[3] {
			t.Errorf("kind %v: asked %v", kind, asked)
		}
	}
}

// TestLostLeaderIsNobodysRival: the leader that was lost does not campaign, so those behind
// it do not wait for it.
func TestLostLeaderIsNobodysRival(t *testing.T) {
	g := newRig(t, 3, func(c *coreConfig) { c.id = 3 })
	g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Commit: new(uint64(InitialIndex))})
	if g.suspect(2); g.due < rankDelay || g.due >= 2*rankDelay {
		t.Errorf("the second of two voters campaigns in %v", g.due)
	}
}

// TestCampaignsAreCountedOnce: the two rounds of votes are one campaign.
func TestCampaignsAreCountedOnce(t *testing.T) {
	g := following(t)
	g.suspect(2)
	for want := uint64(1); want <= 2; want++ {
		g.campaignDue()
		if n := g.core.counts.campaigns; n != want {
			t.Fatalf("asking for promises of votes makes %d campaigns, want %d", n, want)
		}
		g.step(&raftpb.Message{Type: raftpb.MsgPreVoteResp.Enum(), From: new(uint64(3)), Term: new(g.core.term + 1)})
		if n := g.core.counts.campaigns; n != want {
			t.Fatalf("asking for votes makes %d campaigns, want %d", n, want)
		}
		g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Commit: new(uint64(0)), Term: new(g.core.term)})
		g.suspect(2)
	}
}
