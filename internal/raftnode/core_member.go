package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// changeRequest is a membership change that somebody waits for.
type changeRequest struct {
	change Change
	done   chan error // capacity 1
	// automatic marks the leader's own promotions: nobody waits, and they are
	// dropped when leadership is lost before they were proposed.
	automatic bool

	id      batchID // zero until it is first proposed
	data    []byte  // the context it is proposed with
	sent    bool
	tick    uint64
	retries int
}

// changeState is the core's side of changing the membership. raft allows one
// change at a time and silently empties a second one; so does the core: it
// proposes the first of its queue until it sees it applied. The origin makes
// the copies harmless, as with batches.
type changeState struct {
	sequence uint64
	queue    []*changeRequest
}

// learnerLag is how many entries a learner may lack and still count as caught
// up: what a leader under load sends it within a moment.
const learnerLag = 512

// change queues a membership change. It is decided by the leader, who alone
// knows which members are alive.
func (c *core) change(r *changeRequest) {
	if err := c.refuseChange(&r.change); err != nil {
		r.done <- err
		return
	}
	c.changes.queue = append(c.changes.queue, r)
}

func (c *core) refuseChange(ch *Change) error {
	switch {
	case c.refused != nil:
		return c.refused
	case !c.isLeader():
		return ErrNotLeader
	case len(c.changes.queue) >= maxPendingChanges:
		return ErrOverloaded
	}
	if ch.Kind == AddMember && ch.Member.ID == 0 {
		ch.Member.ID = c.nextID()
	}
	if err := c.membership.check(ch); err != nil {
		return err
	}
	return c.checkAlive(ch)
}

// nextID is the highest id ever used plus one, also counting additions that
// are still under way.
func (c *core) nextID() uint64 {
	id := c.membership.HighestID
	for _, r := range c.changes.queue {
		if r.change.Kind == AddMember {
			id = max(id, r.change.Member.ID)
		}
	}
	return id + 1
}

// checkAlive refuses a change after which the voters that the leader has
// lately heard from would be no quorum. Removing a dead member passes.
func (c *core) checkAlive(ch *Change) error {
	id := ch.Member.ID
	var voters []uint64
	for _, v := range c.membership.Voters() {
		if ch.Kind != RemoveMember || v != id {
			voters = append(voters, v)
		}
	}
	if ch.Kind == PromoteMember {
		if !c.caughtUp(id) {
			return fmt.Errorf("%w: learner %d has not caught up", ErrUnsafeChange, id)
		}
		voters = append(voters, id)
	}
	alive := 0
	for _, v := range voters {
		if c.recentlyHeard(v) {
			alive++
		}
	}
	if alive < len(voters)/2+1 {
		return fmt.Errorf("%w: only %d of the %d voters after it answer, which is no quorum", ErrUnsafeChange, alive, len(voters))
	}
	return nil
}

// behind is how many entries the member lacks. Only the leader knows.
func (c *core) behind(id uint64) (entries uint64, known bool) {
	if !c.isLeader() {
		return 0, false
	}
	c.rn.WithProgress(func(pid uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pid == id {
			known, entries = true, c.last-min(pr.Match, c.last)
		}
	})
	return entries, known
}

// caughtUp reports whether a learner has all but the last entries. One that
// needs a snapshot, or has not answered yet, may hold nothing at all, however
// short the log is.
func (c *core) caughtUp(id uint64) bool {
	caughtUp := false
	c.rn.WithProgress(func(pid uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pid == id {
			caughtUp = pr.State == tracker.StateReplicate && pr.Match+learnerLag >= c.last
		}
	})
	return caughtUp
}

// proposeChange proposes the first change of the queue.
func (c *core) proposeChange() {
	s := &c.changes
	if len(s.queue) == 0 || c.proposals.incarnation == 0 || s.queue[0].sent || c.proposals.dropped {
		return
	}
	r := s.queue[0]
	if r.data == nil && c.leaveOffice(r) {
		return
	}
	if r.data == nil || r.id.incarnation != c.proposals.incarnation {
		if r.data != nil { // its incarnation ended: it may have run, or never will
			c.finishChange(ErrUnknown)
			return
		}
		s.sequence++
		r.id = batchID{member: c.cfg.id, incarnation: c.proposals.incarnation, sequence: s.sequence}
		r.data = encodeChange(r.id, &r.change)
	}
	if c.rn.ProposeConfChange(r.change.confChange(r.data)) != nil {
		c.proposals.dropped = true
		return
	}
	r.sent, r.tick = true, c.ticks
}

// leaveOffice hands leadership over before this leader's own removal is
// proposed; the request is then answered with ErrNotLeader. A leader that
// removed itself would step down at the moment it learns of the commit, and
// might have told nobody. After some failures it goes on all the same.
func (c *core) leaveOffice(r *changeRequest) bool {
	if r.change.Kind != RemoveMember || r.change.Member.ID != c.cfg.id || !c.isLeader() {
		return false
	}
	if len(c.transfers) > 0 {
		return true
	}
	to := c.bestSuccessor()
	if to == 0 || r.retries >= maxLeaveAttempts {
		return false
	}
	r.retries++
	c.transfer(&transferRequest{to: to, done: make(chan error, 1)})
	return true
}

