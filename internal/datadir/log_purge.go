package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// release unlocks the segments that hold only entries up to the index, so that
// purgeSegments may remove them.
func (l *Log) release(index uint64) error {
	if l.failed != nil {
		return l.failed
	}
	if err := l.wal.ReleaseLockTo(index); err != nil {
		return l.fail(fmt.Errorf("release log up to entry %d: %w", index, err))
	}
	return nil
}

// Purge removes files that no restart needs: all but the newest keep snapshots
// (at least one), the bodies that are older than the oldest of those, and the
// segments before it. With fewer snapshots than keep, the whole log stays: if
// no snapshot is readable, a start can then still begin with entry 1.
func (l *Log) Purge(keep int) error {
	if l.failed != nil {
		return l.failed
	}
	files, err := snapshotFiles(l.dir)
	if err != nil {
		return err
	}
	// A newer .snap file belongs to an unfinished snapshot. It must not count as
	// one that a start could use.
	files = slices.DeleteFunc(files, func(f snapshotFile) bool { return f.at.index > l.snapshot })
	keep = max(keep, 1)
	if len(files) < keep {
		return nil
	}
	oldest := files[len(files)-keep].at.index
	if err := l.purgeSnapshots(oldest); err != nil {
		return fmt.Errorf("remove old snapshots: %w", err)
	}
	if err := l.release(oldest); err != nil {
		return err
	}
	l.shape.forget(oldest)
	if err := l.purgeSegments(oldest); err != nil {
		return fmt.Errorf("remove old log segments: %w", err)
	}
	return nil
}

// purgeSnapshots removes the .snap files, the unreadable ones (etcd renames
// them to .broken) and the bodies from before the index.
func (l *Log) purgeSnapshots(oldest uint64) error {
	return removeFiles(snapDir(l.dir), func(name string) bool {
		if f, ok := parseSnapshotName(strings.TrimSuffix(name, ".broken")); ok {
			return f.at.index < oldest
		}
		var index uint64
		_, err := fmt.Sscanf(name, "%016x.snap.db", &index)
		return err == nil && strings.HasSuffix(name, ".snap.db") && index < oldest
	})
}

// purgeSegments removes the segments before the one that contains the entry
// after oldest, or would contain it, as far as the WAL has unlocked them. It
// removes one at a time, durably: a crash must not leave a gap between two
// segments, which the guard would have to call corrupt.
func (l *Log) purgeSegments(oldest uint64) error {
	names, err := listSuffix(walDir(l.dir), ".wal")
	if err != nil {
		return err
	}
	for _, name := range names[:neededFrom(names, oldest)] {
		path := filepath.Join(walDir(l.dir), name)
		lock, err := fileutil.TryLockFile(path, os.O_WRONLY, fileutil.PrivateFileMode)
		if errors.Is(err, fileutil.ErrLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		err = errors.Join(os.Remove(path), lock.Close())
		if rerr := os.Remove(path + ".broken"); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr) // the copy that a repair made
		}
		if err = errors.Join(err, syncDir(walDir(l.dir))); err != nil {
			return err
		}
	}
	return nil
}

// neededFrom returns the position of the segment that a start at the index
// opens first: the last one that begins at or before it.
func neededFrom(names []string, index uint64) int {
	for i := len(names) - 1; i > 0; i-- {
		if _, first, err := parseSegmentName(names[i]); err == nil && first <= index {
			return i
		}
	}
	return 0
}

// snapshotFile is a .snap file by its name.
type snapshotFile struct {
	name string
	at   snapshotRecord
}

// snapshotFiles lists the .snap files, the newest last.
func snapshotFiles(dir string) ([]snapshotFile, error) {
	names, err := listSuffix(snapDir(dir), ".snap")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var files []snapshotFile
	for _, name := range names {
		if f, ok := parseSnapshotName(name); ok {
			files = append(files, f)
		}
	}
	return files, nil
}

// parseSnapshotName reads a name as etcd writes it, and no other.
func parseSnapshotName(name string) (snapshotFile, bool) {
	var at snapshotRecord
	_, err := fmt.Sscanf(name, "%016x-%016x.snap", &at.term, &at.index)
	return snapshotFile{name: name, at: at}, err == nil && name == fmt.Sprintf("%016x-%016x.snap", at.term, at.index)
}

// SizeBytes returns the space that the log and the snapshots take. Any
// goroutine may call it.
func (l *Log) SizeBytes() (log, snapshots int64) {
	return dirBytes(walDir(l.dir)), dirBytes(snapDir(l.dir))
}
