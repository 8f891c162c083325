package raftnode

import "sync"

// mailbox is a queue whose put never blocks. Its length is bounded by what limits
// its senders, which is said where each one is made: waiting would put cycles
// into the graph of who waits for whom (W1). Any goroutine puts, one takes.
type mailbox[T any] struct {
	mu struct {
		sync.Mutex // held to append to items, or to swap it for spare
		items      []T
		spare      []T // the slice of the last take, to be reused
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

// take returns everything that is queued. The slice is valid until the next
// call.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.mu.items
	clear(m.mu.spare) // or it would keep what was taken before from being freed
	m.mu.items = m.mu.spare[:0]
	m.mu.spare = items
	return items
}

func (m *mailbox[T]) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.mu.items) == 0
}

// indexWaiters wakes reads that wait for the state machine to reach an index.
// The node loop adds rounds, the apply loop advances the index.
type indexWaiters struct {
	mu struct {
		sync.Mutex // held by both loops, but never while a round is answered
		applied    uint64
		waiting    []readRound
		closed     error // unless nil, the answer to everybody
	}
}

// index returns the applied index.
func (w *indexWaiters) index() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.applied
}

// wait answers the round once its index is applied, perhaps at once.
func (w *indexWaiters) wait(round readRound) {
	w.mu.Lock()
	if w.mu.closed == nil && w.mu.applied < round.index {
		w.mu.waiting = append(w.mu.waiting, round)
		w.mu.Unlock()
		return
	}
	err := w.mu.closed
	w.mu.Unlock()
	round.answer(err)
}

// advance publishes a new applied index, which never goes back.
func (w *indexWaiters) advance(index uint64) {
	w.mu.Lock()
	w.mu.applied = max(w.mu.applied, index)
	var due []readRound
	w.mu.waiting = removeIf(w.mu.waiting, func(round readRound) bool {
		if round.index > w.mu.applied {
			return false
		}
		due = append(due, round)
		return true
	})
	w.mu.Unlock()
	for _, round := range due {
		round.answer(nil)
	}
}

// close answers everybody, now and later, with the error.
func (w *indexWaiters) close(err error) {
	w.mu.Lock()
	w.mu.closed = err
	due := w.mu.waiting
	w.mu.waiting = nil
	w.mu.Unlock()
	for _, round := range due {
		round.answer(err)
	}
}

func (r readRound) answer(err error) {
	for _, req := range r.requests {
		req.done <- err
	}
}
