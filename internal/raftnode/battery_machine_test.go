package raftnode

import (
	"errors"
	"testing"

	"github.com/kvd-io/kvd/internal/roster"
)

// The battery of the replicated state machine: it submits commands instead of
// entries.

func TestSubmitBasic(t *testing.T) {
	for s := range battery(t, 3) {
		s.elect()
		for _, n := range s.alive() {
			s.agree(n, 8, s.order...)
		}
		s.settle(patience)
	}
}

func TestSubmitConcurrent(t *testing.T) {
	for s := range battery(t, 5) {
		s.elect()
		var ops []*op
		for range 20 {
			for _, n := range s.alive() {
				ops = append(ops, s.write(n, 8), s.write(n, 8))
			}
			s.run(3 * milli)
		}
		s.must(5*electionTimeout, "all submits", func() bool { return allDone(ops) })
		s.settle(patience)
	}
}

func TestSubmitLeaderFailure(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		rest := s.others(l.id)
		var ops []*op
		for range 10 {
			ops = append(ops, s.write(s.nodes[rest[0]], 8))
		}
		l.crash()
		s.must(patience, "submits at a follower survive the leader", func() bool { return allDone(ops) })
		l.start()
		s.settle(patience)
	}
}

// TestSubmitLeaderPartition: commands submitted to a leader in a minority do
// not succeed while it is there, and are answered after the partition heals.
func TestSubmitLeaderPartition(t *testing.T) {
	for s := range battery(t, 5) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		minority := []uint64{l.id, s.others(l.id)[0]}
		s.partition(minority, s.others(minority...))
		var ops []*op
		for range 5 {
			ops = append(ops, s.write(l, 8), s.linearizable(l))
		}
		next := s.elect(s.others(minority...)...)
		s.agree(next, 8, s.others(minority...)...)
		s.run(5 * electionTimeout)
		for _, o := range ops {
			if o.outcome == succeeded {
				t.Fatal("a submit in the minority succeeded")
			}
		}
		s.heal()
		s.must(10*electionTimeout, "an answer to all after healing", func() bool {
			for _, o := range ops {
				if o.outcome == open {
					return false
				}
			}
			return true
		})
		s.settle(patience)
	}
}

// TestSubmitRestartReplay: the commit index that members restart with may be older than
// what they acknowledged. They replay the rest once a leader has committed in its own term.
func TestSubmitRestartReplay(t *testing.T) {
	for _, memory := range []bool{false, true} {
		for s := range clusters(t, simOptions{members: 3, memory: memory}) {
			s.writeMany(s.elect(), 30, s.order...)
			s.crashAndRestart(s.order...)
			l := s.elect()
			s.must(electionTimeout, "the replay", func() bool {
				_, ok := l.core.changes.committedInTerm()
				return ok && s.agreed()
			})
			for _, n := range s.alive() {
				if got := len(n.machine.(*machine).cur.IDs); got != 30 {
					t.Errorf("%d commands at member %d after the replay, want 30", got, n.id)
				}
			}
			s.agree(s.leader(), 8, s.order...)
			s.settle(patience)
		}
	}
}

// TestSubmitAfterRestart: what is submitted as soon as the members run again, before they
// have a leader, runs once, behind what was there before.
func TestSubmitAfterRestart(t *testing.T) {
	for s := range battery(t, 3) {
		total := 0
		for range 5 {
			s.crashAndRestart(s.order...)
			var ops []*op
			for range 10 {
				for _, n := range s.alive() {
					ops = append(ops, s.write(n, 8))
				}
			}
			total += len(ops)
			s.must(10*electionTimeout, "all submits", func() bool { return allDone(ops) && s.agreed() })
		}
		for _, n := range s.alive() {
			if got := len(n.machine.(*machine).cur.IDs); got != total {
				t.Errorf("%d commands at member %d, want %d", got, n.id, total)
			}
		}
		s.settle(patience)
	}
}

// TestSubmitShutdown: pending commands return when a member stops.
func TestSubmitShutdown(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		s.isolate(l.id)
		w, r := s.write(l, 8), s.linearizable(l)
		s.run(10 * milli)
		queued := s.write(l, 8)
		s.run(milli)
		l.stop(ErrStopping)
		if w.outcome != unknown || r.outcome != refused || queued.outcome != refused {
			t.Errorf("outcomes: in flight %v (%v), read %v (%v), queued %v (%v)", w.outcome, w.err, r.outcome, r.err, queued.outcome, queued.err)
		}
		if !errors.Is(queued.err, ErrStopping) {
			t.Errorf("queued: %v", queued.err)
		}
		s.settle(patience)
	}
}

func TestSnapshotBoundsTheLog(t *testing.T) {
	for s := range snapshots(t, 3, false) {
		l := s.elect()
		for range 10 {
			s.writeMany(l, 30, s.order...)
			s.run(second)
			for _, n := range s.alive() {
				first, _ := n.log.FirstIndex()
				if last, _ := n.log.LastIndex(); last-first > 20 {
					t.Fatalf("member %d keeps the entries %d to %d", n.id, first, last)
				}
			}
		}
		s.settle(patience)
	}
}

