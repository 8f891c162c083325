package raftnode

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/raftlog"
)

// trap is a fault that waits for its moment. Chance alone gets into some corners once in
// thousands of seeds; a trap lies in wait there.
type trap int

const (
	// trapTornTerm cuts the power during a save whose entries are of a new term.
	trapTornTerm trap = iota
	// trapUnheardSave cuts it after a save, before raft learns of that.
	trapUnheardSave
	// trapInstall cuts it when a snapshot has arrived and is not installed.
	trapInstall
	// trapSender lets the sender of a snapshot lose its place while the body is on its way.
	trapSender
	// trapReceiver lets the receiver be removed meanwhile.
	trapReceiver
	// trapChange lets the apply loop of a follower hang over a membership change, until
	// the follower needs a snapshot.
	trapChange
	// trapAgain lets the receiver's disk hang, and the sender lose its place.
	trapAgain
	// trapRemoved cuts off a member that is to be removed.
	trapRemoved
	// trapLeaveOffice removes a leader and loses what it says to its successors.
	trapLeaveOffice
	// trapExpiry has a lease given up and its id granted again, while its expiry waits.
	trapExpiry
	// trapHandOver cuts off the member that was chosen to lead, once it was told.
	trapHandOver

	traps // their number
)

// faultTrap sets a trap.
func (s *sim) faultTrap() {
	if s.traps == nil {
		s.traps = make(map[trap]bool)
	}
	s.traps[trap(s.rng.IntN(int(traps)))] = true
	if l := s.leader(); l != nil && s.mayShrink() && s.springs(trapLeaveOffice) {
		s.silentUntil = s.now + 5*second
		s.remove(l, l.id)
	}
}

// springs reports whether a trap was set, and takes it away.
func (s *sim) springs(x trap) bool {
	set := s.traps[x] && s.nemesis != nil
	if set {
		delete(s.traps, x)
		s.note("-- a trap springs")
	}
	return set
}

// cutPower crashes a member as the next thing that happens.
func (n *simNode) cutPower() {
	n.later(0, "trap", func() {
		n.crash()
		n.s.restartLater(n)
	})
}

// trapSave looks at a save that begins.
func (n *simNode) trapSave() {
	entries, newTerm := false, false
	for _, m := range n.appendJob {
		entries = entries || len(m.GetEntries()) > 0
		newTerm = newTerm || raftlog.HardStateOf(m).GetTerm() > n.disk.last.GetTerm()
	}
	if entries && newTerm && !installs(n.appendJob) && n.s.springs(trapTornTerm) {
		n.later(0, "trap", func() {
			n.writePart()
			n.disk.tear()
			n.crash()
			n.s.restartLater(n)
		})
	}
}

// trapMessage looks at a message that is sent, and reports whether it is lost.
func (s *sim) trapMessage(m *raftpb.Message) (lost bool) {
	if m.GetType() != raftpb.MsgTimeoutNow {
		return false
	}
	if s.springs(trapHandOver) {
		to := m.GetTo()
		s.after(s.between(span{0, 5 * milli}), "trap", func() {
			s.isolate(to)
			s.healLater()
		})
	}
	return s.now < s.silentUntil && s.nemesis != nil
}

// trapBody looks at a body that has arrived.
func (n *simNode) trapBody() {
	if l := n.s.leader(); l != nil && !n.stalled && n.s.springs(trapAgain) {
		n.hangDisk(span{3 * second, 5 * second})
		n.s.isolate(l.id)
		n.s.healLater()
	}
}

// trapTransfer looks at a body that is sent.
func (s *sim) trapTransfer(from *simNode, to uint64) {
	switch {
	case s.springs(trapSender):
		s.after(milli, "trap", func() {
			s.isolate(from.id)
			s.healLater()
		})
	case s.springs(trapReceiver):
		s.after(milli, "trap", func() {
			if l := s.leader(); l != nil && s.mayShrink() && l.id != to {
				s.remove(l, to)
			}
		})
	}
}

// trapApply looks at entries on their way to the apply loop.
func (n *simNode) trapApply(work []applyWork) {
	for i := range work {
		for _, e := range work[i].entries {
			if e.GetType() != raftpb.EntryConfChangeV2 || n.core.isLeader() || n.slow || n.s.opts.catchUp == 0 || !n.s.springs(trapChange) {
				continue
			}
			n.hangApply(span{4 * second, 5 * second})
			n.s.isolate(n.id)
			n.s.burst(50)
			n.s.after(1500*milli, "trap", func() { n.s.rejoin(n.id) })
		}
	}
}

// burst writes at the leader, which makes the log grow.
func (s *sim) burst(writes int) {
	if l := s.leader(); l != nil && writes > 0 && s.nemesis != nil {
		s.write(l, 8)
		s.after(20*milli, "burst", func() { s.burst(writes - 1) })
	}
}

// hangApply stops the apply loop for a while.
func (n *simNode) hangApply(d span) {
	n.slow = true
	n.later(n.s.between(d), "apply loop resumes", func() {
		n.slow = false
		n.startApply()
	})
}

// faultApplyHangs lets an apply loop hang, as a store does whose disk is busy.
func (s *sim) faultApplyHangs() {
	if n := s.anyNode(); n.up && !n.slow {
		n.hangApply(span{50 * milli, 5 * second})
	}
}

// installs reports whether messages bring a snapshot.
func installs(messages []*raftpb.Message) bool {
	for _, m := range messages {
		if !raft.IsEmptySnap(m.GetSnapshot()) {
			return true
		}
	}
	return false
}
