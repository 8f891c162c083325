package frontdoor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

func testGate() *Gate {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") })
	checks := func(context.Context) []api.Check {
		return []api.Check{{Name: "started", Err: errors.New("still starting")}, {Name: "draining"}}
	}
	return NewGate(api.Version{Version: "1.2.3"}, metrics, checks, func(api.Code) {})
}

func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestGateBeforeTheNodeIsReady(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/livez", 200, "ok"},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/readyz", 503, "[-]started failed: still starting\n[+]draining ok\nnot ready\n"},
		{"GET", "/metrics", 200, "metrics"},
		{"GET", "/version", 200, `"version":"1.2.3"`},
		{"GET", "/my-key", 503, `"code":"starting"`},
		{"PUT", "/my-key", 503, `"code":"starting"`},
		{"PUT", "/livez", 503, `"code":"starting"`},
		{"DELETE", "/3", 503, `"code":"starting"`},
		{"GET", "/v1/kv/a//b", 503, `"code":"starting"`},
		{"GET", "/li%76ez", 503, `"code":"starting"`},
	} {
		w := ask(testGate(), c.method, c.path)
		if w.Code != c.status || c.method != "HEAD" && !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
		if (w.Code == 503) != (w.Header().Get("Retry-After") != "") {
			t.Errorf("%s %s: status %d with Retry-After %q", c.method, c.path, w.Code, w.Header().Get("Retry-After"))
		}
	}
}

func TestGateOpensAndShuts(t *testing.T) {
	g := testGate()
	g.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	if w := ask(g, "PUT", "/k"); w.Code != http.StatusNoContent {
		t.Errorf("an open gate answers %d", w.Code)
	}
	g.Shut()
	w := ask(g, "PUT", "/k")
	var problem struct {
		Title, Code, Detail string
		Status              int
	}
	if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
		t.Fatal(err)
	}
	if w.Code != 503 || problem.Code != "stopping" || problem.Status != 503 || problem.Title == "" || problem.Detail == "" {
		t.Errorf("a shut gate answers %d %s", w.Code, w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("as %s", got)
	}
}

// What the gate refuses is counted as rejected.
func TestGateCountsWhatItRefuses(t *testing.T) {
	g, counted := testGate(), []api.Code{}
	g.closed.rejected = func(c api.Code) { counted = append(counted, c) }
	g.Open(g.closed)
	ask(g, "GET", "/livez")
	ask(g, "GET", "/my-key")
	g.Shut()
	ask(g, "PUT", "/my-key")
	if want := []api.Code{api.Starting, api.Stopping}; !slices.Equal(counted, want) {
		t.Errorf("counted %v, want %v", counted, want)
	}
}

// TestLastAnswers: clients are sent away with their answers, whoever gives
// them.
func TestLastAnswers(t *testing.T) {
	g := testGate()
	if got := ask(g, "GET", "/livez").Header().Get("Connection"); got != "" {
		t.Errorf("Connection: %s", got)
	}
	g.LastAnswers()
	g.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	if got := ask(g, "PUT", "/k").Header().Get("Connection"); got != "close" {
		t.Errorf("Connection: %s", got)
	}
}
