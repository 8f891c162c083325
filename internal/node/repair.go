package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/scrub"
)

// A damaged store is repaired without an operator as far as that is safe: the node transfers
// leadership and ends with ErrRebuild, and its process starts another node, which fills a new
// store from the log or from another member, as with --rebuild-store. The log, and with it
// everything that the member has acknowledged, is not touched.
//
// If a request or a compaction reads a damaged block, the node has to stop at once. If the
// scrub finds it, no request has needed it yet, and the store continues to serve until the
// cluster can do without this member for a while.

// rebuildDrain bounds the transfer of leadership before the node ends.
const rebuildDrain = 5 * time.Second

// rebuildObstacle returns what prevents a rebuild now.
func (m *member) rebuildObstacle() scrub.Obstacle {
	membership := m.replica.Membership()
	self, ok := membership.Member(m.id)
	o := scrub.Others{Votes: ok && !self.Learner}
	for _, id := range membership.Voters() {
		o.Voters++
		if id == m.id {
			continue
		}
		o.Others++
		if !m.replica.ActiveSince(id).IsZero() {
			o.Reached++
		}
	}
	return scrub.Judge(o, func() error { return datadir.CanRebuild(m.cfg.DataDir, m.store.Stats().EngineBytes) })
}

// scrubStore reads the store in the background. If it finds damage, it ends the node as soon
// as the store can be rebuilt.
func scrubStore(ctx context.Context, n *Node, m *member) {
	if n.files == nil || n.cfg.ScrubInterval <= 0 {
		return
	}
	s := scrub.New(n.files, filepath.Join(n.cfg.DataDir, "scrub"), n.cfg.ScrubInterval)
	found := func(err error) { n.lg.Error("damaged block in the store", zap.Error(err)) }
	if damage := m.health.Watch(ctx, s, found, m.rebuildObstacle); damage != nil {
		drain, cancel := context.WithTimeout(ctx, rebuildDrain)
		defer cancel()
		n.Drain(drain)
		n.engineFailed(damage)
	}
}

// planRebuild replaces the error about a damaged store with ErrRebuild if the next start may
// rebuild it. When it is called, only the lock of the directory is still held.
func planRebuild(n *Node, dir *datadir.Dir, err error) error {
	var refused *datadir.RefusedError
	m := n.member.Load()
	if m == nil || !m.health.MayRebuild() || dir.Rebuilding() ||
		!errors.As(err, &refused) || refused.Remedy != datadir.RebuildStore || errors.Is(err, datadir.ErrStoreBehind) {
		return err
	}
	if perr := dir.PlanRebuild(); perr != nil {
		return errors.Join(err, perr)
	}
	// Text only: wrapping a RefusedError would make the process exit with code 3.
	return fmt.Errorf("%w: %s", ErrRebuild, err.Error())
}
