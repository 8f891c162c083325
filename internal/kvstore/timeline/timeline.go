package timeline

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// HashStride and KeptHashes choose the log indexes whose state hashes are kept for
// comparing replicas under load.
const (
	HashStride = 1024
	KeptHashes = 64
)

// MaxSamples bounds the samples of replicated time. When there are more, every other
// one is dropped, which halves the resolution and keeps the range.
const MaxSamples = 2048

// Sample says which revision was current at a moment of replicated time.
type Sample struct {
	Revision uint64
	Millis   int64
}

// Timeline is the memory of one store. The goroutine that applies changes it; others read
// it.
type Timeline struct {
	// mu is held for the few instructions of each method, never for a call to the
	// engine.
	mu struct {
		sync.Mutex
		samples []Sample          // of replicated time, by revision
		hashes  map[uint64]uint64 // state hash by log index divisible by HashStride
	}
}

// Reset replaces everything, after the state has been replaced.
func (t *Timeline) Reset(samples []Sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.samples, t.mu.hashes = samples, make(map[uint64]uint64)
}

// Add keeps a sample and returns those that were dropped to make room. Of two samples
// of one revision it keeps the first: if each tick moved the sample of an idle store
// forward, its newest revision would never be old enough to compact to.
func (t *Timeline) Add(sm Sample) (added bool, thinned []Sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.mu.samples); n > 0 && t.mu.samples[n-1].Revision == sm.Revision {
		return false, nil
	}
	t.mu.samples = append(t.mu.samples, sm)
	if len(t.mu.samples) <= MaxSamples {
		return true, nil
	}
	kept := t.mu.samples[:0]
	for i, old := range t.mu.samples {
		if i%2 == 0 {
			kept = append(kept, old)
		} else {
			thinned = append(thinned, old)
		}
	}
	t.mu.samples = kept
	return true, thinned
}

// ByAge returns the newest revision that was current at or before the time, or 0.
func (t *Timeline) ByAge(millis int64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := sort.Search(len(t.mu.samples), func(i int) bool { return t.mu.samples[i].Millis > millis })
	if n == 0 {
		return 0
	}
	return t.mu.samples[n-1].Revision
}

// DropUntil drops the samples that no compaction will need, and returns them: all but
// the last at or before the revision. That one stays, because the revision was still
// current at any time before the next sample.
func (t *Timeline) DropUntil(revision uint64) (dropped []Sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := sort.Search(len(t.mu.samples), func(i int) bool { return t.mu.samples[i].Revision > revision })
	dropped = t.mu.samples[:max(n-1, 0)]
	t.mu.samples = slices.Clone(t.mu.samples[max(n-1, 0):])
	return dropped
}

// Samples returns the samples, oldest first.
func (t *Timeline) Samples() []Sample {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mu.samples)
}

// KeepsHash reports whether the state hash of a log index is kept.
func KeepsHash(index uint64) bool { return index%HashStride == 0 }

// NoteHash keeps the state hash of a log index if replicas compare that one.
func (t *Timeline) NoteHash(index, hash uint64) {
	if !KeepsHash(index) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.hashes[index] = hash
	delete(t.mu.hashes, index-KeptHashes*HashStride)
}

// Hashes returns the state hashes that are kept, by log index.
func (t *Timeline) Hashes() map[uint64]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.mu.hashes)
}

// Read returns the samples in the engine.
func Read(r engine.Reader) ([]Sample, error) {
	it, err := r.Iter([]byte{layout.TableTime}, []byte{layout.TableTime + 1})
	if err != nil {
		return nil, fmt.Errorf("read time samples: %w", err)
	}
	defer it.Close()
	var out []Sample
	for ok := it.First(); ok; ok = it.Next() {
		sm, err := Decode(it.Key(), it.Value())
		if err != nil {
			return nil, err
		}
		out = append(out, sm)
	}
	return out, it.Err()
}

// Decode decodes a sample from its key and value in the engine.
func Decode(key, value []byte) (Sample, error) {
	d, err := layout.OpenRecord("time", value)
	if err != nil {
		return Sample{}, err
	}
	millis := d.Varint()
	if d.Failed || len(key) != 1+layout.RevisionLen {
		return Sample{}, fmt.Errorf("%w: time record", layout.ErrMalformed)
	}
	return Sample{Revision: binary.BigEndian.Uint64(key[1:]), Millis: millis}, nil
}