// TestMemberReplacement: a member is added as a learner, catches up from a
// snapshot and is promoted, and the member with the lost disk is removed.
func TestMemberReplacement(t *testing.T) {
	for s := range snapshots(t, 3, false) {
		l := s.elect()
		s.writeMany(l, 40, s.order...)
		lost := s.nodes[s.others(l.id)[0]]
		lost.crash()
		lost.ended = errLostDisk
		add := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n4:1"}}})
		s.must(electionTimeout, "the addition", func() bool { return add.outcome == succeeded })
		id := add.change.change.Member.ID
		early := s.reconfigure(l, roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: id}})
		s.must(2*electionTimeout, "a refusal", func() bool { return early.outcome != open })
		if !errors.Is(early.err, roster.ErrUnsafeChange) {
			t.Fatalf("a learner that never started was promoted: %v", early.err)
		}
		s.addNode(id, nil)
		s.must(10*electionTimeout, "the promotion", func() bool {
			m, ok := s.members().Member(id)
			return ok && !m.Learner
		})
		remove := s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: lost.id}})
		s.must(electionTimeout, "the removal", func() bool { return remove.outcome == succeeded })
		s.settle(patience)
	}
}

// TestRemoveLeader: a leader that is to be removed hands over first, and the
// new leader removes it.
func TestRemoveLeader(t *testing.T) {
	for _, members := range []int{2, 3, 5} {
		for s := range battery(t, members) {
			l := s.elect()
			s.agree(l, 8, s.order...)
			o := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: l.id}})
			s.must(5*electionTimeout, "an answer", func() bool { return o.outcome != open })
			if !errors.Is(o.err, ErrNotLeader) {
				t.Fatalf("%d members: %v", members, o.err)
			}
			s.elect()
			o = s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: l.id}})
			s.must(5*electionTimeout, "the removal", func() bool { return o.outcome == succeeded })
			s.must(5*electionTimeout, "the removed member to end", func() bool {
				s.tellRemoved() // it may not have heard that its removal is committed
				return !l.up
			})
			if !errors.Is(l.ended, ErrRemoved) {
				t.Errorf("it ended with %v", l.ended)
			}
			s.settle(patience)
		}
	}
}

// TestShrinkToOne removes the follower of two and crashes the leader right
// after: the removed member stays long enough to vote.
func TestShrinkToOne(t *testing.T) {
	for seed := range seeds(t, 20) {
		s := newSim(t, seed, simOptions{members: 2})
		l := s.elect()
		s.agree(l, 8, s.order...)
		o := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: s.others(l.id)[0]}})
		s.must(electionTimeout, "the removal", func() bool { return o.outcome == succeeded })
		s.crashAndRestart(l.id)
		s.settle(patience)
	}
}

// TestRemovalOfTheDead: removing a dead member passes, and a removal that
// would cost the quorum does not.
func TestRemovalOfTheDead(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		rest := s.others(l.id)
		s.nodes[rest[0]].crash()
		s.nodes[rest[0]].ended = errLostDisk
		s.run(2 * electionTimeout)
		o := s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[1]}})
		s.must(electionTimeout, "a refusal", func() bool { return o.outcome != open })
		if !errors.Is(o.err, roster.ErrUnsafeChange) {
			t.Fatalf("the removal of a live member: %v", o.err)
		}
		o = s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[0]}})
		s.must(electionTimeout, "the removal of the dead", func() bool { return o.outcome == succeeded })
		s.settle(patience)
	}
}

// TestRemovalRightAfterADeath: a member that died a moment ago was heard
// recently. It must not count for the quorum of those that would remain.
func TestRemovalRightAfterADeath(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		dead := s.nodes[rest[0]]
		dead.crash()
		o := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[1]}})
		s.must(3*electionTimeout, "an answer", func() bool { return o.outcome != open })
		if !errors.Is(o.err, roster.ErrUnsafeChange) {
			t.Fatalf("the removal of a live member right after the death of another: %v", o.err)
		}
		s.agree(l, 8, l.id, rest[1])
		o = s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: dead.id}})
		s.must(electionTimeout, "the removal of the dead", func() bool { return o.outcome == succeeded })
		dead.ended = errLostDisk
		s.settle(patience)
	}
}

// TestQueuedRemovalsKeepTheQuorum: each of two removals is safe alone. Four
// voters, one of them dead, cannot spare both.
func TestQueuedRemovalsKeepTheQuorum(t *testing.T) {
	for seed := range seeds(t, 20) {
		s := newSim(t, seed, simOptions{members: 4})
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		s.nodes[rest[0]].crash()
		s.nodes[rest[0]].ended = errLostDisk
		s.run(2 * electionTimeout)
		if s.leader() != l {
			continue
		}
		first := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[1]}})
		second := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[2]}})
		s.must(5*electionTimeout, "answers", func() bool { return first.outcome != open && second.outcome != open })
		if first.outcome != succeeded || !errors.Is(second.err, roster.ErrUnsafeChange) {
			t.Fatalf("seed %d: removals end with %v and %v", seed, first.err, second.err)
		}
		s.agree(s.leader(), 8, l.id, rest[2])
		o := s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[0]}})
		s.must(electionTimeout, "the removal of the dead", func() bool { return o.outcome == succeeded })
		s.settle(patience)
	}
}

