package raftnode

import "sync"

// waitingRoom is the queue of proposals between the requests and the node loop. It is
// not a channel because a requester that gives up must be able to take its
// proposal out again: without a quorum a batch stays in flight, the node loop
// takes nothing, and the values of requests that were answered long ago would
// pile up for as long as the outage lasts.
//
// Any goroutine puts and removes, the node loop takes.
type waitingRoom struct {
	maxBytes int
	mu       struct {
		sync.Mutex            // held to link or unlink proposals
		first, last *proposal // a list, linked by proposal.before and proposal.after
		count       int
		bytes       int
	}
	ready chan struct{} // capacity 1; holds a token while there may be proposals
}

func newWaitingRoom(maxBytes int) *waitingRoom {
	return &waitingRoom{maxBytes: maxBytes, ready: make(chan struct{}, 1)}
}

// put adds a proposal, or refuses it if too many, or too many bytes, are waiting.
// As in proposer.add, one above the limit in bytes is accepted if nothing else
// waits; otherwise it could never be.
func (q *waitingRoom) put(p *proposal) error {
	q.mu.Lock()
	if q.mu.count >= maxQueuedProposals || q.mu.bytes+p.size > q.maxBytes && q.mu.count > 0 {
		q.mu.Unlock()
		return ErrOverloaded
	}
	if p.before = q.mu.last; p.before == nil {
		q.mu.first = p
	} else {
		p.before.after = p
	}
	q.mu.last, p.waits = p, true
	q.mu.count++
	q.mu.bytes += p.size
	q.mu.Unlock()
	q.wake()
	return nil
}

// take returns the first proposal, or nil if there is none.
func (q *waitingRoom) take() *proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.mu.first
	if p != nil {
		q.unlink(p)
	}
	return p
}

// remove takes a proposal out, unless the node loop has it already.
func (q *waitingRoom) remove(p *proposal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.waits {
		q.unlink(p)
	}
}

// unlink is called with the lock held.
func (q *waitingRoom) unlink(p *proposal) {
	if p.before == nil {
		q.mu.first = p.after
	} else {
		p.before.after = p.after
	}
	if p.after == nil {
		q.mu.last = p.before
	} else {
		p.after.before = p.before
	}
	p.before, p.after, p.waits = nil, nil, false
	q.mu.count--
	q.mu.bytes -= p.size
}

// wake lets the node loop look again.
func (q *waitingRoom) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
