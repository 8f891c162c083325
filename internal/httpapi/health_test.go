package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
)

func TestLiveness(t *testing.T) {
	f := newFixture(t)
	f.node.readErr = api.Errorf(api.NoLeader, "nobody leads")
	f.health.checks = []check{{name: "leader", err: errors.New("none")}}
	for _, p := range []string{"/livez", "/healthz"} {
		f.do("GET", p, "").wantBody(200, "ok").wantHeader("Cache-Control", "no-store")
		f.do("HEAD", p, "").wantBody(200, "")
		f.do("GET", p+"?verbose", "").wantBody(200, "[+]process ok\nok\n")
	}
}

func TestReadiness(t *testing.T) {
	f := newFixture(t)
	f.health.checks = []check{{name: "leader"}, {name: "caught_up"}}
	f.do("GET", "/readyz", "").wantBody(200, "ok")
	f.do("GET", "/readyz?verbose", "").wantBody(200, "[+]leader ok\n[+]caught_up ok\nok\n")
	f.health.checks[0].err = errors.New("no leader\nsince long")
	f.do("GET", "/readyz", "").wantBody(503, "[-]leader failed: no leader; since long\n[+]caught_up ok\nnot ready\n").wantHeader("Retry-After", "1")
	f.do("GET", "/readyz?exclude=leader", "").wantBody(200, "ok")
	f.do("GET", "/readyz?exclude=caught_up&exclude=leader", "").wantBody(200, "ok")
	f.do("GET", "/readyz?exclude=caught_up", "").want(503)
	f.do("GET", "/readyz/leader", "").want(503, "[-]leader failed")
	f.do("GET", "/readyz/caught_up", "").wantBody(200, "ok")
	f.do("GET", "/readyz/nonsense", "").problem(404, api.NotFound, "leader, caught_up")
	f.do("GET", "/readyz?role=follower", "").problem(400, api.BadRequest, "role")
}

func TestReadinessByRole(t *testing.T) {
	f := newFixture(t)
	f.do("GET", "/readyz?role=leader", "").wantBody(200, "ok")
	f.health.leader = false
	f.do("GET", "/readyz?role=leader", "").want(429, "not the leader").wantHeader("Retry-After", "")
	f.do("GET", "/readyz", "").wantBody(200, "ok")
}

func TestEtcdHealth(t *testing.T) {
	f := newFixture(t)
	f.do("GET", "/health", "").wantBody(200, `{"health":"true","reason":""}`+"\n")
	f.health.status.Alarms = []string{"space_low: 80 of 100 bytes", "no_space: 100 of 100 bytes"}
	f.do("GET", "/health", "").wantBody(503, `{"health":"false","reason":"ALARM NOSPACE"}`+"\n").wantHeader("Retry-After", "1")
	f.do("GET", "/health?exclude=NOSPACE", "").want(200)
	f.health.status.Alarms = f.health.status.Alarms[:1] // which only warns
	f.do("GET", "/health", "").want(200)
	f.health.status.Alarms = nil
	f.health.status.Leader = 0
	f.do("GET", "/health", "").want(503, "RAFT NO LEADER")
	f.do("GET", "/health?serializable=true", "").want(200)
	f.health.status.Leader = 1
	f.node.readErr = errors.New("no quorum")
	f.do("GET", "/health", "").want(503, "RANGE ERROR: no quorum")
	f.health.err = errors.New("starting")
	f.do("GET", "/health", "").want(503, "STATUS ERROR")
}

func TestVersionMetricsAndOpenAPIAreServed(t *testing.T) {
	f := newFixture(t)
	f.do("GET", "/version", "").wantBody(200, `{"version":"1.2.3","commit":"","go_version":"","api_versions":["v1"]}`+"\n")
	f.do("GET", "/openapi.yaml", "").wantBody(200, string(openAPI)).wantHeader("Content-Type", "application/yaml")
	f.do("GET", "/metrics", "").problem(404, api.NotFound)
	f = newFixture(t, func(o *Options) {
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "up 1\n", r.URL.RawQuery) })
	})
	f.do("GET", "/metrics?name[]=up", "").wantBody(200, "up 1\nname[]=up")
}

// A Server in standby answers what needs no node just as one that serves does, and refuses
// the rest.
func TestStandby(t *testing.T) {
	health := &testHealth{checks: []check{{name: "started", err: errors.New("still starting")}, {name: "not-draining"}}}
	rejected := &countedRejections{}
	s := NewStandby(Options{
		Health: health, Observer: rejected, Version: api.Version{Version: "1.2.3"},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up 1") }),
	}, &api.Error{Code: api.Starting, Detail: "not yet", RetryAfter: 3 * time.Second})
	for _, c := range []struct {
		request string
		status  int
		body    string
	}{
		{"GET /livez", 200, "ok"},
		{"HEAD /healthz", 200, ""},
		{"GET /readyz", 503, "[-]started failed: still starting\n[+]not-draining ok\n[-]serving failed: not yet\nnot ready\n"},
		{"GET /readyz?exclude=started", 503, "[+]not-draining ok\n[-]serving failed: not yet\nnot ready\n"},
		{"GET /readyz/not-draining", 200, "ok"},
		{"GET /metrics", 200, "up 1"},
		{"GET /version", 200, `"version":"1.2.3"`},
		{"GET /openapi.yaml", 200, "openapi:"},
		{"PUT /livez", 400, `"code":"bad_request"`},
		{"GET /health", 503, `"code":"starting"`},
		{"GET /my-key", 503, `"code":"starting"`},
		{"PUT /my-key?unknown", 503, `"code":"starting"`},
		{"DELETE /3", 503, `"code":"starting"`},
		{"GET /v1/kv/a//b", 503, `"code":"starting"`},
		{"GET /li%76ez", 503, `"code":"starting"`},
		{"POST /v1/batch", 503, `"code":"starting"`},
	} {
		method, target, _ := strings.Cut(c.request, " ")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s", c.request, w.Code, w.Body)
		}
		if want := strings.Contains(c.body, "starting\""); want && w.Header().Get("Retry-After") != "3" {
			t.Errorf("%s: Retry-After %q", c.request, w.Header().Get("Retry-After"))
		}
	}
	if want := 7; rejected.codes[api.Starting] != want {
		t.Errorf("%v were counted as rejected, want %d starting", rejected.codes, want)
	}
}

// countedRejections counts the errors that were answered.
type countedRejections struct {
	codes map[api.Code]int
}

func (r *countedRejections) Begin()                                 {}
func (r *countedRejections) Endpoint(route, method string) Endpoint { return unobserved{} }
func (r *countedRejections) Rejected(c api.Code) {
	if r.codes == nil {
		r.codes = make(map[api.Code]int)
	}
	r.codes[c]++
}

type unobserved struct{}

func (unobserved) End(int, time.Duration) {}

// TestFollowersAreNotOverloaded: a load balancer that looks for the leader gets 429 from
// every follower, again and again. That is neither a rejection nor an error to log.
func TestFollowersAreNotOverloaded(t *testing.T) {
	rejected := &countedRejections{}
	core, logged := observer.New(zap.DebugLevel)
	f := newFixture(t, func(o *Options) {
		o.Observer, o.RequestLog, o.Logger = rejected, RequestLogErrors, zap.New(core)
	})
	f.health.leader = false
	f.do("GET", "/readyz?role=leader", "").want(429).wantHeader("Retry-After", "")
	if n := rejected.codes[api.Overloaded]; n != 0 || logged.Len() != 0 {
		t.Errorf("%d rejections counted, logged: %v", n, logged.All())
	}
}
