package raftnode

import (
	"fmt"
	"maps"
	"strconv"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/roster"
)

// changeRequest is a membership change that somebody waits for.
type changeRequest struct {
	change roster.Change
	done   chan error // capacity 1: the sender never waits

	id      roster.BatchID // zero until it is first proposed
	data    []byte         // the context it is proposed with; nil until then
	sent    bool
	tick    uint64 // when it was last proposed
	retries int

	after uint64 // index whose state decides about it; 0 while unknown
	round uint64 // of the roll call that decides about it; 0 before that
	asked uint64 // tick at which that began
}

// changer is the core's side of changing the membership. Only the leader
// decides about changes, because only the leader knows which members are alive.
//
// Raft allows one change at a time and silently empties a second one. So the
// core proposes the first change of its queue, again and again, until it sees
// that change applied. Its roster.BatchID makes the copies harmless, as with batches:
// members count the changes of an incarnation apart from its batches.
//
// A change is checked three times: when it is requested (against a state that has
// everything that was committed before the request), whenever it is about to
// be proposed, and by every replica when it is applied (roster.Roster),
// since others may have been applied between. Before a change of the voters is
// proposed, those that would remain must answer a roll call: four voters, one
// of them dead, can spare one more, and of two removals requested at once the
// second must be refused.
//
// For the same reason only the leader that checked a change proposes it. When
// it loses leadership with a change in the log, the outcome is unknown. A copy
// forwarded to the next leader would take effect beside the changes that that
// one has checked.
type changer struct {
	*coreState
	transfers *transferer
	roll      *rollCall

	sequence uint64 // of the last change that was proposed
	queue    []*changeRequest
	// arriving are requests that wait until this leader has applied what was
	// committed before them. Its apply loop may be a moment behind those of its
	// followers: somebody who has seen a promotion there would otherwise be
	// refused a change that this promotion makes safe.
	arriving []*changeRequest
	// since is the tick at which this node began to follow the leader that it
	// has now, possibly itself. Followers do not hear each other, so a new
	// leader has heard only from those that voted for it.
	since uint64
	// arrived has the tick at which this process learned of a member's directory. A
	// member that has just been admitted has had no time to be heard.
	arrived map[uint64]uint64
	// nextBurial is the tick from which on a dead member may be removed.
	nextBurial uint64
}

// learnerLag is the number of entries that a learner may lack and still count
// as caught up: what a leader under load sends it within a moment.
const learnerLag = 512

// maxLeaveAttempts is how often a leader tries to hand over before it proposes
// its own removal regardless.
const maxLeaveAttempts = 3

func (c *changer) add(r *changeRequest) {
	switch {
	case c.refused != nil:
		r.done <- c.refused
	case !c.isLeader():
		r.done <- ErrNotLeader
	case len(c.queue)+len(c.arriving) >= maxPendingChanges:
		r.done <- ErrOverloaded
	default:
		c.arriving = append(c.arriving, r)
		c.admit()
	}
}

// admit queues, or refuses, the requests that this leader can judge now.
func (c *changer) admit() {
	if len(c.arriving) == 0 {
		return
	}
	commit, ok := c.committedInTerm()
	if !ok {
		return
	}
	applied := c.rn.BasicStatus().Applied
	c.arriving = removeIf(c.arriving, func(r *changeRequest) bool {
		if r.after == 0 {
			r.after = commit
		}
		if applied < r.after {
			return false
		}
		if err := c.refuse(&r.change); err != nil {
			r.done <- err
		} else {
			c.queue = append(c.queue, r)
		}
		return true
	})
}

// refuse returns why the change cannot be made now. It assigns an id to a new
// member that has none.
func (c *changer) refuse(ch *roster.Change) error {
	if ch.Adds() && ch.Member.ID == 0 {
		ch.Member.ID = c.nextID()
	}
	if err := c.check(ch); err != nil {
		return err
	}
	if c.ticks-c.since <= uint64(c.cfg.electionTicks) {
		return nil // the roll call decides
	}
	return c.checkAlive(ch, c.recentlyHeard) // tells at once what is known already
}

// check returns why the change is illegal in the membership, or replaces a member that
// may be alive. One that was heard a moment ago has its disk, so its successor is a
// mistake: a second machine under the same name and URL. Only time can tell; the rest of
// the argument (ADR 18) does not depend on it.
func (c *changer) check(ch *roster.Change) error {
	if err := c.membership.Check(ch); err != nil || ch.Kind != roster.ReplaceMember {
		return err
	}
	if silent := c.silentFor(ch.Replaces); silent < c.cfg.replaceTicks {
		return fmt.Errorf("%w: the leader may still hear from member %d; it can be replaced %d heartbeat intervals from now, unless it is heard again",
			roster.ErrUnsafeChange, ch.Replaces, c.cfg.replaceTicks-silent)
	}
	return nil
}

