package node

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// names are the stages in their order.
func names(t *api.Timing) (out []string) {
	for _, s := range t.Stages {
		out = append(out, s.Name)
	}
	return out
}

// A timed write and read pass their stages on the leader and on a follower,
// and the figures count them.
func TestTimingAndFigures(t *testing.T) {
	for _, m := range startCluster(t, 3, nil) {
		var w, r api.Timing
		begin := time.Now()
		if _, err := m.DoTimed(testContext(t), &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k"), Value: []byte("v")}, &w); err != nil {
			t.Fatal(err)
		}
		if err := m.Barrier(testContext(t), api.ReadOptions{Timing: &r}); err != nil {
			t.Fatal(err)
		}
		all := time.Since(begin)
		if !slices.Equal(names(&w), []string{"queue", "propose", "commit", "apply"}) || !slices.Equal(names(&r), []string{"readindex", "wait"}) {
			t.Errorf("stages %v and %v", w, r)
		}
		var sum time.Duration
		for _, s := range append(w.Stages, r.Stages...) {
			sum += s.Took
		}
		if sum <= 0 || sum > all {
			t.Errorf("the stages add up to %v of %v: %v, %v", sum, all, w, r)
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

// A write that ran out of time says in which stage it was stuck, and counts as
// failed.
func TestTimingOfAStuckWrite(t *testing.T) {
	members := startCluster(t, 2, nil)
	if err := members[1].end(t); err != nil {
		t.Fatal(err)
	}
	m := members[0]
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	var w api.Timing
	if _, err := m.DoTimed(ctx, &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k")}, &w); err == nil {
		t.Fatal("a write without a quorum succeeded")
	}
	if n := len(w.Stages); n < 1 || n > 3 || w.Stages[n-1].Name == "apply" {
		t.Errorf("stages %v", w)
	}
	if n := m.counts.proposalsFailed.Load(); n != 1 {
		t.Errorf("%d proposals failed, want 1", n)
	}
}
