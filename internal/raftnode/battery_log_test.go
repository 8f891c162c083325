package raftnode

import (
	"testing"

	"github.com/kvd-io/kvd/internal/roster"
)

func TestBasicAgreement(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		last := uint64(0)
		for range 5 {
			o := s.agree(l, 8, s.order...)
			if o.index <= last {
				t.Fatalf("entry %d after %d", o.index, last)
			}
			last = o.index
		}
		s.settle(patience)
	}
}

// TestRPCBytes: each command crosses the wire once per peer.
func TestRPCBytes(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		before, payload := s.net.bytes, 0
		for range 20 {
			s.agree(l, 5000, s.order...)
			payload += 5000
		}
		sent := s.net.bytes - before
		if limit := 3*payload + 50_000; sent > limit {
			t.Errorf("%d bytes sent for %d bytes of commands, want at most %d", sent, payload, limit)
		}
		if sent < 2*payload {
			t.Errorf("only %d bytes sent for %d bytes of commands: the count is wrong", sent, payload)
		}
		s.settle(patience)
	}
}

func TestFollowerFailure(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		s.isolate(rest[0])
		s.agree(l, 8, l.id, rest[1])
		s.run(2 * electionTimeout)
		s.agree(l, 8, l.id, rest[1])
		s.isolate(rest[1])
		o := s.write(l, 8)
		s.run(5 * electionTimeout)
		if o.outcome == succeeded {
			t.Fatal("a command was acknowledged without a quorum")
		}
		s.settle(patience)
	}
}

func TestLeaderFailure(t *testing.T) {
	for s := range battery(t, 3) {
		first := s.elect()
		s.agree(first, 8, s.order...)
		s.isolate(first.id)
		second := s.elect(s.others(first.id)...)
		s.agree(second, 8, s.others(first.id)...)
		s.isolate(second.id)
		third := s.nodes[s.others(first.id, second.id)[0]]
		o := s.write(third, 8)
		s.run(5 * electionTimeout)
		if o.outcome == succeeded {
			t.Fatal("a command was acknowledged without a quorum")
		}
		s.settle(patience)
	}
}

func TestFailAgree(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		out := s.others(l.id)[0]
		s.isolate(out)
		for range 4 {
			s.agree(l, 8, s.others(out)...)
			s.run(electionTimeout / 2)
		}
		s.rejoin(out)
		s.agree(s.elect(), 8, s.order...)
		s.run(electionTimeout)
		s.agree(s.nodes[out], 8, s.order...) // a follower forwards
		s.settle(patience)
	}
}

