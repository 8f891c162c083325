package datadir

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/kvd-io/kvd/internal/limits"
)

// The record types of etcd's WAL.
const (
	walMetadata = 1
	walEntry    = 2
	walState    = 3
	walCRC      = 4
	walSnapshot = 5
)

const (
	walSector    = 512 // bytes that a disk writes together or not at all
	walFrameHead = 8   // bytes of the length word
	// walRecordHead is the most bytes that precede a record's data: a type of
	// 2, a checksum of 6, a length of 6.
	walRecordHead = 14
)

// walRecord is one record of the log. Its data aliases the segment.
//
// In the file a record is a frame of three parts:
//
//	length word  8 bytes, little-endian: the record's length in the lower 56
//	             bits; above it the number of padding bytes, with the top bit
//	             set if there are any
//	record       a protobuf message: type, checksum, data
//	padding      zeros, which align the next frame to 8 bytes
//
// The checksum covers the data alone and continues that of the record before.
// Nothing covers the rest, so this reader is strict about every other bit: one
// flipped in the type would otherwise turn an entry into a hard state.
type walRecord struct {
	kind uint64
	crc  uint32
	data []byte
}

// splitLengthWord takes a length word apart. whole is false if no writer can
// have written it.
func splitLengthWord(word uint64) (length, padding int, whole bool) {
	size := word & (1<<56 - 1)
	if size == 0 || size > math.MaxInt32 {
		return 0, 0, false
	}
	length, padding = int(size), int(-size&7)
	var top uint64
	if padding != 0 {
		top = uint64(0x80 | padding)
	}
	return length, padding, word>>56 == top
}

// headState says how much of a record's head can be read.
type headState int

const (
	headWhole   headState = iota
	headCut               // the file ends inside it
	headGarbled           // it is not the head of a record
)

// recordHead holds the fields that precede a record's data.
type recordHead struct {
	kind uint64
	crc  uint64
	data int // length of the data that the head announces
	size int // of the head itself
}

// parseRecordHead reads the head of a record of the given length. b is the rest
// of the file from the record on; it may be shorter than the record.
func parseRecordHead(b []byte, length int) (h recordHead, s headState) {
	b = b[:min(len(b), length)]
	cut := headGarbled
	if len(b) < length {
		cut = headCut
	}
	var size uint64
	for i, field := range []*uint64{&h.kind, &h.crc, &size} {
		if h.size == length && i == 2 {
			return h, headWhole // a record without data
		}
		if len(b) == 0 {
			return h, cut
		}
		if b[0] != [...]byte{0x08, 0x10, 0x1a}[i] {
			return h, headGarbled
		}
		v, n := minimalUvarint(b[1:])
		switch {
		case n == 0:
			return h, cut
		case n < 0 || v > math.MaxUint32:
			return h, headGarbled
		}
		*field, b = v, b[1+n:]
		h.size += 1 + n
	}
	h.data = int(size)
	return h, headWhole
}

// minimalUvarint reads a varint in its shortest form. n is its length, 0 if b
// ends inside it, and negative if it is not one. A longer form of the same
// number is damage: no writer produces it.
func minimalUvarint(b []byte) (v uint64, n int) {
	v, n = binary.Uvarint(b)
	if n > 1 && b[n-1] == 0 {
		return 0, -1
	}
	return v, n
}

// readRecord reads the frame at the offset, whose length word is not zero, and
// checks it against the running checksum crc. problem is empty if the record is
// intact. A segment begins with a record that carries the checksum it continues,
// so any segment can be read by itself.
func readRecord(b []byte, offset int, crc uint32) (rec walRecord, next int, problem string) {
	rec, next, problem = decodeFrame(b, offset)
	if problem != "" || rec.kind == walCRC {
		return rec, next, problem
	}
	if sum := crc32.Update(crc, castagnoli, rec.data); sum != rec.crc {
		return rec, next, "checksum mismatch"
	}
	return rec, next, ""
}

// decodeFrame reads the frame at the offset without the chain of checksums.
func decodeFrame(b []byte, offset int) (rec walRecord, next int, problem string) {
	rest := b[offset:]
	if len(rest) < walFrameHead {
		return rec, 0, "the file ends within the length of a record"
	}
	length, padding, whole := splitLengthWord(binary.LittleEndian.Uint64(rest))
	if !whole {
		return rec, 0, "the length of a record is damaged"
	}
	body := rest[walFrameHead:]
	if len(body) < length+padding {
		return rec, 0, fmt.Sprintf("the file ends %d bytes before the end of a record", length+padding-len(body))
	}
	h, s := parseRecordHead(body, length)
	if s != headWhole || h.size+h.data != length || h.kind < walMetadata || h.kind > walSnapshot {
		return rec, 0, "the header of a record is damaged"
	}
	if !allZero(body[length : length+padding]) {
		return rec, 0, "the padding of a record is damaged"
	}
	rec = walRecord{kind: h.kind, crc: uint32(h.crc), data: body[h.size:length]}
	return rec, offset + walFrameHead + length + padding, ""
}

