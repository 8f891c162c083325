package raftnode

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

// What follows sees situations in the members as they are. It changes nothing and
// chooses nothing.

// glimpse is what a member looked like at its last turn.
type glimpse struct {
	role        raft.StateType
	term        uint64
	batch       bool // in flight
	read        bool
	change      bool
	incarnation uint64
	rounds      uint64 // reads asked again
	unheard     bool   // a save has ended, and raft does not know
	flushed     uint64 // the index of a state that is durable, unlike its record

	first map[uint64]bool // whom a read round asks
}

func (n *simNode) look() glimpse {
	c := n.core
	g := glimpse{role: c.role, term: c.term, incarnation: c.incarnation, rounds: c.counts.readRetries}
	g.batch = c.proposals.flight != nil && c.proposals.flight.sent
	g.read, g.first = c.reads.flight != nil, c.fresh.first
	g.change = len(c.changes.queue) > 0 && c.changes.queue[0].sent
	g.unheard, g.flushed = n.last.unheard, n.last.flushed
	return g
}

// observeTurn compares a member with what it looked like before.
func (s *sim) observeTurn(n *simNode, out *effects) {
	c, before, now := n.core, n.last, n.look()
	n.last = now
	s.observeBatches(n, out)
	s.reachIf(batchCut, len(out.packed) > 0 && len(c.proposals.queue) > 0)
	s.reachIf(readRepeated, now.rounds > before.rounds)
	s.reachIf(readByAnother, len(out.reads) > 0 && before.read && before.first != nil && len(now.first) > 0 && !maps.Equal(before.first, now.first))
	s.reachIf(startSuperseded, before.incarnation != 0 && now.incarnation == 0 && !n.installing)
	s.reachIf(changesQueued, len(c.changes.queue) > 1)
	s.reachIf(intakeLimited, len(c.intake.held) > 0)
	if f := c.proposals.flight; f != nil {
		s.reachIf(batchRepeated, f.sent && f.sentTick == c.ticks && f.retries > 0)
	}
	if len(c.changes.queue) > 0 {
		r := c.changes.queue[0]
		s.reachIf(changeRepeated, r.sent && r.tick == c.ticks && r.data != nil && r.retries > 0)
	}
	if before.role != now.role || before.term != now.term {
		s.observeRole(n, before, now)
	}
	if now.role == raft.StateLeader {
		s.observeOffice(n)
	}
}

// observeRole looks at a member whose part has changed.
func (s *sim) observeRole(n *simNode, before, now glimpse) {
	if before.role == raft.StateLeader && now.role != raft.StateLeader {
		s.reachIf(deposedWithBatch, before.batch)
		s.reachIf(deposedWithRead, before.read)
		s.reachIf(deposedWithChange, before.change)
		for _, other := range s.order {
			s.reachIf(deposedWithTransfer, n.deliveries.Sending(other) != nil)
		}
	}
	s.reachIf(lostElection, before.role == raft.StateCandidate && now.role == raft.StateFollower)
	s.reachIf(lostPreVote, before.role == raft.StatePreCandidate && now.role == raft.StateFollower)
	if now.role == raft.StateCandidate {
		for _, other := range s.alive() {
			s.reachIf(splitVote, other != n && other.core.role == raft.StateCandidate && other.core.term == now.term)
		}
	}
	if now.role == raft.StateLeader {
		s.observeElected(n)
	}
}

func (s *sim) observeElected(n *simNode) {
	voters, up := n.voters, 0
	for _, v := range voters {
		if m := s.nodes[v]; m != nil && m.up && (v == n.id || !s.net.blocked[link{n.id, v}] && !s.net.blocked[link{v, n.id}]) {
			up++
		}
	}
	s.reachIf(bareMajority, len(voters) > 2 && up == len(voters)/2+1)
	commit := n.core.rn.BasicStatus().GetCommit()
	s.reachIf(leaderWithOldTail, n.termAt(commit+1) != 0 && n.termAt(commit+1) < n.core.term)
	s.reachIf(leaderBehindInApply, n.applier.index < commit)
}

// observeOffice looks at a member that leads.
func (s *sim) observeOffice(n *simNode) {
	for _, id := range s.order {
		other := s.nodes[id]
		if other == n || !other.up {
			continue
		}
		s.reachIf(twoLeaders, other.core.isLeader() && other.core.term != n.core.term)
		s.reachIf(deafLeader, s.net.blocked[link{id, n.id}] && !s.net.blocked[link{n.id, id}] && other.core.lead == n.id)
	}
}

// observeBatches looks at entries that a member learns to be committed.
func (s *sim) observeBatches(n *simNode, out *effects) {
	known := &s.known
	for i := range out.applies {
		for _, e := range out.applies[i].entries {
			if e.GetIndex() <= known.batchesTo {
				continue
			}
			known.batchesTo = e.GetIndex()
			if e.GetType() != raftpb.EntryNormal {
				continue
			}
			if id, ok := roster.PeekBatch(e.GetData()); ok {
				s.reachIf(batchTwice, known.batches[id])
				known.batches[id] = true
			}
		}
	}
}

