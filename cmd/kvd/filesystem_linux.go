package main

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// volatileFileSystem returns the kind of the file system that the directory is
// on, or will be on once it is made, if its files do not survive a reboot or the
// removal of a container; "" for any other.
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
		dir = filepath.Dir(dir) // the directory does not exist yet
	}
	switch s.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	}
	return ""
}
