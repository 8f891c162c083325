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
// It is judged by what the node has applied, not by whom it hears: the time that
// counts (Confirmed) is one at which everything that was committed then is applied
// now. So a follower that applies slowly, or a leader that has lost its quorum,
// grows old although it hears from a leader.
type freshness struct{ raftnode.Freshness }

// freshness returns how current this node's state is now.
func (m *member) freshness() freshness { return freshness{m.replica.Freshness()} }

// Limits of a ready node. An apply loop under load is always some entries behind.
const (
	maxLag = 10_000 // committed entries that it may still have to apply
	// maxAge is how old its state may be. A linearizable read waits for about as
	// long as the state is old, and has timed out by then.
	maxAge = 10 * time.Second
)

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
	lag := f.Lag()
	switch age, known := f.age(); {
	case !known:
		return errors.New("no leader has confirmed yet that this node has everything")
	case lag > maxLag || age > maxAge && lag > 0:
		return fmt.Errorf("%d committed entries are not applied yet; the state is up to %v old", lag, age.Round(time.Millisecond))
	case age > maxAge:
		return fmt.Errorf("no quorum has confirmed for %v that this node has everything", age.Round(time.Millisecond))
	}
	return nil
}

// age returns how old the state may be; false if nothing is known about it.
func (f freshness) age() (time.Duration, bool) {
	if f.Confirmed.IsZero() {
		return 0, false
	}
	return time.Since(f.Confirmed), true
}

// describe returns the age for the status document; empty if it is not known.
func (f freshness) describe() string {
	age, known := f.age()
	if !known {
		return ""
	}
	return age.Round(time.Millisecond).String()
}

// within refuses a stale read on a node whose state may be older than
// maxStaleness; 0 accepts any staleness.
func (f freshness) within(maxStaleness time.Duration) error {
	if maxStaleness <= 0 {
		return nil
	}
	switch age, known := f.age(); {
	case !known:
		return retryable(api.NoLeader, "no leader has confirmed the state of this node since it started, so it cannot tell how stale its data is; ask another node")
	case age > maxStaleness:
		return retryable(api.NoLeader, "the data of this node may be %v old, which exceeds max_staleness; ask another node or raise max_staleness", age.Round(time.Millisecond))
	}
	return nil
}
