package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// changeRequest is a membership change that somebody waits for.
type changeRequest struct {
	change Change
	done   chan error // capacity 1: whoever answers never waits

	id      batchID // zero until it is first proposed
	data    []byte  // the context it is proposed with; nil until then
	sent    bool
	tick    uint64 // when it was last proposed
	retries int
}

// changer is the core's side of changing the membership. Only the leader
// decides about changes, because only the leader knows which members are alive.
//
// Raft allows one change at a time and silently empties a second one. So the
// core proposes the first change of its queue, again and again, until it sees
// that change applied. Its batchID makes the copies harmless, as with batches:
// members count the changes of an incarnation apart from its batches.
//
// A change is checked when it is requested, and again by every replica when it
// is applied (roster.applyChange), since others may have been applied between.
type changer struct {
	*coreState
	transfers *transferer

	sequence uint64 // of the last change that was proposed
	queue    []*changeRequest
}

// learnerLag is the number of entries that a learner may lack and still count
// as caught up: what a leader under load sends it within a moment.
const learnerLag = 512

// maxLeaveAttempts is how often a leader tries to hand over before it proposes
// its own removal regardless.
const maxLeaveAttempts = 3

func (c *changer) add(r *changeRequest) {
	if err := c.refuse(&r.change); err != nil {
		r.done <- err
		return
	}
	c.queue = append(c.queue, r)
}

// refuse returns why the change cannot be made now. It assigns an id to a new
// member that has none.
func (c *changer) refuse(ch *Change) error {
	switch {
	case c.refused != nil:
		return c.refused
	case !c.isLeader():
		return ErrNotLeader
	case len(c.queue) >= maxPendingChanges:
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

// nextID returns the highest id ever used plus one. It counts additions that
// are still in progress.
func (c *changer) nextID() uint64 {
	id := c.membership.HighestID
	for _, r := range c.queue {
		if r.change.Kind == AddMember {
			id = max(id, r.change.Member.ID)
		}
	}
	return id + 1
}

// checkAlive refuses a change after which the voters that the leader has
// recently heard from would not be a quorum: the cluster could not commit the
// next change that repairs it. Removing a dead member passes.
func (c *changer) checkAlive(ch *Change) error {
	id := ch.Member.ID
	var voters []uint64
	for _, v := range c.membership.Voters() {
		if ch.Kind != RemoveMember || v != id {
			voters = append(voters, v)
		}
	}
	if ch.Kind == PromoteMember {
		if !c.caughtUp(id) {
			return fmt.Errorf("%w: learner %d has not caught up yet", ErrUnsafeChange, id)
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
		return fmt.Errorf("%w: would leave %d of %d voters reachable, which is not a quorum", ErrUnsafeChange, alive, len(voters))
	}
	return nil
}

// behind returns how many entries the member lacks. Only the leader knows.
func (c *changer) behind(id uint64) (entries uint64, known bool) {
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

// caughtUp reports whether a learner has all but the last entries. A learner
// that needs a snapshot, or that has not answered yet, may hold nothing at all
// however short the log is; so its distance alone proves nothing.
func (c *changer) caughtUp(id uint64) bool {
	caughtUp := false
	c.rn.WithProgress(func(pid uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pid == id {
			caughtUp = pr.State == tracker.StateReplicate && pr.Match+learnerLag >= c.last
		}
	})
	return caughtUp
}

// propose proposes the first change of the queue.
func (c *changer) propose() {
	if len(c.queue) == 0 || c.incarnation == 0 || c.queue[0].sent || c.backoff {
		return
	}
	r := c.queue[0]
	if r.data == nil && c.leaveOffice(r) {
		return
	}
	if r.data == nil || r.id.incarnation != c.incarnation {
		if r.data != nil { // its incarnation ended: it ran before that, or never will
			c.finish(ErrUnknown)
			return
		}
		c.sequence++
		r.id = batchID{member: c.cfg.id, incarnation: c.incarnation, sequence: c.sequence}
		r.data = encodeChange(r.id, &r.change)
	}
	if c.rn.ProposeConfChange(r.change.confChange(r.data)) != nil {
		c.backoff = true
		return
	}
	r.sent, r.tick = true, c.ticks
}

// leaveOffice hands leadership over before this leader's own removal is
// proposed. It is the only place that does. The request is then answered with
// ErrNotLeader (again), and the requester turns to the new leader. A leader
// that removed itself would step down the moment it learned of the commit, and
// might have told nobody. After some failures it proposes the removal
// regardless: a cluster that cannot elect anybody else should not keep a
// member forever.
func (c *changer) leaveOffice(r *changeRequest) bool {
	if r.change.Kind != RemoveMember || r.change.Member.ID != c.cfg.id || !c.isLeader() {
		return false
	}
	if c.transfers.busy() {
		return true
	}
	to := c.transfers.bestSuccessor()
	if to == 0 || r.retries >= maxLeaveAttempts {
		return false
	}
	r.retries++
	c.transfers.begin(&transferRequest{to: to, done: make(chan error, 1)})
	return true
}

// applied takes the outcome of a change of this process.
func (c *changer) applied(a changeApplied) {
	if len(c.queue) == 0 || c.queue[0].id != a.id {
		return
	}
	c.finish(a.err)
}

func (c *changer) finish(err error) {
	c.queue[0].done <- err
	c.queue = c.queue[1:]
}

// again proposes the first change once more after a change of leader or term.
// A node that does not lead any more drops the changes that it certainly never
// proposed: the new leader decides about them.
func (c *changer) again() {
	c.queue = removeIf(c.queue, func(r *changeRequest) bool {
		r.sent = false
		if r.data != nil || c.isLeader() {
			return false
		}
		r.done <- ErrNotLeader
		return true
	})
}

// retry repeats a change that raft may have emptied because another one was
// pending.
func (c *changer) retry() {
	if len(c.queue) > 0 && c.queue[0].sent && c.ticks-c.queue[0].tick >= c.retryTicks(c.queue[0].retries) {
		c.queue[0].sent = false
		c.queue[0].retries++
	}
}

// settle decides about the change in progress after a snapshot replaced the
// entries that it may have been among.
func (c *changer) settle(own originState) {
	if len(c.queue) == 0 || c.queue[0].data == nil {
		return
	}
	if id := c.queue[0].id; own.incarnation != id.incarnation || own.lastChange >= id.sequence {
		c.finish(ErrUnknown)
	}
}

func (c *changer) fail(err error) {
	for _, r := range c.queue {
		if r.data != nil {
			r.done <- ErrUnknown
		} else {
			r.done <- err
		}
	}
	c.queue = nil
}

// promoteLearner makes a voter of a learner that has caught up, one at a time.
// The leader does so on its own behalf; nobody waits for the answer.
func (c *changer) promoteLearner() {
	if !c.isLeader() || len(c.queue) > 0 {
		return
	}
	for _, m := range c.membership.Members {
		// A member that never started (no nonce) would only raise the quorum.
		if !m.Learner || m.KeepLearner || m.Nonce == "" || !c.recentlyHeard(m.ID) {
			continue
		}
		if !c.caughtUp(m.ID) {
			continue
		}
		c.add(&changeRequest{
			change: Change{Kind: PromoteMember, Member: Member{ID: m.ID}},
			done:   make(chan error, 1),
		})
		return
	}
}
