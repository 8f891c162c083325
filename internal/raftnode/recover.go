package raftnode

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// A recovery makes a cluster of one member of what a lost quorum left in one
// data directory. It works in three phases, so that a crash leaves either the
// old directory or one that the next run finishes:
//
//  1. A copy of the directory is made in its sub-directory recovery/. There the
//     whole log is applied, and a new log begun after it: a snapshot whose only
//     voter is this member, of a new cluster with a new nonce. The old files are
//     only read.
//  2. recovery.json says that the copy is complete. From here on a start is
//     refused and the recovery goes forward only.
//  3. Part by part the old files move to a sub-directory for them, and the new
//     ones into their place.
//
// It stays inside the directory because that may be a mount point, which
// cannot be renamed.
//
// All entries of the log are applied, also those that this member did not
// know to be committed. A write is acknowledged when a quorum has it on disk;
// the others learn of that later. To drop the tail would lose acknowledged
// writes that are here. To keep it may bring a write into effect whose client
// never heard of its outcome, which it had to reckon with all along.
type Recovery struct {
	Dir        string
	Member     Member
	OldCluster uint64
	NewCluster uint64
	Lost       []Member // the other members
	Index      uint64   // last entry of the log
	Term       uint64   // of that entry
	Commit     uint64   // up to which entries were known here to be committed
	TornTail   string   // what was cut off the log's end; empty: nothing
	Backup     string   // where the old files go
}

// OfflineMachine is a state machine that is opened for a recovery.
type OfflineMachine interface {
	StateMachine
	// Close makes everything that was applied durable.
	Close() error
}

const (
	recoveryName = "recovery"
	recoveryPlan = "recovery.json"
	backupPrefix = "before-recovery-"
	storeName    = "store"
)

// recoveredParts are what a recovery replaces. The identity comes last.
var recoveredParts = []string{"wal", "snap", storeName, "watermark", "member.json"}

// plan is the content of recovery.json.
type plan struct {
	Backup string `json:"backup"`
}

func planPath(dir string) string { return filepath.Join(dir, recoveryPlan) }

// checkNotRecovering refuses a directory whose recovery was interrupted.
func checkNotRecovering(dir string) error {
	_, err := os.Stat(planPath(dir))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for an interrupted recovery: %w", err)
	}
	return &RefusedError{File: planPath(dir), Reason: "a recovery of this directory was interrupted",
		Remedy: "run kvd recover on it again, which finishes it"}
}

// OpenForRecovery locks an existing data directory. If a recovery of it was
// interrupted when it could not go back any more, it is finished, and backup
// says where the old files are.
func OpenForRecovery(path string) (d *Directory, backup string, err error) {
	if info, err := os.Stat(path); err != nil {
		return nil, "", fmt.Errorf("open the data directory: %w", err)
	} else if !info.IsDir() {
		return nil, "", fmt.Errorf("open the data directory: %s is a file", path)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, "", err
	}
	d = &Directory{path: path, lock: lock}
	if checkNotRecovering(path) != nil {
		backup, err = finishRecovery(path)
	}
	if err == nil {
		err = d.read()
	}
	if err != nil {
		return nil, "", errors.Join(err, lock.Close())
	}
	return d, backup, nil
}

// PrepareRecovery makes the first phase and says what the recovery would do.
// Carry does it; Abandon forgets it. open opens the state machine whose files
// are in the given directory.
func PrepareRecovery(lg *zap.Logger, d *Directory, open func(dir string) (OfflineMachine, error)) (*Recovery, error) {
	id, known := d.Identity()
	switch {
	case !known || !d.HasLog():
		return nil, refuseRecovery(d.path, "it has no log, and so nothing to recover")
	case id.State == StateRemoved:
		return nil, refuseRecovery(d.path, "member %d was removed from its cluster", id.MemberID)
	}
	b := &rebuild{lg: lg, work: filepath.Join(d.path, recoveryName), open: open, old: id}
	r := &Recovery{Dir: d.path, OldCluster: id.ClusterID, NewCluster: newClusterID(),
		Backup: filepath.Join(d.path, backupPrefix+time.Now().UTC().Format("20060102T150405.000Z"))}
	if err := b.run(d.path, r); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.work))
	}
	return r, nil
}

func refuseRecovery(file, format string, args ...any) error {
	return &RefusedError{File: file, Reason: fmt.Sprintf(format, args...), Remedy: "take another member's directory, or a backup"}
}

// newClusterID is random: neither the old members nor a cluster made anew with
// the old settings have it.
func newClusterID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return max(binary.BigEndian.Uint64(b[:]), 1)
}