// silentFor returns for how many ticks this leader has not heard from a member that it
// could have heard from.
func (c *changer) silentFor(id uint64) uint64 {
	if id == c.cfg.id {
		return 0
	}
	return c.ticks - max(c.heard[id], c.arrived[id], c.since)
}

// welcome notes the members whose directories are new in the next membership.
func (c *changer) welcome(next *roster.Membership) {
	for _, m := range next.Members {
		if before, known := c.membership.Member(m.ID); !known || before.Nonce != m.Nonce {
			c.arrived[m.ID] = c.ticks
		}
	}
	maps.DeleteFunc(c.arrived, func(id, _ uint64) bool { _, known := next.Member(id); return !known })
}

// nextID returns the highest id ever used plus one. It counts additions that
// are still in progress. Once somebody has used the largest id there is, it
// returns the lowest that was never used.
func (c *changer) nextID() uint64 {
	id := c.membership.HighestID
	adding := make(map[uint64]bool)
	for _, r := range c.queue {
		if r.change.Adds() {
			id = max(id, r.change.Member.ID)
			adding[r.change.Member.ID] = true
		}
	}
	if id < limits.MaxMemberID {
		return id + 1
	}
	for id = 1; ; id++ {
		if _, used := c.membership.Member(id); !used && !c.membership.Removed[id] && !adding[id] {
			return id
		}
	}
}

// votersAfter returns the voters that there are once the change is made.
func (c *changer) votersAfter(ch *roster.Change) []uint64 {
	voters := removeIf(c.membership.Voters(), func(v uint64) bool { return v == ch.Removed() })
	if ch.Kind == roster.PromoteMember {
		voters = append(voters, ch.Member.ID)
	}
	return voters
}

// checkAlive refuses a change after which the voters that are alive would not
// be a quorum: the cluster could not commit the next change that repairs it.
// Removing a dead member passes, unless the change itself could not commit.
func (c *changer) checkAlive(ch *roster.Change, alive func(id uint64) bool) error {
	if ch.Kind == roster.PromoteMember && !c.caughtUp(ch.Member.ID) {
		return fmt.Errorf("%w: learner %d has not caught up yet; try again once it has", roster.ErrUnsafeChange, ch.Member.ID)
	}
	after, before := c.votersAfter(ch), c.membership.Voters()
	if n, silent := split(after, alive); n < len(after)/2+1 {
		return fmt.Errorf("%w: would leave %d of %d voters reachable, which is not a quorum (no answer from member %s)",
			roster.ErrUnsafeChange, n, len(after), listIDs(silent))
	}
	if n, silent := split(before, alive); n < len(before)/2+1 {
		return fmt.Errorf("%w: %d of %d voters are reachable, which is not the quorum that the change itself needs (no answer from member %s); "+
			"start that member, or recover the cluster", roster.ErrUnsafeChange, n, len(before), listIDs(silent))
	}
	if ch.Kind == roster.PromoteMember && !alive(ch.Member.ID) {
		return fmt.Errorf("%w: learner %d does not answer; start it first", roster.ErrUnsafeChange, ch.Member.ID)
	}
	return nil
}

// split counts the members that are alive, and lists the others.
func split(ids []uint64, alive func(id uint64) bool) (n int, silent []uint64) {
	for _, id := range ids {
		if alive(id) {
			n++
		} else {
			silent = append(silent, id)
		}
	}
	return n, silent
}

func listIDs(ids []uint64) string {
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendUint(b, id, 10)
	}
	return string(b)
}

// cleared reports whether the first change of the queue may be proposed now. It
// begins the roll call that decides about it, and waits for the answers for up
// to an election timeout.
func (c *changer) cleared(r *changeRequest) (bool, error) {
	if err := c.check(&r.change); err != nil {
		return false, err
	}
	if m, known := c.membership.Member(r.change.Removed()); r.change.Kind != roster.PromoteMember && (!known || m.Learner) {
		return true, nil // the voters remain as they are
	}
	if r.round == 0 {
		r.round, r.asked = c.roll.begin(), c.ticks
		c.callRoll(r)
	}
	err := c.checkAlive(&r.change, func(id uint64) bool { return c.roll.present(id, r.round) })
	if err != nil && c.ticks-r.asked <= uint64(c.cfg.electionTicks) {
		return false, nil // an answer may be on its way
	}
	return err == nil, err
}

