package datadir

import (
	"os"
	"testing"
)

// TestMain keeps the files of the tests in memory, if the system has a directory there.
// They write and sync whole logs thousands of times, and none of them depends on a disk.
func TestMain(m *testing.M) {
	os.Exit(inMemory(m))
}

func inMemory(m *testing.M) int {
	if dir, err := os.MkdirTemp("/dev/shm", "kvd-datadir"); err == nil {
		defer os.RemoveAll(dir)
		if err := os.Setenv("TMPDIR", dir); err != nil {
			return 1
		}
	}
	return m.Run()
}
