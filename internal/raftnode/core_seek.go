package raftnode

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// How soon a voter that knows no leader campaigns. Raft's own election timeout
// continues beside it, for the cases in which these campaigns lead to nothing.
const (
	// rankDelay keeps the first campaigns of voters that lost the same leader
	// apart: each waits for that long times its rank. It covers the difference
	// in when they notice, and an election on a fast disk.
	rankDelay = 8 * time.Millisecond
	// seekPause is the pause after a campaign without a result. It doubles each
	// time, and half of it is random, so that collisions end.
	seekPause = 16 * time.Millisecond
	// electionPause is the shortest pause while a real election is in progress,
	// this voter's own or another's: votes wait for disks, and a campaign for
	// the next term would void them.
	electionPause = 100 * time.Millisecond
)

// seeker is the core's side of finding a leader without waiting for the
// election timeout. While a voter knows no leader it campaigns, first after a
// short delay and then after growing ones.
//
// What keeps a live leader in office: every campaign begins with a pre-vote,
// which voters that have a leader do not grant (CheckQuorum's lease), and the
// leader's next message ends the search. So a suspicion deposes a leader only
// if a majority shares it.
type seeker struct {
	*coreState
	active   bool
	attempts int
}

// suspect is called when the leader's process is known to be gone: its
// connection broke, and a new one was refused.
func (c *core) suspect(id uint64) {
	if c.observe(); c.lead == id && !c.isLeader() {
		_ = c.rn.ForgetLeader() // a follower never refuses this
	}
}

// deposed forgets a leader that asks for votes. Such a member has not led its
// own term since, probably because it was restarted, and never will again.
func (c *core) deposed(m *raftpb.Message) {
	asks := m.GetType() == raftpb.MsgPreVote || m.GetType() == raftpb.MsgVote
	if asks && m.GetTerm() > c.rn.BasicStatus().GetTerm() {
		c.suspect(m.GetFrom())
	}
}

// campaignDue is called when the delay of effects.campaignIn is over.
func (c *core) campaignDue() {
	if c.observe(); !c.seeking.active {
		return // a leader was found meanwhile
	}
	if c.refused == nil {
		_ = c.rn.Campaign() // if raft does not, it logs why
	}
	c.seeking.pause(seekPause)
}

// reset ends the search.
func (s *seeker) reset() { s.active, s.attempts = false, 0 }

// follow begins, paces or ends the search after a change of leader, term or
// role.
func (s *seeker) follow(newTerm bool) {
	begin := !s.active
	switch {
	case s.lead != raft.None || !slices.Contains(s.membership.Voters(), s.cfg.id):
		s.reset()
		return
	case s.role == raft.StateCandidate || s.role == raft.StateFollower && newTerm:
		s.pause(electionPause)
	case begin:
		s.campaignIn(time.Duration(s.rank())*rankDelay + s.random(rankDelay/2))
	case s.role == raft.StateFollower: // its campaign was lost
		s.pause(seekPause)
	}
	s.active = true
}

// rank is this voter's position among those that may succeed the lost leader.
func (s *seeker) rank() int {
	rank := 0
	for _, id := range s.membership.Voters() {
		if id < s.cfg.id && id != s.lost {
			rank++
		}
	}
	return rank
}

// pause lets a growing, partly random time pass before the next campaign.
func (s *seeker) pause(least time.Duration) {
	pause := min(max(seekPause<<min(s.attempts, 16), least), s.cfg.electionTimeout)
	s.attempts++
	s.campaignIn(pause/2 + s.random(pause))
}

func (s *seeker) campaignIn(d time.Duration) { s.out.campaignIn = max(d, 1) }

// yield postpones this voter's campaign when it promises a vote to another
// candidate, which is about to win. Such answers are among the responses that
// wait for the disk.
func (s *seeker) yield(save *raftpb.Message) {
	if !s.active {
		return
	}
	for _, r := range save.GetResponses() {
		if r.GetReject() || r.GetTo() == s.cfg.id {
			continue
		}
		switch r.GetType() {
		case raftpb.MsgPreVoteResp:
			s.pause(seekPause)
		case raftpb.MsgVoteResp:
			s.pause(electionPause)
		}
	}
}