func TestFailNoAgree(t *testing.T) {
	for s := range battery(t, 5) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		cut := s.others(l.id)[:3]
		for _, id := range cut {
			s.isolate(id)
		}
		o := s.write(l, 8)
		s.run(4 * electionTimeout)
		if o.outcome == succeeded {
			t.Fatal("a command was acknowledged without a quorum")
		}
		s.heal()
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

func TestConcurrentStarts(t *testing.T) {
	for s := range battery(t, 3) {
		s.elect()
		var ops []*op
		for i := range 60 {
			ops = append(ops, s.write(s.nodes[s.order[i%3]], 8))
		}
		s.must(5*electionTimeout, "all concurrent writes", func() bool { return allDone(ops) })
		s.settle(patience)
	}
}

func TestRejoinOfPartitionedLeader(t *testing.T) {
	for s := range battery(t, 3) {
		first := s.elect()
		s.agree(first, 8, s.order...)
		s.isolate(first.id)
		for range 3 {
			s.write(first, 8) // in vain for now
		}
		second := s.elect(s.others(first.id)...)
		s.agree(second, 8, s.others(first.id)...)
		s.isolate(second.id)
		s.rejoin(first.id)
		s.net.blocked[link{first.id, second.id}] = true
		s.net.blocked[link{second.id, first.id}] = true
		third := s.others(first.id, second.id)[0]
		s.elect(first.id, third)
		s.agree(s.leader(), 8, first.id, third)
		s.heal()
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// TestBackupOverWrongLogs: leaders with long wrong tails are corrected fast.
func TestBackupOverWrongLogs(t *testing.T) {
	for s := range clusters(t, simOptions{members: 5, maxBatch: 8}) { // an entry a command
		first := s.elect()
		s.agree(first, 8, s.order...)
		rest := s.others(first.id)
		s.partition([]uint64{first.id, rest[0]}, rest[1:])
		s.wrongTail(first, 60)
		second := s.elect(rest[1:]...)
		for range 30 {
			s.agree(second, 8, rest[1:]...)
		}
		other := s.others(first.id, second.id, rest[0])[0]
		s.partition([]uint64{second.id, s.others(first.id, second.id, rest[0], other)[0]})
		s.wrongTail(second, 60)
		s.crashAndRestart(s.order...)
		s.partition([]uint64{first.id, rest[0], other})
		third := s.elect(first.id, rest[0], other)
		if third.id != other {
			t.Fatalf("member %d leads without the committed entries, want %d", third.id, other)
		}
		before := s.net.sent
		s.agree(third, 8, first.id, rest[0], other)
		if sent := s.net.sent - before; sent > 200 {
			t.Errorf("%d messages to correct the logs", sent)
		}
		s.heal()
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// wrongTail gives a leader without a quorum entries that never commit. A
// member has one batch of its own in flight, so they go to raft directly,
// in the name of a process that is gone.
func (s *sim) wrongTail(n *simNode, count int) {
	n.post(func(c *core) {
		for i := range count {
			_ = c.rn.Propose(roster.EncodeBatch(roster.BatchID{Member: n.id, Sequence: uint64(i)}, [][]byte{make([]byte, 8)}))
		}
	})
	s.run(electionTimeout / 5)
}

func (s *sim) crashAndRestart(ids ...uint64) {
	for _, id := range ids {
		s.nodes[id].crash()
	}
	s.run(electionTimeout / 10)
	for _, id := range ids {
		s.nodes[id].start()
	}
}

// TestPersist1: crashes of all members, one by one, lose nothing.
func TestPersist1(t *testing.T) {
	for s := range battery(t, 3) {
		s.agree(s.elect(), 8, s.order...)
		s.crashAndRestart(s.order...)
		s.agree(s.elect(), 8, s.order...)
		l := s.leader()
		s.crashAndRestart(l.id)
		s.agree(s.elect(), 8, s.order...)
		l = s.leader()
		l.crash()
		s.agree(s.elect(s.others(l.id)...), 8, s.others(l.id)...)
		l.start()
		s.must(5*electionTimeout, "the restarted member to catch up", s.agreed)
		f := s.others(s.leader().id)[0]
		s.nodes[f].crash()
		s.agree(s.leader(), 8, s.others(f)...)
		s.nodes[f].start()
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// TestPersist2: five members stop and start in turn.
func TestPersist2(t *testing.T) {
	for s := range battery(t, 5) {
		for range 5 {
			l := s.elect()
			s.agree(l, 8, s.order...)
			rest := s.others(l.id)
			s.nodes[rest[0]].crash()
			s.nodes[rest[1]].crash()
			s.agree(l, 8, l.id, rest[2], rest[3])
			l.crash()
			s.nodes[rest[2]].crash()
			s.nodes[rest[3]].crash()
			s.nodes[rest[0]].start()
			s.nodes[rest[1]].start()
			s.run(2 * electionTimeout)
			s.nodes[rest[2]].start()
			s.agree(s.elect(rest[:3]...), 8, rest[:3]...)
			s.nodes[rest[3]].start()
			l.start()
		}
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// TestPersist3: the leader and a follower crash, and the partitioned third
// member comes back with the restarted follower.
func TestPersist3(t *testing.T) {
	for s := range battery(t, 3) {
		l := s.elect()
		s.agree(l, 8, s.order...)
		rest := s.others(l.id)
		s.isolate(rest[1])
		s.agree(l, 8, l.id, rest[0])
		l.crash()
		s.nodes[rest[0]].crash()
		s.rejoin(rest[1])
		s.nodes[rest[0]].start()
		s.agree(s.elect(rest...), 8, rest...)
		l.start()
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// TestFigure8 crashes leaders right after, or before, their entries spread
// (raft paper, figure 8).
func TestFigure8(t *testing.T) {
	for s := range battery(t, 5) {
		up := 5
		for range 300 {
			for _, n := range s.alive() {
				s.write(n, 8)
			}
			s.run(s.between(span{0, electionTimeout / 2}))
			if l := s.leader(); l != nil && s.chance(0.7) {
				l.crash()
				up--
			}
			if n := s.anyNode(); up < 3 && !n.up {
				n.start()
				up++
			}
		}
		if s.known.elections < 10 {
			t.Errorf("only %d elections", s.known.elections)
		}
		s.settle(patience)
	}
}
