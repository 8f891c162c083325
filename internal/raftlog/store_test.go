package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func storeOf(first, last, term uint64) *Store {
	return New(snapshotAt(first-1, term), hardStateAt(term, 1, first-1), entriesAt(first, last, term, 30), &raftpb.ConfState{Voters: []uint64{1, 2}})
}

// compactTo compacts with the given bounds.
func compactTo(l *Store, applied uint64, maxBytes, maxEntries int, pinned uint64) {
	l.MaxBytes, l.MaxEntries = maxBytes, maxEntries
	l.NoteApplied(applied)
	l.SetPin(pinned)
	if l.NewSpoolFile == nil {
		l.NewSpoolFile = newMemoryFile
	}
	if err := l.Compact(); err != nil {
		panic(err)
	}
}

// memoryFile is a SpoolFile without a disk.
type memoryFile struct {
	mu     sync.Mutex
	data   []byte
	closed bool
	fail   error
}

func newMemoryFile() (SpoolFile, error) { return new(memoryFile), nil }

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

func TestLogStoreInitialState(t *testing.T) {
	l := storeOf(11, 20, 3)
	hs, cs, err := l.InitialState()
	if err != nil || hs.GetTerm() != 3 || len(cs.GetVoters()) != 2 {
		t.Errorf("%v, %v, %v", hs, cs, err)
	}
	l.SetHardState(hardStateAt(4, 2, 12))
	if hs, _, _ := l.InitialState(); hs.GetTerm() != 4 {
		t.Errorf("%v", hs)
	}
	fresh := New(nil, nil, nil, new(raftpb.ConfState))
	first, _ := fresh.FirstIndex()
	last, _ := fresh.LastIndex()
	if term, err := fresh.Term(0); first != 1 || last != 0 || term != 0 || err != nil {
		t.Errorf("a fresh log: first %d, last %d, term %d, %v", first, last, term, err)
	}
}

func TestLogStoreTerm(t *testing.T) {
	l := storeOf(11, 20, 3)
	l.Append(entriesAt(18, 19, 5, 30))
	for _, c := range []struct {
		index, term uint64
		err         error
	}{{9, 0, raft.ErrCompacted}, {10, 3, nil}, {17, 3, nil}, {18, 5, nil}, {19, 5, nil}, {20, 0, raft.ErrUnavailable}} {
		if term, err := l.Term(c.index); term != c.term || !errors.Is(err, c.err) {
			t.Errorf("term of %d: %d, %v", c.index, term, err)
		}
	}
}

func TestLogStoreEntriesBySize(t *testing.T) {
	l := storeOf(11, 20, 3)
	one := uint64(proto.Size(entryAt(11, 3, 30)))
	for _, c := range []struct{ lo, hi, size, want uint64 }{
		{11, 21, 1 << 30, 10}, {11, 21, 0, 1}, {11, 21, one, 1}, {11, 21, 2*one - 1, 1}, {11, 21, 2 * one, 2}, {15, 17, 1 << 30, 2}, {20, 21, 1 << 30, 1},
	} {
		ents, err := l.Entries(c.lo, c.hi, c.size)
		if err != nil || uint64(len(ents)) != c.want || ents[0].GetIndex() != c.lo {
			t.Errorf("[%d, %d) of %d bytes: %d entries, %v", c.lo, c.hi, c.size, len(ents), err)
		}
	}
	if _, err := l.Entries(10, 12, 1); !errors.Is(err, raft.ErrCompacted) {
		t.Errorf("compacted entries: %v", err)
	}
}

