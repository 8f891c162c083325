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
	// dutyPace is how often a leader looks after the history. It is also the
	// resolution of the history's age.
	dutyPace = 10 * time.Second
	// comparePace is how often a leader compares the replicas.
	comparePace = 15 * time.Second
	// dutyTimeout bounds one proposal of a duty.
	dutyTimeout = 5 * time.Second
)

// announceReady waits until this node has applied its own start entry, and with
// it everything committed before. A new cluster gets its settings before its
// first request.
func (m *member) announceReady(ctx context.Context) {
	select {
	case <-m.replica.Ready():
		m.proposeFirstSettings(ctx)
		close(m.life.ready)
	case <-ctx.Done():
	}
}

// leaderDuties records the passing of time in the history and compacts it.
// Both commands carry this leader's term: if another leader is elected before
// they commit, they do nothing (N6).
func (m *member) leaderDuties(ctx context.Context) {
	var ticked uint64 // revision at the last tick
	for pause(ctx, dutyPace) == nil {
		pos := m.replica.Position()
		if pos.Leader != m.id || m.life.leaving.Load() {
			continue
		}
		m.proposeFirstSettings(ctx)
		now := time.Now().UnixMilli()
		if rev := m.store.Revision(); rev != ticked {
			m.propose(ctx, &kvstore.Command{Op: kvstore.OpTick, Term: pos.Term, UnixMillis: now})
			ticked = rev
		}
		if target := m.store.CompactionTarget(now); target > m.store.CompactRevision() {
			m.propose(ctx, &kvstore.Command{Op: kvstore.OpCompact, Term: pos.Term, Revision: target})
		}
	}
}

// proposeFirstSettings gives a new cluster the settings that its leader was
// started with. From then on they are replicated, and flags no longer matter.
func (m *member) proposeFirstSettings(ctx context.Context) {
	pos := m.replica.Position()
	if pos.Leader != m.id || m.store.SettingsGiven() || m.cfg.Settings == (kvstore.Settings{}) {
		return
	}
	settings := m.cfg.Settings
	m.propose(ctx, &kvstore.Command{Op: kvstore.OpSettings, Term: pos.Term, Settings: &settings})
}

// propose makes a proposal of a duty. The next round makes up for a lost one.
func (m *member) propose(ctx context.Context, cmd *kvstore.Command) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	if _, err := m.replica.Propose(ctx, kvstore.EncodeCommand(nil, cmd)); err != nil && !errors.Is(err, raftnode.ErrStopping) {
		m.lg.Warn("a leader's duty failed; it is retried in the next round", zap.Error(err))
	}
}

// compareHashes has the leader compare the replicas continuously. A divergence
// is a bug or a broken machine, and raises an alarm at once.
func (m *member) compareHashes(ctx context.Context) {
	for pause(ctx, comparePace) == nil {
		if !m.leads() || len(m.replica.Membership().Members) < 2 || m.life.serves() != nil {
			continue
		}
		status := m.clusterStatus(ctx)
		m.counts.hashesCompared.Add(uint64(status.HashesCompared))
		if status.HashesAgree != nil && !*status.HashesAgree {
			m.counts.hashesDiverged.Add(1)
			m.alarms.raise("diverged: replicas have different state hashes at the same index")
			m.lg.Error("replicas diverge: their state hashes differ at the same log index; compare them with GET /v1/cluster")
		}
	}
}
