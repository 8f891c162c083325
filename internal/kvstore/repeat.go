package kvstore

import (
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/once"
)

// applyOnce runs a command unless it is a repeat, and forgets the keys that it
// releases. Its results are built even if nobody here waits for them: the record must
// be the same on every replica.
func (x *executor) applyOnce(c *Command, e *Entry, size int, place once.Place, r *Result) error {
	ix := &x.idempotency
	if c.Idempotency == nil {
		if err := x.run(c, e, size, e.WantResults, r); err != nil {
			return err
		}
	} else if done, err := ix.Replay(c, x.settings.IdempotencyBytes, r); err != nil {
		return err
	} else if !done {
		if err := x.run(c, e, size, true, r); err != nil {
			return err
		}
		ix.Record(c, place, &x.now, x.writes, r)
	} else if !r.Replayed {
		r.Revision = x.now.Revision
	}
	ix.Release(c, &x.now, x.writes)
	return nil
}

// checkRow refuses a row of a table of rows that this package would not have
// written. It is for rows from outside, in a body.
func checkRow(key, value []byte) error {
	switch key[0] {
	case layout.TableIdempotency:
		return once.CheckRow(key[1:], value)
	case layout.TableRights, layout.TableSecret:
		return guard.CheckRow(key, value)
	}
	return checkLeaseRow(key, value)
}
