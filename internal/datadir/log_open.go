package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// examination is what a look at a data directory found. A start and the
// doctor make the same, so that they say the same.
type examination struct {
	log      *guardReport
	mark     *watermark
	identity Identity        // zero when the directory has none
	snapshot *snapshotRecord // the newest usable; nil: none
	refused  *RefusedError
}

// examine reads a directory that holds a log, and changes nothing. The error
// is about reading it, not about what is in it.
func examine(dir string) (*examination, error) {
	x := new(examination)
	if err := x.read(dir); err != nil {
		var refused *RefusedError
		if !errors.As(err, &refused) {
			return nil, err
		}
		x.refused = refused
	}
	return x, nil
}

func (x *examination) read(dir string) (err error) {
	if x.log, err = guardLog(walDir(dir)); err != nil {
		return err
	}
	if x.log.verdict == logCorrupt {
		return x.log.refusal()
	}
	if x.identity, err = readIdentity(dir); err != nil {
		return err
	}
	if x.mark, err = readWatermark(dir); err != nil {
		return err
	}
	if r := x.mark.check(dir, x.log); r != nil {
		return r
	}
	if m := x.mark; m != nil && m.Member != 0 && x.identity.MemberID != 0 && m.Member != x.identity.MemberID {
		return refuse(watermarkPath(dir), "the watermark is of member %d, the directory of member %d", m.Member, x.identity.MemberID)
	}
	return x.findSnapshot(dir)
}

// findSnapshot chooses the newest snapshot that the log has and whose file can
// be read, and checks that the log goes on from there.
func (x *examination) findSnapshot(dir string) error {
	valid := x.log.validSnapshots()
	files, err := snapshotFiles(dir)
	if err != nil {
		return err
	}
	for _, f := range slices.Backward(files) {
		if !slices.Contains(valid, f.at) {
			continue
		}
		if _, err := snap.Read(zap.NewNop(), filepath.Join(snapDir(dir), f.name)); err == nil {
			x.snapshot = &f.at
			break
		}
	}
	shape := &x.log.shape
	switch {
	case x.snapshot == nil && (!shape.known || shape.base > 0):
		return refuse(snapDir(dir), "the log begins after entry %d, and no snapshot that it has can be read", shape.base)
	case x.snapshot != nil && x.snapshot.index < shape.base:
		return refuse(snapDir(dir), "the log begins after entry %d, but the newest snapshot that can be read is at %d", shape.base, x.snapshot.index)
	}
	return nil
}

// openLog examines a log, repairs a torn tail, and opens it. A *RefusedError
// means that entries which may have been acknowledged are lost; then nothing
// has been changed.
func openLog(lg *zap.Logger, dir string) (*Log, LogState, error) {
	x, err := examine(dir)
	if err != nil {
		return nil, LogState{}, fmt.Errorf("open %s: %w", dir, err)
	}
	if x.refused != nil {
		return nil, LogState{}, x.refused
	}
	if err := prepareOpen(lg, dir, x.log); err != nil {
		return nil, LogState{}, err
	}
	d, err := newLog(lg, dir)
	if err != nil {
		return nil, LogState{}, err
	}
	state, err := d.read(x)
	if err != nil {
		if d.wal != nil {
			err = errors.Join(err, d.wal.Close())
		}
		return nil, LogState{}, err
	}
	return d, state, nil
}

// prepareOpen cuts a torn tail off and removes what a crash left half-made.
func prepareOpen(lg *zap.Logger, dir string, g *guardReport) error {
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return fmt.Errorf("make the snapshot directory: %w", err)
	}
	// etcd prepares segments under these names and would write over what a
	// crash left in them, without cutting it off.
	if err := removeFiles(walDir(dir), func(name string) bool { return strings.HasSuffix(name, ".tmp") }); err != nil {
		return fmt.Errorf("remove half-made segments: %w", err)
	}
	if !g.torn() {
		return nil
	}
	lg.Warn("the last write to the log did not reach the disk whole; cutting it off",
		zap.String("file", g.file), zap.Int64("offset", g.offset), zap.String("reason", g.reason))
	if !wal.Repair(lg, walDir(dir)) {
		return &RefusedError{File: g.file, Offset: g.offset, Reason: "the torn tail can not be repaired", Remedy: RemoveAndReAdd}
	}
	return nil
}

// read opens the WAL at the newest snapshot, reads what follows, and makes all
// of it durable.
func (d *Log) read(x *examination) (state LogState, err error) {
	if state.Snapshot, err = d.newestSnapshot(x); err != nil {
		return state, err
	}
	meta := state.Snapshot.GetMetadata()
	from := &walpb.Snapshot{Index: new(meta.GetIndex()), Term: new(meta.GetTerm()), ConfState: meta.GetConfState()}
	if state.metadata, state.HardState, state.Entries, err = d.readFrom(from); err != nil {
		return state, err
	}
	if state.Entries, err = x.trim(state.Entries, from.GetIndex(), d.dir); err != nil {
		return state, err
	}
	if x.log.torn() {
		if err := d.confirmRepair(x); err != nil {
			return state, err
		}
		state.Repaired = fmt.Sprintf("%s at byte %d: %s", x.log.file, x.log.offset, x.log.reason)
	}
	d.hardState, d.shape, d.snapshot = state.HardState, x.log.shape, from.GetIndex()
	if x.mark != nil {
		d.marked = *x.mark
	}
	if err := d.settle(from); err != nil {
		return state, fmt.Errorf("make the log durable: %w", err)
	}
	// A crash right after the log was made left none: once something is in the
	// log, a missing watermark is refused.
	if x.mark == nil {
		if err := d.writeMark(); err != nil {
			return state, err
		}
	}
	return state, d.tidy(x)
}

