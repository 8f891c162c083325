package metrics

import (
	"fmt"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
)

// This file has the names that etcd's stock dashboard and alerts read, with
// etcd's types, units and meaning. The metrics of etcd's own packages for the
// log, the transport and snapshots are not here: those packages run in kvd and
// register them. Those of gRPC are in package etcdapi, which serves it.

// etcdStatus needs only the status.
var etcdStatus = []figure{
	gauge("etcd_server_has_leader", "Alias of kvd_raft_has_leader.", func(s *sample) float64 { return truth(s.Leader != 0) }),
	gauge("etcd_server_is_leader", "Alias of kvd_raft_is_leader.", func(s *sample) float64 { return truth(s.Leader == s.ID) }),
	gauge("etcd_server_is_learner", "Alias of kvd_raft_is_learner.", func(s *sample) float64 { return truth(s.Role == "learner") }),
	// Despite their names, these two are gauges of log positions in etcd too.
	gauge("etcd_server_proposals_committed_total", "Alias of kvd_raft_commit_index.", func(s *sample) float64 { return float64(s.Commit) }),
	gauge("etcd_server_proposals_applied_total", "Alias of kvd_raft_applied_index.", func(s *sample) float64 { return float64(s.Applied) }),
	// etcd's alerts divide this size by the quota, so it has to be the size that
	// the quota limits and not the one on disk.
	gauge("etcd_mvcc_db_total_size_in_bytes", "Alias of kvd_store_logical_bytes.", logicalBytes),
	gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Alias of kvd_store_logical_bytes; kvd has no space to reclaim by defragmentation.", logicalBytes),
}

// etcdFigures need a node whose loops run.
var etcdFigures = []figure{
	total("etcd_server_leader_changes_seen_total", "Alias of kvd_raft_leader_changes_total.", func(s *sample) uint64 { return s.Raft.LeaderChanges }),
	gauge("etcd_server_proposals_pending", "Sum of kvd_raft_proposals_waiting and kvd_raft_proposals_inflight.", func(s *sample) float64 {
		return float64(s.Raft.ProposalsWaiting + s.Raft.ProposalsInFlight)
	}),
	total("etcd_server_proposals_failed_total", "Alias of kvd_raft_proposals_failed_total.", func(s *sample) uint64 { return s.ProposalsFailed }),
	total("etcd_server_read_indexes_failed_total", "Alias of kvd_raft_readindex_failed_total.", func(s *sample) uint64 { return s.ReadsFailed }),
	gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watches on this member, long polls included.", func(s *sample) float64 { return float64(s.Watches.Streams) }),
	gauge("etcd_debugging_mvcc_watcher_total", "Alias of kvd_watches.", func(s *sample) float64 { return float64(s.Watches.Watches) }),
	gauge("etcd_debugging_mvcc_slow_watcher_total", "Alias of kvd_watch_behind, which counts streams.", func(s *sample) float64 { return float64(s.Watches.Behind) }),
	total("etcd_debugging_server_lease_expired_total", "Alias of kvd_lease_expired_total.", func(s *sample) uint64 { return s.LeasesExpired }),
	gauge("etcd_debugging_mvcc_keys_total", "Alias of kvd_store_keys.", func(s *sample) float64 { return float64(s.Keys) }),
	gauge("etcd_debugging_mvcc_current_revision", "Alias of kvd_store_revision.", func(s *sample) float64 { return float64(s.Revision) }),
	gauge("etcd_debugging_mvcc_compact_revision", "Alias of kvd_store_compact_revision.", func(s *sample) float64 { return float64(s.CompactRevision) }),
	total("etcd_mvcc_put_total", "Puts of keys that this member has applied.", func(s *sample) uint64 { return s.Watches.Applied.Puts }),
	total("etcd_mvcc_delete_total", "Deletions of keys that this member has applied.", func(s *sample) uint64 { return s.Watches.Applied.Deletes }),
	total("etcd_mvcc_txn_total", "Revisions with changes of several keys that this member has applied.", func(s *sample) uint64 { return s.Watches.Applied.Compound }),
	total("etcd_debugging_lease_granted_total", "Leases granted in log entries that this member has applied.", func(s *sample) uint64 { return s.LeasesGranted.Count }),
	total("etcd_debugging_lease_revoked_total", "Leases revoked or expired in log entries that this member has applied.", func(s *sample) uint64 { return s.LeasesEnded }),
	total("etcd_debugging_lease_renewed_total", "Alias of kvd_lease_keepalives_total.", func(s *sample) uint64 { return s.KeepAlives }),
	total("etcd_server_slow_read_indexes_total", "Alias of kvd_raft_readindex_retries_total.", func(s *sample) uint64 { return s.Raft.ReadRetries }),
	gauge("etcd_debugging_auth_revision", "Revision of the users and roles, as etcd counts it.", func(s *sample) float64 { return float64(s.RightsEdits) }),
	total("etcd_debugging_mvcc_events_total", "Alias of kvd_watch_events_total.", func(s *sample) uint64 { return s.Watches.Delivered }),
}

var (
	etcdQuota   = desc("etcd_server_quota_backend_bytes", "Alias of kvd_store_quota_bytes; absent if there is no quota, so that alerts do not divide by zero.")
	etcdID      = desc("etcd_server_id", "Always 1; the label is the ID of this member in hexadecimal.", "server_id")
	etcdTTLs    = desc("etcd_debugging_lease_ttl_total", "Times to live in seconds of the leases granted in log entries that this member has applied.")
	etcdPeers   = desc("etcd_network_known_peers", "Always 1, for each other member of the cluster, by their IDs in hexadecimal.", "Local", "Remote")
	etcdGo      = desc("etcd_server_go_version", "Always 1; the label is the version of Go that kvd was built with.", "server_go_version")
	etcdVersion = desc("etcd_server_version", "Always 1; the label is the version of kvd.", "server_version")
)

func describeEtcd(ch chan<- *prometheus.Desc) {
	for _, f := range etcdStatus {
		ch <- f.desc
	}
	for _, d := range []*prometheus.Desc{etcdQuota, etcdID, etcdVersion, etcdGo, etcdTTLs, etcdPeers} {
		ch <- d
	}
}

func collectEtcdStatus(ch chan<- prometheus.Metric, s *sample) {
	collect(ch, s, etcdStatus)
	if s.QuotaBytes > 0 {
		ch <- prometheus.MustNewConstMetric(etcdQuota, prometheus.GaugeValue, float64(s.QuotaBytes))
	}
	ch <- prometheus.MustNewConstMetric(etcdID, prometheus.GaugeValue, 1, fmt.Sprintf("%x", s.ID))
	ch <- prometheus.MustNewConstMetric(etcdVersion, prometheus.GaugeValue, 1, s.Version)
	ch <- prometheus.MustNewConstMetric(etcdGo, prometheus.GaugeValue, 1, runtime.Version())
}

// collectEtcdFigures collects what needs a node whose loops run and is no single number.
func collectEtcdFigures(ch chan<- prometheus.Metric, s *sample) {
	ttls := &s.LeasesGranted
	ch <- prometheus.MustNewConstHistogram(etcdTTLs, ttls.Count, ttls.Seconds, ttls.UpTo)
	for _, p := range s.Peers {
		ch <- prometheus.MustNewConstMetric(etcdPeers, prometheus.GaugeValue, 1, fmt.Sprintf("%x", s.ID), fmt.Sprintf("%x", p.ID))
	}
}