// rebuild makes the new directory.
type rebuild struct {
	lg   *zap.Logger
	work string
	open func(dir string) (OfflineMachine, error)
	old  Identity

	sm   OfflineMachine
	a    *applier
	term uint64 // the highest that this member knew
}

func (b *rebuild) run(dir string, r *Recovery) (err error) {
	if err := os.RemoveAll(b.work); err != nil {
		return fmt.Errorf("remove what an earlier recovery left: %w", err)
	}
	if err := cloneParts(dir, b.work); err != nil {
		return fmt.Errorf("copy the data directory: %w", err)
	}
	if b.sm, err = b.open(b.work); err != nil {
		return err
	}
	err = b.replay(r)
	if err == nil {
		err = b.begin(r)
	}
	if err = errors.Join(err, b.sm.Close()); err != nil {
		return err
	}
	if err := b.verify(r); err != nil {
		return fmt.Errorf("read the recovered directory again: %w", err)
	}
	return syncTree(b.work)
}

// replay applies the whole log to the copied state.
func (b *rebuild) replay(r *Recovery) error {
	d, state, err := openDisk(b.lg, b.work)
	if err != nil {
		return err
	}
	cfg := &Config{ID: b.old.MemberID, ClusterID: b.old.ClusterID, Dir: b.work, StateMachine: b.sm}
	b.a, err = recoverState(cfg, d, &state)
	if err == nil {
		err = b.applyAll(state.entries)
	}
	if err = errors.Join(err, d.close()); err != nil {
		return err
	}
	if b.a.index == 0 {
		return refuseRecovery(r.Dir, "this member never got anything of its cluster's state")
	}
	_, term, err := positionOf(b.sm)
	if err != nil {
		return err
	}
	r.Index, r.Term, r.Commit, r.TornTail = b.a.index, term, state.hardState.GetCommit(), state.repaired
	b.term = max(state.hardState.GetTerm(), term)
	return b.describe(r)
}

// applyAtOnce bounds the entries that are applied together.
const applyAtOnce = 256

