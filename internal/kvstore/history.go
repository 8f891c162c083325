package kvstore

import (
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// History is compacted in two steps. A compact command moves the compact revision,
// at the same log index on every replica; reads before it fail from then on.
// Maintain then removes what no remaining read can see, at each replica's own pace. It
// walks the change log (package changelog), which names the engine keys of all that goes, so
// that nothing is searched for:
//
//   - The version that a change at or before the compact revision replaced.
//   - A deletion before the compact revision. One at it stays: a watch may begin there.
//     By then the versions before it are gone, or it would uncover them.
//   - A record of the log whose revisions are all before the compact revision. One that has
//     later ones stays as a whole, and so do the deletions in it.

// CompactionTarget returns the revision to which history should be compacted, or 0
// if there is nothing to do. History is kept while it is young enough or among the
// last revisions, but never larger than a quarter of the quota. Only the leader
// asks; replicas may disagree about the answer, since the size of history is their
// own, so it reaches them as a command.
func (s *Store) CompactionTarget() uint64 { return targetAt(s, s.visible.Load().Clock) }

// Aging reports whether there is history that only its age keeps, or an idempotency
// record. While there is, a leader must let replicated time pass even if nothing is
// written.
func (s *Store) Aging() bool {
	v := s.visible.Load()
	return v.remembered.Records > 0 || v.Revision > v.Compact && v.Revision-v.Compact > v.settings.RetentionRevisions
}

func targetAt(s *Store, millis int64) uint64 {
	v := s.visible.Load()
	target := s.timeline.ByAge(millis - v.settings.RetentionMillis)
	if v.settings.RetentionRevisions >= v.Revision {
		target = 0
	} else {
		target = min(target, v.Revision-v.settings.RetentionRevisions)
	}
	// historyBytes still counts what is compacted but not removed. As long as there
	// is any, it is unknown whether the last step was enough; another step for each
	// call would leave no history at all.
	behind := v.cleaned < v.Compact
	if q := v.settings.QuotaBytes; q > 0 && !behind && v.HistoryBytes > q/4 {
		// The bytes of a revision are not known. Halving gets there in a few steps.
		target = max(target, v.Compact+(v.Revision-v.Compact+1)/2)
	}
	if target <= v.Compact {
		return 0
	}
	return target
}

// Bounds of one call of Maintain, so that it holds up Apply for milliseconds only: the
// number of changes after which no further record of the log is begun, and the number of
// records.
const (
	maintainChanges = 5000
	maintainRecords = 256
)

// Maintain removes a bounded part of the history before the compact revision, and
// reports whether more is left. It belongs to the goroutine that applies. Its writes
// go without a log position of their own: a crash that takes them makes the next
// start remove the same history again.
func (s *Store) Maintain() (more bool, err error) {
	x := &s.exec
	if x.failed != nil {
		return false, x.failed
	}
	if x.uncleaned.Cleaned() >= x.now.Compact {
		return false, nil
	}
	if err := x.maintain(); err != nil {
		return false, x.fail(fmt.Errorf("remove history: %w", err))
	}
	s.publish()
	return x.uncleaned.Cleaned() < x.now.Compact, nil
}

// maintain removes a bounded part of the history.
func (x *executor) maintain() error {
	x.writes.Reset()
	if err := cleanUp(x); err != nil {
		return err
	}
	for _, old := range x.timeline.DropUntil(x.uncleaned.Cleaned()) {
		x.writes.Delete(layout.TimeKey(old.Revision))
	}
	x.writes.Set([]byte{layout.TableHistory}, layout.AppendProgress(nil, x.uncleaned))
	return x.commit()
}

// readProgress returns the place up to which the replaced versions were removed.
func readProgress(r engine.Reader) (layout.Place, error) {
	b, err := r.Get(nil, []byte{layout.TableHistory})
	if errors.Is(err, engine.ErrNotFound) {
		return layout.Place{Revision: layout.FirstRevision + 1}, nil
	}
	if err != nil {
		return layout.Place{}, fmt.Errorf("read progress of history: %w", err)
	}
	return layout.DecodeProgress(b)
}

// cleanUp goes on with the records of the change log from the first one that is left, and
// notes how far it came.
func cleanUp(x *executor) error {
	it, err := x.eng.Iter([]byte{layout.TableChange}, layout.ChangeKey(nil, x.now.Compact+1, 0))
	if err != nil {
		return err
	}
	defer it.Close()
	changes, records := 0, 0
	for ok := it.First(); ok; ok = it.Next() {
		at, err := layout.SplitChangeKey(it.Key())
		if err != nil {
			return err
		}
		if at.Revision == x.now.Compact && at.Before(x.uncleaned) {
			continue // a part that is done, and stays
		}
		if changes >= maintainChanges || records >= maintainRecords {
			return nil
		}
		n, err := cleanRecord(x, at, it.Key(), it.Value())
		if err != nil {
			return err
		}
		changes, records = changes+n, records+1
	}
	x.uncleaned = layout.Place{Revision: x.now.Compact + 1}
	return it.Err()
}

// cleanRecord removes what the changes in a record made superfluous, and the record if nothing
// needs it anymore. It returns the number of changes.
func cleanRecord(x *executor, at layout.Place, key, value []byte) (n int, err error) {
	last, err := changelog.Last(at.Revision, value)
	if err != nil {
		return 0, err
	}
	obsolete := last < x.now.Compact
	r := changelog.Read(at.Revision, value)
	for ; r.Next() && r.Revision <= x.now.Compact; n++ {
		if done := (layout.Place{Revision: r.Revision, Part: at.Part}).Before(x.uncleaned); !done && r.Change.Previous != 0 {
			removeVersion(x, r.Change.Key, r.Change.Previous, r.Change.Stored)
		}
		if obsolete && r.Change.Deleted {
			removeVersion(x, r.Change.Key, r.Revision, 0)
		}
	}
	if obsolete {
		x.writes.Delete(key)
	}
	next := layout.Place{Revision: min(last, x.now.Compact) + 1}
	if last == at.Revision { // there may be further parts
		next = layout.Place{Revision: last, Part: at.Part + 1}
	}
	if x.uncleaned.Before(next) {
		x.uncleaned = next
	}
	return n, r.Err
}

// removeVersion removes a version of a key of a number of bytes in the engine, or a
// deletion if that is 0.
func removeVersion(x *executor, key []byte, revision uint64, stored int64) {
	x.scratch.key = layout.AppendVersionKey(x.scratch.key[:0], key, revision)
	if stored == 0 {
		stored = int64(len(x.scratch.key) + layout.DeletedVersionBytes)
	}
	x.writes.Delete(x.scratch.key)
	x.now.HistoryBytes -= stored
	x.now.HistoryVersions--
}
