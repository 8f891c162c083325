package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// The names under which etcd's stock dashboard and alerts look for things,
// with etcd's types, units and meaning. What etcd's own packages for the log,
// the transport and snapshots register is not here: they run in kvd too. Of
// the rest there is what means the same here; kvd has no gRPC.

// etcdStatus need the status only.
var etcdStatus = []figure{
	gauge("etcd_server_has_leader", "kvd_raft_has_leader under etcd's name.", func(s *sample) float64 { return truth(s.Leader != 0) }),
	gauge("etcd_server_is_leader", "kvd_raft_is_leader under etcd's name.", func(s *sample) float64 { return truth(s.Leader == s.ID) }),
	gauge("etcd_server_is_learner", "kvd_raft_is_learner under etcd's name.", func(s *sample) float64 { return truth(s.Role == "learner") }),
	// Gauges of log positions, as in etcd.
	gauge("etcd_server_proposals_committed_total", "kvd_raft_commit_index under etcd's name.", func(s *sample) float64 { return float64(s.Commit) }),
	gauge("etcd_server_proposals_applied_total", "kvd_raft_applied_index under etcd's name.", func(s *sample) float64 { return float64(s.Applied) }),
	// etcd holds this size against its quota, so it is the one that ours counts.
	gauge("etcd_mvcc_db_total_size_in_bytes", "kvd_store_logical_bytes, which the quota counts, under etcd's name.", logicalBytes),
	gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "The same again: nothing here needs defragmentation.", logicalBytes),
}

// etcdFigures need a node whose loops run.
var etcdFigures = []figure{
	total("etcd_server_leader_changes_seen_total", "kvd_raft_leader_changes_total under etcd's name.", func(s *sample) uint64 { return s.Raft.LeaderChanges }),
	gauge("etcd_server_proposals_pending", "Commands of this member that wait or are in flight.", func(s *sample) float64 {
		return float64(s.Raft.ProposalsWaiting + s.Raft.ProposalsInFlight)
	}),
	total("etcd_server_proposals_failed_total", "kvd_raft_proposals_failed_total under etcd's name.", func(s *sample) uint64 { return s.ProposalsFailed }),
	total("etcd_server_read_indexes_failed_total", "kvd_raft_readindex_failed_total under etcd's name.", func(s *sample) uint64 { return s.ReadsFailed }),
}

var (
	etcdQuota   = desc("etcd_server_quota_backend_bytes", "kvd_store_quota_bytes under etcd's name; absent where there is no quota, or alerts would divide by it.")
	etcdID      = desc("etcd_server_id", "1; the label is the member's id in hexadecimal.", "server_id")
	etcdVersion = desc("etcd_server_version", "1; the label is kvd's version.", "server_version")
)

func describeEtcd(ch chan<- *prometheus.Desc) {
	for _, f := range etcdStatus {
		ch <- f.desc
	}
	for _, d := range []*prometheus.Desc{etcdQuota, etcdID, etcdVersion} {
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
}
