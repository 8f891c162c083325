package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// freshness judges how current this node's state is. Whatever has an opinion
// about that asks here: readiness, max_staleness and the status document. If
// each had its own, a node could be ready for a load balancer and too stale
// for a read at the same moment.
//
// What a replica can tell today is which leader it follows, when it last
// heard from it, and how much of what it knows to be committed it has applied.
// A follower that learns of commits late therefore looks fresher than it is.
type freshness struct{ raftnode.Freshness }

// freshness returns how current this node's state is now.
func (m *member) freshness() freshness { return freshness{m.replica.Freshness()} }

// maxLag is the number of committed entries that a ready node may still have
// to apply. An apply loop under load is always some entries behind.
const maxLag = 10_000

// checkLeader refuses a node that follows no leader.
func (f freshness) checkLeader() error {
	if f.Leader == 0 {
		return errors.New("no leader known")
	}
	return nil
}

// checkCaughtUp refuses a node that lags too far behind to answer reads in
// reasonable time.
func (f freshness) checkCaughtUp() error {
	if lag := f.Lag(); lag > maxLag {
		return fmt.Errorf("%d committed entries are not applied yet", lag)
	}
	return nil
}

// within refuses a stale read on a node that has not heard from a leader for
// longer than maxStaleness; 0 accepts any staleness.
func (f freshness) within(maxStaleness time.Duration) error {
	if maxStaleness <= 0 {
		return nil
	}
	if f.Confirmed.IsZero() {
		return retryable(api.NoLeader, "this node has not heard from a leader since it started, so it cannot tell how stale its data is; ask another node")
	}
	if age := time.Since(f.Confirmed); age > maxStaleness {
		return retryable(api.NoLeader, "this node last heard from a leader %v ago, which exceeds max_staleness; ask another node or raise max_staleness", age.Round(time.Millisecond))
	}
	return nil
}
