package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Client. Only Endpoints is required.
type Config struct {
	// Endpoints are the client URLs of the cluster's nodes, for example
	// http://127.0.0.1:12380, https://kvd1.example.com:12380, or
	// unix:///run/kvd/client.sock.
	Endpoints []string
	// TLS configures https endpoints; nil means the system's authorities and no
	// client certificate.
	TLS *tls.Config
	// AttemptTimeout bounds one attempt at one node, 5 s by default. It is what a
	// node that hangs costs before the next one is tried. It does not bound
	// streams, long polls and waits for locks.
	AttemptTimeout time.Duration
}

// Client is a client of one cluster. It is safe for concurrent use.
type Client struct {
	endpoints []*endpoint
	attempt   time.Duration
	// current is the index of the endpoint that answered last.
	current atomic.Uint32

	keyPrefix string // of idempotency keys; random for each client
	keyCount  atomic.Uint64
	done      struct { // idempotency keys whose answers have arrived
		sync.Mutex
		keys []string
	}
}

// endpoint is one node with its connections.
type endpoint struct {
	base      string // scheme and host
	http      *http.Client
	transport *http.Transport
}

// maxReleased bounds the idempotency keys that wait for the next change to release
// them. Those beyond it age out in the cluster.
const maxReleased = 64

const defaultAttempt = 5 * time.Second

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("kvd client: no endpoints; give the client URL of at least one node")
	}
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails
	c := &Client{attempt: cfg.AttemptTimeout, keyPrefix: hex.EncodeToString(id[:])}
	if c.attempt <= 0 {
		c.attempt = defaultAttempt
	}
	for _, text := range cfg.Endpoints {
		e, err := newEndpoint(text, cfg.TLS)
		if err != nil {
			return nil, fmt.Errorf("kvd client: endpoint %q: %w", text, err)
		}
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

func newEndpoint(text string, tlsConfig *tls.Config) (*endpoint, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     tlsConfig,
		ForceAttemptHTTP2:   true,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
	}
	e := &endpoint{base: u.Scheme + "://" + u.Host, transport: t, http: &http.Client{Transport: t}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		path := u.Path
		e.base, t.Proxy = "http://localhost", nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the scheme must be http, https, or unix")
	case u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil:
		return nil, errors.New("expected only a scheme and a host with a port, for example http://127.0.0.1:12380")
	}
	return e, nil
}

// Close closes idle connections. Requests in progress go on.
func (c *Client) Close() {
	for _, e := range c.endpoints {
		e.transport.CloseIdleConnections()
	}
}

// request is one request, which may take several attempts.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	header http.Header
	body   []byte
	// mutates requests carry an idempotency key.
	mutates bool
	// stream requests end with their context alone, not with an attempt's timeout.
	stream bool
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

// call sends the request and decodes the JSON answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, r *request, out any) (*http.Response, error) {
	resp, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else if err = json.NewDecoder(resp.Body).Decode(out); errors.Is(err, io.EOF) {
		err = nil // an empty answer, for example 204
	}
	if err != nil {
		return nil, c.ended(ctx, r, fmt.Errorf("kvd client: read the answer: %w", err))
	}
	return resp, nil
}

// do sends the request until a node answers it for good. The caller closes the body
// of the answer, whose status is below 400.
//
// A change may be sent again whatever happened, because its idempotency key makes
// the copies one. What differs is only how it ends when time runs out: if an attempt
// may have taken effect, the outcome is unknown.
func (c *Client) do(ctx context.Context, r *request) (*http.Response, error) {
	key := ""
	if r.mutates {
		key = c.begin(r)
	}
	open := false // an earlier attempt may have taken effect, or still may
	for n := 0; ; n++ {
		resp, err := c.try(ctx, r)
		var refused *Error
		final := err == nil || errors.As(err, &refused) && !refused.temporary()
		if final && key != "" && !open {
			c.release(key)
		}
		if err == nil {
			return resp, nil
		}
		if final {
			return nil, refused.specific()
		}
		open = open || mayHaveTakenEffect(err)
		if pauseErr := c.pause(ctx, n, refused); pauseErr != nil {
			if r.mutates && open {
				return nil, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
			}
			return nil, fmt.Errorf("kvd client: %w (last attempt: %w)", pauseErr, err)
		}
	}
}

// ended returns how a request ends whose answer was lost on the way.
func (c *Client) ended(ctx context.Context, r *request, err error) error {
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if r.mutates {
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}

// begin gives the request its idempotency key, lets it release older ones, and
// returns the key.
func (c *Client) begin(r *request) string {
	key := c.keyPrefix + "-" + strconv.FormatUint(c.keyCount.Add(1), 36)
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
func (c *Client) release(key string) {
	c.done.Lock()
	defer c.done.Unlock()
	if len(c.done.keys) < maxReleased {
		c.done.keys = append(c.done.keys, key)
	}
}

// try makes one attempt at the current endpoint, and moves on to the next one if it
// fails for a reason that another node may not have.
func (c *Client) try(ctx context.Context, r *request) (*http.Response, error) {
	at := c.current.Load()
	resp, err := c.endpoints[int(at)%len(c.endpoints)].send(ctx, r, c.attempt)
	if err == nil && resp.StatusCode >= 400 {
		err = readError(resp)
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) && !refused.temporary() {
		return resp, err
	}
	c.current.CompareAndSwap(at, at+1) // unless another request moved on already
	return nil, err
}

// send sends the request to the node. Its error is a transport's.
func (e *endpoint) send(ctx context.Context, r *request, attempt time.Duration) (*http.Response, error) {
	cancel := context.CancelFunc(func() {})
	if !r.stream {
		ctx, cancel = context.WithTimeout(ctx, attempt)
	}
	target := e.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(r.body))
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header = r.header.Clone()
	resp, err := e.http.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &cancelingBody{resp.Body, cancel}
	return resp, nil
}

// cancelingBody ends the context of an attempt once the answer has been read.
type cancelingBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelingBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// pause waits before attempt n+1. Within the first round over the endpoints it does
// not wait: the next node may be fine. Later it waits longer each time, by a random
// part, so that the clients of a node that failed do not all return at once.
func (c *Client) pause(ctx context.Context, n int, refused *Error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n+1 < len(c.endpoints) {
		return nil
	}
	d := min(firstPause<<min(n/len(c.endpoints), 7), maxPause)
	d = d/2 + mathrand.N(d)
	if refused != nil && refused.RetryAfter > d && len(c.endpoints) == 1 {
		d = refused.RetryAfter
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
