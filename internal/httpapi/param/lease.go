package param

import (
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// Bind reads what a key or a lock is to be bound to: a lease, or one of its own for a time.
func (q *Query) Bind(cmd *kvstore.Command) error {
	ttl, hasTTL, err := q.Duration("ttl")
	if err != nil {
		return err
	}
	lease, hasLease := q.Get("lease")
	switch {
	case hasTTL && hasLease:
		return badRequest("use either \"ttl\" or \"lease\", not both")
	case hasTTL && ttl == 0:
		return badRequest("the parameter \"ttl\" must be greater than 0; omit it for a key that does not expire")
	case hasTTL:
		cmd.TTLMillis = millis(ttl)
	case hasLease:
		cmd.Lease, err = LeaseID(lease)
	}
	return err
}

// BindLock is Bind for a lock, whose own lease may have a lock delay.
func (q *Query) BindLock(cmd *kvstore.Command) error {
	if err := q.Bind(cmd); err != nil {
		return err
	}
	if cmd.Lease == 0 && cmd.TTLMillis == 0 {
		return badRequest("a lock needs ?ttl=15s, for a lease of its own, or ?lease=ID; it is released when the lease ends")
	}
	delay, ok, err := q.Duration("lock_delay")
	switch {
	case err != nil || !ok:
		return err
	case cmd.Lease != 0:
		return badRequest("the parameter \"lock_delay\" requires ttl; a lease of the client has the lock delay with which it was granted")
	case delay > 0:
		cmd.Grant = &kvstore.LeaseOptions{LockDelayMillis: millis(delay)}
	}
	return nil
}

// millis rounds up: a lease must not end before its time.
func millis(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }

// LeaseID reads the id of a lease.
func LeaseID(text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 63)
	if err != nil || id == 0 {
		return 0, badRequest("the id of a lease is a decimal number from 1 to 2^63-1, not %.40q", text)
	}
	return id, nil
}
