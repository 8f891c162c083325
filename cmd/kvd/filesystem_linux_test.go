package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestForgetfulFileSystem(t *testing.T) {
	const memory = "/dev/shm"
	var s unix.Statfs_t
	if err := unix.Statfs(memory, &s); err != nil || s.Type != unix.TMPFS_MAGIC {
		t.Skipf("%s is not a file system in memory here (%v); nothing was tested", memory, err)
	}
	dir, err := os.MkdirTemp(memory, "kvd-test-")
	if err != nil {
		t.Skipf("cannot write to %s: %v", memory, err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{dir, filepath.Join(dir, "not", "there")} {
		if kind := volatileFileSystem(name); kind != "tmpfs" {
			t.Errorf("%s is on %q", name, kind)
		}
	}
	if kind := volatileFileSystem("/proc"); kind != "" {
		t.Errorf("/proc is %q", kind)
	}
}
