package kvstore

import (
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// mutation is a key that a revision changed.
type mutation struct {
	key     string
	deleted bool
}

// maxMutationBytes bounds one part of the mutation record of a revision. A range
// delete of 100,000 keys would otherwise make a single record of 400 MB, which
// Maintain would have to process in one step.
const maxMutationBytes = 64 << 10

// logRevision adds the keys that the current revision changed to the mutation log.
// Compaction finds superseded versions by it, and watches read it.
func (x *executor) logRevision(changes []change) {
	part := uint32(0)
	b := append(x.scratch.value[:0], recordVersion)
	for i := range changes {
		if len(b) > maxMutationBytes {
			x.writes.Set(mutationKey(nil, x.now.revision, part), b)
			b = append(b[:0], recordVersion)
			part++
		}
		deleted := byte(0)
		if !changes[i].exists {
			deleted = 1
		}
		b = wire.AppendBytes(append(b, deleted), changes[i].meta.key)
	}
	x.scratch.key = mutationKey(x.scratch.key[:0], x.now.revision, part)
	x.writes.Set(x.scratch.key, b)
	x.scratch.value = b
}

func decodeMutations(b []byte) ([]mutation, error) {
	d, err := openRecord("mutation", b)
	if err != nil {
		return nil, err
	}
	var out []mutation
	for len(d.B) > 0 {
		deleted := d.Byte() == 1
		out = append(out, mutation{deleted: deleted, key: string(d.Bytes())})
	}
	if d.Failed {
		return nil, fmt.Errorf("%w: mutation record", errLayout)
	}
	return out, nil
}

func mutationKey(dst []byte, revision uint64, part uint32) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, tableMutation), revision)
	return binary.BigEndian.AppendUint32(dst, part)
}
