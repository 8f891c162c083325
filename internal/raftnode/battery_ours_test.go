package raftnode

import (
	"errors"
	"testing"

	"github.com/kvd-io/kvd/internal/roster"
)

// TestPowerCutInFirstStart cuts the power of one or all members of a new cluster, at every
// step until it works.
func TestPowerCutInFirstStart(t *testing.T) {
	for seed := range seeds(t, batterySeeds) {
		for step := range 100 {
			s := newSim(t, seed, simOptions{members: 3})
			for range 2 * step {
				s.step()
			}
			if step%2 == 0 {
				s.crashAndRestart(s.order...)
			} else {
				s.crashAndRestart(s.anyNode().id)
			}
			s.agree(s.elect(), 8, s.order...)
			s.settle(patience)
		}
	}
}

// TestPowerCutInJoin cuts the power of a member that joins, at every step until it has
// caught up from a snapshot. It comes back under the same id, and is promoted.
func TestPowerCutInJoin(t *testing.T) {
	for seed := range seeds(t, batterySeeds) {
		for step := range 60 {
			s := newSim(t, seed, snapshotOptions(3, step%2 == 0))
			l := s.elect()
			s.writeMany(l, 40, s.order...)
			s.run(second) // compaction
			add := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n4:1"}}})
			s.must(electionTimeout, "the addition", func() bool { return add.outcome == succeeded })
			id := add.change.change.Member.ID
			joining := s.addNode(id, nil)
			for n := 0; n < 10*step && !joining.core.started(); n++ {
				s.step()
			}
			s.crashAndRestart(id)
			s.must(20*electionTimeout, "the promotion", func() bool {
				m, ok := s.members().Member(id)
				return ok && !m.Learner
			})
			s.agree(s.leader(), 8, s.order...)
			s.settle(patience)
		}
	}
}

// TestMemberChangesUnderPartition: while two of five members are cut off, with the old
// leader among them, the others remove one of the two and add another. What the old leader
// was asked meanwhile changes nothing before it has heard of that, and after healing the
// removed member ends.
func TestMemberChangesUnderPartition(t *testing.T) {
	for s := range battery(t, 5) {
		old := s.elect()
		s.agree(old, 8, s.order...)
		removed := s.nodes[s.others(old.id)[0]]
		majority := s.others(old.id, removed.id)
		s.partition([]uint64{old.id, removed.id}, majority)
		vain := s.reconfigure(old, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: majority[0]}})
		s.elect(majority...)
		s.run(2 * electionTimeout)
		if vain.outcome == succeeded {
			s.fatalf("a leader without a quorum removed member %d", majority[0])
		}
		remove := s.reconfigure(s.leader(), roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: removed.id}})
		s.must(5*electionTimeout, "the removal", func() bool { return remove.outcome == succeeded })
		add := s.reconfigure(s.leader(), roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n6:1"}}})
		s.must(5*electionTimeout, "the addition", func() bool { return add.outcome == succeeded })
		id := add.change.change.Member.ID
		s.addNode(id, nil)
		s.partition([]uint64{old.id, removed.id}, append(majority, id))
		s.must(20*electionTimeout, "the promotion", func() bool {
			m, ok := s.members().Member(id)
			return ok && !m.Learner
		})
		s.agree(s.leader(), 8, append(majority, id)...)
		if !removed.up {
			s.fatalf("member %d ended before it could know that it was removed", removed.id)
		}
		s.heal()
		s.must(5*electionTimeout, "the removed member to end", func() bool {
			s.tellRemoved()
			return !removed.up
		})
		if !errors.Is(removed.ended, ErrRemoved) {
			s.fatalf("it ended with %v", removed.ended)
		}
		s.must(20*electionTimeout, "an answer to the old leader's request", func() bool { return vain.outcome != open })
		s.agree(s.elect(s.others(removed.id)...), 8, s.others(removed.id)...)
		s.settle(patience)
	}
}

// TestSlowDisk: a disk that is slow, but answers, costs no leader its office. It holds
// writes up if the leader or the quorum needs it, and otherwise not.
func TestSlowDisk(t *testing.T) {
	const slow = 4 * electionTimeout / 5
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		s.must(electionTimeout, "rest", s.agreed)
		term, rest := l.core.term, s.others(l.id)
		for _, on := range [][]uint64{{l.id}, {rest[0]}, rest} {
			for _, id := range on {
				s.nodes[id].slowDisk = slow
			}
			begin, least := s.now, int64(slow)
			for range 5 {
				o := s.write(l, 8)
				s.must(4*electionTimeout, "a write", func() bool { return o.outcome == succeeded })
				least = min(least, s.now-begin)
				begin = s.now
			}
			if waits := on[0] == l.id || len(on) == 2; waits != (least >= slow) {
				s.fatalf("with slow disks at %v, a write takes %d ms", on, least/milli)
			}
			if s.leader() != l || l.core.term != term {
				s.fatalf("slow disks at %v cost member %d its office\n%s", on, l.id, s.describe())
			}
			for _, n := range s.alive() {
				n.slowDisk = 0
			}
			s.must(10*electionTimeout, "rest", s.agreed)
		}
		s.settle(patience)
	}
}
