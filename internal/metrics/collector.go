package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/node"
)

// Source is the node as a Collector sees it.
type Source interface {
	// Status fails until the node has found its place in the cluster.
	Status(ctx context.Context) (api.Status, error)
	// Figures fails until the node's loops run.
	Figures(ctx context.Context) (node.Figures, error)
	// Ready is closed once the node serves client requests.
	Ready() <-chan struct{}
}

// sample is a node at the moment of a scrape.
type sample struct {
	*api.Status
	node.Figures
}

// kept returns what the node keeps for members that get a snapshot.
func (s *sample) kept() *api.KeptLog {
	if s.KeptLog == nil {
		return new(api.KeptLog)
	}
	return s.KeptLog
}

// figure is one metric that is read from the sample.
type figure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*sample) float64
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func gauge(name, help string, value func(*sample) float64) figure {
	return figure{desc(name, help), prometheus.GaugeValue, value}
}

func total(name, help string, value func(*sample) uint64) figure {
	return figure{desc(name, help), prometheus.CounterValue, func(s *sample) float64 { return float64(value(s)) }}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// statusFigures need only the status, which a node has as soon as it has found
// its place in the cluster.
var statusFigures = []figure{
	gauge("kvd_raft_term", "Current raft term.", func(s *sample) float64 { return float64(s.Term) }),
	gauge("kvd_raft_has_leader", "Whether this member knows a leader (1) or not (0).", func(s *sample) float64 { return truth(s.Leader != 0) }),
	gauge("kvd_raft_is_leader", "Whether this member is the leader (1) or not (0).", func(s *sample) float64 { return truth(s.Leader == s.ID) }),
	gauge("kvd_raft_is_learner", "Whether this member is a learner, which does not vote (1), or a voter (0).", func(s *sample) float64 { return truth(s.Role == "learner") }),
	gauge("kvd_raft_leader_id", "ID of the leader, or 0 if this member knows none.", func(s *sample) float64 { return float64(s.Leader) }),
	gauge("kvd_raft_member_id", "ID of this member.", func(s *sample) float64 { return float64(s.ID) }),
	gauge("kvd_raft_commit_index", "Highest log index known to be committed.", func(s *sample) float64 { return float64(s.Commit) }),
	gauge("kvd_raft_applied_index", "Highest log index that this member has applied.", func(s *sample) float64 { return float64(s.Applied) }),
	gauge("kvd_apply_lag_entries", "Log entries that are committed but not yet applied on this member.", func(s *sample) float64 { return float64(s.Lag) }),
	gauge("kvd_raft_log_bytes", "Size of the raft log on disk in bytes.", func(s *sample) float64 { return float64(s.LogSizeBytes) }),
	gauge("kvd_raft_snapshot_bytes", "Size of the snapshot files on disk in bytes.", func(s *sample) float64 { return float64(s.SnapshotSizeBytes) }),
	gauge("kvd_raft_kept_log_entries", "Log entries kept on disk for members that are receiving a snapshot.", func(s *sample) float64 { return float64(s.kept().Entries) }),
	gauge("kvd_raft_kept_log_bytes", "Size in bytes of the log entries kept on disk for members that are receiving a snapshot.", func(s *sample) float64 { return float64(s.kept().Bytes) }),
	gauge("kvd_raft_intake_limit_bytes", "Limit in bytes per second on the writes that the leader takes so that a member can catch up, or 0 if there is none.", func(s *sample) float64 { return float64(s.kept().IntakeLimitBytes) }),
	gauge("kvd_store_revision", "Current revision of the store.", func(s *sample) float64 { return float64(s.Revision) }),
	gauge("kvd_store_compact_revision", "Oldest revision that can still be read.", func(s *sample) float64 { return float64(s.CompactRevision) }),
	gauge("kvd_store_keys", "Number of live keys.", func(s *sample) float64 { return float64(s.Keys) }),
	gauge("kvd_store_logical_bytes", "Size of the live data in bytes, as counted against the quota.", logicalBytes),
	gauge("kvd_store_quota_bytes", "Quota for live data in bytes, or 0 if there is none.", func(s *sample) float64 { return float64(s.QuotaBytes) }),
	gauge("kvd_store_disk_bytes", "Size of the storage engine in bytes, on disk or in memory.", func(s *sample) float64 { return float64(s.StoreSizeBytes) }),
	gauge("kvd_alarms", "Number of active alarms, which /v1/status lists by name.", func(s *sample) float64 { return float64(len(s.Alarms)) }),
}

func logicalBytes(s *sample) float64 { return float64(s.LogicalSizeBytes) }

// nodeFigures need a node whose loops run.
var nodeFigures = []figure{
	gauge("kvd_idempotency_records", "Results kept for repeated requests with an Idempotency-Key.", func(s *sample) float64 { return float64(s.Work.Remembered.Records) }),
	gauge("kvd_idempotency_bytes", "Size in bytes of the results kept for repeated requests, which idempotency_bytes in the settings limits.", func(s *sample) float64 { return float64(s.Work.Remembered.Bytes) }),
	total("kvd_idempotency_replays_total", "Repeated commands applied on this member that were answered with the result of the first one.", func(s *sample) uint64 { return s.Work.Remembered.Replays }),
	gauge("kvd_leases", "Leases that exist.", func(s *sample) float64 { return float64(s.Leases.Leases) }),
	gauge("kvd_locks", "Locks that are held.", func(s *sample) float64 { return float64(s.Leases.Locks) }),
	gauge("kvd_lock_waiters", "Requests waiting in lock queues, excluding the holders.", func(s *sample) float64 { return float64(s.Leases.Waiters) }),
	total("kvd_lease_keepalives_total", "Keep-alives of leases that this member has answered.", func(s *sample) uint64 { return s.KeepAlives }),
	total("kvd_lease_expired_total", "Leases that this member has ended as the leader because they were not kept alive.", func(s *sample) uint64 { return s.LeasesExpired }),
	gauge("kvd_raft_proposals_waiting", "Commands queued on this member until they are packed into a log entry.", func(s *sample) float64 { return float64(s.Raft.ProposalsWaiting) }),
	gauge("kvd_raft_proposals_inflight", "Commands that this member has proposed and that are not yet committed.", func(s *sample) float64 { return float64(s.Raft.ProposalsInFlight) }),
	total("kvd_raft_proposals_committed_total", "Commands proposed by this member that were committed.", func(s *sample) uint64 { return s.Raft.ProposalsCommitted }),
	total("kvd_raft_proposals_failed_total", "Changes that this member could not complete, either refused or with an unknown outcome.", func(s *sample) uint64 { return s.ProposalsFailed }),
	total("kvd_raft_elections_total", "Elections that this member has called.", func(s *sample) uint64 { return s.Raft.Campaigns }),
	total("kvd_raft_leader_changes_total", "Leader changes that this member has seen.", func(s *sample) uint64 { return s.Raft.LeaderChanges }),
	total("kvd_raft_readindex_rounds_total", "ReadIndex rounds that this member has started.", func(s *sample) uint64 { return s.Raft.ReadRounds }),
	total("kvd_raft_readindex_requests_total", "Linearizable reads that this member has grouped into ReadIndex rounds.", func(s *sample) uint64 { return s.Raft.ReadRequests }),
	total("kvd_raft_readindex_retries_total", "ReadIndex rounds repeated because no answer arrived in time.", func(s *sample) uint64 { return s.Raft.ReadRetries }),
	total("kvd_raft_readindex_failed_total", "Linearizable reads that could not be confirmed within their timeout.", func(s *sample) uint64 { return s.ReadsFailed }),
	gauge("kvd_raft_memory_log_entries", "Log entries kept in memory for lagging members.", func(s *sample) float64 { return float64(s.Raft.LogEntries) }),
	gauge("kvd_raft_log_first_index", "Index of the oldest log entry that this member can send to others, which need a snapshot if they lack older ones.", func(s *sample) float64 { return float64(s.Raft.LogFirst) }),
	gauge("kvd_raft_memory_log_bytes", "Size in bytes of the log entries kept in memory for lagging members.", func(s *sample) float64 { return float64(s.Raft.LogBytes) }),
	gauge("kvd_store_history_bytes", "Size in bytes of superseded key versions on this member, before compression.", func(s *sample) float64 { return float64(s.Store.HistoryBytes) }),
	gauge("kvd_store_history_versions", "Number of superseded key versions on this member.", func(s *sample) float64 { return float64(s.Store.HistoryVersions) }),
	gauge("kvd_store_uncleaned_revisions", "Compacted revisions whose history this member has not removed yet.", func(s *sample) float64 { return float64(s.Work.UncleanedRevisions) }),
	total("kvd_store_cache_hits_total", "Writes that found the metadata of their key in memory.", func(s *sample) uint64 { return s.Work.CacheHits }),
	total("kvd_store_cache_misses_total", "Writes that read the metadata of their key from the storage engine.", func(s *sample) uint64 { return s.Work.CacheMisses }),
	total("kvd_engine_flushes_total", "Memtables that the storage engine has flushed to disk.", func(s *sample) uint64 { return s.EngineStats.Flushes }),
	total("kvd_engine_compactions_total", "Compactions that the storage engine has completed.", func(s *sample) uint64 { return s.EngineStats.Compactions }),
	gauge("kvd_engine_compaction_debt_bytes", "Estimated bytes that the storage engine still has to compact.", func(s *sample) float64 { return float64(s.EngineStats.CompactionDebtBytes) }),
	gauge("kvd_engine_memtable_bytes", "Size of the storage engine's memtables in bytes.", func(s *sample) float64 { return float64(s.EngineStats.MemTableBytes) }),
	gauge("kvd_engine_read_amplification", "Number of sorted runs on disk that one lookup may have to read.", func(s *sample) float64 { return float64(s.EngineStats.ReadAmplification) }),
	gauge("kvd_engine_cache_bytes", "Size of the storage engine's block cache in bytes.", func(s *sample) float64 { return float64(s.EngineStats.CacheBytes) }),
	total("kvd_engine_cache_hits_total", "Block reads of the storage engine that the block cache served.", func(s *sample) uint64 { return uint64(s.EngineStats.CacheHits) }),
	total("kvd_engine_cache_misses_total", "Block reads of the storage engine that went to disk.", func(s *sample) uint64 { return uint64(s.EngineStats.CacheMisses) }),
	gauge("kvd_watches", "Watches on this member, long polls included.", func(s *sample) float64 { return float64(s.Watches.Watches) }),
	gauge("kvd_watch_behind", "Watch streams that are behind the window in memory and therefore read the change log on disk.", func(s *sample) float64 { return float64(s.Watches.Behind) }),
	gauge("kvd_watch_window_bytes", "Size in bytes of the recent changes that all watches share in memory, encoded forms included.", func(s *sample) float64 { return float64(s.Watches.WindowBytes) }),
	total("kvd_watch_events_total", "Events delivered to watches, counted once for each watch.", func(s *sample) uint64 { return s.Watches.Delivered }),
	total("kvd_watch_disk_reads_total", "Reads of the change log on disk by watch streams.", func(s *sample) uint64 { return s.Watches.DiskReads }),
	total("kvd_state_hash_compared_total", "Pairs of state hashes that this member has compared as the leader.", func(s *sample) uint64 { return s.HashesCompared }),
	total("kvd_state_hash_diverged_total", "Comparisons in which members had different state hashes at the same log index.", func(s *sample) uint64 { return s.HashesDiverged }),
	total("kvd_scrub_bytes_total", "Bytes of the store that the background scrub has read and checked.", func(s *sample) uint64 { return s.Scrub.Bytes }),
	total("kvd_scrub_passes_total", "Times that the background scrub has read the whole store.", func(s *sample) uint64 { return s.Scrub.Passes }),
	gauge("kvd_scrub_last_pass_timestamp_seconds", "Unix time at which the last whole pass of the background scrub ended, or 0 if there was none.", func(s *sample) float64 { return float64(s.Scrub.LastPass) }),
	gauge("kvd_store_damaged_copies", "Damaged stores that were moved aside when the store was rebuilt and are still in the data directory.", func(s *sample) float64 { return float64(s.DamagedStores) }),
	gauge("kvd_disk_free_bytes", "Free space on the file system of the data directory in bytes.", func(s *sample) float64 { return float64(s.DiskFree) }),
	gauge("kvd_disk_size_bytes", "Size of the file system of the data directory in bytes.", func(s *sample) float64 { return float64(s.DiskSize) }),
}

var (
	readyDesc     = desc("kvd_ready", "Whether the node serves client requests (1) or not (0).")
	reachableDesc = desc("kvd_peer_reachable", "Whether this member has a working connection to the peer (1) or not (0).", "peer")
	deliveryDesc  = desc("kvd_peer_snapshot_behind_bytes", "Log in bytes that the peer still lacks after a snapshot from this member, or 0 if none is on the way.", "peer")
	refusalsDesc  = desc("kvd_peer_refusals_total", "Requests and messages of other members that this member has refused, by reason.", "reason")
	alarmDesc     = desc("kvd_alarm_active", "Whether the alarm of this name is active (1) or not (0).", "alarm")
	behindDesc    = desc("kvd_peer_behind_entries", "Log entries that the peer still lacks, reported by the leader only.", "peer")
)

// Collector collects the figures of a node. Until the node has a status, it
// gives kvd_ready alone.
type Collector struct{ Source Source }

// collectTimeout bounds how long a scrape waits for the node.
const collectTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (c Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, reachableDesc, behindDesc, deliveryDesc, refusalsDesc, alarmDesc} {
		ch <- d
	}
	for _, table := range [][]figure{statusFigures, nodeFigures, etcdFigures} {
		for _, f := range table {
			ch <- f.desc
		}
	}
	describeEtcd(ch)
}

