package raftnode

import "sync"

// mailbox is a queue whose put never blocks: its length is bounded by what
// limits the senders (said where each one is made), not by waiting. One
// goroutine takes.
type mailbox[T any] struct {
	mu struct {
		sync.Mutex
		items []T
		spare []T
	}
	ready chan struct{} // capacity 1; holds a token while there may be items
}

func newMailbox[T any]() *mailbox[T] {
	return &mailbox[T]{ready: make(chan struct{}, 1)}
}

func (m *mailbox[T]) put(item T) {
	m.mu.Lock()
	m.mu.items = append(m.mu.items, item)
	m.mu.Unlock()
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// take returns everything that is queued; the slice is valid until the next
// call.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.mu.items
	clear(m.mu.spare)
	m.mu.items = m.mu.spare[:0]
	m.mu.spare = items
	return items
}

func (m *mailbox[T]) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.mu.items) == 0
}

// indexWaiters wakes those who wait for the state machine to reach an index.
type indexWaiters struct {
	mu struct {
		sync.Mutex
		applied uint64
		waiting []readRound
		closed  error
	}
}

// wait answers the batch once its index is applied, perhaps at once.
func (w *indexWaiters) wait(b readRound) {
	w.mu.Lock()
	if w.mu.closed == nil && w.mu.applied < b.index {
		w.mu.waiting = append(w.mu.waiting, b)
		w.mu.Unlock()
		return
	}
	err := w.mu.closed
	w.mu.Unlock()
	b.answer(err)
}

// advance publishes a new applied index.
func (w *indexWaiters) advance(index uint64) {
	w.mu.Lock()
	w.mu.applied = max(w.mu.applied, index)
	var due []readRound
	w.mu.waiting = removeIf(w.mu.waiting, func(b readRound) bool {
		if b.index > w.mu.applied {
			return false
		}
		due = append(due, b)
		return true
	})
	w.mu.Unlock()
	for _, b := range due {
		b.answer(nil)
	}
}

// close answers everybody, now and later, with the error.
func (w *indexWaiters) close(err error) {
	w.mu.Lock()
	w.mu.closed = err
	due := w.mu.waiting
	w.mu.waiting = nil
	w.mu.Unlock()
	for _, b := range due {
		b.answer(err)
	}
}

func (b readRound) answer(err error) {
	for _, r := range b.requests {
		r.done <- err
	}
}
