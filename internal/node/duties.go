package node

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

const (
	// dutyPace is how often a leader looks after the history: the grain of
	// its age.
	dutyPace = 10 * time.Second
	// comparePace is how often a leader compares the replicas.
	comparePace = 15 * time.Second
	// dutyTimeout bounds one proposal of a duty.
	dutyTimeout = 5 * time.Second
)

// leaderDuties gives the history its time and compacts it. Both commands carry
// this leader's term: if it is deposed before they commit, they do nothing.
func (n *Node) leaderDuties(ctx context.Context, r *raftnode.Replica) {
	var ticked uint64 // revision at the last tick
	for pause(ctx, dutyPace) == nil {
		pos := r.Position()
		if pos.Leader != n.id || n.leaving.Load() {
			continue
		}
		n.proposeFirstSettings(ctx, r)
		now := time.Now().UnixMilli()
		if rev := n.store.Revision(); rev != ticked {
			n.propose(ctx, r, &kvstore.Command{Op: kvstore.OpTick, Term: pos.Term, UnixMillis: now})
			ticked = rev
		}
		if target := n.store.CompactionTarget(now); target > n.store.CompactRevision() {
			n.propose(ctx, r, &kvstore.Command{Op: kvstore.OpCompact, Term: pos.Term, Revision: target})
		}
	}
}

// proposeFirstSettings gives a new cluster the settings that its leader was
// started with. They are replicated from then on; the flags of the others do
// not count.
func (n *Node) proposeFirstSettings(ctx context.Context, r *raftnode.Replica) {
	pos := r.Position()
	if pos.Leader != n.id || n.store.SettingsGiven() || n.cfg.Settings == (kvstore.Settings{}) {
		return
	}
	settings := n.cfg.Settings
	n.propose(ctx, r, &kvstore.Command{Op: kvstore.OpSettings, Term: pos.Term, Settings: &settings})
}

// propose makes a proposal of a duty; the next round makes up for a lost one.
func (n *Node) propose(ctx context.Context, r *raftnode.Replica, cmd *kvstore.Command) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	if _, err := r.Propose(ctx, kvstore.EncodeCommand(nil, cmd)); err != nil && !errors.Is(err, raftnode.ErrStopping) {
		n.lg.Warn("a leader's duty was not done", zap.Error(err))
	}
}

// compareHashes has the leader compare the replicas all the time. A
// divergence is a bug or a broken machine, and raises an alarm at once.
func (n *Node) compareHashes(ctx context.Context, r *raftnode.Replica) {
	for pause(ctx, comparePace) == nil {
		if r.Position().Leader != n.id || len(r.Membership().Members) < 2 {
			continue
		}
		status, err := n.ClusterStatus(ctx)
		n.counts.hashesCompared.Add(uint64(status.HashesCompared))
		if err == nil && status.HashesAgree != nil && !*status.HashesAgree {
			n.counts.hashesDiverged.Add(1)
			n.alarms.raise("diverged: replicas have different state hashes at the same index")
			n.lg.Error("replicas diverge: their state hashes differ at the same log index; compare GET /v1/cluster")
		}
	}
}
