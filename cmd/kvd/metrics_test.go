package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// fakeStatus is a node of which only the status is known.
type fakeStatus struct {
	status api.Status
	err    error
	ready  chan struct{}
}

func (f *fakeStatus) Status(context.Context) (api.Status, error) { return f.status, f.err }
func (f *fakeStatus) Ready() <-chan struct{}                     { return f.ready }

// scrape returns the lines of /metrics.
func scrape(t *testing.T, h http.Handler) map[string]bool {
	t.Helper()
	w := ask(h, "GET", "/metrics")
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	lines := make(map[string]bool)
	for line := range strings.Lines(w.Body.String()) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

func TestMetrics(t *testing.T) {
	source := &fakeStatus{err: errors.New("starting"), ready: make(chan struct{})}
	h, observer, err := newMetrics(api.Version{Version: "1.2.3", Commit: "abc", GoVersion: "go1"}, source, func() uint64 { return 7 })
	if err != nil {
		t.Fatal(err)
	}
	observer.Begin()
	observer.Begin()
	observer.Endpoint("/v1/kv/{key}", "PUT").End(201, 3*time.Millisecond)
	starting := scrape(t, h)
	for _, want := range []string{
		`kvd_build_info{commit="abc",goversion="go1",version="1.2.3"} 1`,
		`kvd_log_lines_dropped_total 7`,
		`kvd_ready 0`,
		`kvd_http_requests_total{code="201",method="PUT",route="/v1/kv/{key}"} 1`,
		`kvd_http_request_duration_seconds_count{method="PUT",route="/v1/kv/{key}"} 1`,
		`kvd_http_inflight_requests 1`,
		`# TYPE go_goroutines gauge`,
		`# TYPE process_cpu_seconds_total counter`,
		`# TYPE etcd_disk_wal_fsync_duration_seconds histogram`,
	} {
		if !starting[want] {
			t.Errorf("while starting there is no %s", want)
		}
	}
	if starting["kvd_raft_term 0"] {
		t.Error("a status is shown before there is one")
	}
	source.err = nil
	source.status = api.Status{ID: 2, Leader: 2, Role: "leader", Term: 5, Commit: 12, Applied: 10, Revision: 9, Keys: 4, QuotaBytes: 100, Alarms: []string{"a"}}
	close(source.ready)
	ready := scrape(t, h)
	for _, want := range []string{
		`kvd_ready 1`, `kvd_raft_term 5`, `kvd_raft_has_leader 1`, `kvd_raft_is_leader 1`, `kvd_raft_is_learner 0`,
		`kvd_raft_commit_index 12`, `kvd_raft_applied_index 10`, `kvd_raft_apply_lag_entries 2`,
		`kvd_store_revision 9`, `kvd_store_keys 4`, `kvd_store_quota_bytes 100`, `kvd_alarms 1`,
	} {
		if !ready[want] {
			t.Errorf("once ready there is no %s", want)
		}
	}
}
