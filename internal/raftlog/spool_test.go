package raftlog

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestSpoolAgainstModel compares a log whose older part is on disk with a log
// that is all in memory, for entries from tiny to larger than one read.
func TestSpoolAgainstModel(t *testing.T) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 5))
		model, l := raft.NewMemoryStorage(), New(nil, nil, nil, new(raftpb.ConfState))
		l.MaxBytes, l.NewSpoolFile = 4096, newMemoryFile
		next, term, pin := uint64(1), uint64(1), uint64(0)
		for range 150 {
			size := rng.IntN(300)
			switch rng.IntN(60) {
			case 0:
				size = maxSpoolRead + rng.IntN(3*maxSpoolRead)
			case 1, 2:
				size = 2 * pointBytes
			case 3:
				term++
			}
			ents := entriesAt(next, next+rng.Uint64N(4), term, size)
			next = ents[len(ents)-1].GetIndex() + 1
			if err := model.Append(ents); err != nil {
				t.Fatal(err)
			}
			l.Append(ents)
			l.NoteApplied(next - 1)
			if pin == 0 && rng.IntN(10) == 0 || pin > 0 && rng.IntN(40) == 0 {
				pin = max(pin, l.mu.index) // as a body, or a member that moved on
			}
			l.SetPin(pin)
			if err := l.Compact(); err != nil {
				t.Fatal(err)
			}
			checkSpooledLog(t, seed, rng, model, l, pin)
		}
		if n, _ := l.Spooled(); n == 0 {
			t.Errorf("seed %d: nothing is on disk, which proves nothing", seed)
		}
	}
}

func checkSpooledLog(t *testing.T, seed uint64, rng *rand.Rand, model *raft.MemoryStorage, l *Store, pin uint64) {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if n, bytes := l.Sizes(); bytes > l.MaxBytes && n > 1 {
		t.Fatalf("seed %d: %d entries of %d bytes in memory", seed, n, bytes)
	}
	if pin > 0 && first > pin+1 {
		t.Fatalf("seed %d: the log begins at %d, the pin is %d", seed, first, pin)
	}
	for range 4 {
		at := first - 1 + rng.Uint64N(last-first+2)
		if want, err := model.Term(at); err == nil {
			if got, err := l.Term(at); got != want || err != nil {
				t.Fatalf("seed %d: term of %d: %d, %v; want %d", seed, at, got, err, want)
			}
		}
		if at < first {
			continue
		}
		size := rng.Uint64N(2 * maxSpoolRead)
		got, err := l.Entries(at, last+1, size)
		if err != nil || len(got) == 0 {
			t.Fatalf("seed %d: entries from %d: %d, %v", seed, at, len(got), err)
		}
		want, _ := model.Entries(at, at+uint64(len(got)), 1<<40)
		total := uint64(0)
		for i, e := range got {
			if !proto.Equal(e, want[i]) {
				t.Fatalf("seed %d: entry %d differs", seed, at+uint64(i))
			}
			total += uint64(proto.Size(e))
		}
		if len(got) > 1 && total > size {
			t.Fatalf("seed %d: %d bytes, asked for %d", seed, total, size)
		}
	}
	if _, err := l.Entries(first-1, last+1, 1); first > 1 && !errors.Is(err, raft.ErrCompacted) {
		t.Fatalf("seed %d: an entry before the log: %v", seed, err)
	}
}

