package wire

import (
	"encoding/binary"
	"math"
	"testing"
)

// TestNumbers: a number has one encoding, and what is cut off or longer is refused.
func TestNumbers(t *testing.T) {
	for _, n := range []uint64{0, 1, 127, 128, 300, 1 << 63, math.MaxUint64} {
		b := binary.AppendUvarint(nil, n)
		d := Decoder{B: b}
		if got := d.Uvarint(); got != n || d.Failed || len(d.B) > 0 {
			t.Errorf("%d became %d", n, got)
		}
		longer := append(append([]byte{}, b...), 0)
		longer[len(b)-1] |= 0x80
		for _, wrong := range [][]byte{b[:len(b)-1], longer} {
			if d := (Decoder{B: wrong}); d.Uvarint() != 0 || !d.Failed {
				t.Errorf("%x is taken for a number", wrong)
			}
		}
	}
	for _, n := range []int64{0, -1, 1, math.MinInt64, math.MaxInt64} {
		d := Decoder{B: binary.AppendVarint(nil, n)}
		if got := d.Varint(); got != n || d.Failed {
			t.Errorf("%d became %d", n, got)
		}
	}
}

// TestFailureSticks: after the first malformed field all others are zero.
func TestFailureSticks(t *testing.T) {
	d := Decoder{B: []byte{3, 'a', 'b', 1, 'c'}}
	if string(d.Bytes()) != "ab\x01" || string(d.Rest()) != "c" || d.Failed {
		t.Error("three bytes are not read as such")
	}
	d = Decoder{B: []byte{9, 'a'}}
	if d.Bytes() != nil || d.Byte() != 0 || d.Bits(1) != 0 || d.Take(0) != nil && len(d.B) > 0 || !d.Failed {
		t.Errorf("after a failure: %+v", d)
	}
	d = Decoder{B: []byte{2}}
	if d.Bits(1); !d.Failed {
		t.Error("an unknown bit is accepted")
	}
}
