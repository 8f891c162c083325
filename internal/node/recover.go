package node

import (
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// Recovery is a recovery that PrepareRecovery has prepared, with what it found.
type Recovery struct {
	*raftnode.Recovery
	Revision uint64
	Keys     uint64

	dir *datadir.Dir
}

// PrepareRecovery locks the data directory of a stopped member and prepares to
// turn it into a cluster of one; see raftnode.Recovery. If an earlier recovery
// was interrupted after its point of no return, PrepareRecovery completes that
// one instead: r is nil, and finished names the directory with the old files.
func PrepareRecovery(lg *zap.Logger, path string) (r *Recovery, finished string, err error) {
	dir, finished, err := datadir.OpenForRecovery(path)
	if err != nil {
		return nil, "", err
	}
	if finished != "" {
		return nil, finished, dir.Close()
	}
	r = &Recovery{dir: dir}
	r.Recovery, err = raftnode.PrepareRecovery(lg, dir, func(work string) (raftnode.OfflineMachine, error) { return r.open(lg, work) })
	if err != nil {
		_ = dir.Close() // it only releases the lock
		return nil, "", err
	}
	return r, "", nil
}

// Close unlocks the directory.
func (r *Recovery) Close() error { return r.dir.Close() }

// offlineMachine is the store without a node around it. Closing it notes how far
// the store got.
type offlineMachine struct {
	machine
	r *Recovery
}

// open opens the copied store. A member with a memory engine has none on disk.
func (r *Recovery) open(lg *zap.Logger, work string) (raftnode.OfflineMachine, error) {
	path := datadir.StorePath(work)
	eng := engine.NewMemory()
	if _, err := os.Stat(path); err == nil {
		eng, err = engine.OpenPebble(path, engine.PebbleOptions{
			Comparer: kvstore.Comparer(), Logger: engineLogger{lg.Named("pebble").Sugar()},
		})
		if err != nil {
			return nil, fmt.Errorf("open copy of the store: %w", err)
		}
	}
	store, err := kvstore.Open(eng, kvstore.Options{})
	if err != nil {
		_ = eng.Close() // the error before says more
		return nil, fmt.Errorf("open copy of the store: %w", err)
	}
	return &offlineMachine{machine{store}, r}, nil
}

// Close implements raftnode.OfflineMachine.
func (m *offlineMachine) Close() error {
	m.r.Revision, m.r.Keys = m.Store.Revision(), m.Store.Stats().Keys
	return m.Store.Close()
}
