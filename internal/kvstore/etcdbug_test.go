package kvstore

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// TestEtcdBug13766CrashBetweenDataAndIndex: in etcd 3.5, a crash could leave a store whose
// data and applied index were of different moments, so that entries were skipped or applied
// twice. Here both are in one batch: whatever a crash leaves is the state of its index.
func TestEtcdBug13766CrashBetweenDataAndIndex(t *testing.T) {
	rng := testRand(t)
	const entries = 400
	hashes := make([]uint64, entries+1)
	reference := newStore(t, "memory")
	_, hashes[0] = reference.StateHash()
	history := make([]Entry, entries+1)
	for i := uint64(1); i <= entries; i++ {
		value := make([]byte, 1+rng.IntN(400))
		for j := range value {
			value[j] = byte(rng.Uint32()) // must not compress, so that tables fill
		}
		history[i] = entryOf(i, put(fmt.Sprint("key", rng.IntN(40)), string(value)), remove(fmt.Sprint("key", rng.IntN(40))))
		must(t, reference.Apply([]Entry{history[i]}))
		_, hashes[i] = reference.StateHash()
	}

	fs := vfs.NewCrashableMem()
	between := 0
	for at, crashes := uint64(0), 0; at < entries; crashes++ {
		if crashes == 1000 {
			t.Fatalf("entry %d after %d crashes", at, crashes)
		}
		s := openStore(t, openPebbleWith(t, fs, engine.PebbleOptions{MemTableBytes: 16 << 10, CacheBytes: 1 << 20}), Options{})
		position, hash := s.StateHash()
		if hash != hashes[position.Index] {
			t.Fatalf("after a crash at entry %d, the store is at %d with the hash %016x, want %016x", at, position.Index, hash, hashes[position.Index])
		}
		if position.Index > 0 && position.Index < at {
			between++
		}
		at = position.Index
		for range 1 + rng.IntN(60) {
			if at == entries {
				break
			}
			at++
			must(t, s.Apply([]Entry{history[at]}))
			if rng.IntN(40) == 0 { // a full memtable alone may never come
				must(t, s.Flush())
			}
		}
		if _, hash = s.StateHash(); hash != hashes[at] {
			t.Fatalf("at entry %d: hash %016x, want %016x", at, hash, hashes[at])
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		must(t, s.Close())
		fs = crashed
	}
	if between < 3 {
		t.Errorf("%d crashes left something between nothing and everything: that proves nothing", between)
	}
}
