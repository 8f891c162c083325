package layout

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Place is a place in the change log: a revision, and a part of it if it is divided.
type Place struct {
	Revision uint64
	Part     uint32
}

// Before reports whether p comes before q in the log.
func (p Place) Before(q Place) bool {
	return p.Revision < q.Revision || p.Revision == q.Revision && p.Part < q.Part
}

// Cleaned returns the revision up to which the replaced versions were removed, of the
// place that is next.
func (p Place) Cleaned() uint64 { return p.Revision - 1 }

// AppendProgress appends the record of table h: the place from which history is still there.
func AppendProgress(dst []byte, p Place) []byte {
	dst = binary.AppendUvarint(append(dst, RecordVersion), p.Revision)
	return binary.AppendUvarint(dst, uint64(p.Part))
}

// DecodeProgress decodes what AppendProgress appended, and refuses everything else.
func DecodeProgress(b []byte) (Place, error) {
	d, err := OpenRecord("history", b)
	if err != nil {
		return Place{}, err
	}
	revision, part := d.Uvarint(), d.Uvarint()
	if d.Failed || len(d.B) > 0 || revision <= FirstRevision || part > math.MaxUint32 {
		return Place{}, fmt.Errorf("%w: history record", ErrMalformed)
	}
	return Place{revision, uint32(part)}, nil
}

const changeKeyLen = 1 + RevisionLen

// ChangeKey returns the key of a record. The first part of a revision has no number,
// like a record of whole revisions.
func ChangeKey(dst []byte, revision uint64, part uint32) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, TableChange), revision)
	if part == 0 {
		return dst
	}
	return binary.BigEndian.AppendUint32(dst, part)
}

// SplitChangeKey returns the place of a key in table c.
func SplitChangeKey(k []byte) (Place, error) {
	var part uint32
	if len(k) == changeKeyLen+4 {
		part = binary.BigEndian.Uint32(k[changeKeyLen:])
	}
	if len(k) != changeKeyLen && part == 0 {
		return Place{}, fmt.Errorf("%w: change key of %d bytes", ErrMalformed, len(k))
	}
	return Place{binary.BigEndian.Uint64(k[1:]), part}, nil
}