func (d *Log) newestSnapshot(x *examination) (*raftpb.Snapshot, error) {
	known, err := wal.ValidSnapshotEntries(d.lg, walDir(d.dir))
	if err != nil {
		return nil, fmt.Errorf("find the snapshots of the log: %w", err)
	}
	s, err := d.snaps.LoadNewestAvailable(known)
	if err != nil && !errors.Is(err, snap.ErrNoSnapshot) {
		return nil, fmt.Errorf("load the newest snapshot: %w", err)
	}
	var want snapshotRecord
	if x.snapshot != nil {
		want = *x.snapshot
	}
	if got := s.GetMetadata(); got.GetIndex() != want.index || got.GetTerm() != want.term {
		return nil, refuse(snapDir(d.dir), "the snapshot at %d was found, then that at %d: the directory is being changed", want.index, got.GetIndex())
	}
	return s, nil
}

// readFrom reads the log after a snapshot. Verify comes first because reading
// for writing swallows ErrSnapshotNotFound.
func (d *Log) readFrom(from *walpb.Snapshot) ([]byte, *raftpb.HardState, []*raftpb.Entry, error) {
	mismatch := func(err error) error {
		r := refuse(walDir(d.dir), "the log does not continue its snapshot at %d: %v", from.GetIndex(), err)
		r.Cause = err
		return r
	}
	if _, err := wal.Verify(d.lg, walDir(d.dir), from); err != nil {
		return nil, nil, nil, mismatch(err)
	}
	w, err := wal.Open(d.lg, walDir(d.dir), from)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, nil, nil, fmt.Errorf("the log in %s is in use by another process: %w", d.dir, err)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open the log in %s: %w", d.dir, err)
	}
	d.wal = w
	metadata, hs, entries, err := w.ReadAll()
	if err != nil {
		return nil, nil, nil, mismatch(err)
	}
	return metadata, hs, entries, nil
}

// trim cuts off entries that a received snapshot has replaced and that nothing
// was written over: the WAL still returns them, but another leader's entries
// are committed in their place. What is left must be what the guard saw.
func (x *examination) trim(entries []*raftpb.Entry, after uint64, dir string) ([]*raftpb.Entry, error) {
	shape := &x.log.shape
	want := max(shape.last, after) - after
	if uint64(len(entries)) < want {
		return nil, refuse(walDir(dir), "the log was read up to entry %d, but it has entry %d", after+uint64(len(entries)), shape.last)
	}
	return entries[:want:want], nil
}

// confirmRepair reads a repaired log once more.
func (d *Log) confirmRepair(x *examination) error {
	again, err := guardLog(walDir(d.dir))
	if err != nil {
		return err
	}
	if again.verdict != logClean || again.shape.last != x.log.shape.last || again.hardState != x.log.hardState {
		return &RefusedError{File: x.log.file, Offset: x.log.offset, Reason: "the torn tail can not be repaired", Remedy: RemoveAndReAdd}
	}
	return nil
}

// settle makes sure that what was read is on disk: entries that were only in
// the page cache when the process before died may have been sent to others.
//
// It writes the snapshot's record and the hard state again, since an opened
// WAL has forgotten both: it would name the next segment by an index below the
// snapshot, or leave the hard state out of its head.
func (d *Log) settle(from *walpb.Snapshot) error {
	if err := d.wal.Sync(); err != nil {
		return err
	}
	if err := errors.Join(syncDir(walDir(d.dir)), syncDir(snapDir(d.dir)), syncDir(d.dir)); err != nil {
		return err
	}
	if from.GetIndex() > 0 {
		if err := d.wal.SaveSnapshot(from); err != nil {
			return err
		}
	}
	if raft.IsEmptyHardState(d.hardState) {
		return nil
	}
	return d.wal.Save(d.hardState, nil)
}

// tidy removes the files of snapshots that never came into force, and bodies
// without a snapshot: a crash left them. Nothing refers to them.
func (d *Log) tidy(x *examination) error {
	files, err := snapshotFiles(d.dir)
	if err != nil {
		return err
	}
	valid := x.log.validSnapshots()
	orphan := make(map[string]bool)
	bodies := make(map[string]bool)
	for _, f := range files {
		if f.at.index > d.snapshot && !slices.Contains(valid, f.at) {
			orphan[f.name] = true
			continue
		}
		bodies[filepath.Base(d.BodyPath(f.at.index))] = true
	}
	err = removeFiles(snapDir(d.dir), func(name string) bool {
		body := strings.HasSuffix(name, ".snap.db") && !bodies[name]
		return orphan[name] || body || strings.HasPrefix(name, "tmp") || strings.HasSuffix(name, ".tmp")
	})
	if err != nil {
		return fmt.Errorf("remove what a crash left of a snapshot: %w", err)
	}
	return nil
}
