package raftnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// segmentBytes is the size of a WAL segment. The log is released by whole
// segments, and a restart reads all of it several times: etcd's 64 MiB would
// keep a quarter of a gigabyte where 64 MiB are needed.
const segmentBytes = 16 << 20

func init() { wal.SegmentSizeBytes = segmentBytes }

// disk is the durable log: etcd's WAL, the small .snap files beside it, and
// the watermark. It belongs to the append loop, except for what says
// otherwise.
//
// No error of it can be tried again: after a failed write the WAL's own state
// is lost, and after a failed fsync the kernel may have dropped the pages and
// report success the next time. So the first error sticks.
//
// Invariants, on which the boot guard relies:
//
//	D1  no commit index is written before the entries it covers, and none goes
//	    back; so an entry at or below a recorded commit is never written again
//	D2  a snapshot's record is followed at once by the hard state that commits
//	    it, both durable before saveSnapshot returns; a crash in between leaves
//	    a record that counts for nothing
//	D3  the watermark never says more than the log holds
//	D4  the two newest snapshots stay, and the log from the older one on
type disk struct {
	lg     *zap.Logger
	dir    string
	wal    *wal.WAL
	snaps  *snap.Snapshotter
	failed error
	closed bool

	hardState *raftpb.HardState // as last saved
	shape     logShape          // of the entries saved
	snapshot  uint64            // index of the newest snapshot

	member   uint64    // from the directory's identity
	marked   watermark // as last written
	markedAt time.Time
}

var _ logDisk = (*disk)(nil)

// bootState is what a disk held when it was opened.
type bootState struct {
	metadata  []byte
	snapshot  *raftpb.Snapshot // the newest usable; nil: none
	hardState *raftpb.HardState
	entries   []*raftpb.Entry // after the snapshot
	// repaired says which torn tail was cut off; empty when there was none.
	repaired string
}

func walDir(dir string) string  { return filepath.Join(dir, "wal") }
func snapDir(dir string) string { return filepath.Join(dir, "snap") }

// diskExists reports whether the directory holds a log.
func diskExists(dir string) bool { return wal.Exist(walDir(dir)) }

// createDisk begins an empty log. wal.Create makes it under a temporary name
// and renames it, so that a crash leaves none or a whole one. Where there was
// a log once it returns a *RefusedError: the log was lost.
func createDisk(lg *zap.Logger, dir string, metadata []byte) (*disk, error) {
	switch mark, err := readWatermark(dir); {
	case err != nil:
		return nil, err
	case mark != nil && !diskExists(dir):
		return nil, refuse(walDir(dir), "the log is missing: the watermark says that entry %d was on disk", mark.Index)
	}
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make the snapshot directory: %w", err)
	}
	d, err := newDisk(lg, dir)
	if err != nil {
		return nil, err
	}
	if d.wal, err = wal.Create(lg, walDir(dir), metadata); err != nil {
		return nil, fmt.Errorf("create the log in %s: %w", dir, err)
	}
	d.shape.known = true
	if err = syncDir(dir); err == nil {
		err = d.writeMark()
	}
	if err != nil {
		return nil, errors.Join(err, d.wal.Close())
	}
	return d, nil
}

func newDisk(lg *zap.Logger, dir string) (*disk, error) {
	id, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	return &disk{lg: lg, dir: dir, snaps: snap.New(lg, snapDir(dir)), hardState: new(raftpb.HardState), member: id.MemberID}, nil
}

// save makes the hard state and the entries durable; either may be missing. A
// save of nothing but a commit index is not synced.
func (d *disk) save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	if d.failed != nil {
		return d.failed
	}
	if err := d.keepsPromise(hs); err != nil {
		return err
	}
	if err := d.takeBack(entries); err != nil {
		return err
	}
	for _, e := range entries {
		if what := d.shape.put(logEntry{index: e.GetIndex(), term: e.GetTerm()}); what != "" {
			panic("raftnode: save: " + what)
		}
	}
	hs = d.bounded(hs)
	if err := d.wal.Save(hs, entries); err != nil {
		return d.fail(fmt.Errorf("write the log: %w", err))
	}
	if hs != nil {
		d.hardState = hs
	}
	return nil
}

// keepsPromise refuses a hard state from before the one on disk: who forgets
// its term or its vote votes a second time. Nothing is written then, and
// saving may go on.
func (d *disk) keepsPromise(hs *raftpb.HardState) error {
	old := d.hardState
	if raft.IsEmptyHardState(hs) || hs.GetTerm() > old.GetTerm() {
		return nil
	}
	if hs.GetTerm() < old.GetTerm() || old.GetVote() != 0 && hs.GetVote() != old.GetVote() {
		return fmt.Errorf("save: the hard state would go back from term %d, vote %d to term %d, vote %d",
			old.GetTerm(), old.GetVote(), hs.GetTerm(), hs.GetVote())
	}
	return nil
}

// bounded copies a hard state and keeps its commit index to D1. A Ready may
// commit entries that come with it but are written after a snapshot in it.
func (d *disk) bounded(hs *raftpb.HardState) *raftpb.HardState {
	if raft.IsEmptyHardState(hs) {
		return nil
	}
	if hs.GetTerm() == 0 {
		panic(fmt.Sprintf("raftnode: save: hard state of term 0 with vote %d, commit %d", hs.GetVote(), hs.GetCommit()))
	}
	commit := max(min(hs.GetCommit(), d.shape.last), d.hardState.GetCommit())
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(commit)}
}

