package kvstore

import (
	"encoding/binary"
	"fmt"
	"math"
)

// place is a place in the change log: a revision, and a part of it if it is divided.
type place struct {
	revision uint64
	part     uint32
}

func (p place) before(q place) bool {
	return p.revision < q.revision || p.revision == q.revision && p.part < q.part
}

// cleaned returns the revision up to which the replaced versions were removed, of the
// place that is next.
func (p place) cleaned() uint64 { return p.revision - 1 }

func appendProgress(dst []byte, p place) []byte {
	dst = binary.AppendUvarint(append(dst, recordVersion), p.revision)
	return binary.AppendUvarint(dst, uint64(p.part))
}

func decodeProgress(b []byte) (place, error) {
	d, err := openRecord("history", b)
	if err != nil {
		return place{}, err
	}
	revision, part := d.Uvarint(), d.Uvarint()
	if d.Failed || len(d.B) > 0 || revision <= firstRevision || part > math.MaxUint32 {
		return place{}, fmt.Errorf("%w: history record", errLayout)
	}
	return place{revision, uint32(part)}, nil
}

const changeKeyLen = 1 + revisionLen

// changeKey returns the key of a record. The first part of a revision has no number,
// like a record of whole revisions.
func changeKey(dst []byte, revision uint64, part uint32) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, tableChange), revision)
	if part == 0 {
		return dst
	}
	return binary.BigEndian.AppendUint32(dst, part)
}

// splitChangeKey returns the place of a key in table c.
func splitChangeKey(k []byte) (place, error) {
	var part uint32
	if len(k) == changeKeyLen+4 {
		part = binary.BigEndian.Uint32(k[changeKeyLen:])
	}
	if len(k) != changeKeyLen && part == 0 {
		return place{}, fmt.Errorf("%w: change key of %d bytes", errLayout, len(k))
	}
	return place{binary.BigEndian.Uint64(k[1:]), part}, nil
}
