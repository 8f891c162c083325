package e2e

import (
	"syscall"
	"testing"
)

// processAttributes makes the kernel kill the nodes when the test process dies,
// for example at its timeout.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// limitMemory bounds the address space of this process.
func limitMemory(bytes uint64) error {
	return syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: bytes, Max: bytes})
}

// smallDisk mounts a file system of the given size, if the machine allows it.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir, err := mountDisk(t, size)
	if err != nil {
		t.Skipf("NOT TESTED: this user may not mount a file system: %v", err)
	}
	return dir
}

func mountDisk(t *testing.T, size string) (dir string, err error) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, nil
}

func growDisk(t *testing.T, dir, size string) {
	t.Helper()
	if err := resizeDisk(dir, size); err != nil {
		t.Fatal(err)
	}
}

// resizeDisk fails if more than the size is used.
func resizeDisk(dir, size string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size)
}
