package kvstore

import (
	"encoding/binary"
	"fmt"
)

// decoder cuts fields off the front of b. After the first malformed field it has
// failed, and every further field is zero, so that callers check once at the end.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() { d.failed, d.b = true, nil }

// uvarint refuses numbers in more bytes than they need: they would have several
// encodings.
func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bytes() []byte { return d.take(d.uvarint()) }

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) rest() []byte {
	v := d.b
	d.b = nil
	return v
}

// bits returns a byte that has none but the known bits.
func (d *decoder) bits(known byte) byte {
	v := d.byte()
	if v&^known != 0 {
		d.fail()
	}
	return v
}

func (d *decoder) failIf(wrong bool) {
	if wrong {
		d.fail()
	}
}

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
	v := version{deleted: d.byte() == 1, create: d.uvarint(), version: d.uvarint(), lease: d.uvarint()}
	if d.failed {
		return version{}, fmt.Errorf("%w: version record", errLayout)
	}
	v.value = d.rest()
	return v, nil
}

func openRecord(what string, b []byte) (decoder, error) {
	if len(b) == 0 {
		return decoder{}, fmt.Errorf("%w: empty %s record", errLayout, what)
	}
	if b[0] != recordVersion {
		return decoder{}, &UnknownVersionError{What: what + " record", Version: b[0]}
	}
	return decoder{b: b[1:]}, nil
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
		*v = d.uvarint()
	}
	for _, v := range []*int64{&m.logical, &m.clock, &m.historyBytes, &m.historyVersions} {
		*v = d.varint()
	}
	if d.failed || len(d.b) > 0 {
		return meta{}, fmt.Errorf("%w: meta record", errLayout)
	}
	return m, nil
}
