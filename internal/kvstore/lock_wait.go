package kvstore

import (
	"cmp"
	"context"
	"errors"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/ticket"
)

// AwaitLock returns nil once the ticket holds its lock as far as this node has applied,
// and ErrTicketGone if the ticket does not exist, or no more.
func (s *Store) AwaitLock(ctx context.Context, name []byte, token uint64) error {
	wake, leave := s.waiters.Add(token) // before the first look, or a change could fall in between
	defer leave()
	for {
		if held, err := holdsTicket(s, name, token); held || err != nil {
			return err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// holdsTicket reports whether a ticket holds its lock.
func holdsTicket(s *Store, name []byte, token uint64) (bool, error) {
	if _, exists, err := s.row(layout.TableTicket, ticket.Key(name, token)); err != nil || !exists {
		return false, cmp.Or(err, ErrTicketGone)
	}
	first, _, err := s.lockHead(name)
	if errors.Is(err, ErrLockNotFound) {
		return false, ErrTicketGone // between the two reads
	}
	return first == token, err
}