// observeArrival looks at a message before the member does.
func (s *sim) observeArrival(n *simNode, m *raftpb.Message) {
	c := n.core
	switch m.GetType() {
	case raftpb.MsgProp:
		s.reachIf(batchAtFollower, !c.isLeader())
	case raftpb.MsgApp:
		s.reachIf(appendFromThePast, m.GetTerm() < c.term)
	case raftpb.MsgAppResp:
		s.reachIf(appendRejected, m.GetReject() && m.GetTerm() == c.term)
	case raftpb.MsgReadIndex:
		_, ok := c.committedInTerm()
		s.reachIf(readAtNewLeader, c.isLeader() && !ok)
	case raftpb.MsgReadIndexResp:
		late := len(m.GetEntries()) > 0 && (c.reads.flight == nil || !slices.Equal(m.GetEntries()[0].GetData(), c.reads.context))
		s.reachIf(readAnsweredLate, late)
	}
}

// observeOverwriting looks at entries before they are written.
func (s *sim) observeOverwriting(n *simNode, ents []*raftpb.Entry) {
	if len(ents) == 0 || !n.up {
		return
	}
	first := ents[0].GetIndex()
	last, _ := n.log.LastIndex()
	have, err := n.log.Term(first)
	if first > last || err != nil || have == ents[0].GetTerm() {
		return
	}
	s.reach(tailOverwritten)
	f := n.core.proposals.flight
	old, err := n.log.Entries(first, last+1, 1<<30)
	if f == nil || err != nil {
		return
	}
	for _, e := range old {
		id, ok := roster.PeekBatch(e.GetData())
		s.reachIf(batchOverwritten, ok && id == f.id)
	}
}

// observeCrash looks at a member before its power fails.
func (s *sim) observeCrash(n *simNode) {
	s.reachIf(crashInSave, len(n.appendJob) > 0)
	s.reachIf(crashOfCandidate, n.core.role == raft.StateCandidate && len(n.appendJob) > 0)
	s.reachIf(crashBeforeAnswer, n.last.unheard)
	s.reachIf(crashInApply, n.applying)
	s.reachIf(crashInInstall, n.installing)
	s.reachIf(crashInCheckpoint, n.last.flushed > n.checkpoint)
	s.reachIf(crashOfAll, len(s.alive()) == 1)
}

// observeStart looks at a member that has just started from what its disk had.
func (s *sim) observeStart(n *simNode, st *diskState) {
	commit := st.hs.GetCommit()
	index := st.snapshot.GetMetadata().GetIndex()
	s.reachIf(startRaisesTerm, st.raised)
	s.reachIf(startAheadOfCommit, n.applier.index > commit)
	s.reachIf(startWithTail, index+uint64(len(st.entries)) > commit)
	s.reachIf(startWithoutEntries, n.boots > 1 && index > InitialIndex && len(st.entries) == 0)
	for _, other := range s.alive() {
		s.reachIf(leaderBack, other != n && other.core.lead == n.id)
	}
}

// observeInstall looks at all members when one is about to install a snapshot.
func (s *sim) observeInstall(n *simNode) {
	s.reachIf(bodyAgain, n.restored != 0 && n.restored == n.applier.index)
	for _, other := range s.alive() {
		q := other.core.changes.queue
		s.reachIf(installDuringChange, len(q) > 0 && q[0].sent)
	}
}

// observeBody looks at a body that arrives.
func (s *sim) observeBody(from, to *simNode, index uint64) {
	s.reachIf(bodyOutdated, to.applier.index >= index)
	s.reachIf(bodyBehindSaves, len(to.appendJob) > 0)
	s.reachIf(bodyOfDeposed, !from.up || !from.core.isLeader())
}

// observeMembers compares a membership with the one before.
func (s *sim) observeMembers(before, now *roster.Membership) {
	if before == nil {
		return
	}
	for _, m := range before.Members {
		next, member := now.Member(m.ID)
		n := s.nodes[m.ID]
		if n == nil {
			continue
		}
		s.reachIf(promotedInTransfer, member && m.Learner && !next.Learner && s.transfers[m.ID] > 0)
		if member {
			continue
		}
		s.reachIf(removedLeader, n.up && n.core.isLeader())
		s.reachIf(removedInTransfer, s.transfers[m.ID] > 0)
		s.reachIf(removedWhileDown, !n.up)
		s.reachIf(removedWhileCutOff, n.up && s.cutOff(m.ID))
	}
}

// cutOff reports whether nobody's messages reach the member.
func (s *sim) cutOff(id uint64) bool {
	for _, other := range s.order {
		if other != id && s.nodes[other].up && !s.net.blocked[link{other, id}] {
			return false
		}
	}
	return true
}

// observeEnd looks at how an operation ended.
func (s *sim) observeEnd(o *op) {
	switch o.kind {
	case opWrite:
		s.reachIf(outcomeUnknown, o.outcome == unknown)
		s.reachIf(overloaded, errors.Is(o.err, ErrOverloaded))
		s.reachIf(refusedForDisk, errors.Is(o.err, ErrDiskStall))
	case opRead:
		s.reachIf(readAcrossLeaders, o.outcome == succeeded && o.under != 0 && o.node.up && o.node.core.lead != o.under)
	case opChange:
		s.reachIf(changeUnknown, errors.Is(o.err, ErrUnknown))
		s.reachIf(changeUnsafe, errors.Is(o.err, roster.ErrUnsafeChange))
		s.reachIf(replacedAtOnce, o.outcome == succeeded && o.change.change.Kind == roster.ReplaceMember)
	case opTransfer:
		s.reachIf(deposedWithHandOver, o.err != nil && strings.Contains(o.err.Error(), "leads instead of"))
		s.reachIf(handOverFailed, errors.Is(o.err, ErrNotHandedOver) && o.transfer.handed)
	}
}
