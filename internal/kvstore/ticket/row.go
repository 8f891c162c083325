package ticket

import (
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// Head is the row of a lock.
type Head struct {
	First   uint64 // the token of the holder
	Tickets uint64
}

// Row is the row of a ticket.
type Row struct {
	Lease uint64
	Text  []byte
}

// Prefix returns the prefix that all tickets of a lock have.
func Prefix(name []byte) []byte { return layout.AppendTerminated(nil, name) }

// Key returns the key of a ticket in table q.
func Key(name []byte, token uint64) []byte {
	return binary.BigEndian.AppendUint64(Prefix(name), token)
}

// NameOf returns the name of the lock in the key of a ticket.
func NameOf(key []byte) ([]byte, error) {
	versioned := append([]byte{layout.TableVersion}, key...) // tickets have the form of versions
	if err := layout.CheckVersionKey(versioned); err != nil {
		return nil, err
	}
	return layout.UnescapePrefix(nil, versioned[:len(versioned)-layout.RevisionLen]), nil
}

// LeaseKey returns the key of a token in table p.
func LeaseKey(lease uint64, name []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, lease), name...)
}

// Bytes is what the quota counts for a ticket, which is in three tables.
func Bytes(name []byte, t *Row) int64 {
	return 3*layout.KeyOverheadBytes + int64(3*len(name)+len(t.Text))
}

// RowBytes is Bytes of a row of table q.
func RowBytes(key, value []byte) (int64, error) {
	t, err := Decode(value)
	if err != nil {
		return 0, err
	}
	name, err := NameOf(key)
	return Bytes(name, &t), err
}

// CheckRow judges a row from outside, whose key begins with the table. It is false if the
// key has a length that no key of the table has.
func CheckRow(key, value []byte) (ok bool, err error) {
	switch n := len(key) - 1; key[0] {
	case layout.TableLock:
		_, err = DecodeHead(value)
		return n > 0, err
	case layout.TableLeaseLock:
		_, err = DecodeToken(value)
		return n > leaseIDLen, err
	case layout.TableTicket:
		_, err = NameOf(key[1:])
	}
	return true, err
}

const leaseIDLen = 8

// Encode returns the value of table o.
func (h *Head) Encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint([]byte{layout.RecordVersion}, h.First), h.Tickets)
}

// DecodeHead decodes what Head.Encode encoded.
func DecodeHead(b []byte) (Head, error) {
	d, err := layout.OpenRecord("lock", b)
	if err != nil {
		return Head{}, err
	}
	h := Head{First: d.Uvarint(), Tickets: d.Uvarint()}
	if d.Failed || len(d.B) > 0 || h.First == 0 || h.Tickets == 0 {
		return Head{}, fmt.Errorf("%w: lock record", layout.ErrMalformed)
	}
	return h, nil
}

// Encode returns the value of table q.
func (t *Row) Encode() []byte {
	return append(binary.AppendUvarint([]byte{layout.RecordVersion}, t.Lease), t.Text...)
}

// Decode returns a ticket whose text aliases b.
func Decode(b []byte) (Row, error) {
	d, err := layout.OpenRecord("ticket", b)
	if err != nil {
		return Row{}, err
	}
	t := Row{Lease: d.Uvarint()}
	if d.Failed || t.Lease == 0 {
		return Row{}, fmt.Errorf("%w: ticket record", layout.ErrMalformed)
	}
	t.Text = d.Rest()
	return t, nil
}

// EncodeToken returns the value of table p.
func EncodeToken(token uint64) []byte {
	return binary.AppendUvarint([]byte{layout.RecordVersion}, token)
}

// DecodeToken decodes what EncodeToken encoded.
func DecodeToken(b []byte) (uint64, error) {
	d, err := layout.OpenRecord("token", b)
	if err != nil {
		return 0, err
	}
	token := d.Uvarint()
	if d.Failed || len(d.B) > 0 {
		return 0, fmt.Errorf("%w: token record", layout.ErrMalformed)
	}
	return token, nil
}
