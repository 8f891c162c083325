package datadir

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// WriteBody writes a body durably: to a temporary name, fsync, rename, and
// fsync of the directory.
func WriteBody(path string, body io.WriterTo) (size int64, err error) {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp) // it is of no use; the error to report is the first
		}
	}()
	size, err = body.WriteTo(f)
	if err == nil {
		err = fileutil.Fsync(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, fmt.Errorf("write snapshot body: %w", err)
	}
	if err = os.Rename(temp, path); err != nil {
		return 0, err
	}
	return size, syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fileutil.Fsync(d)
}
