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
	"google.golang.org/protobuf/encoding/protowire"
)

// segmentBytes is the size of a WAL segment. See the package comment for why
// it is not etcd's 64 MiB: a log that needs 64 MiB would occupy up to four
// times that.
const segmentBytes = 16 << 20

func init() { wal.SegmentSizeBytes = segmentBytes }

// Log is the durable raft log: etcd's WAL, the small .snap files beside it,
// and the watermark. It keeps the invariants D1 to D4 of the package comment.
//
// One goroutine owns it, raftnode's append loop; methods that any goroutine may
// call say so.
//
// No error of it can be retried. After a failed write the WAL's own state is
// lost; after a failed fsync the kernel may have dropped the dirty pages and
// report success the next time. So the first error sticks, and every later
// call returns it.
type Log struct {
	lg     *zap.Logger
	dir    string
	wal    *wal.WAL
	snaps  *snap.Snapshotter
	failed error // the first error; it sticks
	closed bool

	hardState *raftpb.HardState // as last saved
	unwritten bool              // its commit index is not in the WAL yet
	save      uint64            // number of the last save in the WAL (D8)
	shape     logShape          // of the entries saved
	snapshot  uint64            // index of the newest snapshot

	member      uint64    // from the directory's identity
	watermark   watermark // as last written
	watermarkAt time.Time // of the last UpdateWatermark that was due
}

// LogState is the content of a log when it was opened.
type LogState struct {
	Snapshot  *raftpb.Snapshot // the newest usable one, or nil
	HardState *raftpb.HardState
	Entries   []*raftpb.Entry // after the snapshot
	// Repaired names the torn tail that was cut off. It is empty if there was
	// none.
	Repaired string

	metadata []byte
}

// Owner is the member that a log belongs to. Every segment begins with it.
type Owner struct {
	MemberID  uint64
	ClusterID uint64
}

// metadata is how a segment names its owner.
type metadata struct {
	Version   int    `json:"version"`
	MemberID  uint64 `json:"member_id"`
	ClusterID uint64 `json:"cluster_id"`
}

const metadataVersion = 1

// OpenLog opens the log of a data directory, or creates it if there is none. A
// log of another owner is an error. A *RefusedError means that entries which
// may have been acknowledged, a term or a vote are lost; then nothing has been
// changed.
func OpenLog(lg *zap.Logger, dir string, owner Owner) (*Log, LogState, error) {
	want := metadata{Version: metadataVersion, MemberID: owner.MemberID, ClusterID: owner.ClusterID}
	meta, err := json.Marshal(want)
	if err != nil {
		return nil, LogState{}, err
	}
	if !hasLog(dir) {
		if err := checkNoLog(dir); err != nil {
			return nil, LogState{}, err
		}
		l, err := createLog(lg, dir, meta)
		return l, LogState{metadata: meta}, err
	}
	l, state, err := openLog(lg, dir)
	if err != nil {
		return nil, LogState{}, err
	}
	if err := checkOwner(state.metadata, want); err != nil {
		return nil, LogState{}, errors.Join(fmt.Errorf("open log in %s: %w", dir, err), l.Close())
	}
	return l, state, nil
}

func checkOwner(meta []byte, want metadata) error {
	var have metadata
	if err := json.Unmarshal(meta, &have); err != nil {
		return fmt.Errorf("the segments do not name their owner: %w", err)
	}
	if have.Version != want.Version {
		return fmt.Errorf("it has format %d, but this binary supports only format %d: upgrade kvd", have.Version, want.Version)
	}
	if have != want {
		return fmt.Errorf("it belongs to member %d of cluster %016x, not to member %d of cluster %016x: use another --data-dir, or the settings that it was created with",
			have.MemberID, have.ClusterID, want.MemberID, want.ClusterID)
	}
	return nil
}

func walDir(dir string) string  { return filepath.Join(dir, "wal") }
func snapDir(dir string) string { return filepath.Join(dir, "snap") }

// hasLog reports whether the directory holds a log.
func hasLog(dir string) bool { return wal.Exist(walDir(dir)) }

// createLog begins an empty log. wal.Create makes it under a temporary name
// and renames it, so a crash leaves none or a whole one.
func createLog(lg *zap.Logger, dir string, metadata []byte) (*Log, error) {
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("create snapshot directory: %w", err)
	}
	l, err := newLog(lg, dir)
	if err != nil {
		return nil, err
	}
	if l.wal, err = wal.Create(lg, walDir(dir), metadata); err != nil {
		return nil, fmt.Errorf("create log in %s: %w", dir, err)
	}
	l.shape.known = true
	if err = syncDir(dir); err == nil {
		err = l.writeWatermark()
	}
	if err != nil {
		return nil, errors.Join(err, l.wal.Close())
	}
	return l, nil
}

func newLog(lg *zap.Logger, dir string) (*Log, error) {
	id, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	return &Log{lg: lg, dir: dir, snaps: snap.New(lg, snapDir(dir)), hardState: new(raftpb.HardState), member: id.MemberID}, nil
}

