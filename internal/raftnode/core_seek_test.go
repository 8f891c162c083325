package raftnode

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

func (g *rig) suspect(id uint64) {
	g.due = 0
	g.core.suspect(id)
	g.work()
}

func (g *rig) campaignDue() {
	g.due = 0
	g.core.campaignDue()
	g.work()
}

// Only the member that is followed can be suspected, and a leader never
// suspects itself.
func TestSuspectForgetsTheLeader(t *testing.T) {
	g := following(t)
	if g.suspect(3); g.core.lead != 2 {
		t.Fatal("suspecting another member made it forget its leader")
	}
	if g.suspect(2); g.core.lead != raft.None || g.due == 0 || g.due > rankDelay {
		t.Fatalf("after suspecting it follows %d, and campaigns in %v", g.core.lead, g.due)
	}
	g.campaignDue()
	if n := len(g.sentOf(raftpb.MsgPreVote)); n != 2 || g.core.term != 5 {
		t.Fatalf("it asks %d members whether they would vote for it, in term %d", n, g.core.term)
	}
	one := lone(t, nil)
	if one.suspect(1); !one.core.isLeader() {
		t.Fatal("a leader suspects itself")
	}
}

// A sign of the leader ends the search, and the campaign that was due.
func TestLeaderRefutesASuspicion(t *testing.T) {
	g := following(t)
	g.suspect(2)
	g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Commit: new(uint64(0))})
	if g.campaignDue(); g.core.lead != 2 || len(g.sentOf(raftpb.MsgPreVote)) > 0 || g.due != 0 {
		t.Fatalf("it follows %d and goes on to campaign in %v", g.core.lead, g.due)
	}
}

// Raft reads the committed entries that it does not know to be applied before it
// campaigns. So they stay in the log, however far the apply loop has come.
func TestCampaignWhileApplyIsAhead(t *testing.T) {
	g := following(t)
	g.log.MaxEntries = 1
	g.hold = true
	g.replicate(nil, nil, nil)
	applied, err := g.applier.apply(g.applies)
	if err != nil {
		t.Fatal(err)
	}
	first := func() uint64 {
		if err := g.log.Compact(); err != nil {
			t.Fatal(err)
		}
		index, _ := g.log.FirstIndex()
		return index
	}
	if got := first(); got > InitialIndex+1 {
		t.Errorf("the log begins at %d, but raft has applied no entry", got)
	}
	g.suspect(2)
	if g.campaignDue(); len(g.sentOf(raftpb.MsgPreVote)) != 2 {
		t.Error("it does not campaign")
	}
	g.core.applied(applied)
	if got, last := first(), g.applier.index; got != last {
		t.Errorf("everything up to %d is applied, one entry stays, and the log begins at %d", last, got)
	}
}

// Campaigns without an answer are repeated after pauses that grow up to the
// election timeout.
func TestCampaignsGetRarer(t *testing.T) {
	g := following(t)
	g.suspect(2)
	var last time.Duration
	for range 12 {
		g.campaignDue()
		if g.due < last || g.due > 2*g.core.cfg.electionTimeout {
			t.Fatalf("a pause of %v after one of %v", g.due, last)
		}
		last = g.due
	}
	if last != g.core.cfg.electionTimeout { // the rig's random number is the middle
		t.Errorf("the pauses grow to %v, want %v", last, g.core.cfg.electionTimeout)
	}
}

// A voter that has given its vote, or promised it, lets the candidate win.
func TestVoterYields(t *testing.T) {
	for _, typ := range []raftpb.MessageType{raftpb.MsgPreVote, raftpb.MsgVote} {
		g := following(t)
		g.suspect(2)
		first := g.due
		g.due = 0
		g.step(&raftpb.Message{Type: typ.Enum(), From: new(uint64(3)), Term: new(uint64(6)), Index: new(uint64(100)), LogTerm: new(uint64(5))})
		if g.due <= first {
			t.Errorf("after granting %v the campaign is due in %v, before in %v", typ, g.due, first)
		}
		g.due = 0
		g.step(&raftpb.Message{Type: raftpb.MsgPreVote.Enum(), From: new(uint64(3)), Term: new(uint64(7)), Index: new(uint64(0)), LogTerm: new(uint64(0))})
		if g.due != 0 {
			t.Errorf("refusing a vote put the campaign off to %v", g.due)
		}
	}
}

// A leader that asks for votes of a later term no longer leads. A request for
// votes of the term that it leads may be an old message.
func TestLeaderThatCampaignsIsForgotten(t *testing.T) {
	ask := func(term uint64) *rig {
		g := following(t)
		g.step(&raftpb.Message{Type: raftpb.MsgPreVote.Enum(), From: new(uint64(2)), Term: new(term), Index: new(uint64(1)), LogTerm: new(uint64(1))})
		return g
	}
	if g := ask(5); g.core.lead != 2 {
		t.Error("an old message of the leader made it forgotten")
	}
	g := ask(6)
	if g.core.lead != raft.None {
		t.Error("a leader that asks for votes is followed on")
	}
	if len(g.sentOf(raftpb.MsgPreVoteResp)) != 1 {
		t.Error("it gets no answer")
	}
}

// A learner has no vote, and does not campaign.
func TestLearnerDoesNotSeek(t *testing.T) {
	g := newRig(t, 3, func(c *coreConfig) {
		m := *c.membership
		m.Members = append([]roster.Member(nil), m.Members...)
		m.Members[0].Learner = true
		c.membership = &m
	})
	if g.work(); g.due != 0 {
		t.Errorf("a learner campaigns in %v", g.due)
	}
}

// A transfer to the best successor has succeeded once any other member leads.
// One to a chosen member fails if another leads.
func TestHandOverToAnybody(t *testing.T) {
	for to, handedOver := range map[uint64]bool{0: true, 2: false} {
		g := newRig(t, 3, nil)
		g.campaignDue()
		for _, vote := range []raftpb.MessageType{raftpb.MsgPreVoteResp, raftpb.MsgVoteResp} {
			g.step(&raftpb.Message{Type: vote.Enum(), From: new(uint64(2)), Term: new(uint64(initialTerm + 1))})
		}
		if !g.core.isLeader() {
			t.Fatal("it does not lead")
		}
		tr := &transferRequest{to: to, done: make(chan error, 1)}
		g.core.transfer(tr)
		g.work()
		if g.core.unreachable(2); len(tr.done) > 0 {
			t.Errorf("handing over to %d ends with a message that failed: %v", to, <-tr.done)
		}
		g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), Commit: new(uint64(0))})
		select {
		case err := <-tr.done:
			if (err == nil) != handedOver {
				t.Errorf("handing over to %d (0: anybody) while 3 took over ends with %v", to, err)
			}
		default:
			t.Errorf("handing over to %d is not answered", to)
		}
	}
}