// The slices that raft got do not change under it, nor does the log when raft
// appends to them.
func TestLogStoreSlicesAreSafe(t *testing.T) {
	l := storeOf(1, 10, 1)
	held, err := l.Entries(3, 8, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(held, entryAt(8, 9, 5))
	l.Append(entriesAt(5, 12, 2, 30))
	compactTo(l, 4, 0, 0, 0)
	l.Append(entriesAt(13, 40, 2, 30))
	compactTo(l, 30, 0, 0, 0)
	for i, e := range held {
		if e.GetIndex() != uint64(3+i) || e.GetTerm() != 1 {
			t.Errorf("entry %d of what raft holds is %v", i, e)
		}
	}
	if term, err := l.Term(31); term != 2 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
}

func TestLogStoreAppendPanicsOnAGap(t *testing.T) {
	l := storeOf(1, 10, 1)
	defer func() {
		if r := fmt.Sprint(recover()); !strings.Contains(r, "entry 12") || !strings.Contains(r, "ends at 10") {
			t.Errorf("panic %q", r)
		}
	}()
	l.Append(entriesAt(12, 12, 1, 30))
}

func TestLogStoreCompact(t *testing.T) {
	size := entrySize(entryAt(1, 1, 30))
	for _, c := range []struct {
		name            string
		applied         uint64
		bytes, entries  int
		pinned, wantFst uint64
	}{
		{"both bounds hold", 100, 1 << 20, 100, 0, 1},
		{"too many entries", 100, 1 << 20, 30, 0, 71},
		{"too many bytes", 100, 40 * size, 100, 0, 61},
		{"the tighter bound", 100, 40 * size, 30, 0, 71},
		{"only applied ones", 50, 1 << 20, 30, 0, 51},
		{"none", 0, 0, 0, 0, 1},
		{"all", 100, 0, 0, 0, 101},
		{"a transfer needs them", 100, 0, 0, 33, 34},
		{"a transfer from before the log", 100, 0, 0, 1, 2},
		{"a transfer beyond applied", 20, 0, 0, 33, 21},
	} {
		l := New(nil, nil, entriesAt(1, 100, 1, 30), new(raftpb.ConfState))
		compactTo(l, c.applied, c.bytes, c.entries, c.pinned)
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		n, bytes := l.Sizes()
		onDisk, _ := l.Spooled()
		if first != c.wantFst || last != 100 || n+int(onDisk) != int(101-c.wantFst) || bytes != n*size {
			t.Errorf("%s: first %d, want %d; last %d, %d entries of %d bytes", c.name, first, c.wantFst, last, n, bytes)
		}
	}
}

// Small compactions of a long log must not copy it each time.
func TestLogStoreCompactionIsAmortised(t *testing.T) {
	const n = 20_000
	l := New(nil, nil, entriesAt(1, n, 1, 30), new(raftpb.ConfState))
	index := uint64(0)
	allocs := testing.AllocsPerRun(n-2, func() {
		index++
		compactTo(l, index, 0, 0, 0)
	})
	if allocs >= 1 {
		t.Errorf("%.2f allocations a compaction", allocs)
	}
	if entries, _ := l.Sizes(); cap(l.mu.entries) > 4*entries+64 {
		t.Errorf("%d entries in a slice for %d", entries, cap(l.mu.entries))
	}
}

// wasAsked reports whether raft asked for a snapshot since the last call.
func wasAsked(l *Store) bool {
	select {
	case <-l.Asked:
		return true
	default:
		return false
	}
}

func TestLogStoreSnapshotOnDemand(t *testing.T) {
	l := storeOf(11, 20, 3)
	if wasAsked(l) {
		t.Error("wanted before raft asked")
	}
	if _, err := l.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) || !wasAsked(l) || wasAsked(l) {
		t.Errorf("%v; wanted must be said once", err)
	}
	l.OfferSnapshot(snapshotAt(15, 3))
	if s, err := l.Snapshot(); err != nil || s.GetMetadata().GetIndex() != 15 || wasAsked(l) {
		t.Errorf("%v, %v", s, err)
	}
	compactTo(l, 15, 0, 0, 0) // the log still goes on from it
	if s, err := l.Snapshot(); err != nil || s.GetMetadata().GetIndex() != 15 {
		t.Errorf("%v, %v", s, err)
	}
	compactTo(l, 16, 0, 0, 0)
	if _, err := l.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) || !wasAsked(l) {
		t.Errorf("a snapshot that the log does not continue: %v", err)
	}
	l.OfferSnapshot(snapshotAt(18, 3))
	l.WithdrawSnapshot()
	if _, err := l.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) {
		t.Errorf("a withdrawn snapshot: %v", err)
	}
	l.OfferSnapshot(snapshotAt(18, 3))
	l.ApplySnapshot(snapshotAt(50, 4))
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if n, bytes := l.Sizes(); first != 51 || last != 50 || n != 0 || bytes != 0 {
		t.Errorf("after a snapshot: first %d, last %d, %d entries, %d bytes", first, last, n, bytes)
	}
	if _, err := l.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) {
		t.Errorf("an offer from before an installed snapshot: %v", err)
	}
}

