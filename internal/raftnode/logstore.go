package raftnode

import (
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// logStore is the part of the log that raft can read: the entries after the last
// compaction, in memory, behind the disk. The append loop writes it, the node
// loop reads it (through raft), and the snapshotter compacts it, so everything
// in it is under a lock. Nobody holds the lock while waiting for anything.
//
// Raft keeps slices that Entries returned, and hands them to the transport. So
// entries are never changed in place: an overwritten tail is cut off with its
// capacity, and the next append copies.
//
// Snapshot is how raft asks for a snapshot for a follower that needs entries
// from before the first. It only leaves a wish (wanted); the snapshotter takes
// it up, and offers a snapshot once its body is complete.
type logStore struct {
	confState *raftpb.ConfState // at the start; from then on raft keeps its own

	mu struct {
		sync.Mutex
		hardState *raftpb.HardState
		// Position of the entry before the first one.
		index, term uint64
		entries     []*raftpb.Entry
		bytes       int // memory that entries take
		dropped     int // memory of compacted entries, which entries' array still holds
		offered     *raftpb.Snapshot
		wanted      bool // raft asked for a snapshot
	}
}

var _ raftLog = (*logStore)(nil)

// newLogStore returns a log with what was found on disk: a snapshot, which may be
// nil, the hard state, and the entries after the snapshot.
func newLogStore(s *raftpb.Snapshot, hs *raftpb.HardState, entries []*raftpb.Entry, cs *raftpb.ConfState) *logStore {
	l := &logStore{confState: cs}
	l.mu.hardState = hs
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.append(entries)
	return l
}

// InitialState implements raft.Storage.
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

// Entries implements raft.Storage. It returns the entries in [lo, hi), as many as
// fit into maxSize bytes but at least one.
func (l *logStore) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lo <= l.mu.index {
		return nil, raft.ErrCompacted
	}
	if last := l.lastLocked(); hi > last+1 {
		panic(fmt.Sprintf("raftnode: entries up to %d requested, but the log ends at %d", hi-1, last))
	}
	if len(l.mu.entries) == 0 {
		return nil, raft.ErrUnavailable
	}
	from := l.mu.entries[lo-l.mu.index-1 : hi-l.mu.index-1]
	n, size := 0, uint64(0)
	for _, e := range from {
		size += uint64(proto.Size(e)) // as raft measures
		if n > 0 && size > maxSize {
			break
		}
		n++
	}
	return from[:n:n], nil
}

// entrySize is roughly the memory that an entry takes.
func entrySize(e *raftpb.Entry) int { return len(e.GetData()) + entryOverhead }

// entryOverhead is roughly what an entry takes beside its data: the struct with
// its protobuf state, index and term, and the pointer in the slice.
const entryOverhead = 96

// Term implements raft.Storage.
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

// LastIndex implements raft.Storage.
func (l *logStore) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastLocked(), nil
}

func (l *logStore) lastLocked() uint64 { return l.mu.index + uint64(len(l.mu.entries)) }

// FirstIndex implements raft.Storage.
func (l *logStore) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.index + 1, nil
}

// Snapshot implements raft.Storage. It returns a snapshot whose body is ready to
// be sent. If there is none it notes the wish, and raft asks again later. A
// snapshot from before the first entry counts as none: its receiver could not
// continue from it.
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

// offerSnapshot makes a snapshot available to raft. It also answers what raft
// asked for while the body was being built.
func (l *logStore) offerSnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered, l.mu.wanted = s, false
}

// withdrawSnapshot takes an offer back because its body is about to be removed.
func (l *logStore) withdrawSnapshot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered = nil
}

// append adds entries. They replace those with the same and with later indexes.
func (l *logStore) append(entries []*raftpb.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(entries) > 0 && entries[0].GetIndex() <= l.mu.index {
		entries = entries[1:] // already compacted
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

// applySnapshot replaces the log with a received snapshot.
func (l *logStore) applySnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.mu.entries, l.mu.bytes, l.mu.dropped, l.mu.offered = nil, 0, 0, nil
}

// compact drops the oldest applied entries until at most maxBytes and maxEntries
// are left. A pinned index other than 0 is that of a snapshot that is being sent:
// the entries after it stay for its receiver. Entries that are not applied here
// stay in any case, as raft must still hand them out.
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

// dropLocked drops the n oldest entries. Raft may hold parts of the slice, so the
// memory only comes back with a copy of the rest. The copy is made when an eighth
// of what is left has been dropped; it copies pointers, no data, so its cost per
// dropped entry stays constant.
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

// sizes returns the number of entries and roughly the memory that they take.
func (l *logStore) sizes() (entries, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.entries), l.mu.bytes
}
