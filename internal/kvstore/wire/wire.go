// Package wire has the fields of which the encodings of commands and records consist:
// numbers as varints, byte strings behind their length. Each value has one encoding.
package wire

import (
	"encoding/binary"
	"fmt"
)

// AppendBytes appends a byte string behind its length.
func AppendBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// UnknownVersionError is returned for data that a newer kvd wrote.
type UnknownVersionError struct {
	What    string
	Version byte
}

func (e *UnknownVersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, which this version of kvd cannot read; upgrade kvd", e.What, e.Version)
}

// Decoder cuts fields off the front of B. After the first malformed field it has
// failed, and every further field is zero, so that callers check once at the end.
type Decoder struct {
	B      []byte
	Failed bool
}

func (d *Decoder) Fail() { d.Failed, d.B = true, nil }

// Uvarint refuses numbers in more bytes than they need: they would have several
// encodings.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.B)
	if n <= 0 || n > 1 && d.B[n-1] == 0 {
		d.Fail()
		return 0
	}
	d.B = d.B[n:]
	return v
}

func (d *Decoder) Varint() int64 {
	u := d.Uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *Decoder) Byte() byte {
	if len(d.B) == 0 {
		d.Fail()
		return 0
	}
	v := d.B[0]
	d.B = d.B[1:]
	return v
}

// Value returns b, or nil if it is empty. Every value of a pair or a ticket that is decoded
// or copied into memory of its own passes here, so that the same state reads the same on
// each path: from a command, from the engine, from memory, from a recorded result. The
// bounds of ranges do not, because an empty end differs from a missing one.
func Value(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (d *Decoder) Bytes() []byte { return d.Take(d.Uvarint()) }

// Value is Bytes for a value.
func (d *Decoder) Value() []byte { return Value(d.Bytes()) }

func (d *Decoder) Take(n uint64) []byte {
	if n > uint64(len(d.B)) {
		d.Fail()
		return nil
	}
	v := d.B[:n:n]
	d.B = d.B[n:]
	return v
}

// Rest returns all that is left as a value.
func (d *Decoder) Rest() []byte {
	v := Value(d.B)
	d.B = nil
	return v
}

// Bits returns a byte that has none but the known bits.
func (d *Decoder) Bits(known byte) byte {
	v := d.Byte()
	if v&^known != 0 {
		d.Fail()
	}
	return v
}

func (d *Decoder) FailIf(wrong bool) {
	if wrong {
		d.Fail()
	}
}
