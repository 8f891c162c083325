package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Health is what the probes ask about this member.
type Health interface {
	HasLeader() bool
	IsLearner() bool
	// Alarms returns the names of the alarms that are up: NOSPACE, CORRUPT.
	Alarms(ctx context.Context) []string
	// Read reads from the store, linearizably or from what this member has.
	Read(ctx context.Context, serializable bool) error
}

// probeTimeout bounds the reads of a probe, like a request of etcd.
const probeTimeout = 7 * time.Second

// check is one of the checks of /livez and /readyz.
type check struct {
	name string
	run  func(ctx context.Context, h Health) error
}

var (
	local = check{"serializable_read", func(ctx context.Context, h Health) error { return h.Read(ctx, true) }}
	live  = []check{local}
	ready = []check{
		{"data_corruption", func(ctx context.Context, h Health) error {
			if slices.Contains(h.Alarms(ctx), "CORRUPT") {
				return errors.New("alarm activated: CORRUPT")
			}
			return nil
		}},
		local,
		{"linearizable_read", func(ctx context.Context, h Health) error { return h.Read(ctx, false) }},
		{"non_learner", func(_ context.Context, h Health) error {
			if h.IsLearner() {
				return errors.New("not supported for learner")
			}
			return nil
		}},
	}
)

// serveProbe answers /health, /livez, /readyz, and each of the checks of the latter under
// its own name.
func (g *Gateway) serveProbe(w http.ResponseWriter, r *http.Request) {
	name, one, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	checks := map[string][]check{"livez": live, "readyz": ready}[name]
	if one != "" {
		checks = slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return c.name != one })
	}
	if r.URL.Path != "/health" && len(checks) == 0 {
		http.NotFound(w, r)
		return
	}
	if !allowed(w, r) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), probeTimeout)
	defer cancel()
	if name == "health" {
		g.serveHealth(ctx, w, r)
		return
	}
	excluded := r.URL.Query()["exclude"]
	var failed bool
	var report strings.Builder
	for _, c := range checks {
		if one == "" && slices.Contains(excluded, c.name) {
			continue
		}
		if err := c.run(ctx, g.opts.Health); err != nil {
			failed = true
			fmt.Fprintf(&report, "[-]%s failed: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&report, "[+]%s ok\n", c.name)
		}
	}
	if failed {
		http.Error(w, report.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		_, _ = w.Write([]byte(report.String()))
	}
	_, _ = w.Write([]byte("ok\n"))
}

// health is the answer to /health.
type health struct {
	Health string `json:"health"` // "true" or "false"
	Reason string `json:"reason"`
}

func (g *Gateway) serveHealth(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	out := health{Health: "true", Reason: g.unhealthy(ctx, r)}
	if out.Reason != "" {
		out.Health = "false"
	}
	text, _ := json.Marshal(&out) // strings alone
	if out.Reason != "" {
		http.Error(w, string(text), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write(text)
}

// unhealthy returns what is wrong, in etcd's words, and nothing if nothing is.
func (g *Gateway) unhealthy(ctx context.Context, r *http.Request) string {
	q := r.URL.Query()
	serializable := q.Get("serializable") == "true"
	for _, name := range g.opts.Health.Alarms(ctx) {
		if !slices.Contains(q["exclude"], name) {
			return "ALARM " + name
		}
	}
	if !serializable && !g.opts.Health.HasLeader() {
		return "RAFT NO LEADER"
	}
	if err := g.opts.Health.Read(ctx, serializable); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}
