package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// openLog inspects a log, repairs a torn tail, and opens it. If it returns a
// *RefusedError, nothing has been changed (D5), unless a repair went wrong.
func openLog(lg *zap.Logger, dir string) (*Log, LogState, error) {
	x, err := inspect(dir)
	if err != nil {
		return nil, LogState{}, fmt.Errorf("open %s: %w", dir, err)
	}
	if x.refused != nil {
		return nil, LogState{}, x.refused
	}
	if err := prepareOpen(lg, dir, x.log); err != nil {
		return nil, LogState{}, err
	}
	l, err := newLog(lg, dir)
	if err != nil {
		return nil, LogState{}, err
	}
	state, err := l.read(x)
	if err != nil {
		if l.wal != nil {
			err = errors.Join(err, l.wal.Close())
		}
		return nil, LogState{}, err
	}
	return l, state, nil
}

// prepareOpen cuts off a torn tail and removes unfinished files.
func prepareOpen(lg *zap.Logger, dir string, g *guardReport) error {
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return fmt.Errorf("create snapshot directory: %w", err)
	}
	// etcd prepares segments under these names. If a crash left one behind, etcd
	// would write over its content without truncating it first.
	if err := removeFiles(walDir(dir), func(name string) bool { return strings.HasSuffix(name, ".tmp") }); err != nil {
		return fmt.Errorf("remove incomplete segments: %w", err)
	}
	if !g.torn() {
		return nil
	}
	if err := cutTail(g.file, g.offset); err != nil {
		return fmt.Errorf("cut off the torn tail of the log: %w", err)
	}
	lg.Warn("torn log tail cut off", zap.String("file", g.file), zap.Int64("offset", g.offset), zap.String("reason", g.reason))
	return nil
}

// cutTail ends a segment at the offset and keeps a copy of it as it was. etcd's
// own repair judges a tail by other rules than the guard: it cuts at the first
// damage of which it thinks that a crash left it, and refuses other damage.
func cutTail(path string, offset int64) error {
	whole, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := replaceFile(path+".broken", whole); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err = f.Truncate(offset); err == nil {
		err = fileutil.Fsync(f)
	}
	return errors.Join(err, f.Close())
}

// badRepair is the refusal of a log whose torn tail could not be cut off.
func (g *guardReport) badRepair() *RefusedError {
	return &RefusedError{File: g.file, Offset: g.offset, Reason: "the torn end of the log cannot be repaired", Remedy: RemoveAndReAdd}
}

// read opens the WAL at the newest snapshot, reads what follows, and makes all
// of it durable.
func (l *Log) read(x *inspection) (state LogState, err error) {
	if state.Snapshot, err = l.newestSnapshot(x); err != nil {
		return state, err
	}
	meta := state.Snapshot.GetMetadata()
	from := &walpb.Snapshot{Index: new(meta.GetIndex()), Term: new(meta.GetTerm()), ConfState: meta.GetConfState()}
	if state.metadata, state.HardState, state.Entries, err = l.readFrom(from); err != nil {
		return state, err
	}
	if state.Entries, err = x.trim(state.Entries, from.GetIndex(), l.dir); err != nil {
		return state, err
	}
	if x.log.torn() {
		if err := l.confirmRepair(x.log); err != nil {
			return state, err
		}
		state.Repaired = fmt.Sprintf("%s at byte %d: %s", x.log.file, x.log.offset, x.log.reason)
	}
	last := from.GetTerm()
	if n := len(state.Entries); n > 0 {
		last = state.Entries[n-1].GetTerm()
	}
	state.HardState = RaiseTerm(plain(state.HardState), last)
	l.hardState, l.save, l.shape, l.snapshot = state.HardState, x.log.save, x.log.shape, from.GetIndex()
	if x.watermark != nil {
		l.watermark = *x.watermark
	}
	if err := l.settle(from); err != nil {
		return state, fmt.Errorf("sync log: %w", err)
	}
	// A crash right after createLog left no watermark, which check allows only
	// for an empty log. So there must be one before the first entry.
	if x.watermark == nil {
		if err := l.writeWatermark(); err != nil {
			return state, err
		}
	}
	return state, l.tidy(x)
}

// plain copies a hard state without the number of its save.
func plain(hs *raftpb.HardState) *raftpb.HardState {
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(hs.GetCommit())}
}

// newestSnapshot loads the snapshot to begin with, in etcd's own way, and
// insists that it is the one that inspect found.
func (l *Log) newestSnapshot(x *inspection) (*raftpb.Snapshot, error) {
	known, err := wal.ValidSnapshotEntries(l.lg, walDir(l.dir))
	if err != nil {
		return nil, fmt.Errorf("find snapshots in the log: %w", err)
	}
	s, err := l.snaps.LoadNewestAvailable(known)
	if err != nil && !errors.Is(err, snap.ErrNoSnapshot) {
		return nil, fmt.Errorf("load newest snapshot: %w", err)
	}
	var want snapshotRecord
	if x.snapshot != nil {
		want = *x.snapshot
	}
	if got := s.GetMetadata(); got.GetIndex() != want.index || got.GetTerm() != want.term {
		return nil, refuse(snapDir(l.dir), "the newest snapshot was at entry %d and is now at entry %d: something else is changing the directory", want.index, got.GetIndex())
	}
	return s, nil
}

