package raftnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// disk is the durable log: etcd's WAL, and the small .snap files beside it.
// It belongs to the append loop.
//
// No error of it can be tried again: after a failed write the WAL's own state
// is lost, and after a failed fsync the kernel may have dropped the pages and
// report success the next time. So the first error sticks.
type disk struct {
	lg     *zap.Logger
	dir    string
	wal    *wal.WAL
	snaps  *snap.Snapshotter
	failed error

	hardState *raftpb.HardState // as last saved
	last      uint64            // index of the last entry saved
	marked    watermark
	markedAt  time.Time
}

var _ logDisk = (*disk)(nil)

// bootState is what a disk held when it was opened.
type bootState struct {
	metadata  []byte
	snapshot  *raftpb.Snapshot // the newest usable; nil: none
	hardState *raftpb.HardState
	entries   []*raftpb.Entry // after the snapshot
}

func walDir(dir string) string  { return filepath.Join(dir, "wal") }
func snapDir(dir string) string { return filepath.Join(dir, "snap") }

// diskExists reports whether the directory holds a log.
func diskExists(dir string) bool { return wal.Exist(walDir(dir)) }

// createDisk begins an empty log. wal.Create makes it under a temporary name
// and renames it, so that a crash leaves none or a whole one.
func createDisk(lg *zap.Logger, dir string, metadata []byte) (*disk, error) {
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make the snapshot directory: %w", err)
	}
	w, err := wal.Create(lg, walDir(dir), metadata)
	if err != nil {
		return nil, fmt.Errorf("create the log: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &disk{lg: lg, dir: dir, wal: w, snaps: snap.New(lg, snapDir(dir)), hardState: new(raftpb.HardState)}, nil
}

// openDisk opens a log after the boot guard has read it, repairs a torn tail,
// and checks the watermark. A *RefusedError means that entries which may have
// been acknowledged are lost.
func openDisk(lg *zap.Logger, dir string) (*disk, bootState, error) {
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, bootState{}, fmt.Errorf("make the snapshot directory: %w", err)
	}
	mark, err := readWatermark(dir)
	if err != nil {
		return nil, bootState{}, err
	}
	report, err := guardLog(walDir(dir))
	if err != nil {
		return nil, bootState{}, err
	}
	if report.torn() {
		lg.Warn("the last write to the log did not reach the disk whole; cutting it off", zap.String("file", report.tornFile), zap.Int64("offset", report.tornOffset))
		if err := cutTail(lg, dir, report); err != nil {
			return nil, bootState{}, err
		}
	}
	d := &disk{lg: lg, dir: dir, snaps: snap.New(lg, snapDir(dir)), hardState: new(raftpb.HardState)}
	state, err := d.read()
	if err != nil {
		return nil, bootState{}, err
	}
	segment := report.segments[len(report.segments)-1]
	if err := mark.check(dir, state.hardState, d.last, segment); err != nil {
		return nil, bootState{}, errors.Join(err, d.wal.Close())
	}
	if mark != nil {
		d.marked = *mark
	}
	return d, state, nil
}

// cutTail cuts a torn tail off at the end of the last whole record, and has
// etcd's own repair agree that the log is whole now.
func cutTail(lg *zap.Logger, dir string, report *guardReport) error {
	if err := os.Truncate(report.tornFile, report.tornOffset); err != nil {
		return fmt.Errorf("cut the torn tail of the log off: %w", err)
	}
	if !wal.Repair(lg, walDir(dir)) {
		return &RefusedError{File: report.tornFile, Offset: report.tornOffset, Reason: "the torn tail can not be repaired", Remedy: RemoveAndReAdd}
	}
	return nil
}

