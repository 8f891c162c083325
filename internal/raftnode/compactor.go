package raftnode

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/repeat"
)

const (
	// catchUpEntries bounds the entries kept in memory beside their bytes.
	catchUpEntries = 50_000
	// hardFactor bounds the memory that the log takes while the compactor waits for
	// the disk, in catch-up sizes, beside what is not applied.
	hardFactor = 4
)

// compactor is the goroutine that releases the log in memory, and that owns the
// files of the spool. It is a loop of its own because writing the spool may wait
// for the disk, and neither the log's readers nor its writer may wait for that.
type compactor struct {
	cfg   *Config
	log   *raftlog.Store
	looks repeat.Looks // stirred by what is applied
}

func (c *compactor) run(ctx context.Context) error {
	for c.looks.Wait(ctx, c.log.Full) {
		begin := time.Now()
		if err := c.log.Compact(); err != nil {
			c.cfg.Observer.Snapshot(SnapshotSpool, time.Since(begin), 0, err)
			c.cfg.Logger.Warn("log not kept for a member; it may need another snapshot", zap.Error(err))
		}
	}
	return c.log.Close()
}
