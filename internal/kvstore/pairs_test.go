package kvstore

import (
	"fmt"
	"strings"
	"testing"
)

// The memory of pairs is bounded whatever is read and changed.
func TestPairsAreBounded(t *testing.T) {
	const limit = 4 << 20
	h := newHotPairs(limit)
	value := []byte(strings.Repeat("x", hotValueBytes))
	for i := range uint64(3 * limit / hotValueBytes) {
		key := fmt.Appendf(nil, "%08d", i)
		shard := h.shard(key)
		_, epoch := shard.get(key, i)
		shard.put(&KV{Key: key, Value: value, ModRevision: i}, i, epoch)
		if i%2 == 0 {
			h.note(key, i, &KV{Value: value, ModRevision: i})
		}
	}
	total := 0
	for i := range h.shards {
		for _, generation := range []map[string]*KV{h.shards[i].young, h.shards[i].old} {
			for key, kv := range generation {
				total += len(key) + len(kv.Value) + hotOverheadBytes
			}
		}
	}
	if slack := hotShards * 2 * hotValueBytes; total > limit+slack || total < limit/4 {
		t.Errorf("%d bytes, want at most %d", total, limit)
	}
}
