package frontdoor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/api"
)

// Gate is the handler of the client listener. The listener is open from the
// first moment on, so that a port in use is noticed before anything else and
// probes get an answer; requests are let through to the node only between
// Open and shut.
type Gate struct {
	current atomic.Pointer[http.Handler]
	closed  closedGate
	// last is set when every answer ends its connection.
	last atomic.Bool
}

// NewGate returns a gate that answers "starting".
func NewGate(v api.Version, metrics http.Handler, checks func(context.Context) []api.Check, rejected func(api.Code)) *Gate {
	g := &Gate{closed: closedGate{version: v, metrics: metrics, checks: checks, rejected: rejected}}
	g.closed.code = api.Starting
	g.closed.detail = "this node is starting and has not caught up with its cluster yet; try again soon or ask another one"
	g.Open(g.closed)
	return g
}

// ServeHTTP implements http.Handler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.last.Load() {
		w.Header()["Connection"] = closeConnection // HTTP/2 makes a GOAWAY of it
	}
	(*g.current.Load()).ServeHTTP(w, r)
}

var closeConnection = []string{"close"}

// LastAnswers makes every answer from now on the last of its connection, which
// sends clients elsewhere without cutting off a request of theirs.
func (g *Gate) LastAnswers() { g.last.Store(true) }

// Open passes requests on to h.
func (g *Gate) Open(h http.Handler) { g.current.Store(&h) }

// Shut refuses requests from now on: the node behind the gate has ended.
func (g *Gate) Shut() {
	c := g.closed
	c.code, c.detail = api.Stopping, "this node has stopped; ask another one"
	g.Open(c)
}

// closedGate answers what needs no running node, and 503 to everything else.
type closedGate struct {
	version api.Version
	metrics http.Handler
	checks  func(context.Context) []api.Check
	// rejected hears of each request that is refused.
	rejected func(api.Code)
	code     api.Code
	detail   string
}

// ServeHTTP implements http.Handler.
func (c closedGate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		path = ""
	}
	switch path {
	case "/livez", "/healthz":
		writePlain(w, http.StatusOK, "ok")
	case "/readyz":
		writePlain(w, http.StatusServiceUnavailable, c.readiness(r.Context()))
	case "/metrics":
		c.metrics.ServeHTTP(w, r)
	case "/version":
		writeJSON(w, http.StatusOK, "application/json", c.version)
	default:
		c.refuse(w)
	}
}

func (c closedGate) readiness(ctx context.Context) string {
	var lines strings.Builder
	for _, check := range c.checks(ctx) {
		if check.Err != nil {
			fmt.Fprintf(&lines, "[-]%s failed: %v\n", check.Name, check.Err)
			continue
		}
		fmt.Fprintf(&lines, "[+]%s ok\n", check.Name)
	}
	return lines.String() + "not ready\n"
}

// refuse answers with a problem document (RFC 9457).
func (c closedGate) refuse(w http.ResponseWriter) {
	c.rejected(c.code)
	writeProblem(w, http.StatusServiceUnavailable, c.code, c.detail)
}

func writeProblem(w http.ResponseWriter, status int, code api.Code, detail string) {
	writeJSON(w, status, "application/problem+json", map[string]any{
		"title":  http.StatusText(status),
		"status": status,
		"code":   code,
		"detail": detail,
	})
}

func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) {
	writeHead(w, status, mediaType)
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}

func writePlain(w http.ResponseWriter, status int, text string) {
	writeHead(w, status, "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text)) // the client is gone if this fails
}

func writeHead(w http.ResponseWriter, status int, mediaType string) {
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
}
