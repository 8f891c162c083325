package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// sender sends requests until they are answered for good, to one endpoint after the
// other.
//
// A change may be sent again whatever happened to it, because its idempotency key makes
// the copies one. What differs is only how it ends when time runs out: if an attempt may
// have taken effect, the outcome is unknown.
type sender struct {
	endpoints []*endpoint
	attempt   time.Duration
	// current counts fail-overs; modulo the endpoints, it is the one that answered last.
	current atomic.Uint32

	credentials *credentials // nil if there are none

	keyPrefix string // of idempotency keys; random for each client
	keyCount  atomic.Uint64
	done      struct { // idempotency keys whose answers have arrived
		sync.Mutex
		keys []string
	}
}

// maxReleased bounds the idempotency keys that wait for the next change to release
// them. Those beyond it age out in the cluster.
const maxReleased = 64

// request is one request, which may take several attempts.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	header http.Header
	body   []byte
	// mutates requests carry an idempotency key.
	mutates bool
	// stream requests have an answer whose length is not known. Its reader notices
	// silence itself.
	stream bool
	// open requests are sent without credentials.
	open bool
	// wait is how long the node may keep the request before it answers, beyond what an
	// attempt may take.
	wait time.Duration
	// brief bounds an attempt instead of the client's setting, unless it is 0.
	brief time.Duration
	// seen is where to store the revision of the answer; nil: nobody wants it.
	seen *uint64
	// conns counts the connections that the current attempt was sent over.
	conns atomic.Int32
}

func newRequest(method, path string) *request {
	return &request{method: method, path: path, query: url.Values{}, header: http.Header{}}
}

// change returns a request that changes something.
func change(method, path string, body []byte) *request {
	r := newRequest(method, path)
	r.mutates, r.body = true, body
	return r
}

// withJSON sets the body to the document.
func (r *request) withJSON(doc any) (*request, error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("kvd client: encode the request: %w", err)
	}
	r.body = body
	r.header.Set("Content-Type", "application/json")
	return r, nil
}

// note keeps the revision of an answer.
func (r *request) note(h http.Header) {
	if r.seen == nil {
		return
	}
	if n, err := strconv.ParseUint(h.Get("Kvd-Revision"), 10, 64); err == nil {
		*r.seen = n
	}
}

// call sends the request and decodes the JSON answer into out, unless that is nil.
func (c *sender) call(ctx context.Context, r *request, out any) (*http.Response, error) {
	resp, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if out == nil {
		return resp, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil && !errors.Is(err, io.EOF) { // 204 has no answer
		return nil, fmt.Errorf("kvd client: read the answer: %w", err)
	}
	return resp, nil
}

// do sends the request until a node answers it for good. The caller closes the body
// of the answer, whose status is below 400. Unless the request is a stream, the whole
// answer has arrived.
func (c *sender) do(ctx context.Context, r *request) (*http.Response, error) {
	key := ""
	if r.mutates {
		key = c.begin(r)
	}
	open := false  // an earlier attempt may have taken effect, or still may
	var last error // of the last attempt that was not cut off
	for n := 0; ; n++ {
		began := time.Now()
		resp, err := c.try(ctx, r)
		var refused *Error
		final := err == nil || errors.As(err, &refused) && !refused.temporary()
		// net/http repeats a request by itself if an idle connection breaks.
		open = open || r.conns.Load() > 1
		if final && key != "" && !open {
			c.release(key)
		}
		if err == nil {
			r.note(resp.Header)
			return resp, nil
		}
		if final {
			return nil, refused.specific()
		}
		open = open || r.conns.Load() > 0 && mayHaveTakenEffect(err)
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if pauseErr := c.pause(ctx, n, time.Since(began), refused); pauseErr != nil {
			return nil, outOfTime(pauseErr, last, r.mutates && open)
		}
	}
}

// outOfTime is the error of a request whose context ended, or will before another
// attempt makes sense.
func outOfTime(ended, last error, unknown bool) error {
	switch {
	case unknown:
		return fmt.Errorf("%w: %w (last attempt: %w)", ErrUnknownOutcome, ended, last)
	case errors.Is(ended, context.Canceled):
		return fmt.Errorf("kvd client: %w (last attempt: %w)", ended, last)
	}
	return fmt.Errorf("%w: %w (last attempt: %w)", ErrUnavailable, ended, last)
}

// newKey returns an idempotency key.
func (c *sender) newKey() string {
	return c.keyPrefix + "-" + strconv.FormatUint(c.keyCount.Add(1), 36)
}

// begin gives the request its idempotency key, lets it release older ones, and
// returns the key.
func (c *sender) begin(r *request) string {
	key := c.newKey()
	r.header.Set("Idempotency-Key", key)
	c.done.Lock()
	defer c.done.Unlock()
	if len(c.done.keys) > 0 {
		r.header.Set("Idempotency-Release", strings.Join(c.done.keys, ","))
		c.done.keys = nil
	}
	return key
}

// release lets the next change tell the cluster to forget the key. It must not be
// called while a copy of the request may still be on its way: arriving after the key
// was forgotten, the copy would take effect once more.
func (c *sender) release(key string) {
	c.done.Lock()
	defer c.done.Unlock()
	if len(c.done.keys) < maxReleased {
		c.done.keys = append(c.done.keys, key)
	}
}

// try makes one attempt at the current endpoint, and moves on to the next one if it
// fails for a reason that another node may not have.
func (c *sender) try(ctx context.Context, r *request) (*http.Response, error) {
	resp, err := c.tryOnce(ctx, r)
	if err != nil && c.renewed(r, err) { // whatever was refused has done nothing
		resp, err = c.tryOnce(ctx, r)
	}
	return resp, err
}

func (c *sender) tryOnce(ctx context.Context, r *request) (*http.Response, error) {
	r.conns.Store(0)
	if err := c.authorize(ctx, r); err != nil {
		return nil, err
	}
	e, failed := c.choose()
	resp, err := e.send(ctx, r, bytes.NewReader(r.body), c.limit(r))
	if err == nil && resp.StatusCode >= 400 {
		r.note(resp.Header)
		err = readError(resp)
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) && !refused.temporary() {
		return resp, err
	}
	failed()
	return nil, err
}

// choose returns the endpoint to use, and a function to call if it fails.
func (c *sender) choose() (e *endpoint, failed func()) {
	at := c.current.Load()
	return c.endpoints[int(at)%len(c.endpoints)], func() {
		c.current.CompareAndSwap(at, at+1) // unless another request moved on already
	}
}

// limit returns how long a node may be silent during an attempt.
func (c *sender) limit(r *request) time.Duration {
	if r.brief > 0 {
		return min(r.brief, c.attempt)
	}
	return c.attempt + r.wait
}

// errSilent is why an attempt ends whose node is not heard of.
var errSilent = errors.New("the node did not answer in time")

// send sends the request to the node. Its error is a transport's.
func (e *endpoint) send(ctx context.Context, r *request, body io.Reader, limit time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	silence := time.AfterFunc(limit, func() { cancel(errSilent) })
	sign := func() { silence.Reset(limit) }
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { r.conns.Add(1) }})
	req, err := http.NewRequestWithContext(traced, r.method, e.target(ctx, r, limit), body)
	if err == nil {
		req.Header = r.header.Clone()
		if req.ContentLength > 0 { // a large body is on its way for as long as it moves
			req.Body = &watchedBody{req.Body, sign}
		}
		var resp *http.Response
		if resp, err = e.http.Do(req); err == nil {
			return receive(resp, r, silence, sign, cancel)
		}
	}
	silence.Stop()
	cancel(nil)
	return nil, reason(ctx, err)
}