// Save makes the hard state and the entries durable in one write; either may
// be missing. A commit index alone is not written: raft can compute it again, so
// losing it is harmless, and the next save carries it. Thus everything between
// two fsyncs is one save (D8).
func (l *Log) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	if l.failed != nil {
		return l.failed
	}
	if err := l.keepsPromise(hs); err != nil {
		return err
	}
	if err := l.takeBack(entries); err != nil {
		return err
	}
	for _, e := range entries {
		if problem := l.shape.put(logEntry{index: e.GetIndex(), term: e.GetTerm()}); problem != "" {
			panic("datadir: save: " + problem)
		}
	}
	if hs = l.bounded(hs); hs == nil {
		hs = l.hardState
	}
	if n := len(entries); n > 0 {
		hs = RaiseTerm(hs, entries[n-1].GetTerm())
	} else if !raft.MustSync(hs, l.hardState, 0) {
		l.unwritten = l.unwritten || hs.GetCommit() != l.hardState.GetCommit()
		l.hardState = hs
		return nil
	}
	if err := l.write(hs, entries); err != nil {
		return l.fail(fmt.Errorf("write log: %w", err))
	}
	return nil
}

// write writes one save: the entries, and always a hard state with the next
// number behind them (D8).
func (l *Log) write(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	l.save++
	if err := l.wal.Save(numbered(hs, l.save), entries); err != nil {
		return err
	}
	l.hardState, l.unwritten = hs, false
	return nil
}

// numbered copies a hard state and adds the number of the save that it ends.
func numbered(hs *raftpb.HardState, save uint64) *raftpb.HardState {
	c := &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(hs.GetCommit())}
	c.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, saveNumberField, protowire.VarintType), save))
	return c
}

// RaiseTerm returns the hard state of a member whose log ends with an entry of
// the given term. If a crash tears a save between its entries and its hard state,
// the log's last term is above the hard state's. The member had heard from the
// leader of that term, so this is its term; it has not voted in it, or the vote
// would have been saved before. Without this, its peers refuse its messages, whose
// log term is above their term, and it theirs.
func RaiseTerm(hs *raftpb.HardState, last uint64) *raftpb.HardState {
	if last <= hs.GetTerm() {
		return hs
	}
	return &raftpb.HardState{Term: new(last), Vote: new(uint64(0)), Commit: new(hs.GetCommit())}
}

// keepsPromise refuses a hard state that is older than the one on disk. A
// member that forgets its term or its vote votes a second time. Nothing is
// written then, so this error does not stick.
func (l *Log) keepsPromise(hs *raftpb.HardState) error {
	old := l.hardState
	if raft.IsEmptyHardState(hs) || hs.GetTerm() > old.GetTerm() {
		return nil
	}
	if hs.GetTerm() < old.GetTerm() || old.GetVote() != 0 && hs.GetVote() != old.GetVote() {
		return fmt.Errorf("save: the hard state would go back from term %d and vote %d to term %d and vote %d",
			old.GetTerm(), old.GetVote(), hs.GetTerm(), hs.GetVote())
	}
	return nil
}

// bounded copies a hard state and limits its commit index (D1). A Ready may
// carry a snapshot, entries after it, and a commit index that covers them; the
// snapshot is saved first, and a crash after it would leave a commit index
// without its entries.
func (l *Log) bounded(hs *raftpb.HardState) *raftpb.HardState {
	if raft.IsEmptyHardState(hs) {
		return nil
	}
	if hs.GetTerm() == 0 {
		panic(fmt.Sprintf("datadir: save: hard state of term 0 with vote %d, commit %d", hs.GetVote(), hs.GetCommit()))
	}
	commit := max(min(hs.GetCommit(), l.shape.last), l.hardState.GetCommit())
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(commit)}
}

// takeBack lowers the watermark before entries that it covers are replaced by
// those of a newer leader (D3).
func (l *Log) takeBack(entries []*raftpb.Entry) error {
	if len(entries) == 0 || entries[0].GetIndex() > l.watermark.Index {
		return nil
	}
	return l.lowerWatermark(entries[0].GetIndex() - 1)
}

func (l *Log) lowerWatermark(index uint64) error {
	w := l.watermark
	w.Index = index
	if err := w.write(l.dir); err != nil {
		return l.fail(err)
	}
	l.watermark = w
	return nil
}

func (l *Log) fail(err error) error {
	l.failed = err
	return err
}

// SaveSnapshot writes the .snap file, then the WAL record that refers to it,
// then the hard state that commits it; without the latter the WAL would ignore
// the snapshot after a crash (D2). It ignores a snapshot that is not newer than
// the newest. If the snapshot needs a body, the body must be durable already.
func (l *Log) SaveSnapshot(s *raftpb.Snapshot) error {
	if l.failed != nil {
		return l.failed
	}
	meta := s.GetMetadata()
	if meta.GetIndex() <= l.snapshot {
		return nil
	}
	at := snapshotRecord{index: meta.GetIndex(), term: meta.GetTerm()}
	// A checkpoint of our own state keeps the entries after it. A received
	// snapshot that the log does not lead up to replaces the log.
	restart := at.index > l.hardState.GetCommit() && !l.shape.continues(at)
	if restart && at.index < l.watermark.Index {
		if err := l.lowerWatermark(at.index); err != nil {
			return err
		}
	}
	if err := l.writeSnapshot(s); err != nil {
		return l.fail(fmt.Errorf("save snapshot at entry %d: %w", at.index, err))
	}
	if restart {
		l.shape.restart(at)
	}
	older := l.snapshot
	l.snapshot = at.index
	if restart {
		// The member will tell the leader that it has everything up to here.
		// Damage in the record of the snapshot must not look like a torn save
		// that can be cut off.
		if err := l.writeWatermark(); err != nil {
			return err
		}
	}
	return l.release(older)
}

