package engine

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// compactions decides when a Pebble database compacts: as many at a time as the database
// itself allows.
//
// Pebble registers a database with its scheduler in the middle of Open. A flush that Open
// waits for then asks for a compaction, and the default scheduler starts one by itself
// within 100 ms. If a later step of Open fails, nobody stops them: they run on files that
// Open has released, and panic. This one allows nothing before start.
type compactions struct {
	*pebble.ConcurrencyLimitScheduler
	// more has a token if the database may allow more compactions than before.
	more    chan struct{}
	started atomic.Bool
	// stop and stopped end the goroutine of start; stop is nil before.
	stop, stopped chan struct{}
}

func newCompactions() *compactions {
	return &compactions{
		// It differs from the default in that it looks for more work only when a
		// compaction ends or the database asks. Only its name is about tests.
		ConcurrencyLimitScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest(),
		more:                      make(chan struct{}, 1),
	}
}

// start is called once the database is open. It grants what has waited for that.
func (c *compactions) start() {
	c.stop, c.stopped = make(chan struct{}), make(chan struct{})
	c.started.Store(true)
	c.UpdateGetAllowedWithoutPermission()
	go func() {
		defer close(c.stopped)
		for {
			select {
			case <-c.stop:
				return
			case <-c.more:
			}
			if ok, grant := c.TrySchedule(); ok {
				grant.Done() // which grants all that is allowed to what waits
			}
		}
	}()
}

// TrySchedule implements pebble.CompactionScheduler. A database that is refused asks for
// nothing until it is granted a compaction.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !c.started.Load() {
		return false, nil
	}
	return c.ConcurrencyLimitScheduler.TrySchedule()
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler. It is called
// with the lock of the database held, which granting takes as well.
func (c *compactions) UpdateGetAllowedWithoutPermission() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// Unregister implements pebble.CompactionScheduler. The database calls it when it closes.
func (c *compactions) Unregister() {
	if c.stop != nil {
		close(c.stop)
		<-c.stopped
	}
	c.ConcurrencyLimitScheduler.Unregister()
}
