package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
)

var updateDocs = flag.Bool("update", false, "write docs/metrics.md anew")

// etcdAliases are the names that etcd's stock dashboard and alerts build on,
// with their types there.
var etcdAliases = map[string]string{
	"etcd_server_has_leader": "GAUGE", "etcd_server_is_leader": "GAUGE", "etcd_server_is_learner": "GAUGE",
	"etcd_server_id": "GAUGE", "etcd_server_version": "GAUGE",
	"etcd_server_leader_changes_seen_total": "COUNTER", "etcd_server_proposals_committed_total": "GAUGE",
	"etcd_server_proposals_applied_total": "GAUGE", "etcd_server_proposals_failed_total": "COUNTER",
	"etcd_server_proposals_pending": "GAUGE", "etcd_server_quota_backend_bytes": "GAUGE",
	"etcd_server_slow_apply_total": "COUNTER", "etcd_server_read_indexes_failed_total": "COUNTER",
	"etcd_disk_wal_fsync_duration_seconds": "HISTOGRAM", "etcd_disk_backend_commit_duration_seconds": "HISTOGRAM",
	"etcd_mvcc_db_total_size_in_bytes": "GAUGE", "etcd_mvcc_db_total_size_in_use_in_bytes": "GAUGE",
	"etcd_mvcc_put_total": "COUNTER", "etcd_mvcc_delete_total": "COUNTER", "etcd_mvcc_range_total": "COUNTER", "etcd_mvcc_txn_total": "COUNTER",
	"etcd_network_client_grpc_received_bytes_total": "COUNTER", "etcd_network_client_grpc_sent_bytes_total": "COUNTER",
	"etcd_network_peer_round_trip_time_seconds": "HISTOGRAM",
	"etcd_network_peer_sent_bytes_total":        "COUNTER", "etcd_network_peer_received_bytes_total": "COUNTER",
}

// late are metrics of etcd's packages that appear only after a certain event,
// with their labels.
var late = catalog{
	"etcd_network_peer_round_trip_time_seconds":            {kind: "HISTOGRAM", labels: []string{"To"}, help: "Round-trip time to a peer, measured by a probe every 30 seconds."},
	"etcd_network_disconnected_peers_total":                {kind: "COUNTER", labels: []string{"Local", "Remote"}, help: "Number of times that the connection to a peer broke."},
	"etcd_network_peer_sent_failures_total":                {kind: "COUNTER", labels: []string{"To"}, help: "Messages to a peer that were lost."},
	"etcd_network_peer_received_failures_total":            {kind: "COUNTER", labels: []string{"From"}, help: "Messages from a peer that could not be read."},
	"etcd_network_snapshot_send_success":                   {kind: "COUNTER", labels: []string{"To"}, help: "Snapshots sent to a peer."},
	"etcd_network_snapshot_send_failures":                  {kind: "COUNTER", labels: []string{"To"}, help: "Snapshots that could not be sent to a peer."},
	"etcd_network_snapshot_send_total_duration_seconds":    {kind: "HISTOGRAM", labels: []string{"To"}, help: "Time to send a snapshot to a peer."},
	"etcd_network_snapshot_receive_success":                {kind: "COUNTER", labels: []string{"From"}, help: "Snapshots received from a peer."},
	"etcd_network_snapshot_receive_failures":               {kind: "COUNTER", labels: []string{"From"}, help: "Snapshots that could not be received from a peer."},
	"etcd_network_snapshot_receive_total_duration_seconds": {kind: "HISTOGRAM", labels: []string{"From"}, help: "Time to receive a snapshot from a peer."},
}

// exporter is a node in this process, with its metrics and its front.
type exporter struct {
	meters *instruments
	node   *node.Node
	front  http.Handler
	calls  *etcdapi.Server
}

