package kvstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// History is compacted in two steps. A compact command, the same on every
// replica, moves the compact revision: reads before it fail from then on.
// Maintain then removes, at each replica's own pace, the versions that no
// remaining read can see. It finds them through the mutation log: whatever key
// a revision up to the compact one changed, its older versions are superfluous.

// maxSamples bounds the samples of replicated time; when there are more, every
// other one goes.
const maxSamples = 2048

func (s *Store) addSample(sm sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.mu.samples); n > 0 && s.mu.samples[n-1].revision == sm.revision {
		s.mu.samples[n-1] = sm
		return
	}
	s.mu.samples = append(s.mu.samples, sm)
	if len(s.mu.samples) <= maxSamples {
		return
	}
	kept := s.mu.samples[:0]
	for i, old := range s.mu.samples {
		if i%2 == 0 {
			kept = append(kept, old)
		} else {
			s.writes.Delete(timeKey(old.revision))
		}
	}
	s.mu.samples = kept
}

func readSamples(r engine.Reader) ([]sample, error) {
	it, err := r.Iter([]byte{tableTime}, []byte{tableTime + 1})
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
	d, err := openRecord("time", value)
	if err != nil {
		return sample{}, err
	}
	millis := d.varint()
	if d.failed || len(key) != 1+revisionLen {
		return sample{}, fmt.Errorf("%w: time record", errLayout)
	}
	return sample{revision: binary.BigEndian.Uint64(key[1:]), millis: millis}, nil
}

// CompactionTarget returns the revision that the history should be compacted
// to at the given time, 0 when there is nothing to do. History is kept while
// it is young enough or among the last revisions, but never larger than a
// quarter of the quota.
func (s *Store) CompactionTarget(nowUnixMillis int64) uint64 {
	v := s.visible.Load()
	target := s.byAge(nowUnixMillis - v.settings.RetentionMillis)
	if v.settings.RetentionRevisions >= v.revision {
		target = 0
	} else {
		target = min(target, v.revision-v.settings.RetentionRevisions)
	}
	// What is compacted but not yet removed still counts as history: while there
	// is some, nobody knows whether the last step was enough, and one more each
	// time this is asked would leave no history at all.
	behind := v.cleaned < v.compact
	if q := v.settings.QuotaBytes; q > 0 && !behind && v.historyBytes > q/4 {
		// Bytes are not known by revision; halving repeatedly gets there.
		target = max(target, v.compact+(v.revision-v.compact+1)/2)
	}
	if target <= v.compact {
		return 0
	}
	return target
}

// byAge returns the newest revision that was current at the time or before.
func (s *Store) byAge(millis int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := sort.Search(len(s.mu.samples), func(i int) bool { return s.mu.samples[i].millis > millis })
	if n == 0 {
		return 0
	}
	return s.mu.samples[n-1].revision
}

// One call of Maintain cleans up so many revisions, and stops before that at the
// mutation record that begins beyond so many changed keys.
const (
	maintainRevisions = 256
	maintainKeys      = 5000
)

// Maintain removes a bounded part of the history before the compact revision
// and reports whether more is left. It belongs to the goroutine that applies.
func (s *Store) Maintain() (more bool, err error) {
	if s.failed != nil {
		return false, s.failed
	}
	done, err := readHistory(s.eng)
	if err != nil || done >= s.now.compact {
		return false, err
	}
	s.writes.Reset()
	until, err := s.cleanUp(done+1, min(done+maintainRevisions, s.now.compact))
	if err != nil {
		s.failed = fmt.Errorf("remove history: %w", err)
		return false, s.failed
	}
	s.dropSamples(until)
	s.cleaned = until
	b := binary.AppendUvarint([]byte{recordVersion}, until)
	s.writes.Set([]byte{tableHistory}, b)
	if err := s.commit(); err != nil {
		s.failed = err
		return false, err
	}
	return until < s.now.compact, nil
}

// readHistory is the revision up to which history has been removed.
func readHistory(r engine.Reader) (uint64, error) {
	b, err := r.Get(nil, []byte{tableHistory})
	if errors.Is(err, engine.ErrNotFound) {
		return firstRevision, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the progress of history: %w", err)
	}
	return decodeHistory(b)
}

func decodeHistory(b []byte) (uint64, error) {
	d, err := openRecord("history", b)
	if err != nil {
		return 0, err
	}
	revision := d.uvarint()
	if d.failed || len(d.b) > 0 {
		return 0, fmt.Errorf("%w: history record", errLayout)
	}
	return revision, nil
}

// cleanUp removes what the changes of some compacted revisions superseded, and
// their mutation records. It returns the last revision that is done.
func (s *Store) cleanUp(from, until uint64) (uint64, error) {
	it, err := s.eng.Iter(mutationKey(nil, from, 0), mutationKey(nil, until+1, 0))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	newest := make(map[string]uint64) // key → its last change among these
	for ok := it.First(); ok; ok = it.Next() {
		revision := binary.BigEndian.Uint64(it.Key()[1:])
		if len(newest) >= maintainKeys {
			// The parts of this revision that are done are gone already.
			until = revision - 1
			break
		}
		mutations, err := decodeMutations(it.Value())
		if err != nil {
			return 0, err
		}
		for _, mu := range mutations {
			newest[mu.key] = revision
		}
		s.writes.Delete(it.Key())
	}
	if err := it.Err(); err != nil {
		return 0, err
	}
	for key, revision := range newest {
		if err := s.dropBefore([]byte(key), revision); err != nil {
			return 0, err
		}
	}
	return until, nil
}

// dropBefore removes the versions of a key older than its change at revision,
// and that one too when it is a deletion.
func (s *Store) dropBefore(key []byte, revision uint64) error {
	lower, upper := pointBounds(nil, key, revision)
	it, err := s.eng.Iter(lower, upper)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		_, rev, err := splitVersionKey(it.Key())
		if err != nil {
			return err
		}
		v, err := decodeVersion(it.Value())
		if err != nil {
			return err
		}
		if rev == revision && !v.deleted {
			continue
		}
		s.writes.Delete(it.Key())
		s.now.historyBytes -= int64(len(it.Key()) + len(it.Value()))
		s.now.historyVersions--
	}
	return it.Err()
}

// dropSamples forgets the samples that no compaction will ask for: all but the
// last one at or before the revision.
func (s *Store) dropSamples(until uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := sort.Search(len(s.mu.samples), func(i int) bool { return s.mu.samples[i].revision > until })
	for _, old := range s.mu.samples[:max(n-1, 0)] {
		s.writes.Delete(timeKey(old.revision))
	}
	s.mu.samples = slices.Clone(s.mu.samples[max(n-1, 0):])
}
