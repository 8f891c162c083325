package raftnode

import (
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/roster"
)

// snapshots makes clusters whose logs are compacted to a few entries, so that
// a member that slept needs a snapshot.
func snapshots(t *testing.T, members int, memory bool) iter.Seq[*sim] {
	return clusters(t, snapshotOptions(members, memory))
}

func snapshotOptions(members int, memory bool) simOptions {
	return simOptions{members: members, catchUp: 5, checkpoints: second / 2, maxBatch: 8, memory: memory}
}

func (s *sim) writeMany(at *simNode, count int, on ...uint64) {
	s.t.Helper()
	var ops []*op
	for range count {
		ops = append(ops, s.write(at, 8))
	}
	s.must(3*patience, "many writes", func() bool {
		for _, o := range ops {
			if o.outcome != succeeded || !s.ranOn(o.id, on...) {
				return false
			}
		}
		return true
	})
}

func TestSnapshotBasic(t *testing.T) {
	for s := range snapshots(t, 3, false) {
		l := s.elect()
		for range 5 {
			s.writeMany(l, 20, s.order...)
			s.run(second)
		}
		for _, n := range s.alive() {
			if first, _ := n.log.FirstIndex(); first < 50 {
				t.Errorf("member %d still keeps the log from entry %d", n.id, first)
			}
		}
		s.crashAndRestart(s.order...)
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// install makes one member after another sleep until it needs a snapshot.
func install(t *testing.T, unreliable, crash bool) {
	for _, memory := range []bool{false, true} {
		for s := range snapshots(t, 3, memory) {
			if unreliable {
				s.unreliable()
			}
			s.must(patience, "a leader", func() bool { return s.leader() != nil })
			for round := range 6 {
				if s.sleepThrough(crash); s.known.snapshotsInstalled <= round {
					s.fatalf("only %d snapshots were installed in %d rounds", s.known.snapshotsInstalled, round+1)
				}
			}
			s.settle(patience)
		}
	}
}

// sleepThrough cuts a member off, writes more than the logs keep, and
// reconnects it.
func (s *sim) sleepThrough(crash bool) {
	s.t.Helper()
	victim := s.anyNode()
	if crash {
		victim.crash()
	} else {
		s.isolate(victim.id)
	}
	rest := s.others(victim.id)
	s.must(patience, "a leader of the rest", func() bool { return s.settledLeader(rest...) != nil })
	s.writeMany(s.nodes[rest[0]], 40, rest...)
	has, _ := victim.log.LastIndex()
	// The log after a body is kept, and so is what a member lacks that is catching up.
	s.must(int64(5*time.Minute/time.Microsecond), "compaction", func() bool {
		return !slices.ContainsFunc(rest, func(id uint64) bool { return s.nodes[id].log.Continues(has) })
	})
	if crash {
		victim.start()
	} else {
		s.rejoin(victim.id)
	}
	s.must(2*patience, "the sleeper to catch up", s.agreed)
}

func TestSnapshotInstall(t *testing.T)                { install(t, false, false) }
func TestSnapshotInstallUnreliable(t *testing.T)      { install(t, true, false) }
func TestSnapshotInstallCrash(t *testing.T)           { install(t, false, true) }
func TestSnapshotInstallUnreliableCrash(t *testing.T) { install(t, true, true) }

// TestSnapshotInstallPowerCut cuts the power of a follower at every step of
// the installation of a snapshot.
func TestSnapshotInstallPowerCut(t *testing.T) {
	for seed := range seeds(t, batterySeeds) {
		for step := range 60 {
			s := newSim(t, seed, snapshotOptions(3, step%2 == 0))
			l := s.elect()
			victim := s.nodes[s.others(l.id)[0]]
			s.isolate(victim.id)
			s.writeMany(l, 40, s.others(victim.id)...)
			s.run(second)
			s.rejoin(victim.id)
			s.must(patience, "a snapshot to be taken", func() bool { return victim.installing })
			for range step {
				s.step()
			}
			victim.crash()
			s.run(electionTimeout)
			victim.start()
			s.settle(patience)
		}
	}
}

// TestAllCrash: all members crash and restart many times, with snapshots.
func TestAllCrash(t *testing.T) {
	for _, memory := range []bool{false, true} {
		for s := range snapshots(t, 3, memory) {
			for range 8 {
				s.writeMany(s.elect(), 25, s.order...)
				s.run(s.between(span{0, second}))
				s.crashAndRestart(s.order...)
			}
			s.settle(patience)
		}
	}
}

// TestSnapshotInit: a cluster that starts from snapshots alone keeps working.
func TestSnapshotInit(t *testing.T) {
	for s := range snapshots(t, 3, true) {
		s.writeMany(s.elect(), 30, s.order...)
		for _, n := range s.alive() {
			s.must(5*second, "a checkpoint of everything", func() bool { return n.checkpoint >= 30 })
		}
		s.crashAndRestart(s.order...)
		s.agree(s.elect(), 8, s.order...)
		s.crashAndRestart(s.order...)
		s.agree(s.elect(), 8, s.order...)
		s.settle(patience)
	}
}

// TestLateChangeAfterSnapshot: a configuration change that is still being
// applied when a snapshot arrives must not change the configuration that the
// snapshot brought.
func TestLateChangeAfterSnapshot(t *testing.T) {
	for s := range snapshots(t, 3, false) {
		l := s.elect()
		victim := s.nodes[s.others(l.id)[0]]
		s.agree(l, 8, s.order...)
		s.must(electionTimeout, "rest", s.agreed)
		victim.slow = true // its apply loop hangs with the addition in its queue
		add := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{"http://x:1"}, KeepLearner: true}})
		s.must(electionTimeout, "the addition", func() bool {
			return add.outcome == succeeded && victim.core.rn.BasicStatus().GetCommit() == l.applier.index
		})
		s.isolate(victim.id)
		remove := s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: add.change.change.Member.ID}})
		s.must(electionTimeout, "the removal", func() bool { return remove.outcome == succeeded })
		s.writeMany(l, 40, s.others(victim.id)...)
		s.run(electionTimeout / 2)
		s.rejoin(victim.id)
		s.must(5*electionTimeout, "a snapshot while the addition waits", func() bool {
			return victim.installing && len(victim.applyQueue) > 0
		})
		victim.slow = false
		s.settle(patience)
		if s.known.reached[lateChange] == 0 {
			t.Error("no change came out of the apply loop after the snapshot")
		}
	}
}