// TestLogStoreAgainstModel compares with etcd's own storage in memory.
func TestLogStoreAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		model := raft.NewMemoryStorage()
		l := New(nil, nil, nil, new(raftpb.ConfState))
		term := uint64(1)
		for range 300 {
			first, _ := model.FirstIndex()
			last, _ := model.LastIndex()
			switch rng.IntN(10) {
			case 0:
				if last > first {
					at := first + rng.Uint64N(last-first)
					if err := model.Compact(at); err != nil {
						t.Fatal(err)
					}
					compactTo(l, at, 0, 0, 0)
				}
			case 1:
				term++
				from := first + rng.Uint64N(last-first+2)
				ents := entriesAt(from, from+rng.Uint64N(4), term, rng.IntN(90))
				if err := model.Append(ents); err != nil {
					t.Fatal(err)
				}
				l.Append(ents)
			case 2:
				if rng.IntN(10) == 0 {
					s := snapshotAt(last+rng.Uint64N(5)+1, term)
					if err := model.ApplySnapshot(s); err != nil {
						t.Fatal(err)
					}
					l.ApplySnapshot(s)
				}
			default:
				ents := entriesAt(last+1, last+1+rng.Uint64N(3), term, rng.IntN(90))
				if err := model.Append(ents); err != nil {
					t.Fatal(err)
				}
				l.Append(ents)
			}
			sameStorage(t, seed, rng, model, l)
		}
	}
}

func sameStorage(t *testing.T, seed uint64, rng *rand.Rand, model, l raft.Storage) {
	t.Helper()
	first, _ := model.FirstIndex()
	last, _ := model.LastIndex()
	if f, _ := l.FirstIndex(); f != first {
		t.Fatalf("seed %d: first %d, want %d", seed, f, first)
	}
	if n, _ := l.LastIndex(); n != last {
		t.Fatalf("seed %d: last %d, want %d", seed, n, last)
	}
	at := first + rng.Uint64N(last-first+4)
	at -= min(at, 2)
	want, wantErr := model.Term(at)
	if got, err := l.Term(at); got != want || !errors.Is(err, wantErr) {
		t.Fatalf("seed %d: term of %d: %d, %v; want %d, %v", seed, at, got, err, want, wantErr)
	}
	if last < first {
		return
	}
	lo := first + rng.Uint64N(last-first+1)
	size := rng.Uint64N(600)
	wantEnts, _ := model.Entries(lo, last+1, size)
	got, err := l.Entries(lo, last+1, size)
	if err != nil || len(got) != len(wantEnts) {
		t.Fatalf("seed %d: %d entries, %v; want %d", seed, len(got), err, len(wantEnts))
	}
	for i := range got {
		if got[i] != wantEnts[i] {
			t.Fatalf("seed %d: entry %v, want %v", seed, got[i], wantEnts[i])
		}
	}
}

// heldSlice is a slice that raft was given, and what was in it.
type heldSlice struct {
	given, copied []*raftpb.Entry
}

