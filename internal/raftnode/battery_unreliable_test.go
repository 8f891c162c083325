package raftnode

import "testing"

func TestUnreliableAgree(t *testing.T) {
	for s := range battery(t, 5) {
		s.unreliable()
		s.must(patience, "a leader", func() bool { return s.leader() != nil })
		var ops []*op
		for i := range 50 {
			for j := range 4 {
				ops = append(ops, s.write(s.nodes[s.order[(i+j)%5]], 8))
			}
			s.run(50 * milli)
		}
		s.must(2*patience, "all writes over a bad network", func() bool { return allDone(ops) })
		s.settle(patience)
	}
}

// TestFigure8Unreliable isolates leaders at random while messages are
// reordered by more than an election timeout.
func TestFigure8Unreliable(t *testing.T) {
	for s := range battery(t, 5) {
		s.unreliable()
		s.net.late = 2 * electionTimeout
		s.net.reorder = 0.5
		isolated := map[uint64]bool{}
		for range 300 {
			for _, n := range s.alive() {
				s.write(n, 8)
			}
			s.run(s.between(span{0, electionTimeout / 3}))
			if l := s.leader(); l != nil && !isolated[l.id] && s.chance(0.3) {
				s.isolate(l.id)
				isolated[l.id] = true
			}
			if n := s.anyNode(); len(isolated) > 2 && isolated[n.id] {
				s.rejoin(n.id)
				delete(isolated, n.id)
				for id := range isolated {
					s.isolate(id)
				}
			}
		}
		s.settle(patience)
	}
}

// churn crashes, restarts and isolates members while clients write.
func churn(t *testing.T, unreliable bool) {
	for s := range battery(t, 5) {
		if unreliable {
			s.unreliable()
		}
		s.nemesis = &nemesis{}
		s.load(3, span{5 * milli, 60 * milli})
		for range 30 {
			n := s.anyNode()
			switch {
			case s.chance(0.3):
				s.isolate(n.id)
			case s.chance(0.4):
				n.crash()
			case !n.up:
				n.start()
			default:
				s.rejoin(n.id)
			}
			s.run(s.between(span{electionTimeout / 4, 2 * electionTimeout}))
			if s.leader() == nil {
				s.heal()
				s.bringUp()
			}
		}
		if s.known.writes < 50 {
			t.Errorf("only %d writes succeeded\n%s", s.known.writes, s.describe())
		}
		s.settle(patience)
	}
}

func TestReliableChurn(t *testing.T)   { churn(t, false) }
func TestUnreliableChurn(t *testing.T) { churn(t, true) }

// TestOneWayPartition: a leader that can send but not receive steps down, and
// one that can receive but not send is replaced.
func TestOneWayPartition(t *testing.T) {
	for _, deaf := range []bool{true, false} {
		for s := range battery(t, 3) {
			l := s.elect()
			for _, id := range s.others(l.id) {
				if deaf {
					s.net.blocked[link{id, l.id}] = true
				} else {
					s.net.blocked[link{l.id, id}] = true
				}
			}
			rest := s.others(l.id)
			s.must(20*electionTimeout, "another leader", func() bool { return s.settledLeader(rest...) != nil })
			s.agree(s.leader(), 8, rest...)
			s.settle(patience)
		}
	}
}
