package kvstore

import (
	"bytes"
	"hash/maphash"
	"sync"
)

// hotPairs keeps the newest pairs of keys that are being read, so that a read of one
// opens no iterator, which costs more than everything else that a read does here.
//
// A pair gets in when it is read and stays the newest because Apply replaces it,
// before the change becomes visible. Keys that are only written stay out: Apply does
// not more than look for them. Two races decide the form of it:
//
//   - A reader finds revision 5 of a key in the engine; revision 6 is applied, and
//     not noted, since the key is not here; the reader puts 5 in. Each shard
//     therefore knows its last change: a pair that was read before it stays out.
//   - A reader looks between the change of a pair here and the moment it becomes
//     visible. The pair is ahead of it, and it reads from the engine instead.
//
// Values are copies that are never changed, so readers share them. As with metaCache,
// two generations approximate least recently used.
type hotPairs struct {
	seed   maphash.Seed
	shards [hotShards]hotShard
}

// hotShards keeps readers on different cores apart.
const hotShards = 64

const (
	hotValueBytes    = 16 << 10 // larger values cost more to send than to find
	hotOverheadBytes = 160      // of an entry, beside key and value
)

// hotShard has the pairs of some keys.
type hotShard struct {
	// mu is held for reading by reads that look a pair up, and for writing by those that
	// add one and by the goroutine that applies.
	mu         sync.RWMutex
	young, old map[string]*KV
	bytes      int // of the young generation
	limit      int // of bytes in one generation
	// changed is the revision of the last change of any key of the shard, and epoch
	// counts how often the whole state was replaced.
	changed uint64
	epoch   uint64
}

// newHotPairs returns the pairs of a store. Both generations of all shards together take
// at most limit bytes.
func newHotPairs(limit int) *hotPairs {
	h := &hotPairs{seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].limit = limit / hotShards / 2
	}
	return h
}

func (h *hotPairs) shard(key []byte) *hotShard {
	return &h.shards[maphash.Bytes(h.seed, key)%hotShards]
}

// get returns the newest pair of a key for a reader that sees a revision, or nil if it
// must ask the engine; epoch is for put then.
func (s *hotShard) get(key []byte, revision uint64) (kv *KV, epoch uint64) {
	s.mu.RLock()
	kv = s.young[string(key)]
	stale := kv == nil && s.old != nil
	if stale {
		kv = s.old[string(key)]
	}
	epoch = s.epoch
	s.mu.RUnlock()
	if kv == nil || kv.ModRevision > revision {
		return nil, epoch
	}
	if stale {
		s.renew(key, kv)
	}
	return kv, epoch
}

// renew moves a pair that was used from the old generation to the young one.
func (s *hotShard) renew(key []byte, kv *KV) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.old[string(key)] == kv {
		s.insert(kv)
	}
}

// put keeps the pair that a reader found in the engine as the newest one of a
// revision, unless it may have changed since.
func (s *hotShard) put(kv *KV, revision, epoch uint64) {
	if len(kv.Value) > hotValueBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch && revision >= s.changed {
		s.insert(kv)
	}
}

func (s *hotShard) insert(kv *KV) {
	if s.young == nil || s.bytes > s.limit {
		s.young, s.old, s.bytes = make(map[string]*KV), s.young, 0
	}
	s.young[string(kv.Key)] = kv
	s.bytes += len(kv.Key) + len(kv.Value) + hotOverheadBytes
}

// note replaces the pair of a key that a revision changed; kv is nil if it deleted the
// key, and needs no memory of its own. It belongs to the goroutine that applies, which
// calls it before the change becomes visible.
func (h *hotPairs) note(key []byte, revision uint64, kv *KV) {
	h.shard(key).note(key, revision, kv)
}

func (s *hotShard) note(key []byte, revision uint64, kv *KV) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = revision
	if s.young[string(key)] == nil && s.old[string(key)] == nil {
		return
	}
	delete(s.young, string(key))
	delete(s.old, string(key))
	if kv != nil && len(kv.Value) <= hotValueBytes {
		kept := *kv
		kept.Key, kept.Value = bytes.Clone(key), bytes.Clone(kv.Value)
		s.insert(&kept)
	}
}

// reset forgets everything, and what readers of the old state are about to put in.
func (h *hotPairs) reset() {
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		s.young, s.old, s.bytes, s.changed = nil, nil, 0, 0
		s.epoch++
		s.mu.Unlock()
	}
}