const maxLeaveAttempts = 3

// changeApplied hears how a change of this process ended.
func (c *core) changeApplied(a changeApplied) {
	if len(c.changes.queue) == 0 || c.changes.queue[0].id != a.id {
		return
	}
	c.finishChange(a.err)
}

func (c *core) finishChange(err error) {
	c.changes.queue[0].done <- err
	c.changes.queue = c.changes.queue[1:]
}

func (c *core) changeAgain() {
	s := &c.changes
	s.queue = removeIf(s.queue, func(r *changeRequest) bool {
		r.sent = false
		if r.data != nil || c.isLeader() {
			return false
		}
		r.done <- ErrNotLeader // surely not proposed; the new leader decides
		return true
	})
}

// retryChanges proposes again what raft may have emptied because another
// change was pending.
func (c *core) retryChanges() {
	s := &c.changes
	if len(s.queue) > 0 && s.queue[0].sent && c.ticks-s.queue[0].tick >= c.retryTicks(s.queue[0].retries) {
		s.queue[0].sent = false
		s.queue[0].retries++
	}
}

// settleChange decides about the change under way after a snapshot replaced
// the entries in which it may have been.
func (c *core) settleChange(own originState) {
	s := &c.changes
	if len(s.queue) == 0 || s.queue[0].data == nil {
		return
	}
	if o := s.queue[0].id; own.incarnation != o.incarnation || own.lastChange >= o.sequence {
		c.finishChange(ErrUnknown)
	}
}

func (c *core) failChanges(err error) {
	for _, r := range c.changes.queue {
		if r.data != nil {
			r.done <- ErrUnknown
		} else {
			r.done <- err
		}
	}
	c.changes.queue = nil
}

// promoteLearners turns learners that have caught up into voters.
func (c *core) promoteLearners() {
	if !c.isLeader() || len(c.changes.queue) > 0 {
		return
	}
	for _, m := range c.membership.Members {
		if !m.Learner || m.KeepLearner || m.Nonce == "" || !c.recentlyHeard(m.ID) {
			continue
		}
		if !c.caughtUp(m.ID) {
			continue
		}
		c.change(&changeRequest{
			change:    Change{Kind: PromoteMember, Member: Member{ID: m.ID}},
			done:      make(chan error, 1),
			automatic: true,
		})
		return
	}
}

// transferRequest asks this leader to hand over.
type transferRequest struct {
	to   uint64 // 0: whoever is best
	any  bool   // to was chosen here, and another will do
	tick uint64
	done chan error // capacity 1
}

func (t *transferRequest) answer(err error) { t.done <- err }

// transfer begins to hand leadership over.
func (c *core) transfer(t *transferRequest) {
	if !c.isLeader() {
		t.answer(ErrNotLeader)
		return
	}
	if t.to == 0 {
		t.to, t.any = c.bestSuccessor(), true
	}
	m, ok := c.membership.Member(t.to)
	switch {
	case t.to == c.cfg.id:
		t.answer(nil)
		return
	case t.to == 0:
		t.answer(fmt.Errorf("%w: no other voter answers", ErrNotHandedOver))
		return
	case !ok:
		t.answer(fmt.Errorf("%w: %d", ErrMemberNotFound, t.to))
		return
	case m.Learner:
		t.answer(fmt.Errorf("%w: member %d is a learner", ErrNotHandedOver, t.to))
		return
	}
	t.tick = c.ticks
	c.transfers = append(c.transfers, t)
	c.rn.TransferLeader(t.to)
}

// bestSuccessor is the live voter with the longest log.
func (c *core) bestSuccessor() uint64 {
	var best, match uint64
	c.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id == c.cfg.id || typ != raft.ProgressTypePeer || !c.recentlyHeard(id) {
			return
		}
		if best == 0 || pr.Match > match || pr.Match == match && id < best {
			best, match = id, pr.Match
		}
	})
	return best
}

// settleTransfers answers transfers once this node no longer leads.
func (c *core) settleTransfers() {
	if c.isLeader() || c.lead == raft.None {
		return
	}
	for _, t := range c.transfers {
		if c.lead == t.to || t.any {
			t.answer(nil)
		} else {
			t.answer(fmt.Errorf("%w: member %d leads instead of %d", ErrNotHandedOver, c.lead, t.to))
		}
	}
	c.transfers = nil
}

// retryTransfers gives up transfers after an election timeout, as raft does.
func (c *core) retryTransfers() {
	c.endTransfers(func(t *transferRequest) bool { return c.ticks-t.tick > uint64(c.cfg.electionTicks) }, "did not take over in time")
}

func (c *core) endTransfers(which func(*transferRequest) bool, why string) {
	c.transfers = removeIf(c.transfers, func(t *transferRequest) bool {
		if !which(t) {
			return false
		}
		t.answer(fmt.Errorf("%w: member %d %s", ErrNotHandedOver, t.to, why))
		return true
	})
}