// fieldSet is a set of field numbers of a protobuf message, up to 15.
type fieldSet uint16

func fields(numbers ...int) (s fieldSet) {
	for _, n := range numbers {
		s |= 1 << n
	}
	return s
}

var (
	entryNumbers     = fields(1, 2, 3)
	hardStateNumbers = fields(1, 2, 3, saveNumberField)
	snapshotNumbers  = fields(1, 2)
)

// saveNumberField is the field of a hard state in which Log numbers its saves
// (D8). raft's own fields are 1 to 3; its decoder keeps an unknown one and
// ignores it.
const saveNumberField = 15

// parseFields reads a protobuf message strictly. The numbers are varints, and
// bytesField, unless it is 0, is bytes and the last field. All are optional, in
// ascending order, and nothing else may be there. v holds the numbers by field,
// and the length of the bytes. A general decoder skips unknown fields, and so
// accepts many flipped bits.
func parseFields(b []byte, numbers fieldSet, bytesField int) (v [16]uint64, ok bool) {
	for last := 0; len(b) > 0; {
		field, wire := int(b[0]>>3), b[0]&7
		number, n := minimalUvarint(b[1:])
		if field <= last || n <= 0 {
			return v, false
		}
		b, last = b[1+n:], field
		switch {
		case field < len(v) && numbers&(1<<field) != 0 && wire == 0:
			v[field] = number
		case field == bytesField && wire == 2:
			v[field] = number
			return v, number == uint64(len(b))
		default:
			return v, false
		}
	}
	return v, true
}

// logEntry, hardStateRecord and snapshotRecord are the parts of these records
// that the guard judges by.
type (
	logEntry        struct{ index, term uint64 }
	hardStateRecord struct{ term, vote, commit uint64 }
	snapshotRecord  struct{ index, term uint64 }
)

// maxEntryKind is the last of raft's entry types; 0 is the normal one.
const maxEntryKind = 2

// entry reads an entry. A membership change always has data. A hard state whose
// type was damaged would look like a membership change without data.
func (r walRecord) entry() (logEntry, bool) {
	v, ok := parseFields(r.data, entryNumbers, 4)
	e := logEntry{term: v[2], index: v[3]}
	return e, ok && (v[1] == 0 || v[1] <= maxEntryKind && v[4] > 0) &&
		e.index > 0 && e.index < limits.MaxIndex && e.term > 0 && e.term < limits.MaxTerm
}

// hardState reads a hard state and the number of the save that it ends. Log.Save
// writes none of term 0, and numbers all of them.
func (r walRecord) hardState() (s hardStateRecord, save uint64, ok bool) {
	v, ok := parseFields(r.data, hardStateNumbers, 0)
	s = hardStateRecord{term: v[1], vote: v[2], commit: v[3]}
	return s, v[saveNumberField], ok && s.term > 0 && s.term < limits.MaxTerm && s.commit < limits.MaxIndex
}

func (r walRecord) snapshot() (snapshotRecord, bool) {
	v, ok := parseFields(r.data, snapshotNumbers, 3)
	s := snapshotRecord{index: v[1], term: v[2]}
	return s, ok && s.index < limits.MaxIndex && s.term < limits.MaxTerm
}

// plausible tells a record from bytes that happen to have the form of a frame.
func (r walRecord) plausible() (ok bool) {
	switch r.kind {
	case walEntry:
		_, ok = r.entry()
	case walState:
		_, _, ok = r.hardState()
	case walSnapshot:
		_, ok = r.snapshot()
	case walCRC:
		ok = len(r.data) == 0
	case walMetadata:
		ok = true
	}
	return ok
}

// laterRecord returns the offset of the first record at or after the given
// offset, or -1. It takes for a record any intact frame, aligned to 8 bytes,
// with plausible content.
func laterRecord(b []byte, offset int) int {
	for o := (offset + 7) &^ 7; o+walFrameHead <= len(b); o += 8 {
		if binary.LittleEndian.Uint64(b[o:]) == 0 {
			continue
		}
		if rec, _, problem := decodeFrame(b, o); problem == "" && rec.plausible() {
			return o
		}
	}
	return -1
}

// firstNonZero returns the position of the first byte that is not zero, or -1.
func firstNonZero(b []byte) int {
	i := 0
	for ; len(b)-i >= 8 && binary.LittleEndian.Uint64(b[i:]) == 0; i += 8 {
	}
	for ; i < len(b); i++ {
		if b[i] != 0 {
			return i
		}
	}
	return -1
}

func allZero(b []byte) bool { return firstNonZero(b) < 0 }

// hasZeroSector reports whether one of the sectors that hold [from, to) of a
// segment is all zeros. That sector never reached the disk, because segments are
// zeroed when they are made. A sector that is zero only between from and to did:
// a disk writes it completely or not at all.
func hasZeroSector(b []byte, from, to int) bool {
	for from -= from % walSector; from < to; from += walSector {
		if allZero(b[from:min(from+walSector, len(b))]) {
			return true
		}
	}
	return false
}