// read finds the newest snapshot that the WAL knows and reads what follows it.
func (d *disk) read() (bootState, error) {
	known, err := wal.ValidSnapshotEntries(d.lg, walDir(d.dir))
	if err != nil {
		return bootState{}, fmt.Errorf("find the snapshots of the log: %w", err)
	}
	s, err := d.snaps.LoadNewestAvailable(known)
	if err != nil && !errors.Is(err, snap.ErrNoSnapshot) {
		return bootState{}, fmt.Errorf("load the newest snapshot: %w", err)
	}
	from := &walpb.Snapshot{Index: new(s.GetMetadata().GetIndex()), Term: new(s.GetMetadata().GetTerm())}
	if s != nil {
		from.ConfState = s.GetMetadata().GetConfState()
	}
	if _, err := wal.Verify(d.lg, walDir(d.dir), from); err != nil {
		return bootState{}, &RefusedError{File: walDir(d.dir), Reason: fmt.Sprintf("the log does not continue its snapshot at %d: %v", from.GetIndex(), err), Remedy: RemoveAndReAdd}
	}
	if d.wal, err = wal.Open(d.lg, walDir(d.dir), from); err != nil {
		return bootState{}, fmt.Errorf("open the log: %w", err)
	}
	meta, hs, entries, err := d.wal.ReadAll()
	if err == nil {
		err = d.settle()
	}
	if err != nil {
		return bootState{}, errors.Join(fmt.Errorf("read the log: %w", err), d.wal.Close())
	}
	d.hardState = hs
	d.last = s.GetMetadata().GetIndex() + uint64(len(entries))
	return bootState{metadata: meta, snapshot: s, hardState: hs, entries: entries}, nil
}

// settle makes sure that what was read is on disk: entries that were only in
// the page cache when the process before died may have been sent to others.
func (d *disk) settle() error {
	if err := d.wal.Sync(); err != nil {
		return err
	}
	return errors.Join(syncDir(walDir(d.dir)), syncDir(snapDir(d.dir)), syncDir(d.dir))
}

func (d *disk) save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	if d.failed != nil {
		return d.failed
	}
	if err := d.wal.Save(hs, entries); err != nil {
		return d.fail(err)
	}
	if !raft.IsEmptyHardState(hs) {
		d.hardState = hs
	}
	if n := len(entries); n > 0 {
		d.last = entries[n-1].GetIndex()
	}
	return nil
}

func (d *disk) fail(err error) error {
	d.failed = err
	return err
}

// saveSnapshot writes the .snap file, then the WAL record that refers to it,
// then a hard state that has committed it: without that the WAL would not
// count the snapshot after a crash.
func (d *disk) saveSnapshot(s *raftpb.Snapshot) error {
	if d.failed != nil {
		return d.failed
	}
	meta := s.GetMetadata()
	if err := d.snaps.SaveSnap(s); err != nil {
		return d.fail(err)
	}
	if err := syncDir(snapDir(d.dir)); err != nil { // SaveSnap does not
		return d.fail(err)
	}
	rec := &walpb.Snapshot{Index: new(meta.GetIndex()), Term: new(meta.GetTerm()), ConfState: meta.GetConfState()}
	if err := d.wal.SaveSnapshot(rec); err != nil {
		return d.fail(err)
	}
	hs := &raftpb.HardState{
		Term:   new(max(d.hardState.GetTerm(), meta.GetTerm())),
		Vote:   new(d.hardState.GetVote()),
		Commit: new(max(d.hardState.GetCommit(), meta.GetIndex())),
	}
	if err := d.wal.Save(hs, nil); err != nil {
		return d.fail(err)
	}
	if err := d.wal.Sync(); err != nil {
		return d.fail(err)
	}
	d.hardState = hs
	d.last = max(d.last, meta.GetIndex())
	return nil
}

// mark writes the watermark, at most once a second.
func (d *disk) mark(now time.Time) error {
	if now.Sub(d.markedAt) < watermarkPace {
		return nil
	}
	d.markedAt = now
	return d.writeMark()
}

func (d *disk) writeMark() error {
	segment, err := d.lastSegment()
	if err != nil {
		return d.fail(err)
	}
	w := watermark{Term: d.hardState.GetTerm(), Vote: d.hardState.GetVote(), Index: d.last, Segment: segment}
	if w.Term == d.marked.Term && w.Vote == d.marked.Vote && w.Index == d.marked.Index && w.Segment == d.marked.Segment {
		return nil
	}
	if err := w.write(d.dir); err != nil {
		return d.fail(err)
	}
	d.marked = w
	return nil
}

