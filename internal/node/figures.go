package node

import (
	"context"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// counts are figures of this package since the start.
type counts struct {
	proposalsFailed atomic.Uint64
	readsFailed     atomic.Uint64
	hashesCompared  atomic.Uint64
	hashesDiverged  atomic.Uint64
}

// Figures are what metrics show of a node beside its status.
type Figures struct {
	Raft        raftnode.Stats
	Store       kvstore.Stats
	Work        kvstore.Work
	EngineStats engine.Stats
	// Peers are the other members.
	Peers []PeerFigures
	// ProposalsFailed and ReadsFailed count requests that were not carried out.
	ProposalsFailed, ReadsFailed uint64
	// HashesCompared counts the pairs of state hashes that this node compared
	// as leader, HashesDiverged the rounds in which some differed.
	HashesCompared, HashesDiverged uint64
	// DiskFree and DiskSize are those of the file system of the data directory;
	// 0 where they are not known.
	DiskFree, DiskSize uint64
}

// PeerFigures are what this node knows of another member.
type PeerFigures struct {
	ID        uint64
	Name      string
	Reachable bool
	// Behind is how many log entries the member lacks. Only the leader knows.
	Behind      uint64
	BehindKnown bool
}

// Figures returns the figures of a node that takes part in its cluster.
func (n *Node) Figures(ctx context.Context) (Figures, error) {
	r := n.raft.Load()
	if r == nil {
		return Figures{}, retryable(api.Starting, "this node looks for its place in the cluster")
	}
	f := Figures{
		Store:           n.store.Stats(),
		Work:            n.store.Work(),
		EngineStats:     n.store.EngineStats(),
		ProposalsFailed: n.counts.proposalsFailed.Load(),
		ReadsFailed:     n.counts.readsFailed.Load(),
		HashesCompared:  n.counts.hashesCompared.Load(),
		HashesDiverged:  n.counts.hashesDiverged.Load(),
	}
	var err error
	if f.Raft, err = r.Stats(ctx); err != nil {
		return f, err
	}
	if f.Peers, err = n.peerFigures(ctx, r); err != nil {
		return f, err
	}
	if usage, err := vfs.Default.GetDiskUsage(n.cfg.DataDir); err == nil {
		f.DiskFree, f.DiskSize = usage.AvailBytes, usage.TotalBytes
	}
	return f, nil
}

func (n *Node) peerFigures(ctx context.Context, r *raftnode.Replica) ([]PeerFigures, error) {
	progress, err := r.Progress(ctx)
	if err != nil {
		return nil, err
	}
	var out []PeerFigures
	for _, m := range r.Membership().Members {
		if m.ID == n.id {
			continue
		}
		p := progress[m.ID]
		out = append(out, PeerFigures{
			ID: m.ID, Name: m.Name, Reachable: !r.ActiveSince(m.ID).IsZero(), Behind: p.Behind, BehindKnown: p.Known,
		})
	}
	return out, nil
}
