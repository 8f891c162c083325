package raftlog

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Store is the part of the log that raft can read, behind the disk. The
// Append loop writes it, the node loop reads it (through raft), the compactor
// compacts it.
//
// Raft keeps slices that Entries returned, and hands them to the transport. So
// entries are never changed in place: an overwritten tail is cut off with its
// capacity, and the next append copies.
//
// The newest entries are in memory. While a snapshot transfer needs more than
// memory may hold, what leaves the memory goes to a spool, and the log that raft
// sees begins there:
//
//	          pin                   index                      last
//	───────────┼─────────────────────┼──────────────────────────┤
//	 gone      │  on disk (spool)    │  in memory (entries)     │
//
// Reading the spool is the one thing for which the node loop may wait for a disk:
// one read of at most maxSpoolRead bytes, or of one entry, of what was written
// lately and is usually still in the page cache. If a file cannot be read or
// written, the spool is given up, and who needed it gets another snapshot.
//
// If the disk hangs while the compactor writes, memory must not grow without a
// bound: append gives the spool up as soon as the memory holds hardBytes.
type Store struct {
	confState *raftpb.ConfState // at the start; raft keeps its own from then on

	// NewSpoolFile makes a file for the spool; nil if there is no disk for it.
	NewSpoolFile func() (SpoolFile, error)
	// MaxBytes and MaxEntries bound what compaction leaves in memory of applied
	// entries; HardBytes (0: none) is where the spool is given up for memory.
	MaxBytes, MaxEntries, HardBytes int

	Asked chan struct{} // capacity 1: raft wants a snapshot, and there is none
	Full  chan struct{} // capacity 1: much can be compacted, or there are files to remove

	// mu is held by the three goroutines that the package comment names.
	mu struct {
		sync.Mutex
		hardState *raftpb.HardState
		// The entry before the first in memory.
		index, term uint64
		entries     []*raftpb.Entry
		bytes       int // that they take
		dropped     int // bytes of compacted entries that are still in memory
		applied     uint64
		offered     *raftpb.Snapshot

		// Entries after pin stay readable; 0: no transfer needs them.
		pin   uint64
		spool *spool
		// lost counts the times that the log was replaced or the spool given up:
		// what the compactor writes meanwhile counts for nothing.
		lost uint64
		dead []SpoolFile // for the compactor to close
	}
}

var _ raft.Storage = (*Store)(nil)

// New returns a log with what was found on disk: a snapshot, which may be
// nil, the hard state, and the entries after the snapshot.
func New(s *raftpb.Snapshot, hs *raftpb.HardState, entries []*raftpb.Entry, cs *raftpb.ConfState) *Store {
	l := &Store{
		confState: cs, MaxBytes: math.MaxInt, MaxEntries: math.MaxInt,
		Asked: make(chan struct{}, 1), Full: make(chan struct{}, 1),
	}
	l.mu.hardState = hs
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.Append(entries)
	return l
}

// InitialState implements raft.Storage.
func (l *Store) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.hardState, l.confState, nil
}

func (l *Store) SetHardState(hs *raftpb.HardState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.hardState = hs
}

// Entries implements raft.Storage. It returns the entries in [lo, hi), as many as
// fit into maxSize bytes but at least one, and none beyond a file of the spool.
func (l *Store) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.mu.Lock()
	if sp := l.mu.spool; sp != nil && lo > sp.index && lo <= sp.last {
		from, to, lost := sp.find(lo), min(hi, sp.last+1), l.mu.lost
		l.mu.Unlock()
		return l.readSpool(from, lo, to, maxSize, lost)
	}
	defer l.mu.Unlock()
	if lo <= l.mu.index {
		return nil, raft.ErrCompacted
	}
	if last := l.lastLocked(); hi > last+1 {
		panic(fmt.Sprintf("raftlog: entries up to %d requested, but the log ends at %d", hi-1, last))
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

// readSpool reads entries of the spool. The compactor may close their file
// meanwhile, because nobody needs them anymore; then they are compacted. Any
// other error gives the spool up.
func (l *Store) readSpool(from spoolRange, lo, hi, maxSize, lost uint64) ([]*raftpb.Entry, error) {
	entries, err := from.read(lo, hi, maxSize)
	if err == nil {
		return entries, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if sp := l.mu.spool; l.mu.lost == lost && sp != nil && lo > sp.index {
		l.giveUpLocked()
	}
	return nil, raft.ErrCompacted
}

// giveUpLocked drops the spool. The log begins with the memory again.
func (l *Store) giveUpLocked() {
	if l.mu.spool != nil {
		l.mu.dead = append(l.mu.dead, l.mu.spool.files()...)
		signal(l.Full)
	}
	l.mu.spool, l.mu.pin = nil, 0
	l.mu.lost++
}

// entrySize is roughly the memory that an entry takes.
func entrySize(e *raftpb.Entry) int { return len(e.GetData()) + entryOverhead }

// entryOverhead is roughly what an entry takes beside its data: the struct with
// its protobuf state, index and term, and the pointer in the slice.
const entryOverhead = 96

// Term implements raft.Storage.
func (l *Store) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case i == l.mu.index:
		return l.mu.term, nil
	case i < l.mu.index:
		if sp := l.mu.spool; sp != nil && i >= sp.index {
			return sp.termOf(i), nil
		}
		return 0, raft.ErrCompacted
	case i > l.lastLocked():
		return 0, raft.ErrUnavailable
	}
	return l.mu.entries[i-l.mu.index-1].GetTerm(), nil
}