// Collect implements prometheus.Collector. It leaves out what the node cannot
// tell yet instead of failing the scrape: a node that is stuck while starting is
// the one whose other metrics matter most.
func (c Collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, truth(c.ready()))
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	status, err := c.Source.Status(ctx)
	if err != nil {
		return
	}
	s := &sample{Status: &status}
	collect(ch, s, statusFigures)
	collectEtcdStatus(ch, s)
	// One series for each name, or the scrape fails.
	alarms := make(map[string]bool, len(api.Alarms))
	for _, name := range api.Alarms {
		alarms[name] = false
	}
	for _, a := range status.Alarms {
		alarms[api.AlarmName(a)] = true
	}
	for name, active := range alarms {
		ch <- prometheus.MustNewConstMetric(alarmDesc, prometheus.GaugeValue, truth(active), name)
	}
	if s.Figures, err = c.Source.Figures(ctx); err != nil {
		return
	}
	collect(ch, s, nodeFigures)
	collect(ch, s, etcdFigures)
	collectEtcdFigures(ch, s)
	for reason, n := range s.Refusals {
		ch <- prometheus.MustNewConstMetric(refusalsDesc, prometheus.CounterValue, float64(n), reason)
	}
	for _, p := range s.Peers {
		peer := strconv.FormatUint(p.ID, 10)
		ch <- prometheus.MustNewConstMetric(reachableDesc, prometheus.GaugeValue, truth(p.Reachable), peer)
		behind := int64(0)
		for _, d := range s.kept().Deliveries {
			if d.To == p.ID {
				behind = d.BehindBytes
			}
		}
		ch <- prometheus.MustNewConstMetric(deliveryDesc, prometheus.GaugeValue, float64(behind), peer)
		if p.BehindKnown {
			ch <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, float64(p.Behind), peer)
		}
	}
}

func (c Collector) ready() bool {
	select {
	case <-c.Source.Ready():
		return true
	default:
		return false
	}
}

func collect(ch chan<- prometheus.Metric, s *sample, table []figure) {
	for _, f := range table {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(s))
	}
}
