package raftnode

import (
	"github.com/kvd-io/kvd/internal/kvstore"
)

// What follows sees situations of the contract, as sim_observe_test.go does those of
// replication.

// promised is how much of a time by the clock of a leader its client can rely on.
func (w *contractWorld) promised(d int64) int64 { return int64(float64(d) * (1 - w.s.opts.drift)) }

// observeCommands looks at the commands of an entry before they run.
func (t *truth) observeCommands(commands []kvstore.Command) {
	s := t.w.s
	keys := make(map[string]bool)
	for i := range commands {
		c := &commands[i]
		if k := c.Idempotency; k != nil {
			s.reachIf(onceInOneEntry, keys[k.Key])
			keys[k.Key] = true
		}
		ending := c.Leases
		if c.Op == kvstore.OpLeaseRevoke {
			ending = []uint64{c.Lease}
		}
		for _, id := range ending {
			if l, err := t.store.Lease(id); err == nil {
				s.reachIf(leaseEndsWithKeys, l.Keys > 0)
				s.reachIf(leaseEndsWithLocks, l.Tickets > 0)
				s.reachIf(expiryOfEarlierGrant, c.Op == kvstore.OpLeaseExpire && l.Seq > c.Sequence)
			}
		}
	}
}

// observeResult looks at a command that ran.
func (t *truth) observeResult(c *kvstore.Command, r *kvstore.Result) {
	s := t.w.s
	switch c.Op {
	case kvstore.OpTick:
		s.reachIf(tickOfDeposed, r.Outcome == kvstore.Ignored)
	case kvstore.OpLeaseExpire:
		s.reachIf(expiryOfDeposed, r.Outcome == kvstore.Ignored)
	case kvstore.OpLeaseGrant:
		s.reachIf(leaseTaken, r.Outcome == kvstore.LeaseExists)
	case kvstore.OpLock:
		s.reachIf(lockOfDeadLease, r.Outcome == kvstore.LeaseNotFound)
		s.reachIf(lockQueued, r.Outcome == kvstore.OK && !r.Lock.Held)
	}
}

// observeRestored looks at a store that a snapshot has filled.
func (m *storeMachine) observeRestored() {
	s, n := m.w.s, m.store.Counts()
	s.reachIf(installWithLeases, n.Leases > 0)
	s.reachIf(installWithLocks, n.Locks > 0)
	s.reachIf(installWithRights, m.store.Rights().Enabled())
}

// observeRepeat looks at the answer to a request with an idempotency key.
func (w *contractWorld) observeRepeat(n *simNode, key string, r *kvstore.Result) {
	w.s.reachIf(onceReplayed, r.Replayed)
	w.s.reachIf(onceAcrossInstall, r.Replayed && n.up && storeOf(n).restored >= w.truth.keyAt[key])
}
