package lessor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Why a Batcher has no answer.
var (
	// ErrOverloaded means that too many requests are waiting. Nothing was asked.
	ErrOverloaded = errors.New("too many requests about leases are waiting")
	// ErrStopping means that the node is stopping.
	ErrStopping = errors.New("the node is stopping")
	// ErrNoAnswer means that no leader proved its leadership in time. A lease that
	// was to be renewed may have been.
	ErrNoAnswer = errors.New("no leader answered in time")
)

const (
	// MaxBatch bounds the requests of one call: with the answers, about 300 KiB.
	MaxBatch = 4096
	// maxWaiting bounds the requests that wait for a call, at about 200 bytes each.
	maxWaiting = 64 << 10
	// roundTimeout bounds one call. A call to a leader that does not answer must be
	// given up soon after there is a new one.
	roundTimeout = 2 * time.Second
	// retryPause is the time between calls while there is no leader to answer them.
	retryPause = 50 * time.Millisecond
)

// Batcher collects the requests of a node's clients. One call to the leader is under
// way at a time, and takes with it all requests that have arrived since the last
// one began: the busier the node, the larger the batches, without ever waiting for
// more requests to come.
//
// Repeating a request is harmless, so those without an answer are repeated until
// their time is up.
type Batcher struct {
	// ask asks the leader, be it this node or another.
	ask func(context.Context, []Request) ([]Answer, error)

	renewed atomic.Uint64
	stopped chan struct{} // closed when Run ends
	wake    chan struct{} // capacity 1

	// mu is held by requests to join or leave the queue, and by Run to take from it,
	// but never while a call is under way.
	mu struct {
		sync.Mutex
		waiting []*question
	}
}

// question is a request that waits for its answer.
type question struct {
	Request
	done chan Answer // capacity 1
	// gone is set when Ask has returned, and nobody waits anymore. The queue does
	// not look at the context instead, which its owner may use anew by then.
	gone   atomic.Bool
	failed atomic.Pointer[error]
}

// NewBatcher returns a Batcher that asks the leader by the given function.
func NewBatcher(ask func(context.Context, []Request) ([]Answer, error)) *Batcher {
	return &Batcher{ask: ask, stopped: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// Renewed returns how many keep-alives this node has answered.
func (b *Batcher) Renewed() uint64 { return b.renewed.Load() }

// Ask returns the leader's answer. A lease that is about to end keeps it waiting
// until it has ended. The context is not kept after Ask has returned.
func (b *Batcher) Ask(ctx context.Context, r Request) (Answer, error) {
	q := &question{Request: r, done: make(chan Answer, 1)}
	if err := b.put(q); err != nil {
		return Answer{}, err
	}
	defer q.gone.Store(true)
	select {
	case a := <-q.done:
		if r.Renew && a.State == Alive {
			b.renewed.Add(1)
		}
		return a, nil
	case <-ctx.Done():
		return Answer{}, q.unanswered()
	case <-b.stopped:
		return Answer{}, ErrStopping
	}
}

// unanswered returns why there is no answer, with the reason of the last call.
func (q *question) unanswered() error {
	if reason := q.failed.Load(); reason != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, *reason)
	}
	return ErrNoAnswer
}

func (b *Batcher) put(q *question) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mu.waiting) >= maxWaiting {
		return ErrOverloaded
	}
	b.mu.waiting = append(b.mu.waiting, q)
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return nil
}

// Run makes the calls until the context ends.
func (b *Batcher) Run(ctx context.Context) {
	defer close(b.stopped)
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		for questions := b.take(); len(questions) > 0 && ctx.Err() == nil; questions = b.take() {
			b.round(ctx, questions)
		}
	}
}

// take takes the next batch, without the questions that nobody waits for anymore.
func (b *Batcher) take() (batch []*question) {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := 0
	for _, q := range b.mu.waiting {
		if len(batch) == MaxBatch {
			break
		}
		taken++
		if !q.gone.Load() {
			batch = append(batch, q)
		}
	}
	if b.mu.waiting = b.mu.waiting[taken:]; len(b.mu.waiting) == 0 {
		b.mu.waiting = nil // gives the array back
	}
	return batch
}

// round asks the leader once, and puts back what is left open.
func (b *Batcher) round(ctx context.Context, questions []*question) {
	requests := make([]Request, len(questions))
	for i, q := range questions {
		requests[i] = q.Request
	}
	callCtx, cancel := context.WithTimeout(ctx, roundTimeout)
	answers, err := b.ask(callCtx, requests)
	cancel()
	if err == nil && len(answers) != len(requests) {
		err = fmt.Errorf("the leader gave %d answers to %d requests", len(answers), len(requests))
	}
	var open []*question
	for i, q := range questions {
		switch {
		case err != nil:
			q.failed.Store(&err)
			open = append(open, q)
		case answers[i].State == Ending:
			open = append(open, q)
		default:
			q.done <- answers[i]
		}
	}
	b.again(open)
	if len(open) == len(questions) {
		wait(ctx, retryPause)
	}
}

// again puts questions back in front: they have waited the longest. They had their
// place before, so the bound does not apply.
func (b *Batcher) again(questions []*question) {
	if len(questions) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.waiting = append(questions, b.mu.waiting...)
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
