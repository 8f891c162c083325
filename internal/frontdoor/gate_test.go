package frontdoor

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// startingNode is the health of a node that has not caught up. The rest of it
// must not be asked.
type startingNode struct{ httpapi.Health }

func (startingNode) ClusterID() string { return "" }
func (startingNode) Checks(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		_ = yield("started", errors.New("still starting")) && yield("not-draining", nil)
	}
}

// oneKey is a store that has one key at revision 7.
type oneKey struct {
	httpapi.Store
	httpapi.Transactions
	leased
}

// leased has leases and locks.
type leased interface {
	httpapi.Leases
	httpapi.Locks
}

func (oneKey) Revision() uint64 { return 7 }
func (oneKey) Get([]byte, uint64) (kvstore.KV, uint64, error) {
	return kvstore.KV{Value: []byte("v"), ModRevision: 7, CreateRevision: 7, Version: 1}, 7, nil
}

// freshNode is always as fresh as a read wants it.
type freshNode struct{ httpapi.Replicator }

func (freshNode) Barrier(context.Context, httpapi.NoteStage) error { return nil }

// rejections records the errors that were answered.
type rejections struct{ codes []api.Code }

func (r *rejections) Begin()                                   {}
func (r *rejections) Endpoint(string, string) httpapi.Endpoint { return r }
func (r *rejections) End(int, time.Duration)                   {}
func (r *rejections) Rejected(c api.Code)                      { r.codes = append(r.codes, c) }

func testGate() (*gate, *rejections) {
	rejected := new(rejections)
	return newGate(httpapi.Options{
		Health: startingNode{}, Replicator: freshNode{}, Observer: rejected, Version: api.Version{Version: "1.2.3"},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
	}, []string{"http://127.0.0.1:12379"}), rejected
}

func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// TestGateOpensAndShuts: probes are answered in every state; keys reach the
// node only while the gate is open, and what is refused is counted.
func TestGateOpensAndShuts(t *testing.T) {
	g, rejected := testGate()
	for _, state := range []struct {
		name string
		code api.Code // of a request for a key; "" if it reaches the node
	}{
		{"starting", api.Starting}, {"open", ""}, {"stopping", api.Stopping},
	} {
		switch state.name {
		case "open":
			g.open(oneKey{})
		case "stopping":
			g.shut()
		}
		for _, c := range []struct {
			path   string
			status int
			body   string
		}{
			{"/livez", 200, "ok"},
			{"/readyz", 503, "[-]started failed: still starting\n"},
			{"/readyz/not-draining", 200, "ok"},
			{"/metrics", 200, "metrics"},
			{"/version", 200, `"version":"1.2.3"`},
		} {
			if w := ask(g, "GET", c.path); w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
				t.Errorf("%s: GET %s: %d %s", state.name, c.path, w.Code, w.Body)
			}
		}
		w := ask(g, "GET", "/v1/kv/k")
		if state.code == "" && (w.Code != http.StatusOK || w.Body.String() != "v") {
			t.Errorf("an open gate answers %d %s", w.Code, w.Body)
		}
		if state.code != "" && (w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), `"code":"`+string(state.code)+`"`)) {
			t.Errorf("%s: GET of a key: %d %s", state.name, w.Code, w.Body)
		}
	}
	if want := []api.Code{api.Starting, api.Stopping}; !slices.Equal(rejected.codes, want) {
		t.Errorf("counted %v, want %v", rejected.codes, want)
	}
}

// TestLastAnswers: clients are sent away with their answers, no matter who gives
// them.
func TestLastAnswers(t *testing.T) {
	g, _ := testGate()
	if got := ask(g, "GET", "/livez").Header().Get("Connection"); got != "" {
		t.Errorf("Connection: %s", got)
	}
	g.lastAnswers()
	for _, path := range []string{"/livez", "/v1/kv/k"} {
		if got := ask(g, "GET", path).Header().Get("Connection"); got != "close" {
			t.Errorf("%s: Connection: %s", path, got)
		}
	}
	g.open(oneKey{})
	if w := ask(g, "GET", "/v1/kv/k"); w.Code != http.StatusOK || w.Header().Get("Connection") != "close" {
		t.Errorf("an open gate answers %d, Connection: %s", w.Code, w.Header().Get("Connection"))
	}
}
