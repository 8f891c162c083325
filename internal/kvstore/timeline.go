package kvstore

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

// hashStride and keptHashes choose the log indexes whose state hashes are kept for
// comparing replicas under load.
const (
	hashStride = 1024
	keptHashes = 64
)

// maxSamples bounds the samples of replicated time. When there are more, every other
// one is dropped, which halves the resolution and keeps the range.
const maxSamples = 2048

// sample says which revision was current at a moment of replicated time.
type sample struct {
	revision uint64
	millis   int64
}

// timeline is what the store remembers about earlier positions. The goroutine that
// applies changes it; others read it.
type timeline struct {
	// mu is held for the few instructions of each method, never for a call to the
	// engine.
	mu struct {
		sync.Mutex
		samples []sample          // of replicated time, by revision
		hashes  map[uint64]uint64 // state hash by log index divisible by hashStride
	}
}

// reset replaces everything, after the state has been replaced.
func (t *timeline) reset(samples []sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.samples, t.mu.hashes = samples, make(map[uint64]uint64)
}

// add keeps a sample and returns those that were dropped to make room. Of two samples
// of one revision it keeps the first: if each tick moved the sample of an idle store
// forward, its newest revision would never be old enough to compact to.
func (t *timeline) add(sm sample) (added bool, thinned []sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.mu.samples); n > 0 && t.mu.samples[n-1].revision == sm.revision {
		return false, nil
	}
	t.mu.samples = append(t.mu.samples, sm)
	if len(t.mu.samples) <= maxSamples {
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

// byAge returns the newest revision that was current at or before the time, or 0.
func (t *timeline) byAge(millis int64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := sort.Search(len(t.mu.samples), func(i int) bool { return t.mu.samples[i].millis > millis })
	if n == 0 {
		return 0
	}
	return t.mu.samples[n-1].revision
}

// dropUntil drops the samples that no compaction will need, and returns them: all but
// the last at or before the revision. That one stays, because the revision was still
// current at any time before the next sample.
func (t *timeline) dropUntil(revision uint64) (dropped []sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := sort.Search(len(t.mu.samples), func(i int) bool { return t.mu.samples[i].revision > revision })
	dropped = t.mu.samples[:max(n-1, 0)]
	t.mu.samples = slices.Clone(t.mu.samples[max(n-1, 0):])
	return dropped
}

// all returns the samples, oldest first.
func (t *timeline) all() []sample {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mu.samples)
}

// keepsHash reports whether the state hash of a log index is kept.
func keepsHash(index uint64) bool { return index%hashStride == 0 }

// noteHash keeps the state hash of a log index if replicas compare that one.
func (t *timeline) noteHash(index, hash uint64) {
	if !keepsHash(index) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.hashes[index] = hash
	delete(t.mu.hashes, index-keptHashes*hashStride)
}

func (t *timeline) hashes() map[uint64]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.mu.hashes)
}

func readSamples(r engine.Reader) ([]sample, error) {
	it, err := r.Iter([]byte{layout.TableTime}, []byte{layout.TableTime + 1})
	if err != nil {
		return nil, fmt.Errorf("read time samples: %w", err)
	}
	defer it.Close()
	var out []sample
	for ok := it.First(); ok; ok = it.Next() {
		sm, err := decodeSample(it.Key(), it.Value())
		if err != nil {
			return nil, err
		}
		out = append(out, sm)
	}
	return out, it.Err()
}

func decodeSample(key, value []byte) (sample, error) {
	d, err := layout.OpenRecord("time", value)
	if err != nil {
		return sample{}, err
	}
	millis := d.Varint()
	if d.Failed || len(key) != 1+layout.RevisionLen {
		return sample{}, fmt.Errorf("%w: time record", layout.ErrMalformed)
	}
	return sample{revision: binary.BigEndian.Uint64(key[1:]), millis: millis}, nil
}
