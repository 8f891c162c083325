package main

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// volatileFileSystem says which file system the directory is, or will be, on,
// if it is one whose files do not outlive the machine's memory or a container.
func volatileFileSystem(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	var s unix.Statfs_t
	for unix.Statfs(dir, &s) != nil {
		if dir == filepath.Dir(dir) {
			return ""
		}
		dir = filepath.Dir(dir) // it is not there yet
	}
	switch s.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	}
	return ""
}