// Whatever happens to the log later, slices that raft was given stay as they
// were, and the memory counted is that of the entries held.
func TestLogStoreSlicesStayUnderRandomHistories(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 4))
		l := New(nil, nil, nil, new(raftpb.ConfState))
		var held []heldSlice
		for term := uint64(1); term < 400; term++ {
			first, _ := l.FirstIndex()
			last, _ := l.LastIndex()
			switch rng.IntN(4) {
			case 0:
				compactTo(l, first+rng.Uint64N(last-first+2), rng.IntN(3000), rng.IntN(40), rng.Uint64N(2)*first)
			default:
				from := first + rng.Uint64N(last-first+2)
				if rng.IntN(3) > 0 {
					from = last + 1
				}
				l.Append(entriesAt(from, from+rng.Uint64N(8), term, rng.IntN(90)))
			}
			checkLogStoreSizes(t, l)
			first, _ = l.FirstIndex()
			if last, _ = l.LastIndex(); last >= first {
				given, err := l.Entries(first+rng.Uint64N(last-first+1), last+1, rng.Uint64N(2000))
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, heldSlice{given, slices.Clone(given)})
			}
		}
		for _, h := range held {
			if !slices.Equal(h.given, h.copied) {
				t.Fatalf("seed %d: entries from %d on have changed", seed, h.copied[0].GetIndex())
			}
		}
	}
}

func checkLogStoreSizes(t *testing.T, l *Store) {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	want := 0
	for _, e := range l.mu.entries {
		want += entrySize(e)
	}
	onDisk, _ := l.Spooled()
	if n, bytes := l.Sizes(); uint64(n)+onDisk != last+1-first || bytes != want || l.mu.dropped < 0 || l.mu.dropped > bytes {
		t.Fatalf("%d entries from %d to %d, %d bytes counted of %d, %d dropped", n, first, last, bytes, want, l.mu.dropped)
	}
}

// A leader appends entry by entry to a log of any length.
func TestLogStoreAppendIsAmortised(t *testing.T) {
	const n = 20_000
	l := New(nil, nil, nil, new(raftpb.ConfState))
	ents := entriesAt(1, n, 1, 30)
	next := 0
	allocs := testing.AllocsPerRun(n-2, func() {
		l.Append(ents[next : next+1])
		next++
	})
	if allocs >= 1 {
		t.Errorf("%.2f allocations an entry", allocs)
	}
}

// The bound of a snapshot that is being sent may lie before the log, or be its
// end. Entries that are not applied stay whatever the bounds say.
func TestLogStoreCompactKeepingAfterCompaction(t *testing.T) {
	l := storeOf(11, 20, 3)
	compactTo(l, 20, 0, 0, 5)
	if first, _ := l.FirstIndex(); first != 21 {
		t.Errorf("pinned before the log, which nobody can follow: first %d", first)
	}
	l = storeOf(11, 20, 3)
	compactTo(l, 9, 0, 0, 0)
	if first, _ := l.FirstIndex(); first != 11 {
		t.Errorf("applied before the log: first %d", first)
	}
	compactTo(l, 1000, 0, 0, 20)
	first, _ := l.FirstIndex()
	if term, err := l.Term(20); first != 21 || term != 3 || err != nil {
		t.Errorf("all compacted: first %d, term %d, %v", first, term, err)
	}
	l.Append(entriesAt(15, 20, 3, 30)) // a leader sends them again
	if last, _ := l.LastIndex(); last != 20 {
		t.Errorf("last %d", last)
	}
	l.Append(entriesAt(19, 22, 3, 30))
	if last, _ := l.LastIndex(); last != 22 {
		t.Errorf("last %d", last)
	}
	checkLogStoreSizes(t, l)
}

// BenchmarkLogStoreAppend appends entries to logs of several lengths, which
// stay at that length.
func BenchmarkLogStoreAppend(b *testing.B) {
	for _, n := range []uint64{100, 10_000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := New(nil, nil, entriesAt(1, n, 1, 100), new(raftpb.ConfState))
			e := entryAt(1, 1, 100)
			next := n
			for b.Loop() {
				next++
				l.Append([]*raftpb.Entry{{Index: new(next), Term: e.Term, Data: e.Data}})
				compactTo(l, next, 1<<30, int(n), 0)
			}
		})
	}
}