// startExporters runs two nodes, so that one leads and each has a peer.
func startExporters(t *testing.T) (all []exporter) {
	t.Helper()
	peers := []node.Peer{{ID: 1, URL: freeURL(t)}, {ID: 2, URL: freeURL(t)}}
	for _, p := range peers {
		meters, err := newInstruments(buildVersion(), func() uint64 { return 0 }, requestMemory(0))
		if err != nil {
			t.Fatal(err)
		}
		n := runNode(t, node.Config{
			ID: p.ID, DataDir: t.TempDir(), Engine: "pebble", ListenPeer: p.URL, Initial: peers,
			TickInterval: 20 * time.Millisecond, Observer: meters.loops, Version: buildVersion(), Settings: kvstore.DefaultSettings(),
		})
		if err := meters.watch(n); err != nil {
			t.Fatal(err)
		}
		calls := etcdapi.NewMetrics()
		if err := meters.registry.Register(calls); err != nil {
			t.Fatal(err)
		}
		face := node.Face{Node: n}
		server := etcdapi.New(etcdapi.Options{Replicator: face, Members: face, Member: face, Leadership: face, Inspector: face, LeaseTimes: face, Metrics: calls})
		if err := meters.registry.Register(certificateMetrics{newTLSFiles(t).load(t)}); err != nil {
			t.Fatal(err)
		}
		if err := meters.registry.Register(auditMetrics{}); err != nil {
			t.Fatal(err)
		}
		all = append(all, exporter{meters: meters, node: n, calls: server})
	}
	for i, e := range all {
		select {
		case <-e.node.Ready():
		case <-time.After(patience):
			t.Fatal("a node does not become ready")
		}
		e.calls.Open(etcdapi.State{Store: e.node.Store(), Evaluator: kvstore.NewEvaluator(e.node.Store()), Limits: e.node.Store(), LeaseTable: e.node.Store()})
		all[i].front = httpapi.New(httpapi.Options{Store: e.node.Store(), Transactions: e.node.Store(), Replicator: e.node, Members: e.node, Leadership: e.node, Health: e.node, Inspector: e.node, Observer: e.meters.requests})
	}
	return all
}

func runNode(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the node ended with %v", err)
		}
	})
	return n
}

// exported returns everything that two nodes together export after each has
// served a request.
func exported(t *testing.T) catalog {
	t.Helper()
	nodes := startExporters(t)
	for deadline := time.Now().Add(patience); ; {
		cat := make(catalog)
		gather(t, cat, prometheus.DefaultGatherer)
		for _, e := range nodes {
			if w := ask(e.front, "PUT", "/v1/kv/k"); w.Code/100 != 2 {
				t.Fatalf("put: %d %s", w.Code, w.Body)
			}
			if _, err := e.calls.Call(t.Context(), "/etcdserverpb.KV/Range", func(r any) error { r.(*pb.RangeRequest).Key = []byte("k"); return nil }); err != nil {
				t.Fatal(err)
			}
			gather(t, cat, e.meters.registry)
		}
		// The leader knows the position of its follower after the first response,
		// and rafthttp counts bytes from the first message on.
		if _, ok := cat["kvd_peer_behind_entries"]; ok && cat["etcd_network_peer_received_bytes_total"].kind != "" {
			return cat
		}
		if time.Now().After(deadline) {
			t.Fatalf("something is never exported: %v", slices.Sorted(maps.Keys(cat)))
		}
	}
}

func gather(t *testing.T, cat catalog, from prometheus.Gatherer) {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, mf := range families {
		f := family{kind: mf.GetType().String(), help: mf.GetHelp()}
		for _, l := range mf.GetMetric()[0].GetLabel() {
			f.labels = append(f.labels, l.GetName())
		}
		cat[mf.GetName()] = f
	}
}

// registered reports whether the default registry has a metric that exports
// nothing yet: it then refuses another metric of that name.
func registered(name string) bool {
	probe := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "a probe of a test"})
	if prometheus.Register(probe) != nil {
		return true
	}
	prometheus.Unregister(probe)
	return false
}

// The metrics named in deploy/ and docs/ are compared with running nodes.
func TestMetricsAreAsSaid(t *testing.T) {
	cat := exported(t)
	for name, f := range late {
		if !registered(name) {
			t.Errorf("%s is not registered", name)
		}
		if now, ok := cat[name]; ok && (now.kind != f.kind || !slices.Equal(now.labels, f.labels)) {
			t.Errorf("%s is %v, not %v", name, now, f)
		}
		cat[name] = f
	}
	t.Run("etcd's names", func(t *testing.T) {
		for name, kind := range etcdAliases {
			if got := cat[name].kind; got != kind {
				t.Errorf("%s is %q, want %q", name, got, kind)
			}
		}
	})
	t.Run("help", func(t *testing.T) {
		for _, problem := range helpProblems(cat) {
			t.Error(problem)
		}
	})
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, cat) })
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, cat) })
	t.Run("docs", func(t *testing.T) { checkMetricsDocument(t, cat) })
}

