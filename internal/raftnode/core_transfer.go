package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/kvd-io/kvd/internal/roster"
)

// transferRequest asks this leader to hand leadership over.
type transferRequest struct {
	to     uint64     // 0: the best successor
	any    bool       // to is chosen here; another new leader is as good
	round  uint64     // of the roll call that the target has to answer
	handed bool       // raft was told
	tick   uint64     // when it began, or raft was told
	done   chan error // capacity 1: the sender never waits
}

// transferer hands leadership over. Raft reports neither the success nor the
// failure of a transfer, so the core watches who leads: a request ends when
// this node no longer leads, or after an election timeout, when raft itself gives
// up. A message that fails ends nothing: while connections are being made, one may
// fail and the next arrive.
//
// Raft takes no proposals while it hands over. So the target must first answer
// a roll call and have nearly all of the log: otherwise a dead or slow target
// would stop all writes for an election timeout.
type transferer struct {
	*coreState
	roll     *rollCall
	requests []*transferRequest
}

// busy reports whether a transfer is in progress.
func (t *transferer) busy() bool { return len(t.requests) > 0 }

func (t *transferer) begin(r *transferRequest) {
	if !t.isLeader() {
		r.done <- ErrNotLeader
		return
	}
	r.any = r.to == 0
	m, ok := t.membership.Member(r.to)
	switch {
	case r.to == t.cfg.id:
		r.done <- nil
		return
	case r.any && t.bestSuccessor(t.recentlyHeard) == 0:
		r.done <- fmt.Errorf("%w: no other voter is reachable", ErrNotHandedOver)
		return
	case r.any: // the roll call decides who
	case !ok:
		r.done <- fmt.Errorf("%w: %d", roster.ErrMemberNotFound, r.to)
		return
	case m.Learner:
		r.done <- fmt.Errorf("%w: member %d is a learner", ErrNotHandedOver, r.to)
		return
	}
	r.tick, r.round = t.ticks, t.roll.begin()
	t.requests = append(t.requests, r)
	t.roll.ask(r.round, t.candidates(r))
}

// candidates returns the members that the request may hand over to.
func (t *transferer) candidates(r *transferRequest) []uint64 {
	if r.to != 0 {
		return []uint64{r.to}
	}
	return t.membership.Voters()
}

// bestSuccessor returns the voter with the longest log among those that alive
// selects, 0 if there is none.
func (t *transferer) bestSuccessor(alive func(id uint64) bool) uint64 {
	var best, match uint64
	t.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id == t.cfg.id || typ != raft.ProgressTypePeer || !alive(id) {
			return
		}
		// WithProgress visits members in no particular order: the id decides
		// between equals, so that a simulation can be replayed.
		if best == 0 || pr.Match > match || pr.Match == match && id < best {
			best, match = id, pr.Match
		}
	})
	return best
}

// hand tells raft about the requests whose target has answered.
func (t *transferer) hand() {
	if !t.isLeader() {
		return
	}
	t.requests = removeIf(t.requests, func(r *transferRequest) bool {
		if r.handed {
			return false
		}
		present := func(id uint64) bool { return t.roll.present(id, r.round) }
		to := r.to
		if r.any {
			// The one with the longest log gets two heartbeats to answer.
			to = t.bestSuccessor(present)
			if to != t.bestSuccessor(t.recentlyHeard) && t.ticks-r.tick <= uint64(2*t.cfg.heartbeatTicks) {
				return false
			}
		}
		if to == 0 || !present(to) {
			return false
		}
		// A leader that is about to stop takes the best successor that there is. A
		// target that was named and lags would stop all writes until raft gives up,
		// and this leader can go on instead.
		if lacks := t.lacks(to); lacks > learnerLag && !r.any {
			r.done <- fmt.Errorf("%w: member %d is %d entries behind; try again once it has caught up", ErrNotHandedOver, to, lacks)
			return true
		}
		r.to, r.handed, r.tick = to, true, t.ticks
		t.rn.TransferLeader(to)
		return false
	})
}

// lacks returns how many entries the member is not known to have.
func (t *transferer) lacks(id uint64) (entries uint64) {
	t.rn.WithProgress(func(pid uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pid == id {
			entries = t.last - min(pr.Match, t.last)
		}
	})
	return entries
}

// retry asks again: the question or the answer may be lost.
func (t *transferer) retry() {
	for _, r := range t.requests {
		if !r.handed && (t.ticks-r.tick)%uint64(t.cfg.heartbeatTicks) == 0 {
			t.roll.ask(r.round, t.candidates(r))
		}
	}
}

// settle answers the requests once another member leads.
func (t *transferer) settle() {
	if t.isLeader() || t.lead == raft.None {
		return
	}
	for _, r := range t.requests {
		// A caller that wanted any successor has one, even if another was chosen.
		if t.lead == r.to || r.any {
			r.done <- nil
		} else {
			r.done <- fmt.Errorf("%w: member %d leads instead of %d", ErrNotHandedOver, t.lead, r.to)
		}
	}
	t.requests = nil
}

// expire gives up requests after an election timeout, as raft does.
func (t *transferer) expire() {
	late := func(r *transferRequest) bool { return t.ticks-r.tick > uint64(t.cfg.electionTicks) }
	t.end(func(r *transferRequest) bool { return late(r) && !r.handed }, "does not answer")
	t.end(late, "did not take over in time")
}

// end fails the requests that which selects.
func (t *transferer) end(which func(*transferRequest) bool, why string) {
	t.requests = removeIf(t.requests, func(r *transferRequest) bool {
		if !which(r) {
			return false
		}
		who := fmt.Sprintf("member %d", r.to)
		if r.to == 0 {
			who = "every other voter"
		}
		r.done <- fmt.Errorf("%w: %s %s", ErrNotHandedOver, who, why)
		return true
	})
}

func (t *transferer) fail(err error) {
	for _, r := range t.requests {
		r.done <- err
	}
	t.requests = nil
}
