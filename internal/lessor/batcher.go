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
	wake    chan struct{} // capacity 1

	// mu is held by requests to join or leave the queue, and by Run to take from it,
	// but never while a call is under way.
	mu struct {
		sync.Mutex
		waiting []*question
		stopped bool // nothing is taken from the queue anymore
	}
}

// question is a request that waits for its answer.
type question struct {
	Request
	reply func(Answer, error) // called at most once; it must not wait
	// deadline is when it is given up; zero for one of Ask, which looks after itself.
	deadline time.Time
	// gone is set when Ask has returned, and nobody waits anymore. The queue does
	// not look at the context instead, which its owner may use anew by then.
	gone   atomic.Bool
	failed atomic.Pointer[error]
}

// NewBatcher returns a Batcher that asks the leader by the given function.
func NewBatcher(ask func(context.Context, []Request) ([]Answer, error)) *Batcher {
	return &Batcher{ask: ask, wake: make(chan struct{}, 1)}
}

// Renewed returns how many keep-alives this node has answered.
func (b *Batcher) Renewed() uint64 { return b.renewed.Load() }

// Ask returns the leader's answer. A lease that is about to end keeps it waiting
// until it has ended. The context is not kept after Ask has returned.
func (b *Batcher) Ask(ctx context.Context, r Request) (Answer, error) {
	type outcome struct {
		answer Answer
		err    error
	}
	done := make(chan outcome, 1)
	q := &question{Request: r, reply: func(a Answer, err error) { done <- outcome{a, err} }}
	if err := b.put(q); err != nil {
		return Answer{}, err
	}
	defer q.gone.Store(true)
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return Answer{}, q.unanswered()
	}
}

// Post is Ask without waiting: reply gets what Ask would have returned, by the deadline or
// roundTimeout after it. reply is called once, by the goroutine that answers all requests, so
// it must not block. If Post returns an error, reply is not called.
//
// A stream with many requests under way needs no goroutine for each of them.
func (b *Batcher) Post(r Request, deadline time.Time, reply func(Answer, error)) error {
	return b.put(&question{Request: r, deadline: deadline, reply: reply})
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
	switch {
	case b.mu.stopped:
		return ErrStopping
	case len(b.mu.waiting) >= maxWaiting:
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
	defer b.stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		for ctx.Err() == nil { // what is taken is answered, or put back
			questions := b.take()
			if len(questions) == 0 {
				break
			}
			b.round(ctx, questions)
		}
	}
}

// stop answers the remaining requests.
func (b *Batcher) stop() {
	b.mu.Lock()
	left := b.mu.waiting
	b.mu.waiting, b.mu.stopped = nil, true
	b.mu.Unlock()
	for _, q := range left {
		q.reply(Answer{}, ErrStopping)
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
	now := time.Now()
	for i, q := range questions {
		if err == nil && answers[i].State != Ending {
			b.answer(q, answers[i])
			continue
		}
		if err != nil {
			q.failed.Store(&err)
		}
		if !q.deadline.IsZero() && now.After(q.deadline) {
			q.reply(Answer{}, q.unanswered())
			continue
		}
		open = append(open, q)
	}
	b.again(open)
	if len(open) == len(questions) {
		wait(ctx, retryPause)
	}
}

// answer passes on what the leader said.
func (b *Batcher) answer(q *question, a Answer) {
	if q.Renew && a.State == Alive {
		b.renewed.Add(1)
	}
	q.reply(a, nil)
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