// LastIndex implements raft.Storage.
func (l *Store) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastLocked(), nil
}

func (l *Store) lastLocked() uint64 { return l.mu.index + uint64(len(l.mu.entries)) }

// FirstIndex implements raft.Storage.
func (l *Store) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beforeFirstLocked() + 1, nil
}

// beforeFirstLocked returns the index before the first entry that can be read.
func (l *Store) beforeFirstLocked() uint64 {
	if l.mu.spool != nil {
		return l.mu.spool.index
	}
	return l.mu.index
}

// Snapshot implements raft.Storage. It returns a snapshot whose body is ready to
// be sent. If there is none it notes the wish in asked, and raft asks again later.
// A snapshot from before the first entry counts as none: its receiver could not
// continue from it.
func (l *Store) Snapshot() (*raftpb.Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.mu.offered; s != nil && s.GetMetadata().GetIndex() >= l.beforeFirstLocked() {
		return s, nil
	}
	signal(l.Asked)
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

// signal puts a token into a channel of capacity 1, unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// OfferSnapshot makes a snapshot available to raft.
func (l *Store) OfferSnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered = s
}

// WithdrawSnapshot takes an offer back because its body is about to be removed.
func (l *Store) WithdrawSnapshot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.offered = nil
}

// Append adds entries. They replace those with the same and with later indexes.
func (l *Store) Append(entries []*raftpb.Entry) {
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
		panic(fmt.Sprintf("raftlog: entry %d appended to a log that ends at %d", first, l.lastLocked()))
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
	if l.mu.bytes-l.MaxBytes > l.MaxBytes/4 {
		signal(l.Full)
	}
	if l.HardBytes > 0 && l.mu.bytes > l.HardBytes && l.mu.spool != nil {
		l.giveUpLocked()
		l.dropLocked(l.excessLocked())
	}
}

// ApplySnapshot replaces the log with a received snapshot.
func (l *Store) ApplySnapshot(s *raftpb.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.index, l.mu.term = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	l.mu.entries, l.mu.bytes, l.mu.dropped, l.mu.offered = nil, 0, 0, nil
	l.giveUpLocked()
}

// NoteApplied tells how far raft knows the log to be applied. Only those entries are
// compacted: before a campaign, raft reads the committed ones after them, and takes
// it for corruption if they are gone.
func (l *Store) NoteApplied(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.applied = max(l.mu.applied, index)
}

// SetPin keeps the entries after an index readable; 0 keeps none. Entries that
// are gone already do not come back.
func (l *Store) SetPin(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.pin != index {
		l.mu.pin = index
		signal(l.Full)
	}
}

// Pin returns the index after which entries stay readable; 0 if nothing is pinned.
func (l *Store) Pin() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.pin
}

// Compact drops the oldest applied entries from memory until the rest keeps the
// bounds. Those after the pin go to the spool before that. It is called by one
// goroutine, the compactor; an error means that the spool was given up.
func (l *Store) Compact() error {
	for {
		chunk, part, lost, err := l.nextChunk()
		if chunk == nil && err == nil {
			return l.closeDead()
		}
		if err == nil {
			_, err = part.file.Write(chunk.data)
		}
		l.acceptChunk(part, chunk, lost, err)
		if err != nil {
			return errors.Join(err, l.closeDead())
		}
	}
}

