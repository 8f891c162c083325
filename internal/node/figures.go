package node

import (
	"context"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/lessor"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/scrub"
	"github.com/kvd-io/kvd/internal/watch"
)

// counts are the member's own figures since the process started.
type counts struct {
	proposalsFailed atomic.Uint64
	readsFailed     atomic.Uint64
	hashesCompared  atomic.Uint64
	hashesDiverged  atomic.Uint64
	leasesGranted   lessor.TTLs
	leasesEnded     atomic.Uint64
}

// Figures are what the metrics show about a node beside its status.
type Figures struct {
	Raft        raftnode.Stats
	Store       kvstore.Stats
	Work        kvstore.Work
	EngineStats engine.Stats
	Watches     watch.Stats
	Leases      kvstore.Counts
	// KeepAlives counts those that this node answered, and LeasesExpired the leases
	// that it ended as the leader.
	KeepAlives, LeasesExpired uint64
	// LeasesGranted and LeasesEnded count what this node has applied, no matter which node was asked.
	LeasesGranted lessor.TTLCounts
	LeasesEnded   uint64
	// RightsEdits is how often users and roles were changed, as etcd counts.
	RightsEdits uint64
	// Peers are the other members.
	Peers []PeerFigures
	// ProposalsFailed and ReadsFailed count requests that failed.
	ProposalsFailed, ReadsFailed uint64
	// HashesCompared counts the pairs of state hashes that this node compared
	// as leader; HashesDiverged counts the rounds in which some differed.
	HashesCompared, HashesDiverged uint64
	// Refusals counts what other members sent and this node refused, by reason.
	Refusals map[string]uint64
	// Scrub is what the background reading of the store has done.
	Scrub scrub.Figures
	// DamagedStores is how many damaged stores were moved aside and are still there.
	DamagedStores int
	// DiskFree and DiskSize are the bytes of the data directory's file system;
	// 0 if they are unknown.
	DiskFree, DiskSize uint64
}

// PeerFigures are what this node knows about another member.
type PeerFigures struct {
	ID        uint64
	Name      string
	Reachable bool
	// Behind is how many log entries the member lacks. Only the leader knows.
	Behind      uint64
	BehindKnown bool
}

// figures collects the figures. Those of the core come from the node loop, so a
// scrape of a node whose loop hangs runs into its deadline instead of showing old
// numbers.
func (m *member) figures(ctx context.Context) (Figures, error) {
	f := Figures{
		Store:           m.store.Stats(),
		Work:            m.store.Work(),
		EngineStats:     m.store.EngineStats(),
		Watches:         m.watches.Stats(),
		ProposalsFailed: m.counts.proposalsFailed.Load(),
		ReadsFailed:     m.counts.readsFailed.Load(),
		Leases:          m.store.Counts(),
		KeepAlives:      m.leases.batcher.Renewed(),
		LeasesExpired:   m.leases.lessor.Expired(),
		LeasesGranted:   m.counts.leasesGranted.Counts(),
		RightsEdits:     m.store.Rights().Edits(),
		LeasesEnded:     m.counts.leasesEnded.Load(),
		HashesCompared:  m.counts.hashesCompared.Load(),
		HashesDiverged:  m.counts.hashesDiverged.Load(),
		Refusals:        m.replica.Refusals(),
		Scrub:           m.health.Figures(),
		DamagedStores:   datadir.DamagedStores(m.cfg.DataDir),
	}
	var err error
	if f.Raft, err = m.replica.Stats(ctx); err != nil {
		return f, err
	}
	if f.Peers, err = m.peerFigures(ctx); err != nil {
		return f, err
	}
	if usage, err := vfs.Default.GetDiskUsage(m.cfg.DataDir); err == nil {
		f.DiskFree, f.DiskSize = usage.AvailBytes, usage.TotalBytes
	}
	return f, nil
}

func (m *member) peerFigures(ctx context.Context) ([]PeerFigures, error) {
	progress, err := m.replica.Progress(ctx)
	if err != nil {
		return nil, err
	}
	var out []PeerFigures
	for _, other := range m.replica.Membership().Members {
		if other.ID == m.id {
			continue
		}
		p := progress[other.ID]
		out = append(out, PeerFigures{
			ID: other.ID, Name: other.Name, Reachable: !m.replica.ActiveSince(other.ID).IsZero(), Behind: p.Behind, BehindKnown: p.Known,
		})
	}
	return out, nil
}
