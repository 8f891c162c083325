package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is something that a member does with its files, and that begins when a file appears.
type step string

const (
	anytime        step = ""
	identitySaved  step = "identity"
	segmentCut     step = "segment cut"
	snapshotSaved  step = "snapshot save"
	bodyReceived   step = "body received"
	storeInstalled step = "store installed"
)

// stepFiles are the files, as patterns of paths below a directory of data directories.
var stepFiles = map[step]string{
	identitySaved:  "*/member.json",
	segmentCut:     "*/wal/*.wal",
	snapshotSaved:  "*/snap/*.snap",
	bodyReceived:   "*/snap/*.snap.db",
	storeInstalled: "*/store/db-*",
}

// stepWatch is told by the kernel of files that are created below a directory.
type stepWatch struct {
	t       testing.TB
	root    string
	pattern string
	fd      int
	dirs    map[int32]string
}

func newStepWatch(t testing.TB, root string, s step) *stepWatch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &stepWatch{t: t, root: root, pattern: filepath.Join(root, stepFiles[s]), fd: fd, dirs: make(map[int32]string)}
	w.add(root)
	return w
}

func (w *stepWatch) close() {
	if err := unix.Close(w.fd); err != nil {
		w.t.Error(err)
	}
}

// add watches a directory and those below it, down to the depth of the patterns.
func (w *stepWatch) add(dir string) {
	// A directory that is gone again creates nothing.
	wd, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO)
	if err != nil {
		return
	}
	w.dirs[int32(wd)] = dir
	rel, err := filepath.Rel(w.root, dir)
	if err != nil {
		w.t.Fatal(err)
	}
	const depth = 1 // of the separators in a data directory's own directories
	if bytes.Count([]byte(rel), []byte{filepath.Separator}) >= depth {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			w.add(filepath.Join(dir, e.Name()))
		}
	}
}

// await waits until the step begins, and reports whether that was before the limit.
func (w *stepWatch) await(limit time.Duration) bool {
	w.t.Helper()
	deadline := time.Now().Add(limit)
	buffer := make([]byte, 64<<10)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			w.t.Fatal(err)
		} else if n <= 0 {
			continue
		}
		n, err := unix.Read(w.fd, buffer)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if w.begun(buffer[:n]) {
			return true
		}
	}
}

// begun reads events, and reports whether one of them is the step's.
func (w *stepWatch) begun(events []byte) (begun bool) {
	for len(events) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&events[0]))
		end := unix.SizeofInotifyEvent + int(e.Len)
		name := bytes.TrimRight(events[unix.SizeofInotifyEvent:end], "\x00")
		events = events[end:]
		path := filepath.Join(w.dirs[e.Wd], string(name))
		if match, err := filepath.Match(w.pattern, path); err != nil {
			w.t.Fatal(err)
		} else if match {
			begun = true
		}
		if e.Mask&unix.IN_ISDIR != 0 {
			w.add(path)
		}
	}
	return begun
}
