package kvstore

import (
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// recordVersion is the first byte of every value that the store itself keeps in the
// engine. Records of the replication layer are opaque and have none.
const recordVersion = 1

// version is a value in table v.
type version struct {
	deleted bool
	create  uint64
	version uint64
	lease   uint64
	value   []byte
}

func appendVersion(dst []byte, v *version) []byte {
	deleted := byte(0)
	if v.deleted {
		deleted = 1
	}
	dst = append(dst, recordVersion, deleted)
	dst = binary.AppendUvarint(dst, v.create)
	dst = binary.AppendUvarint(dst, v.version)
	dst = binary.AppendUvarint(dst, v.lease)
	return append(dst, v.value...)
}

// decodeVersion returns a version whose value aliases b.
func decodeVersion(b []byte) (version, error) {
	d, err := openRecord("version", b)
	if err != nil {
		return version{}, err
	}
	v := version{deleted: d.Byte() == 1, create: d.Uvarint(), version: d.Uvarint(), lease: d.Uvarint()}
	if d.Failed {
		return version{}, fmt.Errorf("%w: version record", errLayout)
	}
	v.value = d.Rest()
	return v, nil
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
	hash     uint64
	keys     uint64
	logical  int64 // bytes that the quota counts
	clock    int64 // replicated time in Unix milliseconds
	// How much superseded data is still there. Replicas differ in it, and the hash
	// does not cover it.
	historyBytes    int64
	historyVersions int64
}

func appendMeta(dst []byte, m *meta) []byte {
	dst = append(dst, recordVersion)
	for _, v := range []uint64{m.position.Index, m.position.Term, m.revision, m.compact, m.hash, m.keys} {
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
	for _, v := range []*uint64{&m.position.Index, &m.position.Term, &m.revision, &m.compact, &m.hash, &m.keys} {
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
