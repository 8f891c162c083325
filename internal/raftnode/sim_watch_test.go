package raftnode

import "go.etcd.io/raft/v3/raftpb"

// simWatch is the modelled connection of a leader watch: the outcomes of dials
// come from the model network, what they mean from watchState.
type simWatch struct {
	state watchState
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
		// What a hand-over does: an election that asks nobody before.
		_ = c.rn.Step(&raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(n.id), To: new(n.id), Term: new(c.term)})
	}
	c.campaignDue()
}

// follow watches the core's leader.
func (n *simNode) follow() {
	w, lead, term := &n.watch, n.core.lead, n.core.term
	if n.s.opts.deaf || w.lead == lead && w.term == term {
		return
	}
	w.lead, w.term = lead, term
	w.try++
	w.up = false
	if lead != 0 && lead != n.id {
		w.state.follow(lead, term)
		n.dialLeader()
	}
}

// dialLeader tries to get a watch, again and again.
func (n *simNode) dialLeader() {
	w := &n.watch
	w.try++
	try := w.try
	n.later(w.state.pause().Microseconds()+n.s.between(span{50 * micro, 3 * milli}), "dial", func() {
		if w.try != try {
			return
		}
		to := w.state.leader
		target := n.s.nodes[to]
		switch {
		case n.s.net.blocked[link{n.id, to}] || n.s.net.blocked[link{to, n.id}]:
			n.watchEnded(false, false)
		case target == nil || !target.up:
			n.watchEnded(false, true)
		default:
			w.up, w.since = true, n.s.now
		}
	})
}

// watchEnded is what follows a dial or the break of a watch.
func (n *simNode) watchEnded(held, refused bool) {
	w := &n.watch
	w.up = false
	w.state.ended(held)
	if leader := w.state.leader; refused {
		n.post(func(c *core) { c.suspect(leader) })
	}
	n.dialLeader()
}

// breakWatch resets the member's connection to its leader.
func (n *simNode) breakWatch() {
	if w := &n.watch; n.up && w.up {
		n.watchEnded(n.s.now-w.since > watchSettled.Microseconds(), n.s.opts.bug == bugSuspectEveryBreak)
	}
}

// breakWatches resets all connections to the leader id.
func (s *sim) breakWatches(id uint64) {
	for _, other := range s.order {
		if n := s.nodes[other]; n.watch.state.leader == id {
			n.breakWatch()
		}
	}
}

// faultGlitch resets every connection; all processes live.
func (s *sim) faultGlitch() {
	for _, id := range s.order {
		s.nodes[id].breakWatch()
	}
}

// faultSuspicion makes a member believe that its leader is gone.
func (s *sim) faultSuspicion() {
	if n := s.anyNode(); n.up {
		n.post(func(c *core) { c.suspect(c.lead) })
	}
}
