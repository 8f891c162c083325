package engine

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// failure keeps the first error after which the disk cannot be trusted. It is safe for
// concurrent use.
type failure struct {
	once   sync.Once
	failed chan struct{} // closed once err is set
	err    error
	tell   func(error)
}

func newFailure(tell func(error)) *failure {
	return &failure{failed: make(chan struct{}), tell: tell}
}

func (f *failure) report(err error) {
	f.once.Do(func() {
		f.err = fmt.Errorf("engine failed: %w", err)
		close(f.failed)
		if f.tell != nil {
			f.tell(f.err)
		}
	})
}

// get returns the first error, or nil.
func (f *failure) get() error {
	select {
	case <-f.failed:
		return f.err
	default:
		return nil
	}
}

// failStopFS reports the first failed sync, and refuses all changes after it (E4).
//
// Pebble retries a flush that failed, and no second attempt may reach the disk. Two
// counterexamples: the sync of a table fails, the kernel drops the dirty pages and
// marks them clean, and the second sync succeeds without having written anything. Or
// the sync of the manifest fails although the record is on disk, the retry adds a
// second record for the same table, and the database panics when it is opened.
//
// Reads stay possible: they let a node answer while it stops.
type failStopFS struct {
	vfs.FS
	failure *failure
}

func (fs failStopFS) Unwrap() vfs.FS { return fs.FS }

// file wraps the result of opening a file for writing, or of opening a directory, which
// is opened to be synced.
func (fs failStopFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, unwritten(err)
	}
	return failStopFile{f, fs.failure}, nil
}

func (fs failStopFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.failure.get(); err != nil {
		return nil, err
	}
	return fs.file(fs.FS.Create(name, category))
}

func (fs failStopFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := fs.failure.get(); err != nil {
		return nil, err
	}
	return fs.file(fs.FS.OpenReadWrite(name, category, opts...))
}

func (fs failStopFS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.failure.get(); err != nil {
		return nil, err
	}
	return fs.file(fs.FS.ReuseForWrite(from, to, category))
}

func (fs failStopFS) OpenDir(name string) (vfs.File, error) {
	return fs.file(fs.FS.OpenDir(name))
}

func (fs failStopFS) Link(from, to string) error {
	if err := fs.failure.get(); err != nil {
		return err
	}
	return unwritten(fs.FS.Link(from, to))
}

func (fs failStopFS) Rename(from, to string) error {
	if err := fs.failure.get(); err != nil {
		return err
	}
	return unwritten(fs.FS.Rename(from, to))
}

func (fs failStopFS) Remove(name string) error {
	if err := fs.failure.get(); err != nil {
		return err
	}
	return unwritten(fs.FS.Remove(name))
}

func (fs failStopFS) RemoveAll(name string) error {
	if err := fs.failure.get(); err != nil {
		return err
	}
	return unwritten(fs.FS.RemoveAll(name))
}

func (fs failStopFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := fs.failure.get(); err != nil {
		return err
	}
	return unwritten(fs.FS.MkdirAll(dir, perm))
}

type failStopFile struct {
	vfs.File
	failure *failure
}

func (f failStopFile) Write(p []byte) (int, error) {
	if err := f.failure.get(); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	return n, unwritten(err)
}

func (f failStopFile) WriteAt(p []byte, offset int64) (int, error) {
	if err := f.failure.get(); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(p, offset)
	return n, unwritten(err)
}

// errUnwritten marks what the disk did not take. That says nothing about the files that
// are there, unless one of them is missing.
var errUnwritten = errors.New("not written")

func unwritten(err error) error {
	if err == nil || errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnwritten, err)
}

func (f failStopFile) Sync() error {
	return f.sync(f.File.Sync)
}

func (f failStopFile) SyncData() error {
	return f.sync(f.File.SyncData)
}

func (f failStopFile) SyncTo(length int64) (fullSync bool, err error) {
	err = f.sync(func() error {
		fullSync, err = f.File.SyncTo(length)
		return err
	})
	return fullSync, err
}

func (f failStopFile) sync(sync func() error) error {
	if err := f.failure.get(); err != nil {
		return err
	}
	if err := sync(); err != nil {
		err = unwritten(fmt.Errorf("sync: %w", err))
		f.failure.report(err)
		return err
	}
	return nil
}
