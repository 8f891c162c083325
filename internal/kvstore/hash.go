package kvstore

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// The state hash is the sum, modulo 2^64, of the hashes of all records of the
// current state: live keys with value and metadata, the records of the replication
// layer, the rows of the other tables, the settings, replicated time, and the compact
// revision. A sum does not depend on the order, so a change costs one
// subtraction and one addition, and a scan in any order reproduces it (S3).
//
// History is not part of it, because replicas remove it at their own pace. Neither
// is an exclusive or: with that, two equal records would cancel each other out.
//
// The hash finds bugs and bad hardware. It is no protection against an attacker, who
// could choose values that collide.

// hasher computes the hashes of records without allocating. What it hashes begins
// with the table and the length of the key, so that no two records consist of the
// same bytes.
type hasher struct {
	digest xxhash.Digest
	head   []byte
}

func (h *hasher) key(key []byte, mod uint64, v *layout.Version) uint64 {
	head := append(h.head[:0], layout.TableVersion)
	head = binary.AppendUvarint(head, uint64(len(key)))
	head = binary.AppendUvarint(head, mod)
	head = binary.AppendUvarint(head, v.Create)
	head = binary.AppendUvarint(head, v.Version)
	head = binary.AppendUvarint(head, v.Lease)
	if v.Attributes != nil {
		head = command.AppendAttributes(head, v.Attributes)
	}
	return h.sum(head, key, v.Value)
}

func (h *hasher) record(key, value []byte) uint64 {
	head := append(h.head[:0], layout.TableRecord)
	head = binary.AppendUvarint(head, uint64(len(key)))
	return h.sum(head, key, value)
}

// row hashes a row of one of the rowTables. Its key in the engine begins with the table.
func (h *hasher) row(key, value []byte) uint64 {
	return h.sum(binary.AppendUvarint(append(h.head[:0], key[0]), uint64(len(key)-1)), key[1:], value)
}

// change hashes what the change log says about a change.
func (h *hasher) change(revision uint64, c *changelog.Change) uint64 {
	head := binary.AppendUvarint(append(h.head[:0], layout.TableChange), revision)
	head = binary.AppendUvarint(head, c.Previous)
	head = binary.AppendUvarint(head, uint64(c.Stored))
	if c.Deleted {
		head = append(head, 1)
	}
	return h.sum(head, c.Key, nil)
}

func (h *hasher) settings(encoded []byte) uint64 {
	return h.sum(append(h.head[:0], layout.TableSetting), nil, encoded)
}

// times returns the term of replicated time and the compact revision, which is 0 in an
// empty store.
func (h *hasher) times(clock int64, compact uint64) uint64 {
	if clock == 0 && compact == layout.FirstRevision {
		return 0
	}
	head := binary.AppendVarint(append(h.head[:0], layout.TableMeta), clock)
	return h.sum(binary.AppendUvarint(head, compact), nil, nil)
}

func (h *hasher) sum(head, key, value []byte) uint64 {
	h.head = head
	h.digest.Reset()
	_, _ = h.digest.Write(head) // never fails
	_, _ = h.digest.Write(key)
	_, _ = h.digest.Write(value)
	return h.digest.Sum64()
}

// stateScan recomputes the hash and the counters from all records, in the order of
// the engine.
type stateScan struct {
	// rowBytes returns what the quota counts for a row. Its key begins with the table.
	rowBytes func(key, value []byte) (int64, error)

	hasher hasher
	prefix []byte // of the last key seen
	key    []byte
	// pairs and rest are the parts of the state hash, as in meta.
	pairs, rest uint64
	keys        uint64
	logical     int64
}

// add takes the next record.
func (s *stateScan) add(k, value []byte) error {
	switch k[0] {
	case layout.TableVersion:
		return s.addVersion(k, value)
	case layout.TableRecord:
		s.rest += s.hasher.record(k[1:], value)
	case layout.TableSetting:
		s.rest += s.hasher.settings(value)
	case layout.TableMeta:
		m, err := layout.DecodeMeta(value)
		if err != nil {
			return err
		}
		s.rest += s.hasher.times(m.Clock, m.Compact)
	default:
		if layout.IsRowTable(k[0]) {
			s.rest += s.hasher.row(k, value)
			n, err := s.rowBytes(k, value)
			s.logical += n
			return err
		}
	}
	return nil
}

// addVersion counts the first version of each key, which is the newest.
func (s *stateScan) addVersion(k, value []byte) error {
	prefix, mod, err := layout.SplitVersionKey(k)
	if err != nil {
		return err
	}
	if string(prefix) == string(s.prefix) {
		return nil
	}
	s.prefix = append(s.prefix[:0], prefix...)
	v, err := layout.DecodeVersion(mod, value)
	if err != nil || v.Deleted {
		return err
	}
	s.key = layout.UnescapePrefix(s.key[:0], prefix)
	s.pairs += s.hasher.key(s.key, mod, &v)
	s.keys++
	s.logical += layout.LogicalBytes(len(s.key), len(v.Value))
	return nil
}