// TestPromotionRightAfterADeath: the learner of a single voter dies. As the
// second voter it would stop the cluster.
func TestPromotionRightAfterADeath(t *testing.T) {
	for s := range battery(t, 1) {
		l := s.elect()
		add := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n2:1"}, KeepLearner: true}})
		s.must(electionTimeout, "the addition", func() bool { return add.outcome == succeeded })
		id := add.change.change.Member.ID
		s.addNode(id, nil)
		s.must(10*electionTimeout, "the learner to catch up", func() bool { return l.core.changes.caughtUp(id) })
		s.nodes[id].crash()
		o := s.reconfigure(l, roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: id}})
		s.must(3*electionTimeout, "an answer", func() bool { return o.outcome != open })
		if !errors.Is(o.err, roster.ErrUnsafeChange) {
			t.Fatalf("the promotion of a learner that just died: %v", o.err)
		}
		s.crashAndRestart(id)
		s.agree(l, 8, l.id, id)
		s.must(electionTimeout, "the leader to hear of that", func() bool { return l.core.changes.silentFor(id) == 0 })
		o = s.reconfigure(l, roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: id}})
		s.must(electionTimeout, "the promotion", func() bool { return o.outcome == succeeded })
		s.settle(patience)
	}
}

// TestTransferRightAfterADeath: a dead target must not stop the writes, which
// raft refuses while it hands over, and nobody hands over to it.
func TestTransferRightAfterADeath(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		s.nodes[rest[0]].crash()
		o := s.handOver(l, rest[0])
		s.run(electionTimeout / 10)
		w := s.write(l, 8)
		s.must(electionTimeout/2, "a write during the attempt", func() bool { return w.outcome == succeeded })
		if o.outcome != open {
			t.Fatalf("the attempt ended before the write: %v", o.err)
		}
		s.must(3*electionTimeout, "an answer", func() bool { return o.outcome != open })
		if !errors.Is(o.err, ErrNotHandedOver) || s.leader() != l {
			t.Fatalf("handing over to a dead member: %v", o.err)
		}
		o = s.handOver(l, 0)
		s.must(electionTimeout, "a hand-over to the live one", func() bool { return o.outcome == succeeded })
		if got := s.elect(); got.id != rest[1] {
			t.Fatalf("member %d leads, want %d", got.id, rest[1])
		}
		s.crashAndRestart(rest[0])
		s.settle(patience)
	}
}

// TestChangeRightAfterAPromotion: a leader whose apply loop is a moment behind
// judges a change with the promotion that its followers have applied already.
// Without the fourth voter, the removal would leave one of two reachable.
func TestChangeRightAfterAPromotion(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		add := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n4:1"}, KeepLearner: true}})
		s.must(electionTimeout, "the addition", func() bool { return add.outcome == succeeded })
		id := add.change.change.Member.ID
		learner := s.addNode(id, nil)
		s.must(10*electionTimeout, "the learner to catch up", func() bool { return l.core.changes.caughtUp(id) })
		dead := s.nodes[rest[0]]
		dead.crash()
		dead.ended = errLostDisk
		s.run(2 * electionTimeout)
		promotion := s.reconfigure(l, roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: id}})
		s.must(electionTimeout, "the promotion at the learner", func() bool {
			l.slow = len(l.core.changes.queue) > 0
			m, ok := learner.core.membership.Member(id)
			return ok && !m.Learner
		})
		if promotion.outcome != open {
			t.Fatal("the leader has applied the promotion first")
		}
		o := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: rest[1]}})
		s.run(20 * milli)
		l.slow = false
		l.startApply()
		s.must(electionTimeout, "an answer", func() bool { return o.outcome != open })
		if o.outcome != succeeded {
			t.Fatalf("the removal that the promotion makes safe: %v", o.err)
		}
		s.settle(patience)
	}
}

// TestChangeRightAfterAnElection: a new leader has heard only from those that
// voted for it, and must not take the others for dead.
func TestChangeRightAfterAnElection(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		s.run(3 * electionTimeout)
		rest := s.others(l.id)
		next := s.nodes[rest[0]]
		late := link{from: rest[1], to: next.id}
		s.net.blocked[late] = true
		s.handOver(l, next.id)
		s.must(electionTimeout, "another leader", func() bool {
			_, ok := next.core.changes.committedInTerm()
			return ok && next.core.isLeader()
		})
		o := s.reconfigure(next, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: l.id}})
		s.run(50 * milli)
		delete(s.net.blocked, late)
		s.must(electionTimeout, "an answer", func() bool { return o.outcome != open })
		if o.outcome != succeeded {
			t.Fatalf("the removal of the leader before: %v", o.err)
		}
		s.settle(patience)
	}
}
