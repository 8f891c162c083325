package node

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// Examine judges a data directory as a start would, with the store, and changes
// nothing. While another process has the directory, the store is not judged.
func Examine(path string) (datadir.Report, error) {
	r, err := datadir.Examine(path)
	if err != nil {
		return r, err
	}
	r.JudgeMember()
	if r.Refused != nil || r.HeldBy != "" || len(r.Segments) == 0 {
		return r, nil
	}
	index, cluster, err := storeOrigin(path, r.Identity)
	if err == nil {
		last := max(r.LastEntry, r.Snapshot)
		err = datadir.JudgeStore(path, raftnode.InitialIndex, index, r.Snapshot, last)
		if err == nil && index < r.Snapshot && r.Snapshot != raftnode.InitialIndex {
			err = datadir.JudgeBody(path, r.Snapshot, func(b io.Reader) error { _, err := verifyBody(b); return err })
		}
	}
	if err == nil && cluster != 0 && cluster != r.Identity.ClusterID {
		err = datadir.RefuseForeignState(path, cluster, r.Identity.ClusterID)
	}
	if errors.As(err, &r.Refused) {
		err = nil
	}
	return r, err
}

// storeOrigin returns the last entry that the store on disk has applied, and the cluster
// that it is of; zeros if there is none.
func storeOrigin(path string, id *datadir.Identity) (index, cluster uint64, err error) {
	if id.Engine == "memory" {
		return 0, 0, nil
	}
	if _, err := os.Stat(datadir.StorePath(path)); errors.Is(err, iofs.ErrNotExist) {
		return 0, 0, nil // a start begins an empty one
	}
	eng, err := engine.OpenPebble(datadir.StorePath(path), engine.PebbleOptions{Comparer: kvstore.Comparer(), ReadOnly: true})
	if errors.Is(err, iofs.ErrNotExist) && !engine.IsDamage(err) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, storeError(path, err)
	}
	store, err := kvstore.Open(eng, kvstore.Options{})
	if err != nil {
		return 0, 0, errors.Join(storeError(path, err), eng.Close())
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	cluster, err = clusterOf(store)
	if err != nil {
		return 0, 0, storeError(path, err)
	}
	return store.Position().Index, cluster, nil
}

// clusterOf returns the cluster that a store is of, 0 if it is empty.
func clusterOf(store *kvstore.Store) (uint64, error) {
	v, err := store.View()
	if err != nil {
		return 0, err
	}
	records, err := v.Records()
	if err = errors.Join(err, v.Close()); err != nil {
		return 0, err
	}
	r, err := roster.Load(records)
	if err != nil {
		return 0, err
	}
	return r.Membership().ClusterID, nil
}

// storeError is why the store in a data directory cannot be opened: a refusal if
// its files are damaged.
func storeError(dir string, err error) error {
	if engine.IsDamage(err) {
		return datadir.RefuseStore(dir, "the store is damaged", err)
	}
	return fmt.Errorf("open the store in %s: %w", dir, err)
}

// verdict adds to the error of a run that the store is damaged: which of the parts
// that read it fails first is chance.
func (n *Node) verdict(err error) error {
	var refused *datadir.RefusedError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	if r := n.damaged.Load(); r != nil {
		return errors.Join(r, err)
	}
	if engine.IsDamage(err) {
		return datadir.RefuseStore(n.cfg.DataDir, "the store is damaged", err)
	}
	return err
}

// checkEngine refuses another engine than the directory was written with. It would
// not find the state, and call that damage.
func checkEngine(cfg *Config, dir *datadir.Dir) error {
	id, _ := dir.Identity()
	if id.Engine == "" || id.Engine == cfg.Engine {
		return nil
	}
	return fmt.Errorf("%w: %s was written with --engine %s, but --engine is %s; start with --engine %s, or use another --data-dir",
		ErrConfig, absolute(cfg.DataDir), id.Engine, cfg.Engine, id.Engine)
}

// prepareRebuild makes way for a new store, if one is wanted or was begun.
func prepareRebuild(n *Node, dir *datadir.Dir) error {
	if !dir.HasLog() || !n.cfg.RebuildStore && !dir.Rebuilding() && !dir.RebuildPlanned() {
		return nil
	}
	aside, err := dir.BeginRebuild()
	if err != nil {
		return err
	}
	n.lg.Warn("rebuilding the store", zap.String("data_dir", n.cfg.DataDir), zap.String("moved_aside", aside))
	return nil
}

func endRebuild(n *Node, dir *datadir.Dir) error {
	if !dir.Rebuilding() {
		return nil
	}
	n.lg.Info("store rebuilt; remove --rebuild-store, and delete the old store once you no longer need it",
		zap.Uint64("index", n.store.Position().Index))
	return dir.EndRebuild()
}
