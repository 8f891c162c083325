package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// History is compacted in two steps. A compact command moves the compact revision,
// at the same log index on every replica; reads before it fail from then on.
// Maintain then removes the versions that no remaining read can see, at each
// replica's own pace. It finds them by the mutation log: a key that changed in a
// revision up to the compact one needs none of its older versions.

// CompactionTarget returns the revision to which history should be compacted, or 0
// if there is nothing to do. History is kept while it is young enough or among the
// last revisions, but never larger than a quarter of the quota. Only the leader
// asks; replicas may disagree about the answer, since the size of history is their
// own, so it reaches them as a command.
func (s *Store) CompactionTarget() uint64 { return targetAt(s, s.visible.Load().clock) }

// Aging reports whether there is history that only its age keeps, or an idempotency
// record. While there is, a leader must let replicated time pass even if nothing is
// written.
func (s *Store) Aging() bool {
	v := s.visible.Load()
	return v.remembered > 0 || v.revision > v.compact && v.revision-v.compact > v.settings.RetentionRevisions
}

func targetAt(s *Store, millis int64) uint64 {
	v := s.visible.Load()
	target := s.timeline.byAge(millis - v.settings.RetentionMillis)
	if v.settings.RetentionRevisions >= v.revision {
		target = 0
	} else {
		target = min(target, v.revision-v.settings.RetentionRevisions)
	}
	// historyBytes still counts what is compacted but not removed. As long as there
	// is any, it is unknown whether the last step was enough; another step for each
	// call would leave no history at all.
	behind := v.cleaned < v.compact
	if q := v.settings.QuotaBytes; q > 0 && !behind && v.historyBytes > q/4 {
		// The bytes of a revision are not known. Halving gets there in a few steps.
		target = max(target, v.compact+(v.revision-v.compact+1)/2)
	}
	if target <= v.compact {
		return 0
	}
	return target
}

// Bounds of one call of Maintain, so that it holds up Apply for milliseconds only: the
// number of revisions, and the number of mutated keys after which no further part
// of the mutation log is begun.
const (
	maintainRevisions = 256
	maintainKeys      = 5000
)

// Maintain removes a bounded part of the history before the compact revision, and
// reports whether more is left. It belongs to the goroutine that applies. Its writes
// go without a log position of their own: a crash that takes them makes the next
// start remove the same history again.
func (s *Store) Maintain() (more bool, err error) {
	if s.exec.failed != nil {
		return false, s.exec.failed
	}
	done, err := readHistory(s.eng)
	if err != nil || done >= s.exec.now.compact {
		return false, err
	}
	if err := s.exec.maintain(done); err != nil {
		return false, s.exec.fail(err)
	}
	s.publish()
	return s.exec.cleaned < s.exec.now.compact, nil
}

// maintain removes the history of the revisions after done, within the bounds.
func (x *executor) maintain(done uint64) error {
	x.writes.Reset()
	until, err := x.cleanUp(done, x.now.compact)
	if err != nil {
		return fmt.Errorf("remove history: %w", err)
	}
	for _, old := range x.timeline.dropUntil(until) {
		x.writes.Delete(timeKey(old.revision))
	}
	x.cleaned = until
	x.writes.Set([]byte{tableHistory}, binary.AppendUvarint([]byte{recordVersion}, until))
	return x.commit()
}

// readHistory returns the revision up to which history has been removed.
func readHistory(r engine.Reader) (uint64, error) {
	b, err := r.Get(nil, []byte{tableHistory})
	if errors.Is(err, engine.ErrNotFound) {
		return firstRevision, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read progress of history: %w", err)
	}
	return decodeHistory(b)
}

func decodeHistory(b []byte) (uint64, error) {
	d, err := openRecord("history", b)
	if err != nil {
		return 0, err
	}
	revision := d.Uvarint()
	if d.Failed || len(d.B) > 0 {
		return 0, fmt.Errorf("%w: history record", errLayout)
	}
	return revision, nil
}

// cleanUp removes the versions that the mutations of the revisions after done superseded,
// and their part of the mutation log, within the bounds of one call. It returns the last
// revision that is done. The bound on revisions begins with the first that changed
// anything: a restored store skips a billion (RaiseCounters).
//
// The mutations of the compact revision itself stay until the next compaction, because
// a watch may begin there (Changes). How far they are processed is therefore not visible in
// the log, and kept in memory: after a restart, they are processed again.
func (x *executor) cleanUp(done, until uint64) (uint64, error) {
	it, err := x.eng.Iter(mutationKey(nil, done, 0), mutationKey(nil, until+1, 0))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	first := uint64(0)
	newest := make(map[string]uint64) // key → its last mutation among these
	for ok := it.First(); ok; ok = it.Next() {
		revision := binary.BigEndian.Uint64(it.Key()[1:])
		switch {
		case revision <= done:
			x.writes.Delete(it.Key())
			continue
		case bytes.Compare(it.Key(), x.cleanedPart) <= 0:
			if revision < x.now.compact { // it was the compact revision at the time
				x.writes.Delete(it.Key())
			}
			continue
		case first == 0:
			first = revision
		}
		if len(newest) >= maintainKeys || revision >= first+maintainRevisions {
			// This revision may be half done. Its finished parts are deleted, or noted, so
			// the next call continues behind them.
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
		if revision == x.now.compact {
			x.cleanedPart = append(x.cleanedPart[:0], it.Key()...)
		} else {
			x.writes.Delete(it.Key())
		}
	}
	if err := it.Err(); err != nil {
		return 0, err
	}
	for key, revision := range newest {
		if err := x.dropBefore([]byte(key), revision); err != nil {
			return 0, err
		}
	}
	return until, nil
}

// dropBefore removes the versions of a key older than its mutation at revision, and
// that version too if it is a deletion: a read at the compact revision finds the key
// absent either way.
func (x *executor) dropBefore(key []byte, revision uint64) error {
	lower, upper := pointBounds(nil, key, revision)
	it, err := x.eng.Iter(lower, upper)
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
		x.writes.Delete(it.Key())
		x.now.historyBytes -= int64(len(it.Key()) + len(it.Value()))
		x.now.historyVersions--
	}
	return it.Err()
}
