package hot

import (
	"bytes"
	"hash/maphash"
	"sync"

	"github.com/kvd-io/kvd/internal/kvstore/command"
)

// Pairs are the newest pairs of a store.
type Pairs struct {
	seed   maphash.Seed
	shards [shardCount]Shard
}

// shardCount keeps readers on different cores apart.
const shardCount = 64

const (
	maxValueBytes = 16 << 10 // larger values cost more to send than to find
	overheadBytes = 160      // of an entry, beside key and value
)

// Shard has the pairs of some keys.
type Shard struct {
	// mu is held for reading by reads that look a pair up, and for writing by those that
	// add one and by the goroutine that applies.
	mu         sync.RWMutex
	young, old map[string]*command.KV
	bytes      int // of the young generation
	limit      int // of bytes in one generation
	// changed is the revision of the last change of any key of the shard, and epoch
	// counts how often the whole state was replaced.
	changed uint64
	epoch   uint64
}

// New returns the pairs of a store. Both generations of all shards together take
// at most limit bytes.
func New(limit int) *Pairs {
	h := &Pairs{seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].limit = limit / shardCount / 2
	}
	return h
}

// Shard returns the shard that a key belongs to.
func (h *Pairs) Shard(key []byte) *Shard {
	return &h.shards[maphash.Bytes(h.seed, key)%shardCount]
}

// Get returns the newest pair of a key for a reader that sees a revision, or nil if it
// must ask the engine; epoch is for Put then.
func (s *Shard) Get(key []byte, revision uint64) (kv *command.KV, epoch uint64) {
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
func (s *Shard) renew(key []byte, kv *command.KV) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.old[string(key)] == kv {
		s.insert(kv)
	}
}

// Put keeps the pair that a reader found in the engine as the newest one of a
// revision, unless it may have changed since.
func (s *Shard) Put(kv *command.KV, revision, epoch uint64) {
	if len(kv.Value) > maxValueBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch == s.epoch && revision >= s.changed {
		s.insert(kv)
	}
}

func (s *Shard) insert(kv *command.KV) {
	if s.young == nil || s.bytes > s.limit {
		s.young, s.old, s.bytes = make(map[string]*command.KV), s.young, 0
	}
	s.young[string(kv.Key)] = kv
	s.bytes += len(kv.Key) + len(kv.Value) + overheadBytes
}

// Note replaces the pair of a key that a revision changed; kv is nil if it deleted the
// key, and needs no memory of its own. It belongs to the goroutine that applies, which
// calls it before the change becomes visible.
func (h *Pairs) Note(key []byte, revision uint64, kv *command.KV) {
	h.Shard(key).note(key, revision, kv)
}

func (s *Shard) note(key []byte, revision uint64, kv *command.KV) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = revision
	if s.young[string(key)] == nil && s.old[string(key)] == nil {
		return
	}
	delete(s.young, string(key))
	delete(s.old, string(key))
	if kv != nil && len(kv.Value) <= maxValueBytes {
		kept := *kv
		kept.Key, kept.Value = bytes.Clone(key), bytes.Clone(kv.Value)
		s.insert(&kept)
	}
}

// Reset forgets everything, and what readers of the old state are about to put in.
func (h *Pairs) Reset() {
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		s.young, s.old, s.bytes, s.changed = nil, nil, 0, 0
		s.epoch++
		s.mu.Unlock()
	}
}
