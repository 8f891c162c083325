package layout

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// RecordVersion is the first byte of every value that the store itself keeps in the
// engine. Records of the replication layer are opaque and have none.
const RecordVersion = 1

// Version is a value in table v:
//
//	flags, revision − create revision, version, [lease], [attributes], value
//
// A deletion has flags alone. A flag that is not known stands for a newer format.
type Version struct {
	Deleted    bool
	Create     uint64
	Version    uint64
	Lease      uint64
	Attributes *command.Attributes // nil if all are 0
	Value      []byte
}

// The flags of a version.
const (
	VersionDeleted    = 1 << 0
	versionLease      = 1 << 1
	versionAttributes = 1 << 2
	knownFlags        = VersionDeleted | versionLease | versionAttributes
)

// DeletedVersionBytes is the size of the value of a deletion.
const DeletedVersionBytes = 1

// AppendVersion appends the version that a key has since the revision mod.
func AppendVersion(dst []byte, mod uint64, v *Version) []byte {
	if v.Deleted {
		return append(dst, VersionDeleted)
	}
	at := len(dst)
	dst = binary.AppendUvarint(append(dst, 0), mod-v.Create)
	dst = binary.AppendUvarint(dst, v.Version)
	if v.Lease != 0 {
		dst[at] |= versionLease
		dst = binary.AppendUvarint(dst, v.Lease)
	}
	if v.Attributes != nil {
		dst[at] |= versionAttributes
		dst = command.AppendAttributes(dst, v.Attributes)
	}
	return append(dst, v.Value...)
}

// DecodeVersion returns the version of a revision. Its value aliases b.
func DecodeVersion(mod uint64, b []byte) (Version, error) {
	d := wire.Decoder{B: b}
	flags := d.Byte()
	if flags&^knownFlags != 0 {
		return Version{}, &wire.UnknownVersionError{What: "version record", Version: flags}
	}
	v := Version{Deleted: flags&VersionDeleted != 0}
	if v.Deleted {
		d.FailIf(flags != VersionDeleted || len(d.B) > 0)
	} else {
		age := d.Uvarint()
		d.FailIf(age >= mod)
		v.Create, v.Version = mod-age, d.Uvarint()
		if flags != 0 {
			v.decodeRare(&d, flags)
		}
		v.Value = d.Rest()
	}
	if d.Failed {
		return Version{}, fmt.Errorf("%w: version record", ErrMalformed)
	}
	return v, nil
}

// Exists reports whether the key of a version record exists: whether it is not a deletion.
func Exists(b []byte) (bool, error) {
	if len(b) == 0 || b[0]&^knownFlags != 0 {
		_, err := DecodeVersion(0, b)
		return false, err
	}
	return b[0]&VersionDeleted == 0, nil
}

// decodeRare decodes the parts that most versions do not have.
func (v *Version) decodeRare(d *wire.Decoder, flags byte) {
	if flags&versionLease != 0 {
		v.Lease = d.Uvarint()
		d.FailIf(v.Lease == 0)
	}
	if flags&versionAttributes != 0 {
		v.Attributes = command.DecodeAttributes(d)
	}
}

// OpenRecord returns a decoder for what follows the version of a record of table what.
func OpenRecord(what string, b []byte) (wire.Decoder, error) {
	if len(b) == 0 {
		return wire.Decoder{}, fmt.Errorf("%w: empty %s record", ErrMalformed, what)
	}
	if b[0] != RecordVersion {
		return wire.Decoder{}, &wire.UnknownVersionError{What: what + " record", Version: b[0]}
	}
	return wire.Decoder{B: b[1:]}, nil
}

// Meta is the value in table m: the position and what is known there. It is written
// in the same write batch as the data (S1).
type Meta struct {
	Position Position
	Revision uint64
	Compact  uint64
	Pairs    uint64 // the part of the state hash that is about keys
	Rest     uint64 // the other part of it
	Keys     uint64
	Logical  int64 // bytes that the quota counts
	Clock    int64 // replicated time in Unix milliseconds
	// How much superseded data is still there. Replicas differ in it, and the hash
	// does not cover it.
	HistoryBytes    int64
	HistoryVersions int64
}

// Hash returns the state hash.
func (m *Meta) Hash() uint64 { return m.Pairs + m.Rest }

// AppendMeta appends the record of table m.
func AppendMeta(dst []byte, m *Meta) []byte {
	dst = append(dst, RecordVersion)
	for _, v := range []uint64{m.Position.Index, m.Position.Term, m.Revision, m.Compact, m.Pairs, m.Rest, m.Keys} {
		dst = binary.AppendUvarint(dst, v)
	}
	for _, v := range []int64{m.Logical, m.Clock, m.HistoryBytes, m.HistoryVersions} {
		dst = binary.AppendVarint(dst, v)
	}
	return dst
}

// DecodeMeta decodes what AppendMeta appended, and refuses everything else.
func DecodeMeta(b []byte) (Meta, error) {
	d, err := OpenRecord("meta", b)
	if err != nil {
		return Meta{}, err
	}
	var m Meta
	for _, v := range []*uint64{&m.Position.Index, &m.Position.Term, &m.Revision, &m.Compact, &m.Pairs, &m.Rest, &m.Keys} {
		*v = d.Uvarint()
	}
	for _, v := range []*int64{&m.Logical, &m.Clock, &m.HistoryBytes, &m.HistoryVersions} {
		*v = d.Varint()
	}
	if d.Failed || len(d.B) > 0 {
		return Meta{}, fmt.Errorf("%w: meta record", ErrMalformed)
	}
	return m, nil
}

// FirstRevision is the revision of the empty store. It is not 0, because 0 means
// "absent" in conditions and "the newest" in reads.
const FirstRevision = 1

// Position is the place of an entry in the raft log.
type Position struct {
	Index uint64
	Term  uint64
}

// Prefix selects the keys that begin with it.
type Prefix []byte

// End returns the first key after all keys with the prefix, or nil if no key is
// greater than all of them: a Range that ends there is open.
func (p Prefix) End() []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] < 0xFF {
			end := bytes.Clone(p[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// Bound returns a bound of a range that has the same keys, and is hardly longer than a key
// can be, so that it takes little memory to keep. No key is between two longer bounds that
// begin with the same command.MaxKeyBytes bytes, and the one that is equal to these is below
// both.
func Bound(key []byte) []byte {
	if len(key) <= command.MaxKeyBytes {
		return key
	}
	return append(key[:command.MaxKeyBytes:command.MaxKeyBytes], 0)
}

// KeyOverheadBytes is what the quota counts for a key in addition to its bytes and
// its value: about what the metadata costs. Without it, a billion empty keys would
// fit into any quota.
const KeyOverheadBytes = 64

// LogicalBytes returns what the quota counts for a key.
func LogicalBytes(keyLen, valueLen int) int64 { return int64(keyLen+valueLen) + KeyOverheadBytes }

// KV returns the pair whose version this is, without key and value.
func (v *Version) KV(mod uint64) command.KV {
	return command.KV{CreateRevision: v.Create, ModRevision: mod, Version: v.Version, Lease: v.Lease, Attributes: v.Attributes}
}
