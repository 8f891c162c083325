package raftnode

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/datadir"
)

// A checkpoint says that the state up to its index survives a crash without the
// log, so that the log before it may be released (S1). It is a .snap file and a
// WAL record. An engine that keeps the state on disk needs no more than that:
// its durable part is the body. For an engine in memory a body is written too.

// checkpointState is when the last checkpoint was made. It belongs to the
// snapshotter's goroutine.
type checkpointState struct {
	index     uint64    // of the last checkpoint
	bytes     int64     // snapshotter.appended at that time
	at        time.Time // when it was made
	flushed   uint64    // applied index when a flush was last requested
	bodyBytes int64     // size of the last checkpoint's body
}

// keptSnapshots is the number of checkpoints that stay on disk. If the newest
// turns out to be unreadable, the log still reaches back to the one before.
const keptSnapshots = 2

// checkpointIfDue makes a checkpoint by bytes of log and by time, so that the log
// stays short and a restart has little to replay.
func (s *snapshotter) checkpointIfDue(ctx context.Context) error {
	applied := s.applied.Load()
	bytes := s.appended.Load() - s.last.bytes
	if applied <= s.last.index || bytes < s.cfg.CheckpointBytes && time.Since(s.last.at) < s.cfg.CheckpointInterval {
		return nil
	}
	view, err := s.cfg.StateMachine.Durable()
	if err != nil {
		return fmt.Errorf("read the durable state: %w", err)
	}
	if view == nil {
		// If a body is at most as large as the log that it releases, it at most
		// doubles what is written.
		if bytes < max(s.cfg.CheckpointBytes, s.last.bodyBytes) {
			return nil
		}
		return s.checkpointWithBody(ctx)
	}
	defer view.Close()
	if index, _ := view.Position(); index <= s.last.index {
		if s.last.flushed <= s.last.index {
			s.last.flushed = applied
			return s.cfg.StateMachine.Flush() // a later turn records the result
		}
		return nil
	}
	return s.checkpoint(ctx, view)
}

// checkpointWithBody makes the state durable itself, for an engine that keeps
// nothing on disk.
func (s *snapshotter) checkpointWithBody(ctx context.Context) error {
	view, err := s.cfg.StateMachine.View()
	if err != nil {
		return err
	}
	defer view.Close()
	index, _ := view.Position()
	if s.last.bodyBytes, err = datadir.WriteBody(s.disk.BodyPath(index), view); err != nil {
		return err
	}
	return s.checkpoint(ctx, view)
}

// checkpoint records the view, whose state is durable.
func (s *snapshotter) checkpoint(ctx context.Context, view View) error {
	snapshot, err := describe(view)
	if err != nil {
		return err
	}
	bytes, begin := s.appended.Load(), time.Now()
	err = s.record(ctx, snapshot)
	if ctx.Err() != nil {
		return nil
	}
	s.cfg.Observer.Snapshot(SnapshotCheckpoint, time.Since(begin), s.last.bodyBytes, err)
	if err != nil {
		return fmt.Errorf("record a checkpoint: %w", err)
	}
	s.last.index, s.last.bytes, s.last.at = snapshot.GetMetadata().GetIndex(), bytes, time.Now()
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

// snapshotData is the Data of a raft snapshot: the membership at its index. A
// member that receives the snapshot knows from it who its peers are.
type snapshotData struct {
	Version   int      `json:"version"`
	ClusterID uint64   `json:"cluster_id"`
	Members   []Member `json:"members"`
	Removed   []uint64 `json:"removed,omitempty"`
}

const snapshotDataVersion = 1

// describe returns raft's small description of a view.
func describe(v View) (*raftpb.Snapshot, error) {
	records, err := v.Records()
	if err != nil {
		return nil, fmt.Errorf("read the membership: %w", err)
	}
	r, err := loadRoster(records)
	if err != nil {
		return nil, err
	}
	index, term := v.Position()
	return newSnapshot(index, term, r.membership()), nil
}

func newSnapshot(index, term uint64, m *Membership) *raftpb.Snapshot {
	data := snapshotData{Version: snapshotDataVersion, ClusterID: m.ClusterID, Members: m.Members}
	data.Removed = slices.Sorted(maps.Keys(m.Removed)) // the same bytes on every member
	b, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("raftnode: encode membership: %v", err)) // plain data always encodes
	}
	return &raftpb.Snapshot{
		Data:     b,
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: m.confState()},
	}
}

func decodeSnapshotData(b []byte) (snapshotData, error) {
	var d snapshotData
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("decode snapshot data: %w", err)
	}
	if d.Version != snapshotDataVersion {
		return d, fmt.Errorf("snapshot data has version %d, but this binary supports version %d: upgrade kvd", d.Version, snapshotDataVersion)
	}
	return d, nil
}
