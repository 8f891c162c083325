package httpapi

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/fnv"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// cursor is the place where the next page of a listing begins. Any node can continue from
// it, so it holds everything: its text is the base64url form of a format byte, the
// revision as uvarint, the digest in 8 bytes, the bound, and the CRC32C of all that in
// 4 bytes. Clients must not interpret it.
type cursor struct {
	// revision is where the first page was read.
	revision uint64
	// digest identifies the listing that the bound belongs to.
	digest uint64
	// bound is the lower bound of the rest, or the upper one of a reverse listing.
	bound []byte
}

const (
	cursorFormat = 1
	// maxCursor is more than the text of the longest bound, a key of 4 KiB.
	maxCursor = 8 << 10
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errCursor  = errors.New("invalid cursor")
)

func (c *cursor) String() string {
	b := []byte{cursorFormat}
	b = binary.AppendUvarint(b, c.revision)
	b = binary.BigEndian.AppendUint64(b, c.digest)
	b = append(b, c.bound...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseCursor reads the text form. It fails for everything that String cannot have
// made.
func parseCursor(s string) (cursor, error) {
	if len(s) > maxCursor {
		return cursor{}, errCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 4 {
		return cursor{}, errCursor
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum || len(body) == 0 || body[0] != cursorFormat {
		return cursor{}, errCursor
	}
	revision, n := binary.Uvarint(body[1:])
	if n <= 0 || len(body) < 1+n+8 || revision == 0 {
		return cursor{}, errCursor
	}
	rest := body[1+n:]
	return cursor{revision, binary.BigEndian.Uint64(rest), rest[8:]}, nil
}

// rangeDigest identifies a listing by its bounds, direction and grouping. A cursor is
// refused for another one: it would skip keys without a sign.
func rangeDigest(r *kvstore.Range) uint64 {
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

// resume restricts a range to the rest.
func (c *cursor) resume(r *kvstore.Range) {
	r.Revision = c.revision
	if r.Reverse {
		r.End = c.bound
	} else {
		r.Start = c.bound
	}
}

// boundAfter returns the bound of what follows an item in the direction of the range, or
// nil if nothing can follow.
func boundAfter(it *kvstore.Item, reverse bool) []byte {
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

// boundAt returns the bound of a pair and what follows it in the direction of the range.
func boundAt(it *kvstore.Item, reverse bool) []byte { return boundAfter(it, !reverse) }
