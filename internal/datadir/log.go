package datadir

import (
	"encoding/json"
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

// Log is the durable log: etcd's WAL, the small .snap files beside it, and
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
//	    it, both durable before SaveSnapshot returns; a crash in between leaves
//	    a record that counts for nothing
//	D3  the watermark never says more than the log holds
//	D4  the two newest snapshots stay, and the log from the older one on
type Log struct {
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

// LogState is what a log held when it was opened.
type LogState struct {
	metadata  []byte
	Snapshot  *raftpb.Snapshot // the newest usable; nil: none
	HardState *raftpb.HardState
	Entries   []*raftpb.Entry // after the snapshot
	// Repaired says which torn tail was cut off; empty when there was none.
	Repaired string
}

// Owner is whom a log belongs to.
type Owner struct {
	MemberID  uint64
	ClusterID uint64
}

// metadata is what the head of every WAL segment says about its owner.
type metadata struct {
	Version   int    `json:"version"`
	MemberID  uint64 `json:"member_id"`
	ClusterID uint64 `json:"cluster_id"`
}

const metadataVersion = 1

// OpenLog opens the log of a data directory, or begins one where there is
// none. A log of another owner is an error. A *RefusedError means that the log
// is damaged in a way that must not be guessed about.
func OpenLog(lg *zap.Logger, dir string, owner Owner) (*Log, LogState, error) {
	want := metadata{Version: metadataVersion, MemberID: owner.MemberID, ClusterID: owner.ClusterID}
	meta, err := json.Marshal(want)
	if err != nil {
		return nil, LogState{}, err
	}
	if !hasLog(dir) {
		d, err := createLog(lg, dir, meta)
		return d, LogState{metadata: meta}, err
	}
	d, state, err := openLog(lg, dir)
	if err != nil {
		return nil, LogState{}, err
	}
	var have metadata
	if err := json.Unmarshal(state.metadata, &have); err != nil || have != want {
		return nil, LogState{}, errors.Join(
			fmt.Errorf("the log in %s belongs to member %d of cluster %016x, not to member %d of cluster %016x",
				dir, have.MemberID, have.ClusterID, owner.MemberID, owner.ClusterID), err, d.Close())
	}
	return d, state, nil
}

func walDir(dir string) string  { return filepath.Join(dir, "wal") }
func snapDir(dir string) string { return filepath.Join(dir, "snap") }

// hasLog reports whether the directory holds a log.
func hasLog(dir string) bool { return wal.Exist(walDir(dir)) }

// createLog begins an empty log. wal.Create makes it under a temporary name
// and renames it, so that a crash leaves none or a whole one. Where there was
// a log once it returns a *RefusedError: the log was lost.
func createLog(lg *zap.Logger, dir string, metadata []byte) (*Log, error) {
	switch mark, err := readWatermark(dir); {
	case err != nil:
		return nil, err
	case mark != nil && !hasLog(dir):
		return nil, refuse(walDir(dir), "the log is missing: the watermark says that entry %d was on disk", mark.Index)
	}
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make the snapshot directory: %w", err)
	}
	d, err := newLog(lg, dir)
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

func newLog(lg *zap.Logger, dir string) (*Log, error) {
	id, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	return &Log{lg: lg, dir: dir, snaps: snap.New(lg, snapDir(dir)), hardState: new(raftpb.HardState), member: id.MemberID}, nil
}

// Save makes the hard state and the entries durable; either may be missing. A
// save of nothing but a commit index is not synced.
func (d *Log) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
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
			panic("datadir: save: " + what)
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
func (d *Log) keepsPromise(hs *raftpb.HardState) error {
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
func (d *Log) bounded(hs *raftpb.HardState) *raftpb.HardState {
	if raft.IsEmptyHardState(hs) {
		return nil
	}
	if hs.GetTerm() == 0 {
		panic(fmt.Sprintf("datadir: save: hard state of term 0 with vote %d, commit %d", hs.GetVote(), hs.GetCommit()))
	}
	commit := max(min(hs.GetCommit(), d.shape.last), d.hardState.GetCommit())
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(commit)}
}

// takeBack lowers the watermark before entries that it covers are replaced by
// those of a newer leader.
func (d *Log) takeBack(entries []*raftpb.Entry) error {
	if len(entries) == 0 || entries[0].GetIndex() > d.marked.Index {
		return nil
	}
	return d.lowerMark(entries[0].GetIndex() - 1)
}

func (d *Log) lowerMark(index uint64) error {
	w := d.marked
	w.Index = index
	if err := w.write(d.dir); err != nil {
		return d.fail(err)
	}
	d.marked = w
	return nil
}

func (d *Log) fail(err error) error {
	d.failed = err
	return err
}

// SaveSnapshot writes the .snap file, then the WAL record that refers to it,
// then the hard state that commits it: without that the WAL would not count
// the snapshot after a crash. A snapshot that is not newer than the newest is
// ignored. The body must be durable already, where one is needed.
func (d *Log) SaveSnapshot(s *raftpb.Snapshot) error {
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

func (d *Log) writeSnapshot(s *raftpb.Snapshot) error {
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

// Mark writes the watermark, at most once a second.
func (d *Log) Mark(now time.Time) error {
	if d.failed != nil {
		return d.failed
	}
	if now.Sub(d.markedAt) < WatermarkPace {
		return nil
	}
	d.markedAt = now
	return d.writeMark()
}

func (d *Log) writeMark() error {
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
func (d *Log) lastSegment() (string, error) {
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil || len(names) == 0 {
		return "", errors.Join(errors.New("the log has no segment"), err)
	}
	return names[len(names)-1], nil
}

// HardState returns the hard state as last saved.
func (d *Log) HardState() *raftpb.HardState { return d.hardState }

// Snapshotter returns the keeper of the .snap files, which also stores the
// bodies that are received. Any goroutine may use it.
func (d *Log) Snapshotter() *snap.Snapshotter { return d.snaps }

// BodyPath is where the body of the snapshot at index is; etcd's snapshotter
// stores received ones under this name. Any goroutine may call it.
func (d *Log) BodyPath(index uint64) string {
	return filepath.Join(snapDir(d.dir), fmt.Sprintf("%016x.snap.db", index))
}

// Close leaves an exact watermark and releases the log. After an error it
// only releases.
func (d *Log) Close() error {
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
