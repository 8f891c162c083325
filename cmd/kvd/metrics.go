package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
)

// statusSource is the node, as metrics see it.
type statusSource interface {
	Status(ctx context.Context) (api.Status, error)
	Ready() <-chan struct{}
}

// newMetrics returns the handler of /metrics and the observer of client
// requests. Beside its own registry the handler shows the default one, where
// the Go runtime, the process and etcd's packages for log, snapshots and
// transport are registered.
func newMetrics(v api.Version, source statusSource, droppedLogLines func() uint64) (http.Handler, *httpapi.Metrics, error) {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kvd_build_info", Help: "1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "goversion": v.GoVersion},
	})
	build.Set(1)
	dropped := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kvd_log_lines_dropped_total", Help: "Log lines dropped because nobody read them fast enough.",
	}, func() float64 { return float64(droppedLogLines()) })
	requests, err := httpapi.NewMetrics(registry)
	err = errors.Join(err, registry.Register(build), registry.Register(dropped), registry.Register(statusCollector{source}))
	both := prometheus.Gatherers{registry, prometheus.DefaultGatherer}
	return promhttp.HandlerFor(both, promhttp.HandlerOpts{EnableOpenMetrics: true}), requests, err
}

// statusGauges are read from the node's status when Prometheus asks.
var statusGauges = []struct {
	desc  *prometheus.Desc
	value func(*api.Status) float64
}{
	{gauge("kvd_raft_term", "Raft's term."), func(s *api.Status) float64 { return float64(s.Term) }},
	{gauge("kvd_raft_has_leader", "1 while a leader is known."), func(s *api.Status) float64 { return truth(s.Leader != 0) }},
	{gauge("kvd_raft_is_leader", "1 while this member leads."), func(s *api.Status) float64 { return truth(s.Leader == s.ID) }},
	{gauge("kvd_raft_is_learner", "1 while this member does not vote."), func(s *api.Status) float64 { return truth(s.Role == "learner") }},
	{gauge("kvd_raft_leader_id", "Id of the leader; 0 while none is known."), func(s *api.Status) float64 { return float64(s.Leader) }},
	{gauge("kvd_raft_member_id", "Id of this member."), func(s *api.Status) float64 { return float64(s.ID) }},
	{gauge("kvd_raft_commit_index", "Log index up to which entries are committed."), func(s *api.Status) float64 { return float64(s.Commit) }},
	{gauge("kvd_raft_applied_index", "Log index up to which entries are applied here."), func(s *api.Status) float64 { return float64(s.Applied) }},
	{gauge("kvd_raft_apply_lag_entries", "Entries committed, but not applied here yet."), func(s *api.Status) float64 { return float64(s.Commit - min(s.Commit, s.Applied)) }},
	{gauge("kvd_raft_log_bytes", "Size of the raft log on disk."), func(s *api.Status) float64 { return float64(s.LogSizeBytes) }},
	{gauge("kvd_raft_snapshot_bytes", "Size of the snapshots on disk."), func(s *api.Status) float64 { return float64(s.SnapshotSizeBytes) }},
	{gauge("kvd_store_revision", "Revision of the store."), func(s *api.Status) float64 { return float64(s.Revision) }},
	{gauge("kvd_store_compact_revision", "Revision that the history is compacted to."), func(s *api.Status) float64 { return float64(s.CompactRevision) }},
	{gauge("kvd_store_keys", "Live keys."), func(s *api.Status) float64 { return float64(s.Keys) }},
	{gauge("kvd_store_logical_bytes", "Size of the live data, as the quota counts it."), func(s *api.Status) float64 { return float64(s.LogicalSizeBytes) }},
	{gauge("kvd_store_quota_bytes", "The quota; 0: none."), func(s *api.Status) float64 { return float64(s.QuotaBytes) }},
	{gauge("kvd_store_disk_bytes", "Size of the store in its engine."), func(s *api.Status) float64 { return float64(s.StoreSizeBytes) }},
	{gauge("kvd_alarms", "Alarms raised; /v1/status names them."), func(s *api.Status) float64 { return float64(len(s.Alarms)) }},
}

var readyDesc = gauge("kvd_ready", "1 once client requests are served.")

func gauge(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// statusCollector turns the node's status into gauges. While there is no
// status yet it gives kvd_ready only.
type statusCollector struct{ source statusSource }

// collectTimeout bounds how long a scrape waits for the status.
const collectTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (c statusCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- readyDesc
	for _, g := range statusGauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	ready := false
	select {
	case <-c.source.Ready():
		ready = true
	default:
	}
	ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, truth(ready))
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	st, err := c.source.Status(ctx)
	if err != nil {
		return
	}
	for _, g := range statusGauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(&st))
	}
}