// nextChunk drops what may be dropped at once, and returns what must be spooled
// first, and the file to write it to. Without a chunk there is nothing to do.
func (l *Store) nextChunk() (*spoolChunk, *spoolPart, uint64, error) {
	l.mu.Lock()
	n := l.excessLocked()
	if l.mu.pin == 0 || l.mu.pin < l.beforeFirstLocked() || l.NewSpoolFile == nil {
		// Nobody needs them, or what is needed begins before them.
		if l.mu.spool != nil {
			l.giveUpLocked()
		}
		l.dropLocked(n)
		l.mu.Unlock()
		return nil, nil, 0, nil
	}
	if sp := l.mu.spool; sp != nil {
		l.mu.dead = append(l.mu.dead, sp.trim(l.mu.pin)...)
		if l.mu.pin >= l.mu.index && len(sp.parts) == 0 {
			l.mu.spool = nil
		}
	}
	if l.mu.spool == nil {
		free := int(min(uint64(n), max(l.mu.pin, l.mu.index)-l.mu.index))
		l.dropLocked(free)
		if n -= free; n > 0 {
			l.mu.spool = &spool{index: l.mu.index, term: l.mu.term, last: l.mu.index}
		}
	}
	if n == 0 {
		l.mu.Unlock()
		return nil, nil, 0, nil
	}
	out, sp, lost := l.mu.entries[:n:n], l.mu.spool, l.mu.lost
	var part *spoolPart
	if k := len(sp.parts); k > 0 && sp.parts[k-1].size < spoolPartBytes {
		part = sp.parts[k-1]
	}
	l.mu.Unlock()
	chunk, err := encodeChunk(out)
	if part == nil && err == nil {
		part = new(spoolPart)
		part.file, err = l.NewSpoolFile()
	}
	return chunk, part, lost, err
}

// acceptChunk publishes a chunk that was written, and drops its entries from the
// memory. If the spool was given up meanwhile, the chunk counts for nothing.
func (l *Store) acceptChunk(part *spoolPart, chunk *spoolChunk, lost uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stale := l.mu.lost != lost
	if (stale || err != nil) && part != nil && part.file != nil && part.size == 0 {
		l.mu.dead = append(l.mu.dead, part.file) // it is not among the spool's
	}
	switch {
	case stale:
	case err != nil:
		l.giveUpLocked()
		l.dropLocked(l.excessLocked())
	default:
		l.mu.spool.publish(part, chunk)
		l.dropLocked(len(chunk.entries))
	}
}

// excessLocked returns how many entries are applied and beyond the bounds.
func (l *Store) excessLocked() int {
	n, bytes := 0, l.mu.bytes
	for n < len(l.mu.entries) && l.mu.entries[n].GetIndex() <= l.mu.applied &&
		(bytes > l.MaxBytes || len(l.mu.entries)-n > l.MaxEntries) {
		bytes -= entrySize(l.mu.entries[n])
		n++
	}
	return n
}

// closeDead closes and removes the files that nobody needs anymore.
func (l *Store) closeDead() error {
	l.mu.Lock()
	dead := l.mu.dead
	l.mu.dead = nil
	l.mu.Unlock()
	var errs []error
	for _, f := range dead {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Close ends the spool, when the loops have ended.
func (l *Store) Close() error {
	l.mu.Lock()
	l.giveUpLocked()
	l.mu.Unlock()
	return l.closeDead()
}

// BytesAfter returns, nearly, the size of the log after an index.
func (l *Store) BytesAfter(index uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := int64(0)
	if l.mu.spool != nil {
		total = l.mu.spool.bytesAfter(index)
	}
	for i := len(l.mu.entries) - 1; i >= 0 && l.mu.entries[i].GetIndex() > index; i-- {
		total += int64(entrySize(l.mu.entries[i]))
	}
	return total
}

// Continues reports whether the log after an index can be read: whether a member
// that has everything up to it needs no snapshot.
func (l *Store) Continues(index uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return index >= l.beforeFirstLocked() && index <= l.lastLocked()
}

// InMemory reports whether the entries after an index are all in memory.
func (l *Store) InMemory(index uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return index >= l.mu.index
}

// Spooled returns the entries on disk for transfers, and their size.
func (l *Store) Spooled() (entries uint64, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sp := l.mu.spool; sp != nil {
		return sp.last - sp.index, sp.bytes
	}
	return 0, 0
}

// dropLocked drops the n oldest entries. Raft may hold parts of the slice, so the
// memory only comes back with a copy of the rest. The copy is made when an eighth
// of what is left has been dropped; it copies pointers, no data, so its cost per
// dropped entry stays constant.
func (l *Store) dropLocked(n int) {
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

// Sizes returns the number of entries and roughly the memory that they take.
func (l *Store) Sizes() (entries, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.entries), l.mu.bytes
}
