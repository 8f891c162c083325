package httpapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/meter"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestPanicsEndWithTheirRequest(t *testing.T) {
	f := newFixture(t)
	f.node.onDo = func(context.Context) { panic("a bug") }
	f.do("PUT", "/k", "v").problem(500, api.Internal, "request_id")
	if all := f.logs.All(); len(all) != 1 || !strings.Contains(all[0].ContextMap()["stack"].(string), "TestPanics") {
		t.Errorf("the log has %+v", all)
	}
	f.node.onDo = nil
	f.do("PUT", "/k", "v").want(204)
	if n := f.server.InFlight(); n != 0 {
		t.Errorf("%d requests are still counted", n)
	}
}

func TestLimitInFlight(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxInFlight = 2; o.Metrics = http.NotFoundHandler() })
	entered, release := make(chan struct{}), make(chan struct{})
	f.node.onDo = func(context.Context) { entered <- struct{}{}; <-release }
	done := make(chan *answer, 2)
	for range 2 {
		go func() { done <- f.do("PUT", "/k", "v") }()
		<-entered
	}
	f.server.places.Patience = time.Millisecond
	f.do("PUT", "/k", "v").problem(429, api.Overloaded, "--max-inflight").wantHeader("Retry-After", "1")
	f.do("GET", "/k", "").problem(429, api.Overloaded)
	f.server.places.Patience, f.server.places.MaxWaiting = time.Hour, 0 // nobody may wait
	f.do("PUT", "/k", "v").problem(429, api.Overloaded)
	for _, p := range []string{"/livez", "/readyz", "/health", "/version"} {
		f.do("GET", p, "").want(200)
	}
	close(release)
	for range 2 {
		(<-done).want(204)
	}
	f.node.onDo = nil
	f.do("PUT", "/k", "v").want(204)
}

// A request waits for its place for at most half of its own timeout, and not after its
// client has disconnected.
func TestRequestsWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(t, func(o *Options) { o.MaxInFlight = 1 })
		var release chan struct{}
		f.node.onDo = func(context.Context) { <-release }
		ask := func(ctx context.Context, query string) chan int {
			answered := make(chan int, 1)
			go func() {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "PUT", "/k"+query, strings.NewReader("v")))
				answered <- w.Code
			}()
			synctest.Wait()
			return answered
		}
		for _, c := range []struct {
			name, query string
			freed       time.Duration // when the place is, 0: never
			leaves      time.Duration // when the client does, 0: never
			status      int
			took        time.Duration
		}{
			{"it gets one", "", budget.Patience / 2, 0, 204, budget.Patience / 2},
			{"it gets none", "", 0, 0, 429, budget.Patience},
			{"it has little time", "?timeout=200ms", 0, 0, 429, 100 * time.Millisecond},
			{"it leaves", "", 0, time.Millisecond, 429, time.Millisecond},
		} {
			release = make(chan struct{})
			first := ask(t.Context(), "?timeout=10m")
			ctx, leave := context.WithCancel(t.Context())
			begin := time.Now()
			second := ask(ctx, c.query)
			if n := s.places.Waiting(); n != 1 {
				t.Errorf("%s: %d wait", c.name, n)
			}
			if c.leaves > 0 {
				time.AfterFunc(c.leaves, leave)
			}
			if c.freed > 0 {
				time.AfterFunc(c.freed, func() { close(release) })
			}
			if status, took := <-second, time.Since(begin); status != c.status || took != c.took {
				t.Errorf("%s: %d after %v", c.name, status, took)
			}
			if c.freed == 0 {
				close(release)
			}
			<-first
			leave()
		}
		if s.InFlight() != 0 || s.places.Waiting() != 0 {
			t.Errorf("%d requests are being handled, %d wait", s.InFlight(), s.places.Waiting())
		}
	})
}

// The timeout becomes the deadline of the request's context.
func TestTimeoutIsTheDeadline(t *testing.T) {
	f := newFixture(t)
	for query, want := range map[string]time.Duration{"": param.DefaultTimeout, "?timeout=30s": 30 * time.Second, "?timeout=7": 7 * time.Second} {
		var left time.Duration
		f.node.onDo = func(ctx context.Context) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
		}
		f.do("PUT", "/k"+query, "v").want(204)
		if left > want || left < want-2*time.Second {
			t.Errorf("%q: %v are left, want %v", query, left, want)
		}
	}
}

func TestHTTP2ByPriorKnowledge(t *testing.T) {
	f := newFixture(t)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	send := func(method, path, body string) *answer {
		req := &http.Request{Method: method, URL: &url.URL{Scheme: "http", Host: f.http.Listener.Addr().String(), Opaque: path}, Header: http.Header{}, ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 2 {
			t.Fatalf("the answer has protocol %s", resp.Proto)
		}
		return readAnswer(t, method+" "+path, resp)
	}
	for _, p := range []string{"/v1/kv/a//b", "/v1/kv/a/../b", "/v1/kv/%00%ff", "/%761/x"} {
		send("PUT", p, "over h2 "+p).want(map[bool]int{true: 204, false: 201}[p == "/%761/x"])
		send("GET", p, "").wantBody(200, "over h2 "+p)
	}
	if _, _, err := f.node.Get([]byte("v1/x"), 0); err != nil {
		t.Errorf("the key v1/x: %v", err)
	}
	send("PUT", "/big", strings.Repeat("v", valueLimit+1)).problem(413, api.TooLarge)
	send("PUT", "/big", strings.Repeat("v", valueLimit)).want(204)
}

func TestHeaderBombIsRefused(t *testing.T) {
	f := newFixture(t)
	if a := f.raw("GET /k HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", maxHeaderBytes+8192) + "\r\n\r\n"); a.status != 431 {
		t.Errorf("status %d", a.status)
	}
}

