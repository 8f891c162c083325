package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"
)

// BatchResult is the result of one operation of a Batch.
type BatchResult struct {
	// N is the number of the operation, from 0.
	N int
	OpResult
	// Err is why the operation failed. It changed nothing then. Other operations do
	// not depend on it.
	Err error
}

// Batch carries out a stream of independent operations, and yields their results in the
// same order, each once it is applied. It is the fastest way to make many changes: the
// operations are pipelined, and nodes combine them. Unlike those of a transaction, they
// take effect one by one, and one that fails does not stop the others. They do so in their
// order, but for those that a node has no room for, which are sent again.
//
// Each change has an idempotency key of its own. When the connection or the node is lost,
// the operations without a result are sent again, to another node, and still take effect
// once. So an error of the iteration itself is rare: the context has ended, or an operation
// cannot be encoded. Then the operations whose results were not yielded may or may not
// have taken effect; the error is ErrUnknownOutcome if there are any.
//
// ops is called in a goroutine of its own, which is asked to end with the loop over the
// results: the yield of ops returns false from then on. Operations that were taken from
// ops before may still take effect. Memory is bounded: while many operations have no
// result, or the results are not read, no more of ops are taken.
func (c *Client) Batch(ctx context.Context, ops iter.Seq[Op]) iter.Seq2[*BatchResult, error] {
	return func(yield func(*BatchResult, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		b := &batch{c: c, yield: yield, window: newWindow(ctx), releases: make(chan struct{}, 1)}
		defer b.window.close()
		// Not waited for: it may be in the code of the caller, which may take any time.
		go b.window.fill(ops, c.newKey)
		if err := b.run(ctx); err != nil && !b.ended {
			yield(nil, err)
		}
	}
}

// batch is the side of a Batch that reads answers. It belongs to the goroutine that
// ranges over the results.
type batch struct {
	c      *Client
	window *window
	yield  func(*BatchResult, error) bool
	ended  bool // the consumer has had enough
	// renewed says that the token was refused, and another one got, since the last result.
	renewed bool
	n       int // operations with a result
	// maybe is the end of the operations that were sent over a connection that broke, and
	// may still be under way there.
	maybe int
	// refused is the operation at which a node ended a stream last, and times how often.
	refused, times int

	answered  []string // keys to release
	releasing sync.WaitGroup
	releases  chan struct{} // capacity 1: held by the goroutine that releases keys
}

// run sends operations over one connection after the other until all have results.
func (b *batch) run(ctx context.Context) error {
	defer b.releaseRest()
	for attempt := 0; ; attempt++ {
		if more, err := b.window.await(ctx, b.n); !more {
			if err != nil && b.maybe > b.n {
				err = fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
			}
			return err
		}
		before := b.n
		refused, err := b.connection(ctx)
		switch {
		case b.ended:
			return nil
		case refused != nil && !refused.temporary():
			return refused.specific()
		case err == nil:
			continue
		case b.n > before:
			attempt = 0
		}
		// What the cluster remembers may be what keeps it from taking more.
		b.release(1)
		if ended := b.c.pause(ctx, attempt, 0, refused); ended != nil {
			return outOfTime(ended, err, b.maybe > b.n)
		}
	}
}

// connection sends what has no result yet over one connection, and reads the answers. A
// nil error is an end of the stream at which the next one may begin at once.
func (b *batch) connection(ctx context.Context) (refused *Error, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := newRequest(http.MethodPost, "/v1/batch")
	r.stream = true
	r.header.Set("Content-Type", "application/x-ndjson")
	if err := b.c.authorize(ctx, r); err != nil {
		errors.As(err, &refused)
		return refused, err
	}
	body := &windowReader{w: b.window, next: b.n}
	e, failed := b.c.choose()
	resp, err := e.send(ctx, r, body, b.c.limit(r))
	certain := false // nothing without an answer was or will be done
	if err == nil && resp.StatusCode >= 400 {
		err = readError(resp)
		certain = !mayHaveTakenEffect(err)
		if !b.renewed && b.c.renewed(r, err) {
			b.renewed = true
			_ = body.Close()
			return nil, nil
		}
	} else if err == nil {
		in := &answers{b: b, body: body, dec: json.NewDecoder(resp.Body), first: b.n}
		var watching sync.WaitGroup
		watching.Go(func() { in.watch(ctx, b.c.attempt, cancel) })
		err = reason(ctx, in.read())
		certain = in.certain
		cancel(nil)
		watching.Wait()
		_ = resp.Body.Close()
	}
	_ = body.Close()
	if err != nil {
		failed()
	}
	if err != nil && !certain {
		b.maybe = max(b.maybe, body.sent())
	}
	errors.As(err, &refused)
	return refused, err
}

// take takes the answer to the oldest operation. An error means that the operation has to
// be sent again.
func (b *batch) take(a *wireAnswer) error {
	sent, res := b.window.head(), &BatchResult{N: b.n}
	if a.Status >= 400 {
		refused := new(Error)
		if err := json.Unmarshal(a.text, refused); err != nil {
			return err
		}
		if refused.temporary() {
			return refused
		}
		res.Err = refused.specific()
	} else {
		var fields wireResult
		if err := json.Unmarshal(a.text, &fields); err != nil {
			return err
		}
		if sent.kind == "get" {
			fields.Revision = 0 // at which it was read
		}
		var err error
		if res.OpResult, err = fields.result(); err != nil {
			return err
		}
	}
	b.window.pop()
	b.renewed = false
	if sent.key != "" && b.n >= b.maybe {
		b.answered = append(b.answered, sent.key)
	}
	b.n++
	b.ended = !b.yield(res, nil)
	return nil
}

// maxReleases is how many keys one request may release.
const maxReleases = 256

// release lets the cluster forget the keys of operations with results if there are at
// least n, in the background: it remembers a limited number of bytes. What fails ages out.
func (b *batch) release(n int) {
	if len(b.answered) < n {
		return
	}
	select {
	case b.releases <- struct{}{}:
	default:
		return // the next call has these, too
	}
	keys := b.answered
	b.answered = nil
	b.releasing.Go(func() {
		defer func() { <-b.releases }()
		ctx, cancel := context.WithTimeout(context.Background(), b.c.attempt)
		defer cancel()
		for ; len(keys) > 0; keys = keys[min(len(keys), maxReleases):] {
			// A transaction that does nothing but release.
			r := newRequest(http.MethodPost, "/v1/txn")
			r.body = []byte("{}")
			r.header.Set("Content-Type", "application/json")
			r.header.Set("Idempotency-Release", strings.Join(keys[:min(len(keys), maxReleases)], ","))
			_, _ = b.c.try(ctx, r)
		}
	})
}

// releaseRest releases the keys that are left at the end: few with the next change,
// many at once.
func (b *batch) releaseRest() {
	b.releasing.Wait()
	if len(b.answered) <= maxReleased/2 {
		for _, key := range b.answered {
			b.c.release(key)
		}
		return
	}
	b.release(1)
	b.releasing.Wait()
}

// wireAnswer is a line of the answer.
type wireAnswer struct {
	N                 int             `json:"n"`
	Status            int             `json:"status"`
	FirstNotAttempted int             `json:"first_not_attempted"` // 0 unless it is the last
	text              json.RawMessage // all of it
}

// answers reads the answers of one connection.
type answers struct {
	b     *batch
	body  *windowReader
	dec   *json.Decoder
	first int // operation of the first line
	// certain is true if everything that was sent has been answered.
	certain bool
}

// read reads answers until the node ends the stream.
func (in *answers) read() error {
	b := in.b
	for {
		a, err := in.next()
		switch {
		case errors.Is(err, io.EOF) && in.body.sent() == b.n:
			return nil // all that was sent has been answered
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			return fmt.Errorf("kvd client: read the answers of a batch: %w", err)
		case in.over(a):
			return nil
		case in.first+a.N-1 != b.n:
			return fmt.Errorf("kvd client: the answer to line %d of a batch came in place of that to line %d", a.N, b.n-in.first+1)
		}
		if err := b.take(a); err != nil {
			in.certain = in.drain(a)
			return err
		}
		if b.ended || a.FirstNotAttempted != 0 {
			return nil
		}
		b.release(maxReleases)
	}
}

// drain sends nothing more, and reads the answers to what was sent, from a on. It reports
// whether all of it was answered for certain, so that nothing is under way. The answers
// are dropped: the repeats get the same ones.
func (in *answers) drain(a *wireAnswer) (certain bool) {
	in.body.finish()
	for a.Status != http.StatusGatewayTimeout && a.Status != http.StatusInternalServerError {
		if a.FirstNotAttempted != 0 || in.first+a.N == in.body.sent() {
			return true
		}
		var err error
		if a, err = in.next(); err != nil {
			return false
		}
	}
	return false
}

// maxTimes is how often an operation may end a stream before that is its result.
const maxTimes = 3

// over reports whether the answer is about the stream and not about an operation: for
// example, the node has not received anything for too long. It looks the same as an
// operation that cannot be parsed, so it is sent again a few times.
func (in *answers) over(a *wireAnswer) bool {
	b := in.b
	if a.Status != http.StatusBadRequest || a.FirstNotAttempted != a.N {
		return false
	}
	if b.refused != b.n {
		b.refused, b.times = b.n, 0
	}
	b.times++
	return in.body.sent() == b.n || b.times < maxTimes
}

// next returns the next answer.
func (in *answers) next() (*wireAnswer, error) {
	in.body.waiting(true)
	defer in.body.waiting(false)
	a := new(wireAnswer)
	if err := in.dec.Decode(&a.text); err != nil {
		return nil, err
	}
	return a, json.Unmarshal(a.text, a)
}

// watch ends the connection if the node owes an answer for two limits: it gives each
// operation less time than that, so it hangs.
func (in *answers) watch(ctx context.Context, limit time.Duration, cancel context.CancelCauseFunc) {
	for sleep(ctx, limit) == nil {
		if in.body.owedFor() >= 2*limit {
			cancel(errSilent)
		}
	}
}
