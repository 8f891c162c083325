package kvstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/rows"
	"github.com/kvd-io/kvd/internal/kvstore/ticket"
	"github.com/kvd-io/kvd/internal/rights"
)

// LeaseInfo is a lease and what is bound to it.
type LeaseInfo struct {
	Lease
	// Seq numbers the grants of a cluster in the order of the log.
	Seq uint64
	// Keys and Tickets count the keys of the lease, and its places in lock queues.
	Keys, Tickets uint64
}

// LockInfo is a lock that somebody holds.
type LockInfo struct {
	Holder LockTicket
	// Tickets counts the holder and those who wait.
	Tickets uint64
}

// Counts are figures about leases and locks.
type Counts struct {
	Leases, Locks uint64
	Waiters       uint64 // tickets that wait for a lock
}

// ErrLeaseNotFound is returned for a lease that does not exist, ErrLockNotFound for a
// lock that nobody holds, and ErrTicketGone for a ticket whose lease has ended or that
// was given up.
var (
	ErrLeaseNotFound = errors.New("lease not found")
	ErrLockNotFound  = errors.New("nobody holds the lock")
	ErrTicketGone    = errors.New("the place in the queue of the lock is gone")
)

// Counts returns the number of leases, locks and waiters.
func (s *Store) Counts() Counts {
	n := s.visible.Load().counts
	return Counts{Leases: n.leases, Locks: n.locks, Waiters: n.tickets - n.locks}
}

// rows calls fn with the rows of a table from a key on whose keys begin with the prefix,
// in order, until fn returns false or an error. Keys are without the table, and valid
// during the call.
func (s *Store) rows(table byte, prefix, from []byte, fn func(key, value []byte) (bool, error)) error {
	lower := []byte(rows.Key(table, prefix))
	upper := Prefix(lower).End()
	if bytes.Compare(from, prefix) > 0 {
		lower = []byte(rows.Key(table, from))
	}
	it, err := s.iter(lower, upper)
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if more, err := fn(it.Key()[1:], it.Value()); err != nil || !more {
			return err
		}
	}
	return it.Err()
}

func (s *Store) iter(lower, upper []byte) (engine.Iterator, error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	return s.eng.Iter(lower, upper)
}

// row returns one row.
func (s *Store) row(table byte, key []byte) (value []byte, exists bool, err error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	value, err = s.eng.Get(nil, []byte(rows.Key(table, key)))
	if errors.Is(err, engine.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read row: %w", err)
	}
	return value, true, nil
}

// Lease returns a lease, or ErrLeaseNotFound.
func (s *Store) Lease(id uint64) (LeaseInfo, error) {
	b, exists, err := s.row(layout.TableLease, leaseID(id))
	if err != nil || !exists {
		return LeaseInfo{}, cmp.Or(err, ErrLeaseNotFound)
	}
	l, err := decodeLease(id, b)
	return l.info(), err
}

func (l *leaseRow) info() LeaseInfo {
	return LeaseInfo{Lease: l.Lease, Seq: l.seq, Keys: l.keys, Tickets: l.tickets}
}

// Leases returns up to limit leases with ids above after, in the order of ids.
func (s *Store) Leases(after uint64, limit int) (out []LeaseInfo, err error) {
	if after == math.MaxUint64 {
		return nil, nil
	}
	err = s.rows(layout.TableLease, nil, leaseID(after+1), func(key, value []byte) (bool, error) {
		if len(key) != leaseIDLen {
			return false, fmt.Errorf("%w: lease key of %d bytes", layout.ErrMalformed, len(key))
		}
		l, err := decodeLease(binary.BigEndian.Uint64(key), value)
		out = append(out, l.info())
		return len(out) < limit, err
	})
	return out, err
}

// maxReadBytes bounds what one call returns of keys, or of the names and texts of locks.
const maxReadBytes = 1 << 20

// LeaseKeys returns up to limit keys of a lease from a key on, in order, and whether
// there may be more.
func (s *Store) LeaseKeys(id uint64, from []byte, limit int) (keys [][]byte, more bool, err error) {
	prefix, size := leaseID(id), 0
	err = s.rows(layout.TableLeaseKey, prefix, append(leaseID(id), from...), func(key, _ []byte) (bool, error) {
		keys = append(keys, bytes.Clone(key[leaseIDLen:]))
		size += len(key)
		more = len(keys) == limit || size > maxReadBytes
		return !more, nil
	})
	return keys, more, err
}

// EachBound calls fn with what is bound to a lease, until it returns false.
func EachBound(s *Store, lease uint64, fn func(space rights.Space, name []byte) (more bool)) error {
	return guard.EachBound(func(table byte, prefix []byte, fn func(key, value []byte) bool) error {
		return s.rows(table, prefix, nil, func(key, value []byte) (bool, error) { return fn(key, value), nil })
	}, lease, fn)
}

// Lock returns a lock and up to limit of the tickets behind the holder's, in the order of
// the queue; LockInfo.Tickets says whether there are more. If nobody holds the lock, the error is ErrLockNotFound.
func (s *Store) Lock(name []byte, limit int) (info LockInfo, queue []LockTicket, err error) {
	prefix, size := ticket.Prefix(name), 0
	head, tickets, err := s.lockHead(name)
	if err != nil {
		return LockInfo{}, nil, err
	}
	// The holder may leave between the two reads. The queue begins with the first
	// ticket that is there.
	err = s.rows(layout.TableTicket, prefix, ticket.Key(name, head), func(key, value []byte) (bool, error) {
		t, err := ticket.Decode(value)
		if err != nil || len(key) != len(prefix)+layout.RevisionLen {
			return false, orBroken(err, "ticket key of %d bytes", len(key))
		}
		h := ticket.Head{}
		token := binary.BigEndian.Uint64(key[len(prefix):])
		if info.Holder.Token == 0 {
			h.First = token
			info = LockInfo{Holder: *ticketOf(name, &h, token, &t), Tickets: tickets}
		} else {
			queue = append(queue, *ticketOf(name, &h, token, &t))
		}
		size += len(name) + len(t.Text)
		return len(queue) < limit && size <= maxReadBytes, nil
	})
	if err == nil && info.Holder.Token == 0 {
		err = ErrLockNotFound
	}
	return info, queue, err
}

// lockHead returns the token of the holder and the number of tickets.
func (s *Store) lockHead(name []byte) (first, tickets uint64, err error) {
	b, exists, err := s.row(layout.TableLock, name)
	if err != nil || !exists {
		return 0, 0, cmp.Or(err, ErrLockNotFound)
	}
	h, err := ticket.DecodeHead(b)
	return h.First, h.Tickets, err
}

// Locks returns up to limit locks with names from a name on, in the order of names, and
// if there may be more, the name to continue from.
func (s *Store) Locks(from []byte, limit int) (out []LockInfo, next []byte, err error) {
	var names [][]byte
	size := 0
	err = s.rows(layout.TableLock, nil, from, func(name, _ []byte) (bool, error) {
		names = append(names, bytes.Clone(name))
		if size += len(name) + MaxLockTextBytes; len(names) == limit || size > maxReadBytes {
			next = append(bytes.Clone(name), 0)
		}
		return next == nil, nil
	})
	for _, name := range names {
		info, _, err := s.Lock(name, 1)
		if errors.Is(err, ErrLockNotFound) {
			continue // it was released meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		out = append(out, info)
	}
	return out, next, err
}
