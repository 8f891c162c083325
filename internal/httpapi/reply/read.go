package reply

import (
	"context"
	"time"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Store is what Read reads.
type Store interface {
	// Get returns a key at a revision, and the revision at which it was read.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
}

// Read describes a read of one key.
type Read struct {
	Key      []byte
	Revision uint64 // 0 means the newest
	JSON     bool   // the answer has the value in JSON
	// Memory is claimed for the value and the answer with it, on top of Kept bytes.
	// A claim waits for at most Patience.
	Memory   *budget.Claim
	Kept     int64
	Patience time.Duration
}

// From reads the key. Only what is read shows how much memory that takes. If there is no
// room at once, the value is dropped before the claim waits, so that waiting requests
// hold nothing, and is read again.
func (r *Read) From(ctx context.Context, store Store) (kvstore.KV, uint64, error) {
	for {
		kv, at, err := store.Get(r.Key, r.Revision)
		if err != nil {
			return kv, at, err
		}
		size := r.Kept + int64(len(kv.Value))
		// Escapes make a byte at most six. To count them takes about as long as to
		// read the value, so that is left until there is room for the value itself.
		if r.JSON && len(kv.Value) > budget.Free/8 && r.Memory.Try(size) {
			size += BytesSize(kv.Value)
		}
		if r.Memory.Try(size) {
			return kv, at, nil
		}
		kv.Value = nil
		r.Memory.Lower(r.Kept)
		if err := r.Memory.WaitFor(ctx, size, r.Patience); err != nil {
			return kv, at, err
		}
	}
}
