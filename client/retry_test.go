package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// script is a node that answers requests with the given statuses, in order, and the
// last one forever. Status 0 breaks the connection instead of answering.
type script struct {
	mu       sync.Mutex
	statuses []int
	codes    map[int]string
	keys     []string // idempotency keys of the requests
	releases []string
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	status := s.statuses[0]
	if len(s.statuses) > 1 {
		s.statuses = s.statuses[1:]
	}
	s.keys = append(s.keys, r.Header.Get("Idempotency-Key"))
	s.releases = append(s.releases, r.Header.Get("Idempotency-Release"))
	s.mu.Unlock()
	switch {
	case status == 0:
		panic(http.ErrAbortHandler)
	case status < 400:
		w.WriteHeader(status)
		fmt.Fprint(w, `{"revision":7,"mod_revision":7,"version":1,"value":"1"}`)
	default:
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"status":%d,"code":%q,"detail":"told so","revision":3}`, status, s.codes[status])
	}
}

// seen returns the idempotency keys of the requests so far, and those that they released.
func (s *script) seen() (keys, releases []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys), slices.Clone(s.releases)
}

var codes = map[int]string{404: "key_not_found", 412: "precondition_failed", 429: "overloaded", 503: "no_leader", 504: "timeout", 500: "internal"}

func scripted(t *testing.T, nodes ...[]int) (*Client, []*script) {
	t.Helper()
	var cfg Config
	var scripts []*script
	for _, statuses := range nodes {
		s := &script{statuses: statuses, codes: codes}
		srv := httptest.NewServer(s)
		t.Cleanup(srv.Close)
		scripts = append(scripts, s)
		cfg.Endpoints = append(cfg.Endpoints, srv.URL)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, scripts
}

// lastAttempt ends the context of a request once its first attempt has been answered
// or has failed: when time runs out in the middle of an attempt, any outcome is open.
type lastAttempt struct {
	inner http.RoundTripper
	end   context.CancelFunc
}

func (l lastAttempt) RoundTrip(r *http.Request) (*http.Response, error) {
	defer l.end()
	resp, err := l.inner.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, err
}

// oneAttempt returns a context in which the client makes one attempt.
func oneAttempt(t *testing.T, c *Client) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	e := c.endpoints[0]
	e.http.Transport = lastAttempt{e.transport, cancel}
	return ctx
}

// A change that one node does not carry out succeeds on the next one, under the same
// idempotency key, and later requests go there first.
func TestFailOver(t *testing.T) {
	for _, first := range []int{0, 429, 500, 503, 504} {
		c, nodes := scripted(t, []int{first}, []int{200})
		for range 2 {
			if _, err := c.Put(t.Context(), "a", nil); err != nil {
				t.Fatalf("after %d: %v", first, err)
			}
		}
		one, _ := nodes[0].seen()
		two, _ := nodes[1].seen()
		if len(one) != 1 || len(two) != 2 || one[0] != two[0] || one[0] == "" || two[0] == two[1] {
			t.Errorf("after %d: keys %v, then %v", first, one, two)
		}
	}
}

// A key is released by the next change, unless a copy of its request may still be on
// the way: the cluster would take that for a new request.
func TestReleaseOnlyWhatHasEnded(t *testing.T) {
	c, nodes := scripted(t, []int{200, 504, 200, 200})
	for range 3 {
		if _, err := c.Put(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
	}
	keys, releases := nodes[0].seen()
	if releases[1] != keys[0] { // the second put, first attempt
		t.Errorf("releases %v of keys %v", releases, keys)
	}
	if strings.Contains(releases[3], keys[1]) {
		t.Errorf("a key was released while a copy of its request was under way: %v of %v", releases, keys)
	}
}

// How a change ends when time runs out depends on whether an attempt may have taken
// effect.
func TestOutcomes(t *testing.T) {
	for status, want := range map[int]error{
		0: ErrUnknownOutcome, 504: ErrUnknownOutcome, 500: ErrUnknownOutcome,
		503: ErrUnavailable, 429: ErrUnavailable, 404: ErrNotFound, 412: ErrPreconditionFailed,
	} {
		c, _ := scripted(t, []int{status})
		_, err := c.Put(oneAttempt(t, c), "a", nil)
		if !errors.Is(err, want) {
			t.Errorf("status %d: %v", status, err)
		}
		if want != ErrUnknownOutcome && errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("status %d: nothing has changed, but: %v", status, err)
		}
	}
	c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(oneAttempt(t, c), "a", nil); err == nil || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("a node that cannot be reached: %v", err)
	}
}

func TestPreconditionFailedError(t *testing.T) {
	c, _ := scripted(t, []int{412})
	_, err := c.Put(t.Context(), "a", nil, IfRevision(2))
	var failed *PreconditionFailedError
	var refused *Error
	if !errors.As(err, &failed) || failed.Revision != 3 || !errors.As(err, &refused) || refused.Status != 412 {
		t.Errorf("%#v", err)
	}
}

func TestEndpoints(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:12380", "ftp://a", "http://a/v1", "http://u@a", "http://a?b", "unix://", "http://"} {
		if _, err := New(Config{Endpoints: []string{bad}}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, good := range []string{"http://a:1", "https://[::1]:1/", "unix:///run/kvd.sock"} {
		if _, err := New(Config{Endpoints: []string{good}}); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestEscape(t *testing.T) {
	if got := escape("a/../ä\x00+%?"); got != "a/../%C3%A4%00%2B%25%3F" {
		t.Error(got)
	}
}

// A 404 that is not a node's says nothing about a key: the endpoint may be a proxy, or the
// port for members.
func TestNotFoundByNobody(t *testing.T) {
	c, nodes := scripted(t, []int{404})
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrKeyNotFound) || !errors.Is(err, ErrNotFound) {
		t.Errorf("by a node: %v", err)
	}
	nodes[0].codes = nil
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrBadRequest) || errors.Is(err, ErrNotFound) {
		t.Errorf("by something else: %v", err)
	}
	nodes[0].codes = map[int]string{404: "of_a_later_version"}
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("by a node of a later version: %v", err)
	}
}

// The error of a request that ran out of time has what the last whole attempt met, not that
// the one after it was cut off.
func TestCutOffAttemptHidesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	attempts := 0 // one after the other
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if attempts++; attempts == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"status":503,"code":"no_leader","detail":"told so"}`)
			return
		}
		cancel()
		<-r.Context().Done()
	}))
	defer srv.Close()
	c, err := New(Config{Endpoints: []string{srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(ctx, "a"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "told so") {
		t.Errorf("got %v", err)
	}
}

// patient is a node without a leader: it takes the time that a request allows, and then
// says that it has done nothing. Its network takes a while, too.
type patient struct{}

func (patient) RoundTrip(r *http.Request) (*http.Response, error) {
	httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
	d := serverDefault
	if text := r.URL.Query().Get("timeout"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil || d < time.Millisecond {
			return nil, fmt.Errorf("timeout %q: %v", text, err)
		}
	}
	select {
	case <-time.After(d + 10*time.Millisecond):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	body := `{"status":503,"code":"no_leader","detail":"told so"}`
	return &http.Response{StatusCode: 503, Header: http.Header{"Retry-After": {"1"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// noted keeps the parameter timeout of the request, and answers it.
type noted struct{ timeout string }

func (n *noted) RoundTrip(r *http.Request) (*http.Response, error) {
	n.timeout = r.URL.Query().Get("timeout")
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
}

// A request that waits has its time for what it does before and after: with as little as
// the wait leaves, it would not get into the queue.
func TestTimeoutOfARequestThatWaits(t *testing.T) {
	for wait, want := range map[time.Duration]string{0: "3.6s", 3900 * time.Millisecond: "3.6s", time.Minute: "3.6s"} {
		synctest.Test(t, func(t *testing.T) {
			c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			node := &noted{}
			c.endpoints[0].http.Transport = node
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			r := change(http.MethodPost, "/v1/locks/l", nil)
			r.wait = wait
			if _, err := c.do(ctx, r); err != nil || node.timeout != want {
				t.Errorf("%v: timeout %q, %v", wait, node.timeout, err)
			}
		})
	}
}

// Whatever time a change has, a node without a leader can say in time that nothing was done.
func TestNoLeaderIsNoOpenOutcome(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		for _, allowed := range []time.Duration{time.Second, 3 * time.Second, 5 * time.Second, 6 * time.Second, 10 * time.Second, 12 * time.Second, time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				c, err := New(Config{Endpoints: slices.Repeat([]string{"http://127.0.0.1:1"}, nodes)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for _, e := range c.endpoints {
					e.http.Transport = patient{}
				}
				ctx, cancel := context.WithTimeout(t.Context(), allowed)
				defer cancel()
				_, err = c.Put(ctx, "a", nil)
				if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), "told so") {
					t.Errorf("%d nodes, %v: %v", nodes, allowed, err)
				}
			})
		}
	}
}
