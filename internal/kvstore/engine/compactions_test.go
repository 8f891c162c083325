package engine

import (
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2"
)

// waitingDatabase is a database that wants to compact, once.
type waitingDatabase struct{ waits, compacts bool }

func (d *waitingDatabase) GetAllowedWithoutPermission() int { return 1 }

func (d *waitingDatabase) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	return d.waits, pebble.WaitingCompaction{}
}

func (d *waitingDatabase) Schedule(pebble.CompactionGrantHandle) bool {
	d.waits, d.compacts = false, true
	return true
}

// TestNothingCompactsWhileOpening: a compaction that a flush asks for while the database is
// being opened waits until it is open. If that fails, the compaction never starts.
func TestNothingCompactsWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := new(waitingDatabase)
		c := newCompactions()
		c.Register(1, db)
		c.UpdateGetAllowedWithoutPermission()
		if ok, _ := c.TrySchedule(); ok {
			t.Error("allowed before the database is open")
		}
		db.waits = true
		synctest.Wait()
		if db.compacts {
			t.Error("compacts before the database is open")
		}
		c.start()
		synctest.Wait()
		if !db.compacts {
			t.Error("what waited for the database to be open does not start")
		}
		c.Unregister()
	})
}
