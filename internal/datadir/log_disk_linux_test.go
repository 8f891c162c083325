package datadir

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestLogErrorSticks fills the file system. The first error sticks, nothing more is
// written, and every acknowledged entry is found again.
func TestLogErrorSticks(t *testing.T) {
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 0), entriesAt(1, 10, 1, 100)...)
	name, err := d.lastSegment()
	if err != nil {
		t.Fatal(err)
	}
	restore := fillUp(t, filepath.Join(walDir(dir), name))
	first := d.Save(nil, entriesAt(11, 12, 1, 100))
	if !errors.Is(first, syscall.ENOSPC) {
		t.Fatalf("save on a full file system: %v", first)
	}
	restore()
	for what, err := range map[string]error{
		"save":         d.Save(hardStateAt(2, 1, 10), nil),
		"SaveSnapshot": d.SaveSnapshot(snapshotAt(10, 1)),
		"mark":         d.UpdateWatermark(time.Now()),
		"release":      d.release(5),
		"purge":        d.Purge(2),
	} {
		if !errors.Is(err, first) {
			t.Errorf("%s after the error: %v", what, err)
		}
	}
	_ = d.Close() // it repeats the error from above
	_, state := mustOpenLog(t, killed(t, dir))
	if lastOf(state) < 10 {
		t.Errorf("last entry %d", lastOf(state))
	}
}

// fillUp replaces an open file of this process by /dev/full.
func fillUp(t *testing.T, path string) (restore func()) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no /dev/full to make writes fail with: %v", err)
	}
	defer full.Close()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc to find the open file in: %v", err)
	}
	for _, f := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + f.Name()); target != path {
			continue
		}
		fd, _ := strconv.Atoi(f.Name())
		saved, err := syscall.Dup(fd)
		if err == nil {
			err = syscall.Dup3(int(full.Fd()), fd, syscall.O_CLOEXEC)
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := errors.Join(syscall.Dup3(saved, fd, syscall.O_CLOEXEC), syscall.Close(saved)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("%s is not open", path)
	return nil
}

// TestLogFullDiskAtStartIsNoDamage: etcd reserves the rest of the last segment when it
// opens a log. A disk that has no room, or fails, does not make the log a damaged one:
// the start fails, nothing is refused for good, and the next one finds everything.
func TestLogFullDiskAtStartIsNoDamage(t *testing.T) {
	if dir := os.Getenv(fullDiskEnv); dir != "" {
		startWithoutRoom(t, dir)
		return
	}
	dir := t.TempDir()
	d := mustCreateLog(t, dir)
	mustSave(t, d, hardStateAt(1, 1, 10), entriesAt(1, 10, 1, 100)...)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	start := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	start.Env = append(os.Environ(), fullDiskEnv+"="+dir)
	if out, err := start.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, state := mustOpenLog(t, dir); lastOf(state) != 10 {
		t.Errorf("last entry %d", lastOf(state))
	}
}

// fullDiskEnv names the directory for startWithoutRoom.
const fullDiskEnv = "KVD_TEST_FULL_DISK"

// startWithoutRoom opens a log in a process whose files do not grow. The limit holds for all
// files of a process, so it has one of its own.
func startWithoutRoom(t *testing.T, dir string) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4 << 10, Max: 4 << 10}); err != nil {
		t.Fatal(err)
	}
	_, _, err := openLog(zap.NewNop(), dir)
	var refused *RefusedError
	if err == nil || errors.As(err, &refused) || !errors.Is(err, syscall.EFBIG) {
		t.Errorf("a start without room: %v", err)
	}
}
