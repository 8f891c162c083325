package statehash

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// Hasher computes the hashes of records without allocating. What it hashes begins
// with the table and the length of the key, so that no two records consist of the
// same bytes.
type Hasher struct {
	digest xxhash.Digest
	head   []byte
}

// Key hashes the pair that a key has since the revision mod.
func (h *Hasher) Key(key []byte, mod uint64, v *layout.Version) uint64 {
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

// Record hashes a record of the replication layer.
func (h *Hasher) Record(key, value []byte) uint64 {
	head := append(h.head[:0], layout.TableRecord)
	head = binary.AppendUvarint(head, uint64(len(key)))
	return h.sum(head, key, value)
}

// Row hashes a row of a table of rows. Its key in the engine begins with the table. The key
// of a secret has its hash, which stands for it: a backup without the secret has the same
// state hash.
func (h *Hasher) Row(key, value []byte) uint64 {
	if key[0] == layout.TableSecret {
		value = nil
	}
	return h.sum(binary.AppendUvarint(append(h.head[:0], key[0]), uint64(len(key)-1)), key[1:], value)
}

// Change hashes what the change log says about a change.
func (h *Hasher) Change(revision uint64, c *changelog.Change) uint64 {
	head := binary.AppendUvarint(append(h.head[:0], layout.TableChange), revision)
	head = binary.AppendUvarint(head, c.Previous)
	head = binary.AppendUvarint(head, uint64(c.Stored))
	if c.Deleted {
		head = append(head, 1)
	}
	return h.sum(head, c.Key, nil)
}

// Settings hashes the replicated settings.
func (h *Hasher) Settings(encoded []byte) uint64 {
	return h.sum(append(h.head[:0], layout.TableSetting), nil, encoded)
}

// Times returns the term of replicated time and the compact revision, which is 0 in an
// empty store.
func (h *Hasher) Times(clock int64, compact uint64) uint64 {
	if clock == 0 && compact == layout.FirstRevision {
		return 0
	}
	head := binary.AppendVarint(append(h.head[:0], layout.TableMeta), clock)
	return h.sum(binary.AppendUvarint(head, compact), nil, nil)
}

func (h *Hasher) sum(head, key, value []byte) uint64 {
	h.head = head
	h.digest.Reset()
	_, _ = h.digest.Write(head) // never fails
	_, _ = h.digest.Write(key)
	_, _ = h.digest.Write(value)
	return h.digest.Sum64()
}

// Scan recomputes the hash and the counters from all records, in the order of
// the engine.
type Scan struct {
	// RowBytes returns what the quota counts for a row. Its key begins with the table.
	RowBytes func(key, value []byte) (int64, error)

	Hasher Hasher
	prefix []byte // of the last key seen
	key    []byte
	// Pairs and rest are the parts of the state hash, as in meta.
	Pairs, Rest uint64
	Keys        uint64
	Logical     int64
}

// Add takes the next record.
func (s *Scan) Add(k, value []byte) error {
	switch k[0] {
	case layout.TableVersion:
		return s.addVersion(k, value)
	case layout.TableRecord:
		s.Rest += s.Hasher.Record(k[1:], value)
	case layout.TableSetting:
		s.Rest += s.Hasher.Settings(value)
	case layout.TableMeta:
		m, err := layout.DecodeMeta(value)
		if err != nil {
			return err
		}
		s.Rest += s.Hasher.Times(m.Clock, m.Compact)
	default:
		if layout.IsRowTable(k[0]) {
			s.Rest += s.Hasher.Row(k, value)
			n, err := s.RowBytes(k, value)
			s.Logical += n
			return err
		}
	}
	return nil
}

// addVersion counts the first version of each key, which is the newest.
func (s *Scan) addVersion(k, value []byte) error {
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
	s.Pairs += s.Hasher.Key(s.key, mod, &v)
	s.Keys++
	s.Logical += layout.LogicalBytes(len(s.key), len(v.Value))
	return nil
}
