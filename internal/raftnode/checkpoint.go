package raftnode

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

// A checkpoint says that the state up to its index survives a crash without the
// log, so that the log before it may be released (S1). It is a .snap file and a
// WAL record. An engine that keeps the state on disk needs no more than that:
// its durable part is the body. For an engine in memory a body is written too.

// checkpointer is the goroutine that makes checkpoints, off the path of writes. It
// goes on beside the snapshotter's work: a body that is being built or sent must
// not make the log on disk grow.
type checkpointer struct {
	cfg  *Config
	disk *datadir.Log
	// record has the append loop make a checkpoint durable, and waits for it.
	record    func(ctx context.Context, s *raftpb.Snapshot) error
	snapshots *snapshotter // knows how far the log has been applied
	appended  atomic.Int64 // bytes of log written since the start; added to by the append loop
	looks     repeat.Looks // stirred by what is applied

	// Owned by run.
	due       *time.Timer     // stirs when a checkpoint is due by time
	index     uint64          // of the last checkpoint
	bytes     int64           // appended at that time
	at        time.Time       // when it was made
	flushed   uint64          // applied index when a flush was last requested
	bodyBytes int64           // size of the last checkpoint's body
	bodies    repeat.Attempts // of writing one
}

// keptSnapshots is the number of checkpoints that stay on disk. If the newest
// turns out to be unreadable, the log still reaches back to the one before.
const keptSnapshots = 2

func (c *checkpointer) run(ctx context.Context) error {
	c.due = time.AfterFunc(c.cfg.CheckpointInterval, c.looks.Stir)
	defer c.due.Stop()
	for c.looks.Wait(ctx, nil) {
		if err := c.checkpointIfDue(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// checkpointIfDue makes a checkpoint by bytes of log and by time, so that the log
// stays short and a restart has little to replay.
func (c *checkpointer) checkpointIfDue(ctx context.Context) error {
	applied := c.snapshots.applied.Load()
	bytes := c.appended.Load() - c.bytes
	if applied <= c.index || bytes < c.cfg.CheckpointBytes && time.Since(c.at) < c.cfg.CheckpointInterval {
		return nil
	}
	view, err := c.cfg.StateMachine.Durable()
	if err != nil {
		return fmt.Errorf("read the durable state: %w", err)
	}
	if view == nil {
		// If a body is at most as large as the log that it releases, it at most
		// doubles what is written.
		if bytes < max(c.cfg.CheckpointBytes, c.bodyBytes) {
			return nil
		}
		return c.checkpointWithBody(ctx)
	}
	defer view.Close()
	if index, _ := view.Position(); index <= c.index {
		c.looks.Stir() // until there is a result of the flush to record
		if c.flushed <= c.index {
			c.flushed = applied
			return c.cfg.StateMachine.Flush()
		}
		return nil
	}
	return c.checkpoint(ctx, view)
}

// checkpointWithBody makes the state durable itself, for an engine that keeps
// nothing on disk. A body that cannot be written is tried again later: until then
// the log stays, which has everything.
func (c *checkpointer) checkpointWithBody(ctx context.Context) error {
	now := c.snapshots.now()
	if now < c.bodies.Until {
		return nil
	}
	view, err := c.cfg.StateMachine.View()
	if err != nil {
		return err
	}
	defer view.Close()
	index, _ := view.Position()
	size, err := datadir.WriteBody(c.disk.BodyPath(index), contextBody{ctx, view})
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		pause := c.bodies.Fail(now)
		c.due.Reset(pause)
		c.cfg.Observer.Snapshot(SnapshotCheckpoint, c.snapshots.now()-now, 0, err)
		c.cfg.Logger.Warn("checkpoint not written; the log is kept until it can be", zap.Error(err), zap.Duration("pause", pause))
		return nil
	}
	c.bodies, c.bodyBytes = repeat.Attempts{}, size
	return c.checkpoint(ctx, view)
}

// checkpoint records the view, whose state is durable.
func (c *checkpointer) checkpoint(ctx context.Context, view View) error {
	snapshot, err := describe(view)
	if err != nil {
		return err
	}
	bytes, begin := c.appended.Load(), time.Now()
	err = c.record(ctx, snapshot)
	if ctx.Err() != nil {
		return nil
	}
	c.cfg.Observer.Snapshot(SnapshotCheckpoint, time.Since(begin), c.bodyBytes, err)
	if err != nil {
		return fmt.Errorf("record a checkpoint: %w", err)
	}
	c.index, c.bytes, c.at = snapshot.GetMetadata().GetIndex(), bytes, time.Now()
	c.due.Reset(c.cfg.CheckpointInterval)
	return nil
}

// record has the append loop make a checkpoint durable.
func (l *appendLoop) record(ctx context.Context, s *raftpb.Snapshot) error {
	job := appendJob{checkpoint: s, done: make(chan error, 1)}
	l.work.put(job)
	select {
	case err := <-job.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// describe returns raft's small description of a view.
func describe(v View) (*raftpb.Snapshot, error) {
	records, err := v.Records()
	if err != nil {
		return nil, fmt.Errorf("read the membership: %w", err)
	}
	r, err := roster.Load(records)
	if err != nil {
		return nil, err
	}
	index, term := v.Position()
	return roster.NewSnapshot(index, term, r.Membership()), nil
}
