package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
)

// receivedBodies checks the bodies that this member receives before raft learns
// about them.
//
// Once raft has accepted a snapshot, its .snap file and WAL record refer to the
// body, and there is no way back: the log before it is void, and a body that
// cannot be restored stops this process and each later one. A bit that was
// flipped on the wire, or on the sender's disk, must not get that far. So the
// whole body is read back and verified while nothing refers to it. A bad one is
// removed, and the sender, which is told why, sends another.
type receivedBodies struct {
	cfg  *Config
	disk *datadir.Log

	mu struct {
		sync.Mutex // held for one check at a time: each reads a whole body
		// accepted is the index of the newest body that passed. Raft may have
		// recorded it, so that file is never removed here.
		accepted uint64
	}
}

// Check returns why the body of a snapshot cannot be used. The body has then been
// removed: rafthttp would otherwise keep it, and drop the next one of the same
// index in its favor.
func (r *receivedBodies) Check(ctx context.Context, s *raftpb.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	index, begin := s.GetMetadata().GetIndex(), time.Now()
	path := r.disk.BodyPath(index)
	size, err := r.verify(ctx, path, s.GetMetadata())
	r.cfg.Observer.Snapshot(SnapshotReceive, time.Since(begin), size, err)
	if err == nil {
		r.mu.accepted = index
		return nil
	}
	if index != r.mu.accepted {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	r.cfg.Logger.Warn("received snapshot body refused", zap.Uint64("index", index), zap.Int64("bytes", size), zap.Error(err))
	return err
}

func (r *receivedBodies) verify(ctx context.Context, path string, meta *raftpb.SnapshotMetadata) (size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("open the received body: %w", err)
	}
	defer f.Close()
	counted := &countedReader{r: contextReader{ctx, f}}
	info, err := r.cfg.VerifyBody(counted)
	switch {
	case err != nil:
		return counted.n, fmt.Errorf("verify the received body: %w", err)
	case info.Index != meta.GetIndex() || info.Term != meta.GetTerm():
		return counted.n, fmt.Errorf("verify the received body: it is at index %d term %d, but its snapshot at index %d term %d",
			info.Index, info.Term, meta.GetIndex(), meta.GetTerm())
	}
	// The restored state is built beside the old one.
	if err := datadir.CheckRoom(filepath.Dir(path), info.Bytes); err != nil {
		return counted.n, fmt.Errorf("restore the received body: %w", err)
	}
	return counted.n, nil
}

// Room implements peers.Bodies.
func (r *receivedBodies) Room(bytes int64) error { return datadir.CheckRoom(r.cfg.Dir, bytes) }

// contextReader fails once the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
