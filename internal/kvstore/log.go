package kvstore

import (
	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// Table c is the change log of package changelog. A record is under the revision that it
// begins with, and its part.

// checkChanges refuses a record that this package would not have written. It is for
// records from outside, in a body. It returns the last revision in it.
func checkChanges(key, value []byte) (last uint64, err error) {
	at, err := layout.SplitChangeKey(key)
	if err != nil {
		return 0, err
	}
	return changelog.Last(at.Revision, value)
}

// logChanges adds the changes of the current call to the writes.
func (x *executor) logChanges() {
	for from := 0; from < len(x.changes); {
		until := from + 1
		for until < len(x.changes) && x.changes[until].mod == x.changes[from].mod {
			until++
		}
		group := x.changes[from:until]
		x.log.Log(group[0].mod, changelog.Revision{N: len(group), At: func(i int, c *changelog.Change) { group[i].toLog(c) }})
		from = until
	}
	x.log.Flush()
}

// toLog sets c to what the log says about the change. It reuses the memory of c.Key.
func (d *change) toLog(c *changelog.Change) {
	c.Key = append(c.Key[:0], d.meta.key...)
	c.Deleted, c.Previous, c.Stored = !d.exists, 0, 0
	if d.replaced.stored > 0 {
		c.Previous, c.Stored = d.replaced.mod, int64(d.replaced.stored)
	}
}

// setChanges adds a record of the change log to the writes.
func (x *executor) setChanges(revision uint64, part uint32, value []byte) {
	x.scratch.key = layout.ChangeKey(x.scratch.key[:0], revision, part)
	x.writes.Set(x.scratch.key, value)
}
