package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// release lets go of the segments that only hold entries up to the index, so
// that purge may remove them.
func (d *Log) release(index uint64) error {
	if d.failed != nil {
		return d.failed
	}
	if err := d.wal.ReleaseLockTo(index); err != nil {
		return d.fail(fmt.Errorf("release the log up to %d: %w", index, err))
	}
	return nil
}

// Purge removes what no restart needs: all but the newest keep snapshots (at
// least one), bodies from before the oldest kept one, and the segments before
// it. With fewer snapshots than that the whole log stays: what is then left to
// fall back to is its beginning.
func (d *Log) Purge(keep int) error {
	if d.failed != nil {
		return d.failed
	}
	files, err := snapshotFiles(d.dir)
	if err != nil {
		return err
	}
	// One that is newer was being received when the process stopped.
	files = slices.DeleteFunc(files, func(f snapshotFile) bool { return f.at.index > d.snapshot })
	keep = max(keep, 1)
	if len(files) < keep {
		return nil
	}
	oldest := files[len(files)-keep].at.index
	if err := d.purgeSnapshots(oldest); err != nil {
		return fmt.Errorf("remove old snapshots: %w", err)
	}
	if err := d.release(oldest); err != nil {
		return err
	}
	d.shape.forget(oldest)
	if err := d.purgeSegments(oldest); err != nil {
		return fmt.Errorf("remove old log segments: %w", err)
	}
	return nil
}

// purgeSnapshots removes .snap files, unreadable ones and bodies from before
// the index.
func (d *Log) purgeSnapshots(oldest uint64) error {
	return removeFiles(snapDir(d.dir), func(name string) bool {
		if f, ok := parseSnapshotName(strings.TrimSuffix(name, ".broken")); ok {
			return f.at.index < oldest
		}
		var index uint64
		_, err := fmt.Sscanf(name, "%016x.snap.db", &index)
		return err == nil && strings.HasSuffix(name, ".snap.db") && index < oldest
	})
}

// purgeSegments removes the segments before the one in which the entry after
// oldest is, or would be, as long as the WAL has let go of them. It goes one
// by one, each time durably: a crash must not leave a gap between them.
func (d *Log) purgeSegments(oldest uint64) error {
	names, err := listSuffix(walDir(d.dir), ".wal")
	if err != nil {
		return err
	}
	for _, name := range names[:neededFrom(names, oldest)] {
		path := filepath.Join(walDir(d.dir), name)
		lock, err := fileutil.TryLockFile(path, os.O_WRONLY, fileutil.PrivateFileMode)
		if errors.Is(err, fileutil.ErrLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		err = errors.Join(os.Remove(path), lock.Close())
		if rerr := os.Remove(path + ".broken"); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr) // the copy of before a repair
		}
		if err = errors.Join(err, syncDir(walDir(d.dir))); err != nil {
			return err
		}
	}
	return nil
}

// neededFrom returns the place of the segment that a start at the index opens
// first: the last that begins at or before it.
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
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	var files []snapshotFile
	for _, name := range names {
		if f, ok := parseSnapshotName(name); ok {
			files = append(files, f)
		}
	}
	return files, nil
}

func parseSnapshotName(name string) (snapshotFile, bool) {
	var at snapshotRecord
	_, err := fmt.Sscanf(name, "%016x-%016x.snap", &at.term, &at.index)
	return snapshotFile{name: name, at: at}, err == nil && name == fmt.Sprintf("%016x-%016x.snap", at.term, at.index)
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
	return names, nil // ReadDir sorts
}

// removeFiles removes the files whose name drop accepts.
func removeFiles(dir string, drop func(name string) bool) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.IsDir() || !drop(f.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// SizeBytes returns the space that the log and the snapshots take. Any
// goroutine may call it.
func (d *Log) SizeBytes() (log, snapshots int64) {
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