// serverDefault is the parameter timeout if a request has none.
const serverDefault = 5 * time.Second

// target returns the URL. The node is told about a limit, or an end of the context, that
// is earlier than its own, so that it gives its reason first: if a change was not made, no
// outcome stays open.
func (e *endpoint) target(ctx context.Context, r *request, limit time.Duration) string {
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	query := r.query
	if limit >= 2*time.Millisecond && limit <= serverDefault && !r.stream {
		query = url.Values{"timeout": {(limit * 9 / 10).String()}}
		for name, values := range r.query {
			query[name] = values
		}
	}
	if len(query) == 0 {
		return e.base + r.path
	}
	return e.base + r.path + "?" + query.Encode()
}

// receive prepares the body of an answer: a stream is read by the caller, anything else
// is read here, so that an answer that is lost on the way is asked for again.
func receive(resp *http.Response, r *request, silence *time.Timer, sign func(), cancel context.CancelCauseFunc) (*http.Response, error) {
	if r.stream {
		silence.Stop()
		resp.Body = &cancelingBody{resp.Body, cancel}
		return resp, nil
	}
	defer cancel(nil)
	defer silence.Stop()
	text, err := io.ReadAll(&watchedBody{resp.Body, sign})
	_ = resp.Body.Close()
	if err != nil {
		return nil, reason(resp.Request.Context(), fmt.Errorf("read the answer: %w", err))
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp, nil
}

// reason returns err with why the context ended, if it was silence: "context canceled"
// would read as if the caller had given up.
func reason(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("%w (%v)", errSilent, err)
	}
	return err
}

// watchedBody takes each piece that is read for a sign of life.
type watchedBody struct {
	io.ReadCloser
	sign func()
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.sign()
	}
	return n, err
}

// cancelingBody ends the context of an attempt once the answer has been read.
type cancelingBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close implements io.Closer.
func (b *cancelingBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// pause waits before attempt n+1. Within the first round over the endpoints it does
// not wait: the next node may be fine. Later it waits longer each time, by a random
// part, so that the clients of a node that failed do not all return at once. It refuses an
// attempt for which much less time is left than the last one took: most likely it would be
// cut off, which leaves the outcome of a change open.
func (c *sender) pause(ctx context.Context, n int, took time.Duration, refused *Error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	took = min(took, c.attempt) // one that waited for its turn took longer
	d, least := time.Duration(0), took/10
	if n+1 >= len(c.endpoints) {
		least = took / 2
		d = min(firstPause<<min(n/len(c.endpoints), 7), maxPause)
		d = d/2 + mathrand.N(d)
		if refused != nil && refused.RetryAfter > d && len(c.endpoints) == 1 {
			d = refused.RetryAfter
		}
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d+least {
		return context.DeadlineExceeded
	}
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
