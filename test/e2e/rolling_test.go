package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestRollingRestart restarts one node after the other under load. A client that
// retries on 503 and on refused or reset connections, as curl --retry does, sees
// no failure. The test prints how many requests fail for a client that does not
// retry.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	rounds := 1
	if runSize == sizeFull {
		rounds = 5
	}
	r := startRolling(t, c, 12)
	var slowest time.Duration
	for range rounds {
		for _, m := range c.nodes {
			r.awaitTraffic(200)
			begin := time.Now()
			m.stop()
			slowest = max(slowest, time.Since(begin))
			r.awaitTraffic(200)
			restart(m)
		}
	}
	r.awaitTraffic(200)
	r.stop()
	t.Logf("%d restarts, the slowest stop took %v", rounds*len(c.nodes), slowest.Round(time.Millisecond))
	r.judge()
}

// rolling is a load of clients that each use a single node.
type rolling struct {
	t       testing.TB
	c       *cluster
	clients []*patientClient
	end     context.CancelFunc
	running sync.WaitGroup
}

func startRolling(t testing.TB, c *cluster, clients int) *rolling {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rolling{t: t, c: c, end: cancel}
	for i := range clients {
		p := &patientClient{
			m: c.nodes[i%len(c.nodes)], key: fmt.Sprint("rolling/", i),
			http:   &http.Client{Transport: &http.Transport{}},
			failed: make(map[string]int),
		}
		r.clients = append(r.clients, p)
		r.running.Go(func() { p.run(ctx) })
	}
	t.Cleanup(func() { cancel(); r.running.Wait() })
	return r
}

// awaitTraffic waits until n more requests have been made.
func (r *rolling) awaitTraffic(n int) {
	r.t.Helper()
	want := r.done() + n
	eventually(r.t, "clients get on", func() error {
		if done := r.done(); done < want {
			return fmt.Errorf("%d of %d requests", done, want)
		}
		return nil
	})
}

func (r *rolling) done() (n int) {
	for _, p := range r.clients {
		p.mu.Lock()
		n += p.requests
		p.mu.Unlock()
	}
	return n
}

func (r *rolling) stop() {
	r.end()
	r.running.Wait()
}

// judge compares what the clients saw with what kvd promises.
func (r *rolling) judge() {
	r.t.Helper()
	total, failed := make(map[string]int), 0
	var requests int
	var slowest time.Duration
	for _, p := range r.clients {
		requests += p.requests
		slowest = max(slowest, p.slowest)
		for what, n := range p.failed {
			total[what] += n
			failed += n
		}
		for _, what := range p.lost {
			r.t.Errorf("the client of %s lost a request: %s", p.key, what)
		}
		expectValue(r.t, p.m, p.key, fmt.Sprint(p.acknowledged))
	}
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(total)) {
		kinds = append(kinds, fmt.Sprintf("%d %s", total[what], what))
	}
	r.t.Logf("%d requests; without retry %d would have failed (%.2f %%): %s; slowest request with retries %v", requests, failed,
		100*float64(failed)/float64(requests), strings.Join(kinds, ", "), slowest.Round(time.Millisecond))
	proof.Judged(r.t, requests)
	if n := total["reset"]; n > requests/1000 {
		r.t.Errorf("%d of %d requests were cut off by stopping nodes", n, requests)
	}
}

// patientClient writes and reads its key through one node.
type patientClient struct {
	m    *member
	key  string
	http *http.Client

	acknowledged int            // the value of the last write
	failed       map[string]int // first attempts, by what happened to them
	lost         []string       // requests that no retry could save
	slowest      time.Duration

	mu       sync.Mutex // guards requests while it runs
	requests int
}

// retryPause is the longest pause that Retry-After asks for, and the length of
// curl's first pause.
const retryPause = time.Second

func (p *patientClient) run(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		begin := time.Now()
		if what := p.persist(http.MethodPut, fmt.Sprint(n)); what != "" {
			p.lost = append(p.lost, what)
			return
		}
		p.acknowledged = n
		if what := p.persist(http.MethodGet, fmt.Sprint(n)); what != "" {
			p.lost = append(p.lost, what)
			return
		}
		p.slowest = max(p.slowest, time.Since(begin))
	}
}

// persist makes a request and repeats it as long as a retry is allowed. It
// returns what is wrong with the last answer.
func (p *patientClient) persist(method, value string) (wrong string) {
	deadline := time.Now().Add(patience)
	for first := true; ; first = false {
		kind, detail := p.attempt(method, value)
		switch {
		case kind == "":
			p.mu.Lock()
			p.requests++
			p.mu.Unlock()
			return ""
		case kind == "other" || time.Now().After(deadline):
			return method + ": " + detail
		}
		if first {
			p.failed[kind]++
		}
		<-time.After(retryPause)
	}
}

// attempt returns "" for success, or the kind of failure.
func (p *patientClient) attempt(method, value string) (kind, detail string) {
	body := io.Reader(nil)
	if method == http.MethodPut {
		body = io.NopCloser(strings.NewReader(value)) // so that net/http cannot resend it on its own
	}
	req, err := http.NewRequest(method, p.m.url()+"/v1/kv/"+p.key, body)
	if err != nil {
		return "other", err.Error()
	}
	if body != nil {
		req.ContentLength = int64(len(value))
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return kindOf(err), err.Error()
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return "other", err.Error() // the response was cut off
	case resp.StatusCode == http.StatusServiceUnavailable:
		return "503", string(got)
	case resp.StatusCode/100 != 2:
		return "other", fmt.Sprint(resp.StatusCode, " ", string(got))
	case method == http.MethodGet && string(got) != value:
		return "other", fmt.Sprintf("read %q after %q was written", got, value)
	}
	return "", ""
}

func kindOf(err error) string {
	var u *url.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.As(err, &u) && strings.Contains(u.Err.Error(), "server closed idle connection"):
		return "reset"
	}
	return "other"
}