func TestServerSpeaksHTTP2OverTLS(t *testing.T) {
	s, _ := newServer(t)
	ts := httptest.NewUnstartedServer(nil)
	ts.Config = NewServer(s, nil)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	defer ts.Close()
	conn, err := tls.Dial("tcp", ts.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		t.Errorf("negotiated %q", p)
	}
}

func TestRequestsAreObserved(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := meter.New(reg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := meter.New(reg); err == nil {
		t.Error("the metrics were registered twice")
	}
	s, _ := newServer(t, func(o *Options) { o.Observer = m })
	for _, r := range []struct{ method, target string }{
		{"PUT", "/v1/kv/a"}, {"GET", "/v1/kv/a"}, {"GET", "/v1/kv/none"}, {"PUT", "/b"}, {"GET", "/v1/nothing"}, {"BREW", "/b"},
	} {
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(r.method, r.target, strings.NewReader("v")))
	}
	s.places = budget.NewPlaces(0)
	s.places.MaxWaiting = 0
	s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/kv/a", nil))
	got := gathered(t, reg)
	for series, want := range map[string]float64{
		"kvd_rejected_total overloaded":                1,
		"kvd_rejected_total timeout":                   0,
		"kvd_http_requests_total 429 GET /v1/kv/{key}": 1,
		"kvd_http_requests_total 200 GET /v1/kv/{key}": 1,
		"kvd_http_requests_total 201 PUT /v1/kv/{key}": 1,
		"kvd_http_requests_total 204 PUT /{key}":       1,
		"kvd_http_requests_total 404 GET /v1/kv/{key}": 1,
		"kvd_http_requests_total 404 GET none":         1,
		"kvd_http_requests_total 405 other /{key}":     1,
		"kvd_http_request_duration_seconds GET none":   1,
		"kvd_http_inflight_requests":                   0,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v; all: %v", series, got[series], want, got)
		}
	}
}

// gathered returns the value of each series by its name and label values. The value of a
// histogram is its number of observations.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// A connection remains usable after each kind of error.
func TestConnectionsSurviveErrors(t *testing.T) {
	f := newFixture(t)
	dials := 0
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for _, target := range []string{"/none", "/", "/v1/nothing", "/k?x=1", "/v1/kv?prefix=k"} {
		resp, err := client.Get(f.http.URL + target)
		if err != nil {
			t.Fatal(err)
		}
		readAnswer(t, target, resp)
	}
	if dials != 1 {
		t.Errorf("%d connections were made", dials)
	}
}

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// committed answers every command immediately, so that only the allocations of this package
// are counted.
type committed struct{}

func (committed) Do(context.Context, *kvstore.Command, NoteStage) (kvstore.Result, error) {
	return kvstore.Result{Revision: 9, KV: kvstore.KV{ModRevision: 9, CreateRevision: 2, Version: 7}}, nil
}
func (committed) Encode(dst []byte, cmd *kvstore.Command) []byte { return append(dst, cmd.Value...) }
func (committed) DoGroup(_ context.Context, commands [][]byte, _ NoteStage) ([]*kvstore.Result, error) {
	res := &kvstore.Result{Revision: 9, KV: kvstore.KV{ModRevision: 9, CreateRevision: 2, Version: 7}}
	return slices.Repeat([]*kvstore.Result{res}, len(commands)), nil
}
func (committed) Barrier(context.Context, NoteStage) error { return nil }
func (committed) CheckStaleness(time.Duration) error       { return nil }

// onePair returns the same pair for every key, at no cost.
type onePair struct{ Store }

func (onePair) Get([]byte, uint64) (kvstore.KV, uint64, error) {
	return kvstore.KV{Value: []byte("value"), CreateRevision: 2, ModRevision: 9, Version: 7}, 9, nil
}

// frontAlone returns a Server with nothing behind it that costs anything.
func frontAlone(t testing.TB) *Server {
	s, _ := newServer(t, func(o *Options) { o.Replicator, o.Store = committed{}, onePair{o.Store} })
	return s
}

// observedFront is frontAlone with metrics.
func observedFront(t testing.TB) *Server {
	m, err := meter.New(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s, _ := newServer(t, func(o *Options) { o.Replicator, o.Store, o.Observer = committed{}, onePair{o.Store}, m })
	return s
}

// The hot paths allocate little. Raise a bound only with a reason.
func TestAllocations(t *testing.T) {
	s := observedFront(t)
	w := &discard{h: http.Header{}}
	get := httptest.NewRequest("GET", "/v1/kv/k", nil)
	if n := testing.AllocsPerRun(200, func() { s.ServeHTTP(w, get) }); n > 12 {
		t.Errorf("a GET allocates %v times", n)
	}
	body := bytes.NewReader(nil)
	put := httptest.NewRequest("PUT", "/v1/kv/k", strings.NewReader("value"))
	put.Body = io.NopCloser(body)
	if n := testing.AllocsPerRun(200, func() { body.Reset([]byte("value")); s.ServeHTTP(w, put) }); n > 20 {
		t.Errorf("a PUT allocates %v times", n)
	}
}
