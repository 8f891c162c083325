package datadir

import "encoding/binary"

// tail judges what follows damage in the last segment: the rest of the save that
// a crash cut short, or a later save. A later save proves that the damaged one
// was synced, and that its entries may have been acknowledged.
//
// A save is entries, or the record of a snapshot, and a hard state with the next
// number (D8). So behind the damage there may be entries, then the hard state
// with the number after save, and then nothing. If the damage took a hard state
// with it, the next one that is found has a higher number: two saves whose hard
// states are gone cannot be mistaken for one.
type tail struct {
	data  []byte
	save  uint64 // number of the last save before the damage
	ended bool   // the hard state of the damaged save was found
	later int    // offset of a record of a later save; 0 if there is none
}

// walk starts at the damaged record. For as long as length word and head of a
// record agree, it knows where the next one begins, and passes over the data: a
// value may be a piece of a WAL, and must not be mistaken for later records.
// Where they do not, or are missing, it looks for records at every word.
func (t *tail) walk(damaged int) {
	for o := damaged; t.later == 0; {
		next, kind, ok := frameAt(t.data, o)
		if !ok {
			t.scan(o + walFrameHead)
			return
		}
		rec, _, problem := decodeFrame(t.data, o)
		if problem != "" {
			rec = walRecord{kind: kind}
		}
		if o == damaged {
			// The record of a snapshot is synced before its hard state is
			// written, so nothing may follow it.
			t.ended = kind == walState || kind == walSnapshot
		} else {
			t.take(o, rec)
		}
		o = next
	}
}

// scan looks for records from the offset on, at every word: also inside of those
// that it finds, because it cannot tell a record from a value that contains one.
// So a piece of a WAL in a value counts as a later save: in doubt the log is
// refused.
func (t *tail) scan(from int) {
	for o := laterRecord(t.data, from); o >= 0 && t.later == 0; o = laterRecord(t.data, o+walFrameHead) {
		rec, _, _ := decodeFrame(t.data, o)
		t.take(o, rec)
	}
}

// take judges the record at the offset, which may be damaged, too.
func (t *tail) take(offset int, rec walRecord) {
	switch {
	case t.ended:
		t.later = offset
	case rec.kind == walEntry:
	case rec.kind == walState:
		// Numbers begin at 1. A 0 is in the place of one whose sector is missing.
		if _, save, ok := rec.hardState(); ok && save != t.save+1 && save != 0 {
			t.later = offset
		}
		t.ended = true
	default:
		t.later = offset
	}
}

// frameAt returns where the frame at the offset ends and the type of its record,
// if the length word and the record's own head agree about its length.
func frameAt(b []byte, offset int) (next int, kind uint64, ok bool) {
	body := offset + walFrameHead
	if body > len(b) {
		return 0, 0, false
	}
	length, padding, whole := splitLengthWord(binary.LittleEndian.Uint64(b[offset:]))
	if !whole {
		return 0, 0, false
	}
	h, state := parseRecordHead(b[body:], length)
	return body + length + padding, h.kind, state == headWhole && h.size+h.data == length
}

// missesSector reports whether a part of the damaged record at the offset never
// reached the disk. If none is missing, a crash does not explain the damage.
func missesSector(b []byte, offset int) bool {
	body := offset + walFrameHead
	length, padding, whole := splitLengthWord(binary.LittleEndian.Uint64(b[offset:]))
	if !whole {
		return false // the word is in one sector, which is there
	}
	h, state := parseRecordHead(b[body:], length)
	end := min(body+length, len(b))
	switch {
	case state == headWhole && h.size+h.data != length:
		// A bit was flipped in one of the lengths, or the sector with the second one is
		// missing, whose zeros read as a length of 0.
		return hasZeroSector(b, body, body+h.size)
	case state == headGarbled:
		return hasZeroSector(b, body, min(body+walRecordHead, end))
	}
	return len(b) < body+length+padding || hasZeroSector(b, body, end)
}