// takeBack lowers the watermark before entries that it covers are replaced by
// those of a newer leader.
func (d *disk) takeBack(entries []*raftpb.Entry) error {
	if len(entries) == 0 || entries[0].GetIndex() > d.marked.Index {
		return nil
	}
	return d.lowerMark(entries[0].GetIndex() - 1)
}

func (d *disk) lowerMark(index uint64) error {
	w := d.marked
	w.Index = index
	if err := w.write(d.dir); err != nil {
		return d.fail(err)
	}
	d.marked = w
	return nil
}

func (d *disk) fail(err error) error {
	d.failed = err
	return err
}

// saveSnapshot writes the .snap file, then the WAL record that refers to it,
// then the hard state that commits it: without that the WAL would not count
// the snapshot after a crash. A snapshot that is not newer than the newest is
// ignored. The body must be durable already, where one is needed.
func (d *disk) saveSnapshot(s *raftpb.Snapshot) error {
	if d.failed != nil {
		return d.failed
	}
	meta := s.GetMetadata()
	if meta.GetIndex() <= d.snapshot {
		return nil
	}
	at := snapshotRecord{index: meta.GetIndex(), term: meta.GetTerm()}
	restart := at.index > d.hardState.GetCommit() && !d.shape.continues(at)
	if restart && at.index < d.marked.Index {
		if err := d.lowerMark(at.index); err != nil {
			return err
		}
	}
	if err := d.writeSnapshot(s); err != nil {
		return d.fail(fmt.Errorf("save the snapshot at %d: %w", at.index, err))
	}
	if restart {
		d.shape.restart(at)
	}
	older := d.snapshot
	d.snapshot = at.index
	return d.release(older)
}

func (d *disk) writeSnapshot(s *raftpb.Snapshot) error {
	meta := s.GetMetadata()
	if err := d.snaps.SaveSnap(s); err != nil {
		return err
	}
	if err := syncDir(snapDir(d.dir)); err != nil { // SaveSnap does not
		return err
	}
	rec := &walpb.Snapshot{Index: new(meta.GetIndex()), Term: new(meta.GetTerm()), ConfState: meta.GetConfState()}
	if err := d.wal.SaveSnapshot(rec); err != nil {
		return err
	}
	hs := d.hardState
	if hs.GetCommit() >= meta.GetIndex() {
		return nil
	}
	hs = committing(hs, meta)
	if err := d.wal.Save(hs, nil); err != nil {
		return err
	}
	if err := d.wal.Sync(); err != nil {
		return err
	}
	d.hardState = hs
	return nil
}

// committing returns the hard state of a member that knows the snapshot to be
// committed. Its term may be news; then it has not voted in it.
func committing(hs *raftpb.HardState, meta *raftpb.SnapshotMetadata) *raftpb.HardState {
	vote := hs.GetVote()
	if meta.GetTerm() > hs.GetTerm() {
		vote = 0
	}
	return &raftpb.HardState{Term: new(max(hs.GetTerm(), meta.GetTerm())), Vote: new(vote), Commit: new(meta.GetIndex())}
}

// mark writes the watermark, at most once a second.
func (d *disk) mark(now time.Time) error {
	if d.failed != nil {
		return d.failed
	}
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
	w := watermark{Member: d.member, Term: d.hardState.GetTerm(), Vote: d.hardState.GetVote(), Index: d.shape.last, Segment: segment}
	w.Format, w.CRC32C = d.marked.Format, d.marked.CRC32C
	if w == d.marked {
		return nil
	}
	if err := w.write(d.dir); err != nil {
		return d.fail(err)
	}
	d.marked = w
	return nil
}

// lastSegment is the name of the newest WAL segment. Any goroutine may call
// it.
func (d *disk) lastSegment() (string, error) {
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil || len(names) == 0 {
		return "", errors.Join(errors.New("the log has no segment"), err)
	}
	return names[len(names)-1], nil
}

func (d *disk) snapshotter() *snap.Snapshotter { return d.snaps }

// bodyPath is where the body of the snapshot at index is; etcd's snapshotter
// stores received ones under this name. Any goroutine may call it.
func (d *disk) bodyPath(index uint64) string {
	return filepath.Join(snapDir(d.dir), fmt.Sprintf("%016x.snap.db", index))
}

// close leaves an exact watermark and releases the log. After an error it
// only releases.
func (d *disk) close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	if d.failed != nil {
		return d.wal.Close()
	}
	err := d.wal.Sync()
	if err == nil {
		err = d.writeMark()
	}
	return errors.Join(err, d.wal.Close())
}

// raisedCommit returns the hard state with its commit index at least at the
// applied one: saves that only change the commit index are not fsynced, so
// after a crash it may lie behind what the store has, and raft refuses that.
func raisedCommit(hs *raftpb.HardState, applied uint64) *raftpb.HardState {
	if hs.GetCommit() >= applied {
		return hs
	}
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(applied)}
}
