package kvstore

import "fmt"

// RaisedBy is how far RaiseCounters raises each counter. It must exceed what a
// cluster can count between a backup and the loss that made somebody restore it: at
// 10,000 writes a second that is more than a day.
const RaisedBy = 1_000_000_000

// RaiseCounters raises all counters whose values clients remember, after the state
// of a backup was restored: revisions, and with them entity tags and resume points, the
// sequence of lock tokens and lease ids, and the revision of the rights. Clients have seen
// what the old cluster counted after the backup; a value that came up again with another
// content would make their conditions true and their caches fresh by accident. A new
// counter of this kind has to be raised here. Logins of the old cluster end (guard.Restored).
//
// History up to the new revision counts as compacted. A watcher of the old cluster may
// have seen changes that the backup lacks, and must not resume as if they stood: it is
// told to read everything again. Versions, leases and their TTLs stay.
//
// It belongs to the goroutine that applies, and is not a log entry: every replica
// calls it once, on equal state, before its first entry.
func (s *Store) RaiseCounters() error {
	x := &s.exec
	if x.failed != nil {
		return x.failed
	}
	x.writes.Reset()
	x.now.Revision += RaisedBy
	x.setTimes(x.now.Clock, x.now.Revision)
	x.leases.count().sequence += RaisedBy
	x.guard.Restored(RaisedBy, x.rows)
	x.leases.commit()
	if err := x.rows.Commit(&x.now, x.writes); err != nil {
		return x.fail(fmt.Errorf("raise counters: %w", err))
	}
	if err := x.commit(); err != nil {
		return x.fail(fmt.Errorf("raise counters: %w", err))
	}
	s.publish()
	return nil
}