func (b *rebuild) applyAll(entries []*raftpb.Entry) error {
	for len(entries) > 0 && entries[0].GetIndex() <= b.a.index {
		entries = entries[1:]
	}
	for len(entries) > 0 {
		n := min(len(entries), applyAtOnce)
		if _, err := b.a.apply([]applyWork{{entries: entries[:n]}}); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

func (b *rebuild) describe(r *Recovery) error {
	for _, m := range b.a.roster.membership().Members {
		if m.ID == b.old.MemberID {
			r.Member = m
		} else {
			r.Lost = append(r.Lost, m)
		}
	}
	if r.Member.ID == 0 {
		return refuseRecovery(r.Dir, "member %d is not, or not yet, a member of its cluster", b.old.MemberID)
	}
	return nil
}

// begin ends the old membership in the state and begins the new log.
func (b *rebuild) begin(r *Recovery) error {
	id := b.old
	if id.Original == 0 {
		id.Original = id.ClusterID
	}
	id.ClusterID, id.Nonce = r.NewCluster, newNonce()
	next := b.alone(r, id)
	index, term := r.Index+1, b.term+1
	if err := b.sm.Apply([]Entry{{Index: index, Term: term, Records: replaceRecords(b.a.roster, next)}}); err != nil {
		return fmt.Errorf("write the new membership: %w", err)
	}
	for _, part := range []string{walDir(b.work), snapDir(b.work), watermarkPath(b.work)} {
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("remove the copy of the old log: %w", err)
		}
	}
	if err := (&Directory{path: b.work}).write(id); err != nil {
		return err
	}
	return b.newLog(newSnapshot(index, term, next.membership()), id)
}

// alone is the roster with this member only. The ids of the others never
// return, like those that were removed before.
func (b *rebuild) alone(r *Recovery, id Identity) *roster {
	self := r.Member
	self.Learner, self.KeepLearner, self.Nonce = false, false, id.Nonce
	next := newRoster(id.ClusterID, []Member{self})
	next.highestID = b.a.roster.highestID
	for gone := range b.a.roster.removed {
		next.removed[gone] = true
	}
	for _, m := range r.Lost {
		next.removed[m.ID] = true
	}
	return next
}

// replaceRecords turns the records of one roster into those of another.
func replaceRecords(old, next *roster) []Record {
	out := next.records()
	stays := make(map[string]bool)
	for _, rec := range out {
		stays[string(rec.Key)] = true
	}
	for _, rec := range old.records() {
		if !stays[string(rec.Key)] {
			out = append(out, Record{Key: rec.Key})
		}
	}
	return out
}

func (b *rebuild) newLog(s *raftpb.Snapshot, id Identity) error {
	meta, err := json.Marshal(metadata{Version: metadataVersion, MemberID: id.MemberID, ClusterID: id.ClusterID})
	if err != nil {
		return err
	}
	d, err := createDisk(b.lg, b.work, meta)
	if err != nil {
		return err
	}
	if err = b.writeBody(d.bodyPath(s.GetMetadata().GetIndex())); err == nil {
		err = d.saveSnapshot(s)
	}
	return errors.Join(err, d.close())
}

// writeBody writes the state beside the log where nothing else keeps it: an
// engine in memory.
func (b *rebuild) writeBody(path string) error {
	durable, err := b.sm.Durable()
	if err != nil {
		return err
	}
	if durable != nil {
		return durable.Close()
	}
	v, err := b.sm.View()
	if err != nil {
		return err
	}
	_, err = writeBody(path, v)
	return errors.Join(err, v.Close())
}

// verify opens what was made as a start would.
func (b *rebuild) verify(r *Recovery) error {
	d, state, err := openDisk(b.lg, b.work)
	if err != nil {
		return err
	}
	sm, err := b.open(b.work)
	if err != nil {
		return errors.Join(err, d.close())
	}
	cfg := &Config{ID: r.Member.ID, ClusterID: r.NewCluster, Dir: b.work, StateMachine: sm}
	a, err := recoverState(cfg, d, &state)
	if err == nil {
		m := a.roster.membership()
		if voters := m.Voters(); a.index != r.Index+1 || m.ClusterID != r.NewCluster || len(m.Members) != 1 || len(voters) != 1 || voters[0] != r.Member.ID {
			err = fmt.Errorf("it is at entry %d with members %+v", a.index, m)
		}
	}
	return errors.Join(err, sm.Close(), d.close())
}

// Abandon forgets a recovery that was prepared; the directory is as it was.
func (r *Recovery) Abandon() error { return os.RemoveAll(filepath.Join(r.Dir, recoveryName)) }

// Carry makes the second and the third phase.
func (r *Recovery) Carry() error {
	if err := syncDir(r.Dir); err != nil {
		return err
	}
	b, err := json.Marshal(plan{Backup: filepath.Base(r.Backup)})
	if err != nil {
		return err
	}
	if err := writeFileDurably(planPath(r.Dir), append(b, '\n')); err != nil {
		return fmt.Errorf("write the plan of the recovery: %w", err)
	}
	_, err = finishRecovery(r.Dir)
	return err
}

// finishRecovery makes the third phase, from wherever it was interrupted.
func finishRecovery(dir string) (backup string, err error) {
	b, err := os.ReadFile(planPath(dir))
	if err != nil {
		return "", fmt.Errorf("read the plan of the recovery: %w", err)
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil || p.Backup == "" || p.Backup != filepath.Base(p.Backup) {
		return "", refuseRecovery(planPath(dir), "the plan of the recovery is damaged")
	}
	backup = filepath.Join(dir, p.Backup)
	for _, step := range recoverySteps(dir, backup) {
		if err := step(); err != nil {
			return "", fmt.Errorf("put the recovered files into their place: %w", err)
		}
	}
	return backup, nil
}

// recoverySteps can be made again from the first one on after a crash in any.
func recoverySteps(dir, backup string) []func() error {
	work := filepath.Join(dir, recoveryName)
	steps := []func() error{func() error { return os.MkdirAll(backup, 0o700) }}
	for _, part := range recoveredParts {
		old, kept, made := filepath.Join(dir, part), filepath.Join(backup, part), filepath.Join(work, part)
		steps = append(steps,
			func() error {
				if !exists(made) || exists(kept) {
					return nil // what is in place is the new one, or nothing
				}
				return move(old, kept)
			},
			func() error { return move(made, old) })
	}
	return append(steps,
		func() error { return os.RemoveAll(work) },
		func() error { return errors.Join(syncDir(dir), os.Remove(planPath(dir)), syncDir(dir)) })
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// move renames a file or directory, durably, if it is there.
func move(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, os.ErrNotExist) && !exists(from) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
}

// cloneParts copies what a recovery works on. Files that nobody ever writes to
// again are linked.
func cloneParts(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, part := range recoveredParts {
		if err := clone(filepath.Join(from, part), filepath.Join(to, part)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func clone(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return cloneFile(from, to)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if err := clone(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// writtenOnce reports whether a file is a table or blob of the engine.
func writtenOnce(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".sst" || ext == ".blob"
}

func cloneFile(from, to string) error {
	if writtenOnce(from) && os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// syncTree makes the directories durable; their files are.
func syncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := syncTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return syncDir(dir)
}
