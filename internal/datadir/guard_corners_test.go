package datadir

import (
	"encoding/binary"
	"math"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The records of these tests are those that a segment has behind its head.

func entryRecord(t *testing.T, index, term uint64) walRecord {
	t.Helper()
	return recordWith(t, walEntry, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Index: new(index), Term: new(term), Data: []byte("x")})
}

func stateRecord(t *testing.T, term, commit, save uint64) walRecord {
	t.Helper()
	r := recordWith(t, walState, hardStateAt(term, 0, commit))
	r.data = binary.AppendUvarint(append(r.data, saveNumberField<<3), save)
	return r
}

func recordWith(t *testing.T, kind uint64, m proto.Message) walRecord {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return walRecord{kind: kind, data: b}
}

// TestGuardSnapshotWithoutEffectStaysSo: a received snapshot that no hard state committed
// at once has no effect when the commit index passes it later, by the entries that took
// its place.
func TestGuardSnapshotWithoutEffectStaysSo(t *testing.T) {
	g := &guardReport{shape: logShape{known: true}}
	take := func(r walRecord) {
		t.Helper()
		if problem := g.take(r, segmentHead, true); problem != "" {
			t.Fatal(problem)
		}
	}
	for i := uint64(1); i <= 40; i++ {
		take(entryRecord(t, i, 1))
	}
	take(stateRecord(t, 5, 40, 1))
	take(recordWith(t, walSnapshot, &walpb.Snapshot{Index: new(uint64(50)), Term: new(uint64(5))}))
	for i := uint64(41); i <= 60; i++ {
		take(entryRecord(t, i, 6))
	}
	if take(stateRecord(t, 6, 60, 2)); g.shape.base != 0 || g.shape.last != 60 {
		t.Errorf("the log has entries %d to %d, want 1 to 60", g.shape.base+1, g.shape.last)
	}
}

// TestShapeOfAPurgedLogThatIsRewritten: the first entry that is left of a log may be
// followed by one below it, from a new leader.
func TestShapeOfAPurgedLogThatIsRewritten(t *testing.T) {
	var s logShape
	for _, c := range []struct {
		put        logEntry
		base, last uint64
	}{
		{logEntry{31, 1}, 30, 31}, {logEntry{32, 1}, 30, 32},
		{logEntry{30, 2}, 29, 30}, {logEntry{31, 2}, 29, 31},
		{logEntry{27, 3}, 26, 27}, {logEntry{28, 3}, 26, 28},
	} {
		if problem := s.put(c.put); problem != "" {
			t.Fatal(problem)
		}
		if s.base != c.base || s.last != c.last || s.termAt(c.put.index) != c.put.term || s.termAt(c.put.index+1) != 0 {
			t.Errorf("after %+v: %+v, want entries after %d, up to %d", c.put, s, c.base, c.last)
		}
	}
	if problem := s.put(logEntry{30, 3}); problem == "" {
		t.Error("an entry after a gap is taken")
	}
}

// TestTailEndsWithItsHardState: what is behind the hard state of the torn save, whatever
// it is, belongs to a later one.
func TestTailEndsWithItsHardState(t *testing.T) {
	for _, behind := range []walRecord{entryRecord(t, 9, 1), stateRecord(t, 1, 1, 6)} {
		x := tail{save: 5}
		x.take(100, entryRecord(t, 8, 1))
		x.take(200, stateRecord(t, 1, 1, 6))
		if x.later != 0 {
			t.Fatalf("the save itself counts as a later one, at %d", x.later)
		}
		if x.take(300, behind); x.later != 300 {
			t.Errorf("a record of kind %d behind the hard state is taken for a part of the save", behind.kind)
		}
	}
}

// TestLargestChecksum: each of the 2^32 checksums is one.
func TestLargestChecksum(t *testing.T) {
	b := binary.AppendUvarint([]byte{0x08, walState, 0x10}, math.MaxUint32)
	if h, s := parseRecordHead(b, len(b)); s != headWhole || h.crc != math.MaxUint32 {
		t.Errorf("%+v, %v", h, s)
	}
	b = binary.AppendUvarint([]byte{0x08, walState, 0x10}, math.MaxUint32+1)
	if _, s := parseRecordHead(b, len(b)); s != headGarbled {
		t.Errorf("a checksum of 33 bits: %v", s)
	}
}

// TestHeadInAMissingSector: the head of a record crosses into a sector that a power cut
// has lost. Wherever the border is, and however long the checksum, the zeros are no damage.
func TestHeadInAMissingSector(t *testing.T) {
	for crc := uint64(1); crc <= math.MaxUint32; crc = crc<<7 | 1 {
		for _, size := range []int{1, 100, 200, 20_000} {
			head := binary.AppendUvarint([]byte{0x08, walEntry, 0x10}, crc)
			head = binary.AppendUvarint(append(head, 0x1a), uint64(size))
			length := len(head) + size
			word := uint64(length)
			if p := -length & 7; p > 0 {
				word |= uint64(0x80|p) << 56
			}
			for at := walSector - 24; at < walSector; at += 8 {
				b := make([]byte, 64<<10)
				binary.LittleEndian.PutUint64(b[at:], word)
				copy(b[at+walFrameHead:], head)
				for i := range size {
					b[at+walFrameHead+len(head)+i] = 0xff
				}
				last := at + walFrameHead + len(head) - 1
				b[last] ^= 1
				if missesSector(b, at) {
					t.Errorf("checksum %x, %d bytes, at %d: a flipped bit in a length counts as a missing sector", crc, size, at)
				}
				b[last] ^= 1
				clear(b[walSector : 2*walSector])
				if _, _, problem := decodeFrame(b, at); problem != "" && !missesSector(b, at) {
					t.Errorf("checksum %x, %d bytes, at %d: %s, although a sector is missing", crc, size, at, problem)
				}
			}
		}
	}
}

// TestTailWithANumberInAMissingSector: the number at the end of a hard state is the only
// part of it that did not reach the disk. The zero in its place is not that of a later save.
func TestTailWithANumberInAMissingSector(t *testing.T) {
	x := tail{save: 5}
	x.take(100, entryRecord(t, 8, 1))
	if x.take(200, stateRecord(t, 1, 1, 0)); x.later != 0 {
		t.Errorf("a later save is seen at %d", x.later)
	}
}
