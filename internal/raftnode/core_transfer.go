package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// transferRequest asks this leader to hand leadership over.
type transferRequest struct {
	to   uint64     // 0: the best successor
	any  bool       // to was chosen here; another new leader is as good
	tick uint64     // when it began
	done chan error // capacity 1: whoever answers never waits
}

// transferer hands leadership over. Raft reports neither the success nor the
// failure of a transfer, so the core watches who leads: a request ends when
// this node no longer leads, when its target becomes unreachable, or after an
// election timeout, when raft itself gives up.
type transferer struct {
	*coreState
	requests []*transferRequest
}

// busy reports whether a transfer is in progress.
func (t *transferer) busy() bool { return len(t.requests) > 0 }

func (t *transferer) begin(r *transferRequest) {
	if !t.isLeader() {
		r.done <- ErrNotLeader
		return
	}
	if r.to == 0 {
		r.to, r.any = t.bestSuccessor(), true
	}
	m, ok := t.membership.Member(r.to)
	switch {
	case r.to == t.cfg.id:
		r.done <- nil
		return
	case r.to == 0:
		r.done <- fmt.Errorf("%w: no other voter is reachable", ErrNotHandedOver)
		return
	case !ok:
		r.done <- fmt.Errorf("%w: %d", ErrMemberNotFound, r.to)
		return
	case m.Learner:
		r.done <- fmt.Errorf("%w: member %d is a learner", ErrNotHandedOver, r.to)
		return
	}
	r.tick = t.ticks
	t.requests = append(t.requests, r)
	t.rn.TransferLeader(r.to)
}

// bestSuccessor returns the reachable voter with the longest log, 0 if there
// is none.
func (t *transferer) bestSuccessor() uint64 {
	var best, match uint64
	t.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id == t.cfg.id || typ != raft.ProgressTypePeer || !t.recentlyHeard(id) {
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

// settle answers the requests once another member leads.
func (t *transferer) settle() {
	if t.isLeader() || t.lead == raft.None {
		return
	}
	for _, r := range t.requests {
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
	t.end(func(r *transferRequest) bool { return t.ticks-r.tick > uint64(t.cfg.electionTicks) }, "did not take over in time")
}

// end fails the requests that which selects.
func (t *transferer) end(which func(*transferRequest) bool, why string) {
	t.requests = removeIf(t.requests, func(r *transferRequest) bool {
		if !which(r) {
			return false
		}
		r.done <- fmt.Errorf("%w: member %d %s", ErrNotHandedOver, r.to, why)
		return true
	})
}

func (t *transferer) fail(err error) {
	for _, r := range t.requests {
		r.done <- err
	}
	t.requests = nil
}
