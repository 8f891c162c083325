package node

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// stages records what a request reports.
type stages struct {
	names []string
	took  time.Duration
}

func (s *stages) note(name string, took time.Duration) {
	s.names = append(s.names, name)
	s.took += took
}

// A timed write and read pass their stages on the leader and on a follower,
// and the figures count both.
func TestTimingAndFigures(t *testing.T) {
	for _, m := range startCluster(t, 3, nil) {
		var w, r stages
		begin := time.Now()
		if _, err := m.Do(testContext(t), &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k"), Value: []byte("v")}, w.note); err != nil {
			t.Fatal(err)
		}
		if err := m.Barrier(testContext(t), r.note); err != nil {
			t.Fatal(err)
		}
		all := time.Since(begin)
		if !slices.Equal(w.names, []string{"queue", "propose", "commit", "apply"}) || !slices.Equal(r.names, []string{"readindex", "wait"}) {
			t.Errorf("stages %v and %v", w, r)
		}
		if sum := w.took + r.took; sum <= 0 || sum > all {
			t.Errorf("the stages %v and %v took %v of %v", w, r, sum, all)
		}
		f, err := m.Figures(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if f.Raft.ProposalsCommitted < 1 || f.Raft.ReadRounds < 1 || f.Raft.ReadRequests < 1 || f.Raft.LeaderChanges < 1 {
			t.Errorf("figures %+v", f.Raft)
		}
		if f.Work.CacheHits+f.Work.CacheMisses < 1 || f.DiskFree == 0 || f.DiskSize < f.DiskFree || len(f.Peers) != 2 {
			t.Errorf("figures %+v", f)
		}
		for _, p := range f.Peers {
			if p.BehindKnown != m.IsLeader() {
				t.Errorf("peer %+v, as seen by a leader: %v", p, m.IsLeader())
			}
		}
	}
}

// A write that ran out of time reports the stage in which it was stuck, and
// counts as failed.
func TestTimingOfAStuckWrite(t *testing.T) {
	members := startCluster(t, 2, nil)
	if err := members[1].end(t); err != nil {
		t.Fatal(err)
	}
	m := members[0]
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	var w stages
	if _, err := m.Do(ctx, &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k")}, w.note); err == nil {
		t.Fatal("a write without a quorum succeeded")
	}
	if n := len(w.names); n < 1 || n > 3 || w.names[n-1] == "apply" {
		t.Errorf("stages %v", w)
	}
	if n := m.member.Load().counts.proposalsFailed.Load(); n != 1 {
		t.Errorf("%d proposals failed, want 1", n)
	}
}

// Each member tells how far behind each is, as long as there is a leader.
func TestMembersTellWhoIsBehind(t *testing.T) {
	members := startCluster(t, 3, nil)
	for _, at := range members {
		eventually(t, "all lags are known, and none is left", func() bool {
			list, err := at.Members(testContext(t))
			return err == nil && len(list) == 3 && !slices.ContainsFunc(list, func(m api.Member) bool { return m.Behind == nil || *m.Behind != 0 })
		})
	}
}