type alert struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func checkAlerts(t *testing.T, cat catalog) {
	var file struct{ Groups []struct{ Rules []alert } }
	b, err := os.ReadFile("../../deploy/prometheus/kvd.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, g := range file.Groups {
		for _, a := range g.Rules {
			if seen[a.Alert] {
				t.Errorf("%s is there twice", a.Alert)
			}
			seen[a.Alert] = true
			checkAlert(t, cat, a)
		}
	}
	for _, name := range []string{
		"MemberDown", "QuorumAtRisk", "NoLeader", "LeaderChangesHigh", "FsyncSlow", "ApplyLag", "ProposalsFailing", "QuotaLow",
		"StateHashDiverged", "LogLinesDropped", "AuditLinesDropped", "RejectedRequests", "SnapshotFailing", "PeerRefused", "DiskAlmostFull",
	} {
		if !seen["Kvd"+name] {
			t.Errorf("there is no alert Kvd%s", name)
		}
	}
}

var (
	labelInText  = regexp.MustCompile(`\$labels\.(\w+)`)
	metricInText = regexp.MustCompile(`\b(?:kvd|etcd)_\w+`)
)

func checkAlert(t *testing.T, cat catalog, a alert) {
	problems, labels := checkPromQL(cat, a.Expr)
	for _, p := range problems {
		t.Errorf("%s: %s in %s", a.Alert, p, a.Expr)
	}
	if _, err := time.ParseDuration(a.For); err != nil {
		t.Errorf("%s: for: %v", a.Alert, err)
	}
	if s := a.Labels["severity"]; s != "warning" && s != "critical" {
		t.Errorf("%s has the severity %q", a.Alert, s)
	}
	for _, part := range []string{"summary", "description"} {
		text := a.Annotations[part]
		if text == "" {
			t.Errorf("%s has no %s", a.Alert, part)
		}
		for _, m := range labelInText.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(labels, m[1]) {
				t.Errorf("%s: the %s shows the label %s, which no series has", a.Alert, part, m[1])
			}
		}
		for _, name := range metricInText.FindAllString(text, -1) {
			if _, ok := cat[name]; !ok {
				t.Errorf("%s: the %s speaks of %s, which no node exports", a.Alert, part, name)
			}
		}
	}
}

type panel struct {
	ID          int
	Type, Title string
	Targets     []struct{ Expr, LegendFormat string }
	FieldConfig struct{ Defaults struct{ Unit string } }
	GridPos     struct{ H, W, X, Y int }
}

var labelInLegend = regexp.MustCompile(`\{\{(\w+)\}\}`)

func checkDashboard(t *testing.T, cat catalog) {
	var file struct{ Panels []panel }
	b, err := os.ReadFile("../../deploy/grafana/kvd.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	ids, rows := make(map[int]bool), []string{}
	for _, p := range file.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is there twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		checkPanel(t, cat, &p)
	}
	if want := []string{"Overview", "Requests", "Raft", "Disk", "Store", "Peers", "Go and process"}; !slices.Equal(rows, want) {
		t.Errorf("rows %q, want %q", rows, want)
	}
}

func checkPanel(t *testing.T, cat catalog, p *panel) {
	if p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
		t.Errorf("%s: it lacks a unit, an expression or a place: %+v", p.Title, *p)
	}
	for _, target := range p.Targets {
		problems, labels := checkPromQL(cat, target.Expr)
		for _, problem := range problems {
			t.Errorf("%s: %s in %s", p.Title, problem, target.Expr)
		}
		for _, m := range labelInLegend.FindAllStringSubmatch(target.LegendFormat, -1) {
			if !slices.Contains(labels, m[1]) {
				t.Errorf("%s: the legend shows the label %s, which no series has", p.Title, m[1])
			}
		}
	}
}

// The table in docs/metrics.md is between these lines.
const tableBegin, tableEnd = "<!-- table: written by go test ./cmd/kvd -run TestMetricsAreAsSaid -update -->\n", "<!-- end of table -->\n"

func checkMetricsDocument(t *testing.T, cat catalog) {
	const file = "../../docs/metrics.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	want := metricsTable(cat)
	if table == want {
		return
	}
	if !*updateDocs {
		t.Fatalf("%s is not what the nodes export; write it anew with -update. It should have:\n%s", file, want)
	}
	if err := os.WriteFile(file, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func metricsTable(cat catalog) string {
	var b strings.Builder
	b.WriteString("| name | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(cat)) {
		if !strings.HasPrefix(name, "kvd_") && !strings.HasPrefix(name, "etcd_") && !strings.HasPrefix(name, "grpc_") {
			continue
		}
		f := cat[name]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.kind), strings.Join(f.labels, ", "), f.help)
	}
	return b.String()
}
