package datadir

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// WriteBody writes a snapshot body durably and returns its size in bytes. After a
// crash or an error, the file at path is the previous one, or none. It never
// fills the disk: it returns a *NoRoomError instead.
func WriteBody(path string, body io.WriterTo) (size int64, err error) {
	size, err = replaceFrom(path, roomyBody{dir: filepath.Dir(path), body: body})
	if err != nil {
		return 0, fmt.Errorf("write snapshot body: %w", err)
	}
	return size, nil
}

// WriteVerified writes a backup like WriteBody, but reads it back from the file before
// it gives the file its name. An old file at path stays if anything is wrong with the
// new one. The path may be on any disk, so no space is reserved for a node.
func WriteVerified(path string, body io.WriterTo, verify func(io.Reader) error) (size int64, err error) {
	size, err = replaceVerified(path, body, verify)
	if err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	return size, nil
}

// roomyBody writes a body through a RoomyWriter.
type roomyBody struct {
	dir  string
	body io.WriterTo
}

func (b roomyBody) WriteTo(w io.Writer) (int64, error) {
	return b.body.WriteTo(&RoomyWriter{Dir: b.dir, W: w})
}

// replaceFile replaces a small file durably.
func replaceFile(path string, content []byte) error {
	_, err := replaceFrom(path, bytes.NewReader(content))
	return err
}

// replaceFrom writes a file in four steps: content under a temporary name,
// fsync, rename, fsync of the directory. Readers and crashes see the old
// content or the new, never a mixture.
func replaceFrom(path string, content io.WriterTo) (size int64, err error) {
	return replaceVerified(path, content, nil)
}

// replaceVerified is replaceFrom. Before the rename it passes the file to verify, if
// that is not nil.
func replaceVerified(path string, content io.WriterTo, verify func(io.Reader) error) (size int64, err error) {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	size, err = content.WriteTo(f)
	if err == nil {
		err = fileutil.Fsync(f)
	}
	if err == nil && verify != nil {
		err = verify(io.NewSectionReader(f, 0, size))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // useless now, and the first error is the one to report
		return 0, err
	}
	return size, syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fileutil.Fsync(d)
}

// listSuffix lists the files with the suffix in name order. For segments and
// .snap files that is also their order in time, because their names are
// numbers of fixed width. (In a .snap file's name the term comes first; it
// grows with the index.)
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

// dirBytes returns the size of the files below a directory. Files may come and
// go meanwhile, so errors count as absence.
func dirBytes(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}