// TestSpoolThatFailsIsGivenUp: an error of the spool costs the transfer the log
// after its body, and nothing else.
func TestSpoolThatFailsIsGivenUp(t *testing.T) {
	broken := errors.New("no space left")
	grow := func(l *Store, to uint64) error {
		last, _ := l.LastIndex()
		l.Append(entriesAt(last+1, to, 1, 100))
		l.NoteApplied(to)
		return l.Compact()
	}
	begins := func(l *Store, what string, want uint64) {
		t.Helper()
		if first, _ := l.FirstIndex(); first != want {
			t.Errorf("%s: the log begins at %d, want %d", what, first, want)
		}
	}
	fresh := func() (*Store, *memoryFile) {
		l, f := New(snapshotAt(10, 1), nil, nil, new(raftpb.ConfState)), new(memoryFile)
		l.MaxEntries, l.NewSpoolFile = 5, func() (SpoolFile, error) { return f, nil }
		l.SetPin(10)
		return l, f
	}

	l, f := fresh()
	if err := grow(l, 30); err != nil {
		t.Fatal(err)
	}
	begins(l, "healthy", 11)
	f.fail = broken
	if err := grow(l, 40); !errors.Is(err, broken) {
		t.Errorf("a failed write: %v", err)
	}
	begins(l, "a failed write", 36)
	if !f.closed {
		t.Error("the file is still there")
	}
	if err := grow(l, 50); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	begins(l, "afterwards", 46)

	l, _ = fresh()
	l.NewSpoolFile = func() (SpoolFile, error) { return nil, broken }
	if err := grow(l, 30); !errors.Is(err, broken) {
		t.Errorf("a file that cannot be made: %v", err)
	}
	begins(l, "a file that cannot be made", 26)

	l, f = fresh()
	if err := grow(l, 30); err != nil {
		t.Fatal(err)
	}
	f.data[len(f.data)/2] ^= 1
	if _, err := l.Entries(11, 31, 1<<20); !errors.Is(err, raft.ErrCompacted) {
		t.Errorf("a damaged record: %v", err)
	}
	begins(l, "a damaged record", 26)

	// The compactor hangs in a write, and memory reaches its bound.
	l, f = fresh()
	if err := grow(l, 30); err != nil {
		t.Fatal(err)
	}
	l.HardBytes = 4000
	l.Append(entriesAt(31, 35, 1, 100))
	l.NoteApplied(35)
	chunk, part, lost, err := l.nextChunk()
	if chunk == nil || err != nil {
		t.Fatalf("no chunk: %v", err)
	}
	l.Append(entriesAt(36, 60, 1, 100))
	begins(l, "at the bound of memory", 36)
	l.acceptChunk(part, chunk, lost, nil) // the write ends after all
	begins(l, "after a late write", 36)
	if err := grow(l, 70); err != nil || !f.closed {
		t.Errorf("afterwards: %v, closed %v", err, f.closed)
	}
	begins(l, "after all", 66)
}

// FuzzSpool damages a file of a spool. What is read is what was written, or an error.
func FuzzSpool(f *testing.F) {
	f.Add(uint16(3), uint8(1), uint8(9), uint64(1<<20), []byte{})
	f.Add(uint16(0), uint8(4), uint8(5), uint64(1), []byte{0xff, 0xff, 0xff, 0x7f})
	f.Add(uint16(30), uint8(2), uint8(9), uint64(40), []byte{1})
	f.Fuzz(func(t *testing.T, at uint16, lo, hi uint8, maxSize uint64, damage []byte) {
		var entries []*raftpb.Entry
		for i := range uint64(9) {
			entries = append(entries, entryAt(i+1, 1+i/3, int(i*i*i)))
		}
		c, err := encodeChunk(entries)
		if err != nil {
			t.Fatal(err)
		}
		data := slices.Clone(c.data)
		copy(data[int(at)%len(data):], damage)
		file := new(memoryFile)
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		first := uint64(lo)%9 + 1
		last := max(first+1, uint64(hi)%12)
		// A point may lie before the entry, but not behind it.
		from := spoolRange{file: file, offset: c.offsets[(first-1)/2], end: int64(len(data))}
		got, err := from.read(first, last, maxSize%(1<<20))
		if err != nil {
			if len(damage) == 0 {
				t.Fatalf("entries %d to %d: %v", first, last, err)
			}
			return
		}
		size := 0
		for i, e := range got {
			if !proto.Equal(e, entries[first-1+uint64(i)]) || e.GetIndex() >= last {
				t.Fatalf("entry %d of those from %d to %d is %v", i, first, last, e)
			}
			size += proto.Size(e)
		}
		if len(got) > 1 && uint64(size) > maxSize%(1<<20) {
			t.Fatalf("%d entries of %d bytes, the limit is %d", len(got), size, maxSize%(1<<20))
		}
	})
}
