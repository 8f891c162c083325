package raftnode

import (
	"errors"
	"testing"

	"github.com/kvd-io/kvd/internal/roster"
)

// TestReplaceLostDisk: the machine of a member whose disk is lost gets a new id, and the
// old one is gone in the same step. It is refused while the leader may still hear the old
// member, and what was committed stays readable at the new one.
func TestReplaceLostDisk(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		lost := s.nodes[s.others(l.id)[0]]
		early := s.comeBack(lost.id)
		s.must(3*electionTimeout, "an answer while it is alive", func() bool { return early.outcome != open })
		if !errors.Is(early.err, roster.ErrUnsafeChange) {
			t.Fatalf("a live member is replaced: %v", early.err)
		}
		lost.crash()
		lost.ended = errLostDisk
		early = s.comeBack(lost.id)
		s.must(3*electionTimeout, "an answer right after the crash", func() bool { return early.outcome != open })
		if !errors.Is(early.err, roster.ErrUnsafeChange) {
			t.Fatalf("a member that was heard a moment ago is replaced: %v", early.err)
		}
		s.run(3 * electionTimeout)
		o := s.comeBack(lost.id)
		s.must(electionTimeout, "the replacement", func() bool { return o.outcome == succeeded })
		id := o.change.change.Member.ID
		if _, old := s.members().Member(lost.id); old || !s.members().Removed[lost.id] || id <= lost.id {
			t.Fatalf("after the replacement by %d: %+v", id, s.members())
		}
		s.must(20*electionTimeout, "the promotion", func() bool {
			m, ok := s.members().Member(id)
			return ok && !m.Learner
		})
		s.agree(s.leader(), 8, l.id, id)
		s.settle(patience)
	}
}

// TestReplaceNeedsTheQuorum: of three members two are lost, or one is lost and one is
// down. The one that is left may be the only one that has what was committed last, or the
// only one that lacks it; nobody can tell, so nothing may be replaced.
func TestReplaceNeedsTheQuorum(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		lost, down := s.nodes[rest[0]], s.nodes[rest[1]]
		lost.crash()
		lost.ended = errLostDisk
		s.run(3 * electionTimeout)
		down.crash()
		o := s.comeBack(lost.id) // the leader still believes in its office
		if o != nil {
			s.must(5*electionTimeout, "an answer", func() bool { return o.outcome != open })
			if o.outcome == succeeded {
				t.Fatal("one of three members replaced another")
			}
		}
		s.run(5 * electionTimeout)
		if s.members().Removed[lost.id] {
			t.Fatalf("the member was removed: %+v", s.members())
		}
		s.crashAndRestart(down.id)
		s.must(10*electionTimeout, "a leader", func() bool { return s.leader() != nil })
		again := s.now
		s.must(20*electionTimeout, "the replacement", func() bool {
			if (o == nil || o.outcome != open && o.outcome != succeeded) && s.now >= again {
				o, again = s.comeBack(lost.id), s.now+second/10
			}
			return o != nil && o.outcome == succeeded
		})
		s.settle(patience)
	}
}

// TestRemoveDead: a leader with that setting removes the members that it has not heard
// from, one after the other, as long as those that remain are a quorum and alive. It
// removes nobody who restarts within the time, and nobody who has not started yet.
func TestRemoveDead(t *testing.T) {
	const silence = 10 * simElection
	for s := range clusters(t, simOptions{members: 5, removeDead: silence}) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		waiting := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n9:1"}}})
		s.must(electionTimeout, "the addition", func() bool { return waiting.outcome == succeeded })
		rest := s.others(l.id)
		s.nodes[rest[0]].crash()
		s.run(5 * electionTimeout)
		s.crashAndRestart(rest[0])
		s.run(20 * electionTimeout)
		if n := len(s.members().Members); n != 6 {
			t.Fatalf("%d members are left: %+v", n, s.members())
		}
		for _, id := range rest[:2] {
			s.nodes[id].crash()
			s.nodes[id].ended = errLostDisk
		}
		s.must(20*electionTimeout, "the removal of both", func() bool { return s.members().Removed[rest[0]] && s.members().Removed[rest[1]] })
		if len(s.members().Voters()) != 3 {
			t.Fatalf("voters %v", s.members().Voters())
		}
		o := s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: waiting.change.change.Member.ID}})
		s.must(electionTimeout, "the removal of the one that never started", func() bool { return o.outcome == succeeded })
		s.settle(patience)
	}
}

// TestRemoveDeadStopsAtTheQuorum: two of four members die. Removing one would leave three
// of which two are alive, which is a quorum; but to remove it, three of four would have to
// agree. Two that cannot decide must not try forever either.
func TestRemoveDeadStopsAtTheQuorum(t *testing.T) {
	for s := range clusters(t, simOptions{members: 4, removeDead: 10 * simElection}) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		for _, id := range rest[:2] {
			s.nodes[id].crash()
		}
		s.run(40 * electionTimeout)
		if n := len(s.members().Members); n != 4 {
			t.Fatalf("%d members are left: %+v", n, s.members())
		}
		s.crashAndRestart(rest[0])
		s.nodes[rest[1]].ended = errLostDisk
		s.must(60*electionTimeout, "the removal of the one that stays dead", func() bool { return s.members().Removed[rest[1]] })
		s.settle(patience)
	}
}
