package raftnode

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// This file is what the shell may ask of the core. The shell never reads the
// core's fields: what a field means at a given moment is the core's to say,
// and the simulator asks the same questions.

// position returns what raft knows of its place in the cluster now.
func (c *core) position() Position {
	st := c.rn.BasicStatus()
	return Position{Term: st.GetTerm(), Leader: st.Lead, Role: st.RaftState, Commit: st.GetCommit(), Known: c.fresh.known(st)}
}

// started reports whether this process's start entry has been applied, and
// with it every entry before it.
func (c *core) started() bool { return c.incarnation != 0 }

// progress returns what this node knows of each member.
func (c *core) progress() map[uint64]Progress {
	members := make(map[uint64]Progress, len(c.membership.Members))
	for _, m := range c.membership.Members {
		behind, known := c.changes.behind(m.ID)
		members[m.ID] = Progress{Behind: behind, Known: known, Heard: c.recentlyHeard(m.ID)}
	}
	return members
}

// matches returns up to where each other member's log is known to agree with this
// leader's; nil if this node does not lead.
func (c *core) matches() map[uint64]uint64 {
	if !c.isLeader() {
		return nil
	}
	members := make(map[uint64]uint64)
	c.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id != c.cfg.id {
			members[id] = pr.Match
		}
	})
	return members
}

// stats returns the figures of the core.
func (c *core) stats() Stats {
	s := Stats{
		ProposalsWaiting:   len(c.proposals.queue),
		ProposalsCommitted: c.counts.committed,
		Campaigns:          c.counts.campaigns,
		LeaderChanges:      c.counts.leaderChanges,
		ReadRounds:         c.counts.readRounds,
		ReadRequests:       c.counts.readRequests,
		ReadRetries:        c.counts.readRetries,
	}
	if f := c.proposals.flight; f != nil {
		s.ProposalsInFlight = f.commands
	}
	return s
}

// diskStalled stops new work because a write to the log hangs, and hands
// leadership over. It is called on every tick while the write hangs, since a
// transfer may fail; news reports whether the core took work until now.
func (c *core) diskStalled() (news bool) {
	news = c.refused == nil
	c.refused = ErrDiskStall
	if c.isLeader() && !c.transfers.busy() {
		c.transfer(&transferRequest{done: make(chan error, 1)})
	}
	return news
}

// diskAnswers lets the core take work again.
func (c *core) diskAnswers() { c.refused = nil }
