package kvstore

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// recordVersion is the first byte of every value that the store itself keeps in the
// engine. Records of the replication layer are opaque and have none.
const recordVersion = 1

// version is a value in table v:
//
//	flags, revision − create revision, version, [lease], [attributes], value
//
// A deletion has flags alone. A flag that is not known stands for a newer format.
type version struct {
	deleted    bool
	create     uint64
	version    uint64
	lease      uint64
	attributes *Attributes // nil if all are 0
	value      []byte
}

// The flags of a version.
const (
	versionDeleted    = 1 << 0
	versionLease      = 1 << 1
	versionAttributes = 1 << 2
	knownVersion      = versionDeleted | versionLease | versionAttributes
)

// deletedVersionBytes is the size of the value of a deletion.
const deletedVersionBytes = 1

// appendVersion appends the version that a key has since the revision mod.
func appendVersion(dst []byte, mod uint64, v *version) []byte {
	if v.deleted {
		return append(dst, versionDeleted)
	}
	at := len(dst)
	dst = binary.AppendUvarint(append(dst, 0), mod-v.create)
	dst = binary.AppendUvarint(dst, v.version)
	if v.lease != 0 {
		dst[at] |= versionLease
		dst = binary.AppendUvarint(dst, v.lease)
	}
	if v.attributes != nil {
		dst[at] |= versionAttributes
		dst = command.AppendAttributes(dst, v.attributes)
	}
	return append(dst, v.value...)
}

// decodeVersion returns the version of a revision. Its value aliases b.
func decodeVersion(mod uint64, b []byte) (version, error) {
	d := wire.Decoder{B: b}
	flags := d.Byte()
	if flags&^knownVersion != 0 {
		return version{}, &UnknownVersionError{What: "version record", Version: flags}
	}
	v := version{deleted: flags&versionDeleted != 0}
	if v.deleted {
		d.FailIf(flags != versionDeleted || len(d.B) > 0)
	} else {
		age := d.Uvarint()
		d.FailIf(age >= mod)
		v.create, v.version = mod-age, d.Uvarint()
		if flags != 0 {
			v.decodeRare(&d, flags)
		}
		v.value = d.Rest()
	}
	if d.Failed {
		return version{}, fmt.Errorf("%w: version record", errLayout)
	}
	return v, nil
}

// decodeRare decodes the parts that most versions do not have.
func (v *version) decodeRare(d *wire.Decoder, flags byte) {
	if flags&versionLease != 0 {
		v.lease = d.Uvarint()
		d.FailIf(v.lease == 0)
	}
	if flags&versionAttributes != 0 {
		v.attributes = command.DecodeAttributes(d)
	}
}

func openRecord(what string, b []byte) (wire.Decoder, error) {
	if len(b) == 0 {
		return wire.Decoder{}, fmt.Errorf("%w: empty %s record", errLayout, what)
	}
	if b[0] != recordVersion {
		return wire.Decoder{}, &UnknownVersionError{What: what + " record", Version: b[0]}
	}
	return wire.Decoder{B: b[1:]}, nil
}

// meta is the value in table m: the position and what is known there. It is written
// in the same write batch as the data (S1).
type meta struct {
	position Position
	revision uint64
	compact  uint64
	pairs    uint64 // the part of the state hash that is about keys
	rest     uint64 // the other part of it
	keys     uint64
	logical  int64 // bytes that the quota counts
	clock    int64 // replicated time in Unix milliseconds
	// How much superseded data is still there. Replicas differ in it, and the hash
	// does not cover it.
	historyBytes    int64
	historyVersions int64
}

// hash returns the state hash.
func (m *meta) hash() uint64 { return m.pairs + m.rest }

func appendMeta(dst []byte, m *meta) []byte {
	dst = append(dst, recordVersion)
	for _, v := range []uint64{m.position.Index, m.position.Term, m.revision, m.compact, m.pairs, m.rest, m.keys} {
		dst = binary.AppendUvarint(dst, v)
	}
	for _, v := range []int64{m.logical, m.clock, m.historyBytes, m.historyVersions} {
		dst = binary.AppendVarint(dst, v)
	}
	return dst
}

func decodeMeta(b []byte) (meta, error) {
	d, err := openRecord("meta", b)
	if err != nil {
		return meta{}, err
	}
	var m meta
	for _, v := range []*uint64{&m.position.Index, &m.position.Term, &m.revision, &m.compact, &m.pairs, &m.rest, &m.keys} {
		*v = d.Uvarint()
	}
	for _, v := range []*int64{&m.logical, &m.clock, &m.historyBytes, &m.historyVersions} {
		*v = d.Varint()
	}
	if d.Failed || len(d.B) > 0 {
		return meta{}, fmt.Errorf("%w: meta record", errLayout)
	}
	return m, nil
}

// firstRevision is the revision of the empty store. It is not 0, because 0 means
// "absent" in conditions and "the newest" in reads.
const firstRevision = 1

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

// logicalBytes returns what the quota counts for a key.
// keyOverheadBytes is what the quota counts for a key in addition to its bytes and
// its value: about what the metadata costs. Without it, a billion empty keys would
// fit into any quota.
const keyOverheadBytes = 64

// logicalBytes is what the quota counts for a key.
func logicalBytes(keyLen, valueLen int) int64 { return int64(keyLen+valueLen) + keyOverheadBytes }

func (v *version) kv(mod uint64) KV {
	return KV{CreateRevision: v.create, ModRevision: mod, Version: v.version, Lease: v.lease, Attributes: v.attributes}
}
