package raftnode

import (
	"bytes"
	"os"
	"runtime"
	"sync"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/raftlog"
)

// memoryFile is a raftlog.SpoolFile without a disk.
type memoryFile struct {
	mu     sync.Mutex
	data   []byte
	closed bool
	fail   error
}

func (f *memoryFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return 0, f.fail
	}
	f.data = append(f.data, p...)
	return len(p), nil
}

func (f *memoryFile) ReadAt(p []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	return bytes.NewReader(f.data).ReadAt(p, at)
}

func (f *memoryFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed, f.data = true, nil
	return nil
}

// TestSpoolTakesNoMemory: the log after a body is kept whatever its size, and
// memory does not grow with it.
func TestSpoolTakesNoMemory(t *testing.T) {
	l := raftlog.New(snapshotAt(10, 1), nil, nil, new(raftpb.ConfState))
	dir := t.TempDir()
	s := &snapshotter{outgoing: dir}
	l.MaxBytes, l.NewSpoolFile = 1<<20, s.newSpoolFile
	l.SetPin(10)
	const total, size = 256 << 20, 64 << 10
	before := heapAfterGC()
	next := uint64(11)
	for written := 0; written < total; written += size {
		l.Append([]*raftpb.Entry{entryAt(next, 2, size)})
		l.NoteApplied(next)
		next++
		if written%(1<<20) == 0 {
			if err := l.Compact(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if grown := int64(heapAfterGC()) - int64(before); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes for a log of %d", grown, total)
	}
	if behind := l.BytesAfter(10); behind < total || behind > total+total/50 {
		t.Errorf("%d bytes of log after the body, of %d", behind, total)
	}
	for _, at := range []uint64{11, 12, 1000, next - 1} {
		if e, err := l.Entries(at, next, 1<<20); err != nil || e[0].GetIndex() != at || len(e[0].GetData()) != size {
			t.Errorf("entry %d: %v", at, err)
		}
	}
	// A transfer that progresses gives the space back, and its end all of it.
	l.SetPin(next - 100)
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	if _, bytes := l.Spooled(); bytes > 64<<20 {
		t.Errorf("%d bytes are still kept for the last 100 entries, more than two files", bytes)
	}
	l.SetPin(0)
	if err := l.Compact(); err != nil {
		t.Fatal(err)
	}
	if files := readTree(t, dir); len(files) > 0 {
		t.Errorf("%d files are left", len(files))
	}
}

func heapAfterGC() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
