package kvstore

import (
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A reader sees the newest pair of its revision or a later one, never an older one,
// while the pair is put in, changed, deleted and pushed out.
func TestHotPairsAreTheNewest(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		const keys, rounds = 4, 3000
		var readers sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			readers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					key := strconv.Itoa(i % keys)
					before := s.Revision()
					kv, at, err := s.Get([]byte(key), 0)
					// Each revision r writes the key r%keys with the value r, so the
					// newest one of a key is known.
					want := before - (before-uint64(i%keys))%keys
					n, _ := strconv.ParseUint(string(kv.Value), 10, 64)
					if before > keys+1 && (err != nil || n < want || at < before || n > at || kv.ModRevision != n) {
						t.Errorf("key %s at %d: value %d of %d, want %d or later: %v", key, before, n, at, want, err)
						return
					}
				}
			})
		}
		for range rounds {
			next := s.Revision() + 1
			do(t, s, put(strconv.FormatUint(next%keys, 10), strconv.FormatUint(next, 10)))
		}
		close(done)
		readers.Wait()
	})
}

// A pair that was read before a change is not put in after it.
func TestHotPairReadBeforeAChange(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("a", "old"))
	shard := s.hot.Shard([]byte("a"))
	_, epoch := shard.Get([]byte("a"), s.Revision())
	old, at, err := s.getAt([]byte("a"), 0)
	must(t, err)
	do(t, s, put("a", "new"))
	shard.Put(&old, at, epoch)
	if kv, _, err := s.Get([]byte("a"), 0); err != nil || string(kv.Value) != "new" {
		t.Errorf("%q %v", kv.Value, err)
	}
	// Nor one of a state that was replaced.
	_, epoch = shard.Get([]byte("b"), s.Revision())
	body := bodyOf(t, newStore(t, "memory"))
	must(t, s.Restore(strings.NewReader(string(body))))
	shard.Put(&KV{Key: []byte("a"), Value: []byte("gone"), ModRevision: 1}, 99, epoch)
	if kv, _, err := s.Get([]byte("a"), 0); err == nil {
		t.Errorf("%q", kv.Value)
	}
}
