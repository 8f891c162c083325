package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// TestFreshnessBoundsStaleness: in virtual time, a stale read is refused as
// soon as the state may be older than the limit, and on a node that knows nothing
// about it; without a limit it never is.
func TestFreshnessBoundsStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := freshness{raftnode.Freshness{Confirmed: time.Now()}}
		for _, c := range []struct {
			wait, limit time.Duration
			refused     bool
		}{
			{0, time.Second, false},
			{time.Second, time.Second, false},
			{time.Millisecond, time.Second, true},
			{0, 2 * time.Second, false},
			{time.Hour, 0, false},
		} {
			time.Sleep(c.wait) // of the bubble
			if err := f.within(c.limit); (code(err) == api.NoLeader) != c.refused {
				t.Errorf("limit %v after %v: %v", c.limit, time.Since(f.Confirmed), err)
			}
		}
	})
	never := freshness{}
	if code(never.within(time.Hour)) != api.NoLeader || never.within(0) != nil {
		t.Errorf("without any confirmation: %v, %v", never.within(time.Hour), never.within(0))
	}
}

// TestFreshnessDecidesReadiness: a node that follows a leader is ready while
// what it has to apply, and the age of its state, stay within the limits.
func TestFreshnessDecidesReadiness(t *testing.T) {
	now := time.Now()
	old := now.Add(-maxAge - time.Second)
	for _, c := range []struct {
		fresh            raftnode.Freshness
		leader, caughtUp bool
	}{
		{raftnode.Freshness{Leader: 1, Commit: maxLag, Applied: 0, Confirmed: now}, true, true},
		{raftnode.Freshness{Leader: 1, Commit: maxLag + 1, Applied: 0, Confirmed: now}, true, false},
		{raftnode.Freshness{Commit: 5, Applied: 5, Confirmed: now}, false, true},
		{raftnode.Freshness{Leader: 1, Commit: 5, Applied: 7, Confirmed: now}, true, true}, // applied since commit was read
		{raftnode.Freshness{Leader: 1, Commit: 5, Applied: 4, Confirmed: old}, true, false},
		{raftnode.Freshness{Leader: 1, Commit: 5, Applied: 5, Confirmed: old}, true, false}, // of a leader without a quorum
		{raftnode.Freshness{Leader: 1, Commit: 5, Applied: 5}, true, false},
	} {
		f := freshness{c.fresh}
		if got := f.checkLeader() == nil; got != c.leader {
			t.Errorf("%+v: leader %v", c.fresh, got)
		}
		if got := f.checkCaughtUp() == nil; got != c.caughtUp {
			t.Errorf("%+v: caught up %v", c.fresh, got)
		}
	}
}
