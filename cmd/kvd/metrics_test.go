package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// fakeStatus is a node with a fixed status.
type fakeStatus struct {
	status api.Status
	err    error
	ready  chan struct{}
}

func (f *fakeStatus) Status(context.Context) (api.Status, error) { return f.status, f.err }
func (f *fakeStatus) Figures(context.Context) (node.Figures, error) {
	return node.Figures{
		Raft:            raftnode.Stats{ProposalsWaiting: 2, ProposalsInFlight: 3, LeaderChanges: 4},
		Refusals:        map[string]uint64{"clone": 2},
		ProposalsFailed: 6, ReadsFailed: 7, HashesDiverged: 1, DiskFree: 8,
		Peers: []node.PeerFigures{{ID: 3, Reachable: true, Behind: 9, BehindKnown: true}, {ID: 4}},
	}, f.err
}
func (f *fakeStatus) Ready() <-chan struct{} { return f.ready }

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
	meters, err := newInstruments(api.Version{Version: "1.2.3", Commit: "abc", GoVersion: "go1"}, func() uint64 { return 7 }, requestMemory(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := meters.watch(source); err != nil {
		t.Fatal(err)
	}
	h := meters.handler()
	meters.requests.Begin()
	meters.requests.Begin()
	meters.requests.Endpoint("/v1/kv/{key}", "PUT").End(201, 3*time.Millisecond)
	meters.loops.Packed(3, 300)
	meters.loops.Saved(2 * time.Millisecond)
	meters.loops.Applied(time.Millisecond, 2, 3)
	meters.loops.Applied(time.Second, 1, 4)
	meters.loops.Snapshot(raftnode.SnapshotSend, time.Second, 500, nil)
	meters.loops.Snapshot(raftnode.SnapshotSend, 0, 0, errors.New("cut"))
	starting := scrape(t, h)
	for _, want := range []string{
		`kvd_build_info{commit="abc",goversion="go1",version="1.2.3"} 1`,
		`kvd_log_lines_dropped_total 7`,
		`kvd_ready 0`,
		`kvd_http_requests_total{code="201",method="PUT",route="/v1/kv/{key}"} 1`,
		`kvd_http_request_duration_seconds_count{method="PUT",route="/v1/kv/{key}"} 1`,
		`kvd_http_inflight_requests 1`,
		`kvd_raft_batch_commands_sum 3`, `kvd_raft_batch_bytes_sum 300`, `kvd_wal_save_duration_seconds_count 1`,
		`kvd_apply_duration_seconds_count 2`, `kvd_apply_entries_total 3`, `kvd_apply_commands_total 7`, `kvd_apply_slow_total 1`,
		`kvd_snapshot_total{result="ok",work="send"} 1`, `kvd_snapshot_total{result="failed",work="send"} 1`,
		`kvd_snapshot_bytes_total{work="send"} 500`, `kvd_snapshot_duration_seconds_count{work="send"} 1`,
		`etcd_disk_backend_commit_duration_seconds_count 2`, `etcd_server_slow_apply_total 1`,
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
	source.status = api.Status{ID: 2, Leader: 2, Role: "leader", Term: 5, Commit: 12, Applied: 10, Lag: 2, Revision: 9, Keys: 4, QuotaBytes: 100, Alarms: []string{"a"}}
	close(source.ready)
	ready := scrape(t, h)
	for _, want := range []string{
		`kvd_ready 1`, `kvd_raft_term 5`, `kvd_raft_has_leader 1`, `kvd_raft_is_leader 1`, `kvd_raft_is_learner 0`,
		`kvd_raft_commit_index 12`, `kvd_raft_applied_index 10`, `kvd_apply_lag_entries 2`,
		`kvd_raft_proposals_waiting 2`, `kvd_raft_proposals_inflight 3`, `kvd_raft_leader_changes_total 4`,
		`kvd_raft_proposals_failed_total 6`, `kvd_raft_readindex_failed_total 7`, `kvd_state_hash_diverged_total 1`, `kvd_disk_free_bytes 8`,
		`kvd_peer_reachable{peer="3"} 1`, `kvd_peer_reachable{peer="4"} 0`, `kvd_peer_behind_entries{peer="3"} 9`,
		`kvd_peer_refusals_total{reason="clone"} 2`,
		`etcd_server_has_leader 1`, `etcd_server_is_leader 1`, `etcd_server_id{server_id="2"} 1`,
		`etcd_server_proposals_committed_total 12`, `etcd_server_proposals_applied_total 10`, `etcd_server_proposals_pending 5`,
		`etcd_server_quota_backend_bytes 100`, `etcd_server_leader_changes_seen_total 4`,
		`kvd_store_revision 9`, `kvd_store_keys 4`, `kvd_store_quota_bytes 100`, `kvd_alarms 1`, `kvd_alarm_active{alarm="a"} 1`, `kvd_alarm_active{alarm="no_space"} 0`,
	} {
		if !ready[want] {
			t.Errorf("once ready there is no %s", want)
		}
	}
}

// Without a quota, etcd's alert must not fire: it divides by the quota.
func TestNoQuotaIsNoSeries(t *testing.T) {
	meters, err := newInstruments(api.Version{}, func() uint64 { return 0 }, requestMemory(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := meters.watch(&fakeStatus{ready: make(chan struct{})}); err != nil {
		t.Fatal(err)
	}
	for line := range scrape(t, meters.handler()) {
		if strings.Contains(line, "etcd_server_quota_backend_bytes") {
			t.Errorf("without a quota there is %s", line)
		}
	}
}
