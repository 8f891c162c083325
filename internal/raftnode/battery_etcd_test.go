package raftnode

import (
	"testing"

	"github.com/kvd-io/kvd/internal/roster"
)

// Bugs that etcd had in what kvd does too, by the numbers of their issues. kvd shares
// libraries with etcd, not the code around them. Two more are in kvstore and datadir.

// TestEtcdBug20418StaleReadAfterRetry: a leader was paused while requests for its commit
// index and the acknowledgments of their heartbeats were still on their way, doubled and
// late. When it went on, after others had elected a leader and written, what belonged to an
// old attempt confirmed a new read.
func TestEtcdBug20418StaleReadAfterRetry(t *testing.T) {
	for s := range battery(t, 3) {
		answered, deposed := 0, 0
		s.net.delay = span{milli, 150 * milli}
		s.net.duplicate, s.net.reorder, s.net.late = 0.5, 0.4, 2*second
		s.must(patience, "a leader", func() bool { return s.leader() != nil })
		var reads []*op // S8 judges them
		for range 30 {
			l := s.leader()
			if l == nil {
				s.run(electionTimeout)
				continue
			}
			s.write(l, 8)
			for _, id := range s.others(l.id) {
				reads = append(reads, s.linearizable(s.nodes[id]))
			}
			s.run(second / 5)
			l.pausedUntil = s.now + 4*electionTimeout
			for range 8 {
				s.run(electionTimeout / 2)
				for _, id := range s.others(l.id) {
					s.write(s.nodes[id], 8)
					reads = append(reads, s.linearizable(s.nodes[id]))
				}
			}
			if s.leader() != l {
				deposed++
			}
			reads = append(reads, s.linearizable(l))
			s.run(second / 2)
		}
		s.calm()
		s.settle(patience)
		for _, o := range reads {
			if o.outcome == succeeded {
				answered++
			}
		}
		if answered < 200 || deposed < 10 {
			t.Fatalf("%d reads were answered and %d leaders deposed: that proves nothing", answered, deposed)
		}
	}
}

// TestEtcdBug14370AcknowledgedBeforeSync: the only member of a cluster acknowledged writes
// that its disk did not have yet, and lost them with the power.
func TestEtcdBug14370AcknowledgedBeforeSync(t *testing.T) {
	for s := range battery(t, 1) {
		only := s.elect()
		s.agree(only, 8, only.id)
		only.stalled = true // nothing is saved until resume
		o := s.write(only, 8)
		s.run(5 * electionTimeout)
		if o.outcome == succeeded {
			t.Fatal("a write was acknowledged while the disk hung")
		}
		only.crash()
		s.run(electionTimeout)
		only.start()
		s.agree(s.elect(), 8, only.id)
		s.settle(patience)
	}
}

// TestEtcdBug13196RemovedMembersReturn: members that had been removed were in the list
// again after a restart, because two places kept it and one of them was older (20967 was
// the same). Here they are removed before and after snapshots, while one member sleeps,
// and all members restart.
func TestEtcdBug13196RemovedMembersReturn(t *testing.T) {
	for _, memory := range []bool{false, true} {
		for s := range snapshots(t, 3, memory) {
			l := s.elect()
			founders := append([]uint64(nil), s.order...)
			sleeper := s.nodes[s.others(l.id)[0]]
			awake := s.others(sleeper.id)
			var gone []uint64
			for range 3 {
				added := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://n9:1"}}})
				s.must(patience, "the addition", func() bool { return added.outcome == succeeded })
				id := added.change.change.Member.ID
				s.isolate(sleeper.id)
				s.writeMany(l, 20, awake...)
				removed := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: id}})
				s.must(patience, "the removal", func() bool { return removed.outcome == succeeded })
				gone = append(gone, id)
				s.writeMany(l, 40, awake...)
				s.run(2 * second)
				s.rejoin(sleeper.id)
				s.must(2*patience, "the sleeper to catch up", s.agreed)
				s.crashAndRestart(founders...)
				l = s.elect(awake...)
			}
			s.settle(patience)
			for _, n := range s.alive() {
				m := n.applier.roster.Membership()
				for _, id := range gone {
					if _, there := m.Member(id); there || !m.Removed[id] {
						t.Errorf("member %d has member %d, which was removed, in its list: %+v", n.id, id, m)
					}
				}
				if len(m.Members) != 3 {
					t.Errorf("member %d knows %d members, want 3", n.id, len(m.Members))
				}
			}
		}
	}
}