func (d *disk) lastSegment() (string, error) {
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil || len(names) == 0 {
		return "", errors.Join(errors.New("the log has no segment"), err)
	}
	return names[len(names)-1], nil
}

func (d *disk) snapshotter() *snap.Snapshotter { return d.snaps }

// bodyPath is where the body of the snapshot at index is; etcd's snapshotter
// stores received ones under this name.
func (d *disk) bodyPath(index uint64) string {
	return filepath.Join(snapDir(d.dir), fmt.Sprintf("%016x.snap.db", index))
}

// purge removes what no restart needs: all but the newest keep snapshots,
// bodies older than the oldest kept one, and segments from before it.
func (d *disk) purge(keep int) error {
	if d.failed != nil {
		return d.failed
	}
	snaps, err := listSuffix(snapDir(d.dir), ".snap")
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	if len(snaps) < keep {
		return nil
	}
	oldest, err := snapshotIndex(snaps[len(snaps)-keep])
	if err != nil {
		return err
	}
	for _, name := range snaps[:len(snaps)-keep] {
		if err := os.Remove(filepath.Join(snapDir(d.dir), name)); err != nil {
			return fmt.Errorf("remove an old snapshot: %w", err)
		}
	}
	if err := d.purgeBodies(oldest); err != nil {
		return err
	}
	if err := d.wal.ReleaseLockTo(oldest); err != nil {
		return d.fail(err)
	}
	return d.purgeSegments(oldest)
}

func snapshotIndex(name string) (uint64, error) {
	var term, index uint64
	if _, err := fmt.Sscanf(name, "%016x-%016x.snap", &term, &index); err != nil {
		return 0, fmt.Errorf("%s is not the name of a snapshot: %w", name, err)
	}
	return index, nil
}

func (d *disk) purgeBodies(oldest uint64) error {
	bodies, err := listSuffix(snapDir(d.dir), ".snap.db")
	if err != nil {
		return fmt.Errorf("list snapshot bodies: %w", err)
	}
	for _, name := range bodies {
		var index uint64
		if _, err := fmt.Sscanf(name, "%016x.snap.db", &index); err != nil || index >= oldest {
			continue
		}
		if err := os.Remove(filepath.Join(snapDir(d.dir), name)); err != nil {
			return fmt.Errorf("remove an old snapshot body: %w", err)
		}
	}
	return nil
}

// purgeSegments removes the segments before the one in which the entry after
// oldest is, or would be.
func (d *disk) purgeSegments(oldest uint64) error {
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil {
		return fmt.Errorf("list log segments: %w", err)
	}
	for i := 0; i+1 < len(names); i++ {
		_, next, err := parseSegmentName(names[i+1])
		if err != nil || next > oldest {
			return err
		}
		if err := os.Remove(filepath.Join(walDir(d.dir), names[i])); err != nil {
			return fmt.Errorf("remove an old log segment: %w", err)
		}
	}
	return nil
}

// listSuffix lists the files with the suffix in name order, which is also
// their order in time: names are numbers of fixed width. For .snap files the
// term comes first, which grows with the index.
func listSuffix(dir, suffix string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if strings.HasSuffix(f.Name(), suffix) {
			names = append(names, f.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// sizeBytes returns the space that the log and the snapshots take.
func (d *disk) sizeBytes() (log, snapshots int64) {
	return dirBytes(walDir(d.dir)), dirBytes(snapDir(d.dir))
}

func dirBytes(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // files come and go meanwhile
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

// close leaves an exact watermark and releases the log.
func (d *disk) close() error {
	if d.failed != nil {
		return d.wal.Close()
	}
	err := d.wal.Sync()
	if err == nil {
		err = d.writeMark()
	}
	return errors.Join(err, d.wal.Close())
}
