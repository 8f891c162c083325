package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
)

// testLevel is a log level that accepts only debug and info.
type testLevel struct {
	level  string
	period time.Duration
}

func (l *testLevel) LogLevel() (string, time.Time) {
	if l.period == 0 {
		return l.level, time.Time{}
	}
	return l.level, time.Unix(0, 0).Add(l.period).UTC()
}

func (l *testLevel) SetLogLevel(level string, period time.Duration) error {
	if level != "debug" && level != "info" {
		return errors.New("none of debug, info")
	}
	l.level, l.period = level, period
	return nil
}

func TestLogLevel(t *testing.T) {
	level := &testLevel{level: "info"}
	f := newFixture(t, func(o *Options) { o.LogLevel = level })
	for _, c := range []struct {
		method, body string
		status       int
		want         string
		period       time.Duration
	}{
		{"GET", "", 200, `{"level":"info"}`, 0},
		{"PUT", `{"level":"debug"}`, 200, `{"level":"debug"}`, 0},
		{"PUT", `{"level":"debug","for":"10m"}`, 200, `"until":"1970-01-01T00:10:00Z"`, 10 * time.Minute},
		{"PUT", `{"level":"info","for":90}`, 200, `"until":"1970-01-01T00:01:30Z"`, 90 * time.Second},
		{"PUT", `{"level":"info","for":"soon"}`, 400, `\"for\" must be a duration`, 90 * time.Second},
		{"PUT", `{"level":"info","for":"-1s"}`, 400, `\"for\" must be a duration`, 90 * time.Second},
		{"PUT", `{"level":"info","for":[]}`, 400, `\"for\" must be a duration`, 90 * time.Second},
		{"PUT", `{"level":"loud"}`, 400, "none of debug, info", 90 * time.Second},
		{"PUT", `{}`, 400, "none of debug, info", 90 * time.Second},
		{"PUT", `{"level":"info","since":"x"}`, 400, "since", 90 * time.Second},
		{"GET", "", 200, `"level":"info"`, 90 * time.Second},
	} {
		a := f.do(c.method, "/v1/operator/log-level", c.body)
		if a.status != c.status || !strings.Contains(a.body, c.want) || level.period != c.period {
			t.Errorf("%s %s: %d %s (period %v)", c.method, c.body, a.status, a.body, level.period)
		}
	}
}

// The request log has one line per request, with everything but what the client chose.
func TestRequestLog(t *testing.T) {
	for _, c := range []struct {
		setting string
		want    []string // method, route and status of each line
	}{
		{"off", nil},
		{"errors", []string{"GET /v1/kv/{key} 503"}},
		{"all", []string{"PUT /v1/kv/{key} 201", "GET /v1/kv/{key} 404", "GET /v1/kv/{key} 503", "other none 404"}},
	} {
		core, lines := observer.New(zap.DebugLevel)
		f := newFixture(t, func(o *Options) { o.RequestLog, o.Logger = c.setting, zap.New(core) })
		f.do("PUT", "/v1/kv/secret-key", "secret-value")
		f.do("GET", "/v1/kv/secret-absent?timeout=3s", "")
		f.node.readErr = api.Errorf(api.NoLeader, "nobody leads")
		a := f.do("GET", "/v1/kv/secret-key", "")
		f.node.readErr = nil
		f.do("SECRET", "/v99/secret", "")
		var got []string
		for _, e := range lines.FilterMessage("request").All() {
			m := e.ContextMap()
			got = append(got, strings.Join([]string{m["method"].(string), m["route"].(string), fmt.Sprint(m["status"])}, " "))
			if m["request_id"] == "" || m["remote"] == "" || m["duration"] == nil || m["led"] == nil {
				t.Errorf("%s: the line is incomplete: %v", c.setting, m)
			}
			if m["method"] == http.MethodPut && (m["bytes_in"] != int64(12) || m["bytes_out"] == int64(0)) {
				t.Errorf("%s: sizes of a put: %v", c.setting, m)
			}
			if m["status"] == int64(503) && a.header.Get("X-Request-Id") != m["request_id"] {
				t.Errorf("%s: the answer has id %q, the log %q", c.setting, a.header.Get("X-Request-Id"), m["request_id"])
			}
		}
		if strings.Join(got, ", ") != strings.Join(c.want, ", ") {
			t.Errorf("%s: %q, want %q", c.setting, got, c.want)
		}
		for _, e := range lines.All() {
			for k, v := range e.ContextMap() {
				if s, ok := v.(string); ok && strings.Contains(strings.ToLower(s), "secret") {
					t.Errorf("%s: the log has %s=%q", c.setting, k, s)
				}
			}
		}
	}
}
