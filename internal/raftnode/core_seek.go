package raftnode

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// How soon a voter that knows no leader campaigns. raft's own election timeout
// goes on beside it, for the cases in which these campaigns come to nothing.
const (
	// rankDelay keeps apart the first campaigns of those that lost the same
	// leader: each voter waits for its turn. It covers what they differ in
	// noticing, and an election on a quick disk.
	rankDelay = 8 * time.Millisecond
	// seekPause is the pause after a campaign without result. It doubles, and
	// its half is random, so that collisions end.
	seekPause = 16 * time.Millisecond
	// electionPause is the least pause while a real election is under way, this
	// voter's own or another's: votes wait for disks, and a campaign for the
	// next term would undo it.
	electionPause = 100 * time.Millisecond
)

// seekState is the core's side of finding a leader without waiting for the
// election timeout. While a voter knows no leader it campaigns, after a short
// delay and then after growing ones.
//
// What keeps a living leader in office: every campaign begins with PreVote,
// which those who have a leader do not answer (CheckQuorum's lease), and the
// leader's next message ends the search. So a suspicion costs a leader its
// office only where a majority shares it.
type seekState struct {
	active   bool
	attempts int
}

// suspect takes the word of the leader monitor that the leader's process is gone.
func (c *core) suspect(id uint64) {
	if c.observe(); c.lead == id && !c.isLeader() {
		_ = c.rn.ForgetLeader() // followers never refuse
	}
}

// deposed forgets a leader that asks for votes: it does not lead any more,
// probably because it was started again. Whoever asks for votes of a later
// term has not led its own since, and never will again.
func (c *core) deposed(m *raftpb.Message) {
	asks := m.GetType() == raftpb.MsgPreVote || m.GetType() == raftpb.MsgVote
	if asks && m.GetTerm() > c.rn.BasicStatus().GetTerm() {
		c.suspect(m.GetFrom())
	}
}

// seek begins, paces or ends the search after a change of leader, term or role.
func (c *core) seek(newTerm bool) {
	s := &c.seeking
	begin := !s.active
	switch {
	case c.lead != raft.None || !slices.Contains(c.membership.Voters(), c.cfg.id):
		*s = seekState{}
		return
	case c.role == raft.StateCandidate || c.role == raft.StateFollower && newTerm:
		c.seekAgain(electionPause)
	case begin:
		c.seekIn(time.Duration(c.rank())*rankDelay + c.random(rankDelay/2))
	case c.role == raft.StateFollower: // its campaign was lost
		c.seekAgain(seekPause)
	}
	s.active = true
}

// rank is this voter's place among those that may follow the leader.
func (c *core) rank() int {
	rank := 0
	for _, id := range c.membership.Voters() {
		if id < c.cfg.id && id != c.lost {
			rank++
		}
	}
	return rank
}

// seekAgain lets a growing, random time pass before the next campaign.
func (c *core) seekAgain(least time.Duration) {
	s := &c.seeking
	pause := min(max(seekPause<<min(s.attempts, 16), least), c.cfg.electionTimeout)
	s.attempts++
	c.seekIn(pause/2 + c.random(pause))
}

func (c *core) seekIn(d time.Duration) { c.out.campaignIn = max(d, 1) }

func (c *core) random(below time.Duration) time.Duration {
	return time.Duration(c.cfg.random(int64(below)))
}

// campaignDue is called when the delay of effects.campaignIn is over.
func (c *core) campaignDue() {
	if c.observe(); !c.seeking.active {
		return // a leader was found
	}
	if c.refused == nil {
		_ = c.rn.Campaign() // raft says why it does not, in its log
	}
	c.seekAgain(seekPause)
}

// yield postpones the own campaign when another was promised a vote: it is
// about to win. Such answers are among the responses that wait for the disk.
func (c *core) yield(save *raftpb.Message) {
	if !c.seeking.active {
		return
	}
	for _, r := range save.GetResponses() {
		if r.GetReject() || r.GetTo() == c.cfg.id {
			continue
		}
		switch r.GetType() {
		case raftpb.MsgPreVoteResp:
			c.seekAgain(seekPause)
		case raftpb.MsgVoteResp:
			c.seekAgain(electionPause)
		}
	}
}
