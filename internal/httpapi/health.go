package httpapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// check is one line of /readyz?verbose.
type check struct {
	name string
	err  error // nil if it passes
}

// getLive answers /livez and /healthz, which say only that the process answers. If
// they asked anything of the cluster, a supervisor would restart healthy nodes that
// merely lack a quorum.
func (s *Server) getLive(x *exchange) error {
	verbose, err := x.query.Flag("verbose")
	if err != nil {
		return err
	}
	return x.writeChecks([]check{{name: "process"}}, verbose)
}

// getReady answers /readyz.
func (s *Server) getReady(x *exchange) error {
	verbose, err := x.query.Flag("verbose")
	if err != nil {
		return err
	}
	switch standby, err := s.standsBy(&x.query); {
	case err != nil:
		return err
	case standby:
		return x.writePlain(http.StatusTooManyRequests, "this node is not the leader\n")
	}
	checks, err := s.readiness(x)
	if err != nil {
		return err
	}
	// An unknown name is ignored, as in Kubernetes: a probe that excludes a check must
	// not fail when a later version drops that check.
	excluded := x.query.Excluded()
	checks = slices.DeleteFunc(checks, func(c check) bool { return slices.Contains(excluded, c.name) })
	return x.writeChecks(checks, verbose)
}

// getReadyCheck answers /readyz/{check}.
func (s *Server) getReadyCheck(x *exchange) error {
	checks, err := s.readiness(x)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range checks {
		if c.name == x.arg {
			return x.writeChecks([]check{c}, c.err != nil)
		}
		names = append(names, c.name)
	}
	return api.Errorf(api.NotFound, "unknown check %.40q; the checks are %s", x.arg, strings.Join(names, ", "))
}

func (s *Server) readiness(x *exchange) (checks []check, err error) {
	ctx, cancel, err := x.context()
	if err != nil {
		return nil, err
	}
	defer cancel()
	for name, err := range s.opts.Health.Checks(ctx) {
		checks = append(checks, check{name, err})
	}
	if s.refusal != nil {
		// The node may be ready a moment before its Server takes over from the
		// standby. A client that is told "ready" now would be refused next.
		checks = append(checks, check{"serving", errors.New(s.refusal.Detail)})
	}
	return checks, nil
}

// standsBy reports whether a load balancer asks for the leader and this node is not
// the leader. The answer is 429, as that of Vault's health endpoint on a standby. It
// is no refusal: nothing is overloaded, waiting does not help, and each probe of each
// follower gets it. So it is neither counted nor logged as one.
func (s *Server) standsBy(q *param.Query) (bool, error) {
	role, ok := q.Get("role")
	if ok && role != "leader" {
		return false, badRequest("the parameter \"role\" must be leader, not %.40q", role)
	}
	return ok && !s.opts.Health.IsLeader(), nil
}

// writeChecks answers 200 or 503 in the form of Kubernetes' own health endpoints. The
// list is shown on request and on failure.
func (x *exchange) writeChecks(checks []check, verbose bool) error {
	status, lines := http.StatusOK, ""
	for _, c := range checks {
		if c.err != nil {
			status = http.StatusServiceUnavailable
			lines += "[-]" + c.name + " failed: " + oneLine(c.err.Error()) + "\n"
			continue
		}
		lines += "[+]" + c.name + " ok\n"
	}
	switch {
	case status != http.StatusOK:
		lines += "not ready\n"
		x.set("Retry-After", "1")
	case verbose:
		lines += "ok\n"
	default:
		lines = "ok"
	}
	return x.writePlain(status, lines)
}

func (x *exchange) writePlain(status int, lines string) error {
	x.set("Content-Type", "text/plain; charset=utf-8")
	x.set("Cache-Control", "no-store")
	x.Header()["X-Content-Type-Options"] = nosniff
	x.writeWhole(status, []byte(lines))
	return nil
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// etcdHealth is what tools made for etcd expect at /health.
type etcdHealth struct {
	Health string `json:"health"` // "true" or "false"
	Reason string `json:"reason"`
}

// getEtcdHealth answers /health as etcd does: healthy means no alarm, a leader, and a
// read that succeeds. ?serializable=true concerns this node alone.
func (s *Server) getEtcdHealth(x *exchange) error {
	serializable, err := x.query.Flag("serializable")
	if err != nil {
		return err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	answer, status := etcdHealth{Health: "true"}, http.StatusOK
	if reason := s.unhealthy(ctx, serializable, x.query.Excluded()); reason != "" {
		answer, status = etcdHealth{"false", reason}, http.StatusServiceUnavailable
		x.set("Retry-After", "1")
	}
	return x.writeJSON(status, answer)
}

// unhealthy returns the reason in etcd's words, or "" for a healthy node.
func (s *Server) unhealthy(ctx context.Context, serializable bool, excluded []string) string {
	st, err := s.opts.Inspector.Status(ctx)
	if err != nil {
		return "STATUS ERROR: " + err.Error()
	}
	for _, a := range st.Alarms {
		if api.AlarmName(a) == api.SpaceLow {
			continue
		}
		if name := alarmName(a); !slices.ContainsFunc(excluded, func(e string) bool { return alarmName(e) == name }) {
			return "ALARM " + name
		}
	}
	if !serializable && st.Leader == 0 {
		return "RAFT NO LEADER"
	}
	if serializable {
		err = s.opts.Replicator.CheckStaleness(0)
	} else {
		err = s.opts.Replicator.Barrier(ctx, nil)
	}
	if err != nil {
		return "RANGE ERROR: " + err.Error()
	}
	return ""
}

// alarmName returns the name of an alarm as etcd writes it: NOSPACE for no_space.
func alarmName(s string) string {
	return strings.ToUpper(strings.ReplaceAll(api.AlarmName(s), "_", ""))
}
