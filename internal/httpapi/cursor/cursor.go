package cursor

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/fnv"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// Cursor is the place where the next page of a listing begins. Any node can continue from
// it, so it holds everything: its text is the base64url form of a format byte, the
// revision as uvarint, the digest in 8 bytes, the bound, and the CRC32C of all that in
// 4 bytes. Clients must not interpret it.
type Cursor struct {
	// Revision is where the first page was read.
	Revision uint64
	// Digest identifies the listing that the bound belongs to.
	Digest uint64
	// Bound is the lower bound of the rest, or the upper one of a reverse listing.
	Bound []byte
}

const (
	format = 1
	// maxText is more than the text of the longest bound, a key of 4 KiB.
	maxText = 8 << 10
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errInvalid = errors.New("invalid cursor")
)

func (c *Cursor) String() string {
	b := []byte{format}
	b = binary.AppendUvarint(b, c.Revision)
	b = binary.BigEndian.AppendUint64(b, c.Digest)
	b = append(b, c.Bound...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return base64.RawURLEncoding.EncodeToString(b)
}

// Parse reads the text form. It fails for everything that String cannot have
// made.
func Parse(s string) (Cursor, error) {
	if len(s) > maxText {
		return Cursor{}, errInvalid
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < 4 {
		return Cursor{}, errInvalid
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum || len(body) == 0 || body[0] != format {
		return Cursor{}, errInvalid
	}
	revision, n := binary.Uvarint(body[1:])
	if n <= 0 || len(body) < 1+n+8 || revision == 0 {
		return Cursor{}, errInvalid
	}
	rest := body[1+n:]
	c := Cursor{revision, binary.BigEndian.Uint64(rest), rest[8:]}
	// The decoders accept more than one form: line breaks, spare bits, long numbers.
	if c.String() != s {
		return Cursor{}, errInvalid
	}
	return c, nil
}

// Digest identifies a listing by its bounds, direction and grouping. A cursor is
// refused for another one: it would skip keys without a sign.
func Digest(r *kvstore.Range) uint64 {
	b := make([]byte, 0, 128)
	for _, part := range [][]byte{r.Start, r.End, r.Delimiter} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	flags := byte(0)
	if r.Reverse {
		flags |= 1
	}
	if r.End == nil {
		flags |= 2
	}
	b = binary.AppendUvarint(append(b, flags), uint64(r.GroupAfter))
	h := fnv.New64a()
	_, _ = h.Write(b) // a hash never fails
	return h.Sum64()
}

// Resume restricts a range to the rest.
func (c *Cursor) Resume(r *kvstore.Range) {
	r.Revision = c.Revision
	if r.Reverse {
		r.End = c.Bound
	} else {
		r.Start = c.Bound
	}
}

// After returns the bound of what follows an item in the direction of the range, or
// nil if nothing can follow.
func After(it *kvstore.Item, reverse bool) []byte {
	last := it.KV.Key
	if it.Group != nil {
		last = it.Group
	}
	switch {
	case reverse:
		return append([]byte{}, last...)
	case it.Group != nil:
		return kvstore.Prefix(last).End()
	}
	return append(append(make([]byte, 0, len(last)+1), last...), 0)
}

// At returns the bound of a pair and what follows it in the direction of the range.
func At(it *kvstore.Item, reverse bool) []byte { return After(it, !reverse) }
