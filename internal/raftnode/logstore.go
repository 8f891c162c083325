package raftnode

import (
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// logStore is the part of the log that raft can read: the entries after the
// last compaction, in memory, behind the disk. The append loop writes it, the
// node loop reads it (through raft), the snapshotter compacts it.
type logStore struct {
	confState *raftpb.ConfState // at the start; raft keeps its own from then on

	mu struct {
		sync.Mutex
		hardState *raftpb.HardState
		// The entry before the first: what was compacted away.
		index, term uint64
		entries     []*raftpb.Entry
		bytes       int // that they take
		dropped     int // bytes of compacted entries that are still in memory
		offered     *raftpb.Snapshot
		wanted      bool
	}
}

var _ raftLog = (*logStore)(nil)

// newLogStore holds what was found on disk: a snapshot (nil: none), the hard
// state and the entries after the snapshot.
func newLogStore(s *raftpb.Snapshot, hs *raftpb.HardState, entries []*raftpb.Entry, cs *raftpb.ConfState) *logStore {
	l := &logStore{confState: cs}
	l.mu.hardState = hs
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.append(entries)
	return l
}

// InitialState returns what raft starts from.
func (l *logStore) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.hardState, l.confState, nil
}

func (l *logStore) setHardState(hs *raftpb.HardState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.hardState = hs
}

// Entries returns the entries in [lo, hi), as many as fit into maxSize bytes
// but at least one.
func (l *logStore) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lo <= l.mu.index {
		return nil, raft.ErrCompacted
	}
	if last := l.lastLocked(); hi > last+1 {
		panic(fmt.Sprintf("raftnode: entries up to %d asked for, the log ends at %d", hi-1, last))
	}
	if len(l.mu.entries) == 0 {
		return nil, raft.ErrUnavailable
	}
	from := l.mu.entries[lo-l.mu.index-1 : hi-l.mu.index-1]
	n, size := 0, uint64(0)
	for _, e := range from {
		size += uint64(proto.Size(e)) // raft measures so too
		if n > 0 && size > maxSize {
			break
		}
		n++
	}
	return from[:n:n], nil
}

// entrySize is the memory that an entry takes, nearly: its data and its
// struct.
func entrySize(e *raftpb.Entry) int { return len(e.GetData()) + entryOverhead }

const entryOverhead = 96

// Term returns the term of entry i.
func (l *logStore) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case i == l.mu.index:
		return l.mu.term, nil
	case i < l.mu.index:
		return 0, raft.ErrCompacted
	case i > l.lastLocked():
		return 0, raft.ErrUnavailable
	}
	return l.mu.entries[i-l.mu.index-1].GetTerm(), nil
}

// LastIndex returns the index of the last entry.
func (l *logStore) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastLocked(), nil
}

func (l *logStore) lastLocked() uint64 { return l.mu.index + uint64(len(l.mu.entries)) }

// FirstIndex returns the index of the first entry that is still here.
func (l *logStore) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.index + 1, nil
}

// Snapshot returns a snapshot whose body is ready to be sent. Where there is
// none it notes that one is wanted, and raft asks again later.
func (l *logStore) Snapshot() (*raftpb.Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.mu.offered; s != nil && s.GetMetadata().GetIndex() >= l.mu.index {
		return s, nil
	}
	l.mu.wanted = true
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

// wanted reports whether raft asked for a snapshot since the last call.
func (l *logStore) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.mu.wanted
	l.mu.wanted = false
	return w
}

// offerSnapshot makes a snapshot available to raft. Whatever raft asked for
// while its body was being built is answered by it.
func (l *logStore) offerSnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered, l.mu.wanted = s, false
}

// withdrawSnapshot takes an offer back: its body is gone.
func (l *logStore) withdrawSnapshot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered = nil
}

// append adds entries; those that conflict with later ones replace them.
func (l *logStore) append(entries []*raftpb.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(entries) > 0 && entries[0].GetIndex() <= l.mu.index {
		entries = entries[1:] // compacted already
	}
	if len(entries) == 0 {
		return
	}
	first := entries[0].GetIndex()
	if first > l.lastLocked()+1 {
		panic(fmt.Sprintf("raftnode: entry %d appended to a log that ends at %d", first, l.lastLocked()))
	}
	keep := first - l.mu.index - 1
	for _, e := range l.mu.entries[keep:] {
		l.mu.bytes -= entrySize(e)
	}
	if keep < uint64(len(l.mu.entries)) {
		l.mu.entries = l.mu.entries[:keep:keep] // raft may hold the old ones: copy
		l.mu.dropped = 0
	}
	l.mu.entries = append(l.mu.entries, entries...)
	for _, e := range entries {
		l.mu.bytes += entrySize(e)
	}
}

// applySnapshot replaces the log by a received snapshot.
func (l *logStore) applySnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.mu.entries, l.mu.bytes, l.mu.dropped, l.mu.offered = nil, 0, 0, nil
}

// compact drops the oldest applied entries until at most maxBytes and
// maxEntries are left. A pinned index other than 0 is that of a snapshot under
// way: the entries after it stay for its receiver.
func (l *logStore) compact(applied uint64, maxBytes, maxEntries int, pinned uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := applied
	if pinned != 0 {
		limit = min(limit, pinned)
	}
	n, bytes := 0, l.mu.bytes
	for n < len(l.mu.entries) && l.mu.entries[n].GetIndex() <= limit &&
		(bytes > maxBytes || len(l.mu.entries)-n > maxEntries) {
		bytes -= entrySize(l.mu.entries[n])
		n++
	}
	l.dropLocked(n)
}

// dropLocked drops the n oldest entries. What raft holds of the slice must
// stay as it is, so the memory comes back only with a copy of the rest; that is
// made when an eighth of what is left was dropped: it copies pointers, no data.
func (l *logStore) dropLocked(n int) {
	if n == 0 {
		return
	}
	for _, e := range l.mu.entries[:n] {
		l.mu.bytes -= entrySize(e)
		l.mu.dropped += entrySize(e)
	}
	l.mu.index, l.mu.term = l.mu.entries[n-1].GetIndex(), l.mu.entries[n-1].GetTerm()
	l.mu.entries = l.mu.entries[n:]
	if l.mu.dropped >= l.mu.bytes/8 {
		l.mu.entries = slices.Clone(l.mu.entries)
		l.mu.dropped = 0
	}
}

// sizes returns the entries held and the memory they take, nearly.
func (l *logStore) sizes() (entries, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.entries), l.mu.bytes
}
