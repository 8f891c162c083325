package hot

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/command"
)

// The memory of pairs is bounded whatever is read and changed.
func TestPairsAreBounded(t *testing.T) {
	const limit = 4 << 20
	h := New(limit)
	value := []byte(strings.Repeat("x", maxValueBytes))
	for i := range uint64(3 * limit / maxValueBytes) {
		key := fmt.Appendf(nil, "%08d", i)
		shard := h.Shard(key)
		_, epoch := shard.Get(key, i)
		shard.Put(&command.KV{Key: key, Value: value, ModRevision: i}, i, epoch)
		if i%2 == 0 {
			h.Note(key, i, &command.KV{Value: value, ModRevision: i})
		}
	}
	total := 0
	for i := range h.shards {
		for _, generation := range []map[string]*command.KV{h.shards[i].young, h.shards[i].old} {
			for key, kv := range generation {
				total += len(key) + len(kv.Value) + overheadBytes
			}
		}
	}
	if slack := shardCount * 2 * maxValueBytes; total > limit+slack || total < limit/4 {
		t.Errorf("%d bytes, want at most %d", total, limit)
	}
}
