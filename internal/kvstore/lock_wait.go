package kvstore

import (
	"cmp"
	"context"
	"errors"
	"sync"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// lockWaiters wakes those who wait for a ticket on this node. Every replica applies
// everything, so a request can wait on any node. The store owns it; whoever adds waiters
// bounds their number.
type lockWaiters struct {
	// mu is held by requests that begin or end their wait, and by the goroutine that
	// applies. wake sends only to channels with room, so it never waits under mu.
	mu struct {
		sync.Mutex
		byToken map[uint64][]chan struct{}
	}
}

// add registers a waiter for a token. wake receives when the ticket may have come to the
// front or gone. leave must be called.
func (w *lockWaiters) add(token uint64) (wake <-chan struct{}, leave func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.byToken == nil {
		w.mu.byToken = make(map[uint64][]chan struct{})
	}
	w.mu.byToken[token] = append(w.mu.byToken[token], c)
	return c, func() { w.remove(token, c) }
}

func (w *lockWaiters) remove(token uint64, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.mu.byToken[token][:0]
	for _, other := range w.mu.byToken[token] {
		if other != c {
			kept = append(kept, other)
		}
	}
	if w.mu.byToken[token] = kept; len(kept) == 0 {
		delete(w.mu.byToken, token)
	}
}

// wake wakes the waiters of tokens.
func (w *lockWaiters) wake(tokens []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, token := range tokens {
		for _, c := range w.mu.byToken[token] {
			notify(c)
		}
	}
}

// wakeAll wakes everybody, because the whole state was replaced.
func (w *lockWaiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiters := range w.mu.byToken {
		for _, c := range waiters {
			notify(c)
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has not looked since the last time
	}
}

// AwaitLock returns nil once the ticket holds its lock as far as this node has applied,
// and ErrTicketGone if the ticket does not exist, or no more.
func (s *Store) AwaitLock(ctx context.Context, name []byte, token uint64) error {
	wake, leave := s.waiters.add(token) // before the first look, or a change could fall in between
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
	if _, exists, err := s.row(layout.TableTicket, ticketKey(name, token)); err != nil || !exists {
		return false, cmp.Or(err, ErrTicketGone)
	}
	first, _, err := s.lockHead(name)
	if errors.Is(err, ErrLockNotFound) {
		return false, ErrTicketGone // between the two reads
	}
	return first == token, err
}
