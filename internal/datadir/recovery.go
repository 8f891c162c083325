package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Rebuild replaces what is in a data directory by something made from a copy
// of it. It works in three phases, so that a crash leaves either the old
// directory or one that the next run finishes:
//
//  1. A copy of the directory is made in its sub-directory recovery/, and
//     worked on there. The old files are only read.
//  2. recovery.json says that the copy is complete. From here on a start is
//     refused and the recovery goes forward only.
//  3. Part by part the old files move to a sub-directory for them, and the new
//     ones into their place.
//
// It stays inside the directory because that may be a mount point, which
// cannot be renamed.
type Rebuild struct {
	Path   string // of the copy
	Backup string // where the old files go

	dir string
}

// TakeAnother is the remedy for a directory that cannot be recovered.
const TakeAnother = "take another member's directory, or a backup"

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
func OpenForRecovery(path string) (d *Dir, backup string, err error) {
	if info, err := os.Stat(path); err != nil {
		return nil, "", fmt.Errorf("open the data directory: %w", err)
	} else if !info.IsDir() {
		return nil, "", fmt.Errorf("open the data directory: %s is a file", path)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, "", err
	}
	d = &Dir{path: path, lock: lock}
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

// Rebuild makes the first phase.
func (d *Dir) Rebuild() (*Rebuild, error) {
	r := &Rebuild{dir: d.path, Path: filepath.Join(d.path, recoveryName),
		Backup: filepath.Join(d.path, backupPrefix+time.Now().UTC().Format("20060102T150405.000Z"))}
	if err := os.RemoveAll(r.Path); err != nil {
		return nil, fmt.Errorf("remove what an earlier recovery left: %w", err)
	}
	if err := cloneParts(d.path, r.Path); err != nil {
		return nil, errors.Join(fmt.Errorf("copy the data directory: %w", err), r.Abandon())
	}
	return r, nil
}

// BeginLog removes the copy's log, so that a new one can begin, and gives it
// another identity.
func (r *Rebuild) BeginLog(id Identity) error {
	for _, part := range []string{walDir(r.Path), snapDir(r.Path), watermarkPath(r.Path)} {
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("remove the copy of the old log: %w", err)
		}
	}
	return (&Dir{path: r.Path}).write(id)
}

// Sync makes the copy durable.
func (r *Rebuild) Sync() error { return syncTree(r.Path) }

// Abandon removes the copy; the directory is as it was.
func (r *Rebuild) Abandon() error { return os.RemoveAll(r.Path) }

// Carry makes the second and the third phase.
func (r *Rebuild) Carry() error {
	if err := syncDir(r.dir); err != nil {
		return err
	}
	b, err := json.Marshal(plan{Backup: filepath.Base(r.Backup)})
	if err != nil {
		return err
	}
	if err := writeFileDurably(planPath(r.dir), append(b, '\n')); err != nil {
		return fmt.Errorf("write the plan of the recovery: %w", err)
	}
	_, err = finishRecovery(r.dir)
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
		return "", &RefusedError{File: planPath(dir), Reason: "the plan of the recovery is damaged", Remedy: TakeAnother}
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
