package changelog

import (
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// Each calls fn with the changes of the revisions from <= revision <= until, in order,
// until fn returns false or an error. The change is valid during the call. The caller
// makes sure that the records from the first revision on are all there.
func Each(r engine.Reader, from, until uint64, fn func(revision uint64, c *Change) (more bool, err error)) error {
	it, err := r.Iter([]byte{layout.TableChange}, layout.ChangeKey(nil, until+1, 0))
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	defer it.Close()
	for ok := seek(it, from); ok; ok = it.Next() {
		at, err := layout.SplitChangeKey(it.Key())
		if err != nil {
			return err
		}
		record := Read(at.Revision, it.Value())
		for record.Next() {
			if record.Revision < from {
				continue
			}
			if record.Revision > until {
				return nil
			}
			if more, err := fn(record.Revision, &record.Change); err != nil || !more {
				return err
			}
		}
		if record.Err != nil {
			return record.Err
		}
	}
	return it.Err()
}

// seek moves to the record that a revision is in, or to the first one after it.
func seek(it engine.Iterator, revision uint64) bool {
	if !it.SeekLT(layout.ChangeKey(nil, revision+1, 0)) {
		return it.First()
	}
	if binary.BigEndian.Uint64(it.Key()[1:]) == revision {
		return it.SeekGE(layout.ChangeKey(nil, revision, 0)) // the first part of it
	}
	return true
}