// callRoll asks all voters of now and of after the change.
func (c *changer) callRoll(r *changeRequest) {
	ids := c.membership.Voters()
	if r.change.Kind == roster.PromoteMember {
		ids = append(ids, r.change.Member.ID)
	}
	c.roll.ask(r.round, ids)
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
// that needs a snapshot, or that has not answered this leader yet (its match is 0),
// may hold nothing at all however short the log is; so its distance alone proves
// nothing. One that is being probed counts: that is how raft goes on after a lost
// message, and what it acknowledged before, it has.
func (c *changer) caughtUp(id uint64) bool {
	caughtUp := false
	c.rn.WithProgress(func(pid uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pid == id {
			caughtUp = pr.State != tracker.StateSnapshot && pr.Match > 0 && pr.Match+learnerLag >= c.last
		}
	})
	return caughtUp
}

// propose proposes the first change of the queue.
func (c *changer) propose() {
	c.admit()
	if len(c.queue) == 0 || c.incarnation == 0 || c.queue[0].sent || c.backoff {
		return
	}
	r := c.queue[0]
	if !c.isLeader() {
		return // again has answered, or will
	}
	switch ok, err := c.cleared(r); {
	case err != nil && r.data != nil: // an earlier copy may still commit
		c.finish(fmt.Errorf("%w (proposing it again was refused: %w)", ErrUnknown, err))
		return
	case err != nil:
		c.finish(err)
		return
	case !ok:
		return
	}
	if r.data == nil && c.leaveOffice(r) {
		r.round = 0 // a member that is asked again is asked anew
		return
	}
	if r.data == nil || r.id.Incarnation != c.incarnation {
		if r.data != nil { // its incarnation ended: it ran before that, or never will
			c.finish(ErrUnknown)
			return
		}
		c.sequence++
		r.id = roster.BatchID{Member: c.cfg.id, Incarnation: c.incarnation, Sequence: c.sequence}
		r.data = roster.EncodeChange(r.id, &r.change)
	}
	if c.rn.ProposeConfChange(r.change.ConfChange(r.data)) != nil {
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
	if r.change.Kind != roster.RemoveMember || r.change.Member.ID != c.cfg.id || !c.isLeader() {
		return false
	}
	if c.transfers.busy() {
		return true
	}
	to := c.transfers.bestSuccessor(c.recentlyHeard)
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

// again begins anew after a change of leader or term. A node that does not lead
// anymore drops its changes: the new leader decides about those that were
// certainly never proposed, and nobody knows about the others.
func (c *changer) again() {
	c.since = c.ticks
	if !c.isLeader() {
		c.fail(ErrNotLeader)
	}
	for _, r := range c.queue {
		r.sent, r.round = false, 0
	}
	for _, r := range c.arriving {
		r.after = 0
	}
}

// retry repeats a change that raft may have emptied because another one was
// pending.
func (c *changer) retry() {
	if len(c.queue) == 0 {
		return
	}
	switch r := c.queue[0]; {
	case r.sent && c.ticks-r.tick >= c.retryTicks(r.retries):
		r.sent, r.round = false, 0
		r.retries++
	case !r.sent && r.round != 0 && (c.ticks-r.asked)%uint64(c.cfg.heartbeatTicks) == 0:
		c.callRoll(r) // the question or the answer may be lost
	}
}

// settle decides about the change in progress after a snapshot replaced the
// entries that it may have been among.
func (c *changer) settle(own roster.Origin) {
	if len(c.queue) == 0 || c.queue[0].data == nil {
		return
	}
	if id := c.queue[0].id; own.Incarnation != id.Incarnation || own.LastChange >= id.Sequence {
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
	for _, r := range c.arriving {
		r.done <- err
	}
	c.queue, c.arriving = nil, nil
}

// promoteLearner makes a voter of a learner that has caught up, one at a time.
// The leader does so on its own behalf; nobody waits for the answer.
func (c *changer) promoteLearner() {
	if !c.isLeader() || len(c.queue)+len(c.arriving) > 0 {
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
			change: roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: m.ID}},
			done:   make(chan error, 1),
		})
		return
	}
}

// removeDead removes a member from which this leader has not heard for long, if the
// settings ask for that. One change is made at a time, and like any other it is refused
// unless those that remain are alive and a quorum. After each attempt, successful or not,
// there is a pause of an election timeout: a refusal does not change from one tick to the
// next.
func (c *changer) removeDead() {
	if c.cfg.removeDeadTicks == 0 || !c.isLeader() || len(c.queue)+len(c.arriving) > 0 || c.ticks < c.nextBurial {
		return
	}
	for _, m := range c.membership.Members {
		// A member that was added and never started (no nonce) is expected, not dead.
		if m.Nonce == "" || c.silentFor(m.ID) < c.cfg.removeDeadTicks {
			continue
		}
		c.nextBurial = c.ticks + uint64(c.cfg.electionTicks)
		c.add(&changeRequest{
			change: roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: m.ID}},
			done:   make(chan error, 1),
		})
		return
	}
}
