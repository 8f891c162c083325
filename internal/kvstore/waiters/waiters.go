// Package waiters wakes requests that wait for a lock when the state machine has moved
// it. It is about this node alone, and no part of the replicated state.
package waiters

import "sync"

// Waiters wakes those who wait for a ticket on this node. Every replica applies
// everything, so a request can wait on any node. The store owns it; callers that add waiters
// bound their number.
type Waiters struct {
	// mu is held by requests that begin or end their wait, and by the goroutine that
	// applies. Wake sends only to channels with room, so it never waits under mu.
	mu struct {
		sync.Mutex
		byToken map[uint64][]chan struct{}
	}
}

// Add registers a waiter for a token. wake receives when the ticket may have come to the
// front or gone. leave must be called.
func (w *Waiters) Add(token uint64) (wake <-chan struct{}, leave func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.byToken == nil {
		w.mu.byToken = make(map[uint64][]chan struct{})
	}
	w.mu.byToken[token] = append(w.mu.byToken[token], c)
	return c, func() { w.remove(token, c) }
}

func (w *Waiters) remove(token uint64, c chan struct{}) {
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

// Wake wakes the waiters of tokens.
func (w *Waiters) Wake(tokens []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, token := range tokens {
		for _, c := range w.mu.byToken[token] {
			notify(c)
		}
	}
}

// WakeAll wakes everybody, because the whole state was replaced.
func (w *Waiters) WakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiters := range w.mu.byToken {
		for _, c := range waiters {
			notify(c)
		}
	}
}

// Len returns the number of tokens that somebody waits for.
func (w *Waiters) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.mu.byToken)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has not looked since the last time
	}
}
