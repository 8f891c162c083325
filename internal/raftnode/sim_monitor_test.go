package raftnode

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/peers"
)

// simMonitor is the modelled connection of a leader monitor: the outcomes of dials
// come from the model network, what they mean from peers.MonitorState.
type simMonitor struct {
	state peers.MonitorState
	lead  uint64 // as last seen of the core, in term
	term  uint64
	up    bool
	since int64
	try   int // a later one takes back what an earlier one planned
}

// campaignIn is the timer of the node loop.
func (n *simNode) campaignIn(delay int64) {
	n.campaigns++
	due := n.campaigns
	n.later(max(delay, 1), "campaign", func() {
		if n.campaigns == due {
			n.post(n.campaignDue)
		}
	})
}

func (n *simNode) campaignDue(c *core) {
	if n.s.opts.bug == bugCampaignWithoutPreVote && c.seeking.active {
		// What a hand-over does: an election without a pre-vote.
		_ = c.rn.Step(&raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(n.id), To: new(n.id), Term: new(c.term)})
	}
	c.campaignDue()
}

// follow monitors the core's leader.
func (n *simNode) follow() {
	w, lead, term := &n.monitor, n.core.lead, n.core.term
	if n.s.opts.deaf || w.lead == lead && w.term == term {
		return
	}
	w.lead, w.term = lead, term
	w.try++
	w.up = false
	if lead != 0 && lead != n.id {
		w.state.Follow(lead, term)
		n.dialLeader()
	}
}

// dialLeader tries again and again to get a connection.
func (n *simNode) dialLeader() {
	w := &n.monitor
	w.try++
	try := w.try
	n.later(w.state.Pause().Microseconds()+n.s.between(span{50 * micro, 3 * milli}), "dial", func() {
		if w.try != try {
			return
		}
		to := w.state.Leader
		target := n.s.nodes[to]
		switch {
		case n.s.net.blocked[link{n.id, to}] || n.s.net.blocked[link{to, n.id}]:
			n.monitorEnded(false, false)
		case target == nil || !target.up:
			n.monitorEnded(false, true)
		default:
			w.up, w.since = true, n.s.now
		}
	})
}

// monitorEnded is what follows a dial, or a connection that broke.
func (n *simNode) monitorEnded(held, refused bool) {
	w := &n.monitor
	w.up = false
	w.state.Ended(held)
	if leader := w.state.Leader; refused {
		n.post(func(c *core) { c.suspect(leader) })
	}
	n.dialLeader()
}

// breakMonitor resets the member's connection to its leader.
func (n *simNode) breakMonitor() {
	if w := &n.monitor; n.up && w.up {
		n.monitorEnded(n.s.now-w.since > peers.MonitorSettled.Microseconds(), n.s.opts.bug == bugSuspectEveryBreak)
	}
}

// breakMonitors resets all connections to the leader id.
func (s *sim) breakMonitors(id uint64) {
	for _, other := range s.order {
		if n := s.nodes[other]; n.monitor.state.Leader == id {
			n.breakMonitor()
		}
	}
}

// faultGlitch resets every connection while all processes live.
func (s *sim) faultGlitch() {
	for _, id := range s.order {
		s.nodes[id].breakMonitor()
	}
}

// faultSuspicion makes a member believe that its leader is gone.
func (s *sim) faultSuspicion() {
	if n := s.anyNode(); n.up {
		n.post(func(c *core) { c.suspect(c.lead) })
	}
}