// readFrom reads the log after a snapshot. Verify comes first because ReadAll
// of a WAL opened for writing swallows ErrSnapshotNotFound.
func (l *Log) readFrom(from *walpb.Snapshot) ([]byte, *raftpb.HardState, []*raftpb.Entry, error) {
	if _, err := wal.Verify(l.lg, walDir(l.dir), from); err != nil {
		return nil, nil, nil, l.unread(from.GetIndex(), err)
	}
	w, err := wal.Open(l.lg, walDir(l.dir), from)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, nil, nil, fmt.Errorf("log in %s is in use by another process: %w", l.dir, err)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open log in %s: %w", l.dir, err)
	}
	l.wal = w
	metadata, hs, entries, err := w.ReadAll()
	if err != nil {
		return nil, nil, nil, l.unread(from.GetIndex(), err)
	}
	return metadata, hs, entries, nil
}

// unread is the error of a log that etcd could not read from a snapshot on. The guard has
// just read all of it, so what the system reports is a circumstance, and no damage: a full
// or failing disk, on which etcd cannot reserve the rest of the last segment, or too many
// open files.
func (l *Log) unread(after uint64, err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return fmt.Errorf("read the log in %s: %w", l.dir, err)
	}
	r := refuse(walDir(l.dir), "the log does not continue from its snapshot at entry %d: %v", after, err)
	r.Cause = err
	return r
}

// trim drops entries that a received snapshot has replaced and that nothing was
// written over. The WAL still returns them: it holds entries 1 to 50, receives
// a snapshot at 45 of a later term, and returns 46 to 50 after it. The leader
// has committed others in their place. The rest must be what the guard saw.
func (x *inspection) trim(entries []*raftpb.Entry, after uint64, dir string) ([]*raftpb.Entry, error) {
	shape := &x.log.shape
	want := max(shape.last, after) - after
	if uint64(len(entries)) < want {
		return nil, refuse(walDir(dir), "reading stopped at entry %d, but the log contains entry %d", after+uint64(len(entries)), shape.last)
	}
	return entries[:want:want], nil
}

// confirmRepair reads a repaired log once more: what is left is clean, and is
// what the guard saw before the damage.
func (l *Log) confirmRepair(g *guardReport) error {
	again, err := guardLog(walDir(l.dir))
	if err != nil {
		return err
	}
	if again.verdict != logClean || again.shape.last != g.shape.last || again.hardState != g.hardState {
		return g.badRepair()
	}
	return nil
}

// settle makes sure that everything read is on disk. Opening a WAL does not. An
// entry that was only in the page cache when the previous process died can be
// read; raft then acknowledges it without writing it again, and a power cut
// takes it.
//
// It writes the snapshot's record and the hard state again, because an opened
// WAL has forgotten both. It would name the next segment by an index below the
// snapshot, or leave the hard state out of its head. Raft starts with this hard
// state, so a raised term (RaiseTerm) must be durable, too.
func (l *Log) settle(from *walpb.Snapshot) error {
	if err := l.wal.Sync(); err != nil {
		return err
	}
	if err := errors.Join(syncDir(walDir(l.dir)), syncDir(snapDir(l.dir)), syncDir(l.dir)); err != nil {
		return err
	}
	if from.GetIndex() > 0 {
		if err := l.wal.SaveSnapshot(from); err != nil {
			return err
		}
	}
	if raft.IsEmptyHardState(l.hardState) {
		return nil
	}
	if err := l.write(l.hardState, nil); err != nil {
		return err
	}
	return l.wal.Sync() // also ends what a torn save left, before the next one begins (D8)
}

// tidy removes the remains of unfinished snapshots: the .snap file of one that
// never took effect, bodies without a snapshot, and temporary files. Nothing
// refers to them.
func (l *Log) tidy(x *inspection) error {
	files, err := snapshotFiles(l.dir)
	if err != nil {
		return err
	}
	valid := x.log.validSnapshots()
	orphan := make(map[string]bool)
	bodies := make(map[string]bool)
	for _, f := range files {
		if f.at.index > l.snapshot && !slices.Contains(valid, f.at) {
			orphan[f.name] = true
			continue
		}
		bodies[filepath.Base(l.BodyPath(f.at.index))] = true
	}
	err = removeFiles(snapDir(l.dir), func(name string) bool {
		body := strings.HasSuffix(name, ".snap.db") && !bodies[name]
		return orphan[name] || body || strings.HasPrefix(name, "tmp") || strings.HasSuffix(name, ".tmp")
	})
	if err != nil {
		return fmt.Errorf("remove the remains of unfinished snapshots: %w", err)
	}
	return nil
}