func (l *Log) writeSnapshot(s *raftpb.Snapshot) error {
	meta := s.GetMetadata()
	if err := l.snaps.SaveSnap(s); err != nil {
		return err
	}
	if err := syncDir(snapDir(l.dir)); err != nil { // SaveSnap does not
		return err
	}
	// The guard takes a snapshot above the last commit index for a received one.
	// It could not tell that the log leads up to this one, if the log's beginning
	// was purged and entries were replaced.
	if l.unwritten {
		if err := l.write(l.hardState, nil); err != nil {
			return err
		}
		if err := l.wal.Sync(); err != nil {
			return err
		}
	}
	rec := &walpb.Snapshot{Index: new(meta.GetIndex()), Term: new(meta.GetTerm()), ConfState: meta.GetConfState()}
	if err := l.wal.SaveSnapshot(rec); err != nil {
		return err
	}
	if err := l.write(committing(l.hardState, meta), nil); err != nil {
		return err
	}
	return l.wal.Sync() // etcd does not sync a mere commit index
}

// committing returns the hard state of a member that knows the snapshot to be
// committed. If the snapshot's term is new to the member, it has not voted in
// that term.
func committing(hs *raftpb.HardState, meta *raftpb.SnapshotMetadata) *raftpb.HardState {
	vote := hs.GetVote()
	if meta.GetTerm() > hs.GetTerm() {
		vote = 0
	}
	return &raftpb.HardState{Term: new(max(hs.GetTerm(), meta.GetTerm())), Vote: new(vote), Commit: new(max(hs.GetCommit(), meta.GetIndex()))}
}

// UpdateWatermark writes the watermark, at most once every WatermarkPace. The
// owner calls it after each save, and again when the log is idle, so that the
// watermark catches up after a burst.
func (l *Log) UpdateWatermark(now time.Time) error {
	if l.failed != nil {
		return l.failed
	}
	if now.Sub(l.watermarkAt) < WatermarkPace {
		return nil
	}
	l.watermarkAt = now
	return l.writeWatermark()
}

func (l *Log) writeWatermark() error {
	segment, err := l.lastSegment()
	if err != nil {
		return l.fail(err)
	}
	w := watermark{Member: l.member, Term: l.hardState.GetTerm(), Vote: l.hardState.GetVote(), Index: l.shape.last, Segment: segment}
	if w == l.watermark {
		return nil
	}
	if err := w.write(l.dir); err != nil {
		return l.fail(err)
	}
	l.watermark = w
	return nil
}

// lastSegment returns the name of the newest WAL segment.
func (l *Log) lastSegment() (string, error) {
	names, err := listSuffix(walDir(l.dir), ".wal")
	if err != nil || len(names) == 0 {
		return "", errors.Join(errors.New("the log has no segments"), err)
	}
	return names[len(names)-1], nil
}

// HardState returns the hard state as last saved.
func (l *Log) HardState() *raftpb.HardState { return l.hardState }

// Snapshotter returns etcd's keeper of the snap directory, through which
// rafthttp stores received bodies. Any goroutine may call it.
func (l *Log) Snapshotter() *snap.Snapshotter { return l.snaps }

// BodyPath returns where the body of the snapshot at index is or belongs.
// etcd's Snapshotter stores received bodies under the same name. Any goroutine
// may call it.
func (l *Log) BodyPath(index uint64) string { return BodyPath(l.dir, index) }

// KeepBody moves a body to where the one of the snapshot at index belongs, durably.
func (l *Log) KeepBody(path string, index uint64) error {
	if err := os.Rename(path, l.BodyPath(index)); err != nil {
		return err
	}
	return syncDir(snapDir(l.dir))
}

// BodyPath returns where the body of the snapshot at index is in a data directory.
func BodyPath(dir string, index uint64) string {
	return filepath.Join(snapDir(dir), fmt.Sprintf("%016x.snap.db", index))
}

// Close leaves an exact watermark and releases the log. After an error it only
// releases the log.
func (l *Log) Close() error {
	if l.closed {
		return nil
	}
	l.closed = true
	if l.failed != nil {
		return l.wal.Close()
	}
	var err error
	if l.unwritten {
		err = l.write(l.hardState, nil)
	}
	if err == nil {
		err = l.wal.Sync()
	}
	if err == nil {
		err = l.writeWatermark()
	}
	return errors.Join(err, l.wal.Close())
}
