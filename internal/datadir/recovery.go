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

// Replacement is a copy of a data directory that is worked on and then takes
// the directory's place. It goes through three phases, so that a crash leaves
// either the old directory or one that the next run completes (D7):
//
//  1. NewReplacement makes the copy, in the subdirectory recovery/. The old
//     files are only read.
//  2. Complete writes recovery.json: the copy is complete. From here on a start
//     is refused, and there is only the way forward.
//  3. Part by part, the old files move to a subdirectory of their own and the
//     new ones into their place.
//
// All of this happens inside the directory, because that may be a mount point,
// which cannot be renamed.
type Replacement struct {
	Path   string // of the copy
	Backup string // where the old files go

	dir string
}

// TakeAnother is the remedy for a directory that cannot be recovered.
const TakeAnother = "use the directory of another member, or a backup"

const (
	recoveryName = "recovery"
	recoveryPlan = "recovery.json"
	backupPrefix = "before-recovery-"
)

// replacedParts lists the files and directories that are copied and replaced. The
// identity comes last: until it has moved, the directory belongs to the old
// cluster.
var replacedParts = []string{"wal", "snap", storeName, "watermark", "member.json"}

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
		Remedy: "run kvd recover on this directory again to complete it"}
}

// OpenForRecovery locks an existing data directory. If a recovery was
// interrupted after the point of no return, it completes that recovery, and
// backup says where the old files are; otherwise backup is empty.
func OpenForRecovery(path string) (d *Dir, backup string, err error) {
	if info, err := os.Stat(path); err != nil {
		return nil, "", fmt.Errorf("open data directory: %w", err)
	} else if !info.IsDir() {
		return nil, "", fmt.Errorf("open data directory: %s is not a directory", path)
	}
	if d, err = lockDir(path); err != nil {
		return nil, "", err
	}
	if checkNotRecovering(path) != nil {
		backup, err = finishRecovery(path)
	}
	if err == nil {
		err = d.read()
	}
	if err != nil {
		return nil, "", errors.Join(err, d.Close())
	}
	return d, backup, nil
}

// NewReplacement makes the copy. Abandon removes it again.
func (d *Dir) NewReplacement() (*Replacement, error) {
	r := &Replacement{dir: d.path, Path: filepath.Join(d.path, recoveryName),
		Backup: filepath.Join(d.path, backupPrefix+time.Now().UTC().Format("20060102T150405.000Z"))}
	if err := os.RemoveAll(r.Path); err != nil {
		return nil, fmt.Errorf("remove the remains of an earlier recovery: %w", err)
	}
	if err := cloneParts(d.path, r.Path); err != nil {
		return nil, errors.Join(fmt.Errorf("copy data directory: %w", err), r.Abandon())
	}
	return r, nil
}

// ResetLog removes the copy's log, snapshots and watermark, and gives it another
// identity. OpenLog then begins a new log.
func (r *Replacement) ResetLog(id Identity) error {
	for _, part := range []string{walDir(r.Path), snapDir(r.Path), watermarkPath(r.Path)} {
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("remove copy of the old log: %w", err)
		}
	}
	return id.write(r.Path)
}

// Abandon removes the copy. The directory is as it was.
func (r *Replacement) Abandon() error { return os.RemoveAll(r.Path) }

// Complete makes the copy durable and puts it into the directory's place. If it
// fails, OpenForRecovery either finds the old directory or completes the
// replacement.
func (r *Replacement) Complete() error {
	if err := syncTree(r.Path); err != nil {
		return err
	}
	if err := syncDir(r.dir); err != nil {
		return err
	}
	b, err := json.Marshal(plan{Backup: filepath.Base(r.Backup)})
	if err != nil {
		return err
	}
	if err := replaceFile(planPath(r.dir), append(b, '\n')); err != nil {
		return fmt.Errorf("write recovery plan: %w", err)
	}
	_, err = finishRecovery(r.dir)
	return err
}

// finishRecovery makes the third phase, from wherever it was interrupted.
func finishRecovery(dir string) (backup string, err error) {
	b, err := os.ReadFile(planPath(dir))
	if err != nil {
		return "", fmt.Errorf("read recovery plan: %w", err)
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil || p.Backup == "" || p.Backup != filepath.Base(p.Backup) {
		return "", &RefusedError{File: planPath(dir), Reason: "the recovery plan is damaged", Remedy: TakeAnother}
	}
	backup = filepath.Join(dir, p.Backup)
	for _, step := range recoverySteps(dir, backup) {
		if err := step(); err != nil {
			return "", fmt.Errorf("move recovered files into place: %w", err)
		}
	}
	return backup, nil
}

// recoverySteps returns the steps of the third phase. After a crash in any of
// them they can be done again from the first one on.
func recoverySteps(dir, backup string) []func() error {
	work := filepath.Join(dir, recoveryName)
	steps := []func() error{func() error { return os.MkdirAll(backup, 0o700) }}
	for _, part := range replacedParts {
		old, kept, made := filepath.Join(dir, part), filepath.Join(backup, part), filepath.Join(work, part)
		steps = append(steps,
			func() error {
				// Without a new part, the one in place is the new one already,
				// or there is none (a memory engine has no store). With a kept
				// part, the old one has moved already.
				if !exists(made) || exists(kept) {
					return nil
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

// move renames a file or directory durably, if it is there.
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

// cloneParts copies the replaced parts that exist.
func cloneParts(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, part := range replacedParts {
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

// writtenOnce reports whether a file is a table or blob of the engine. The
// engine never changes one in place, so a hard link serves as the copy, and a
// recovery of a large store takes seconds and little space.
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

// syncTree makes the names in a tree durable. Its files already are: clone synced
// them, and so did the steps that worked on the copy.
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
