package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/node"
)

// Source is the node, as metrics see it.
type Source interface {
	Status(ctx context.Context) (api.Status, error)
	Figures(ctx context.Context) (node.Figures, error)
	Ready() <-chan struct{}
}

// sample is a node at the moment of a scrape.
type sample struct {
	*api.Status
	node.Figures
}

// figure is one metric that is read from the node when Prometheus asks.
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

// statusFigures need nothing but the status, which a node has as soon as it
// has found its place.
var statusFigures = []figure{
	gauge("kvd_raft_term", "Raft's term.", func(s *sample) float64 { return float64(s.Term) }),
	gauge("kvd_raft_has_leader", "1 while a leader is known.", func(s *sample) float64 { return truth(s.Leader != 0) }),
	gauge("kvd_raft_is_leader", "1 while this member leads.", func(s *sample) float64 { return truth(s.Leader == s.ID) }),
	gauge("kvd_raft_is_learner", "1 while this member does not vote.", func(s *sample) float64 { return truth(s.Role == "learner") }),
	gauge("kvd_raft_leader_id", "Id of the leader; 0 while none is known.", func(s *sample) float64 { return float64(s.Leader) }),
	gauge("kvd_raft_member_id", "Id of this member.", func(s *sample) float64 { return float64(s.ID) }),
	gauge("kvd_raft_commit_index", "Log index up to which entries are committed.", func(s *sample) float64 { return float64(s.Commit) }),
	gauge("kvd_raft_applied_index", "Log index up to which entries are applied here.", func(s *sample) float64 { return float64(s.Applied) }),
	gauge("kvd_apply_lag_entries", "Entries committed, but not applied here yet.", func(s *sample) float64 { return float64(s.Commit - min(s.Commit, s.Applied)) }),
	gauge("kvd_raft_log_bytes", "Size of the raft log on disk.", func(s *sample) float64 { return float64(s.LogSizeBytes) }),
	gauge("kvd_raft_snapshot_bytes", "Size of the snapshots on disk.", func(s *sample) float64 { return float64(s.SnapshotSizeBytes) }),
	gauge("kvd_store_revision", "Revision of the store.", func(s *sample) float64 { return float64(s.Revision) }),
	gauge("kvd_store_compact_revision", "Revision that the history is compacted to.", func(s *sample) float64 { return float64(s.CompactRevision) }),
	gauge("kvd_store_keys", "Live keys.", func(s *sample) float64 { return float64(s.Keys) }),
	gauge("kvd_store_logical_bytes", "Size of the live data, as the quota counts it.", logicalBytes),
	gauge("kvd_store_quota_bytes", "The quota; 0: none.", func(s *sample) float64 { return float64(s.QuotaBytes) }),
	gauge("kvd_store_disk_bytes", "Size of the store in its engine.", func(s *sample) float64 { return float64(s.StoreSizeBytes) }),
	gauge("kvd_alarms", "Alarms raised; /v1/status names them.", func(s *sample) float64 { return float64(len(s.Alarms)) }),
}

func logicalBytes(s *sample) float64 { return float64(s.LogicalSizeBytes) }

// nodeFigures need a node whose loops run.
var nodeFigures = []figure{
	gauge("kvd_raft_proposals_waiting", "Commands that wait on this member for a place in a log entry.", func(s *sample) float64 { return float64(s.Raft.ProposalsWaiting) }),
	gauge("kvd_raft_proposals_inflight", "Commands of this member proposed and not committed yet.", func(s *sample) float64 { return float64(s.Raft.ProposalsInFlight) }),
	total("kvd_raft_proposals_committed_total", "Commands of this member committed.", func(s *sample) uint64 { return s.Raft.ProposalsCommitted }),
	total("kvd_raft_proposals_failed_total", "Changes that this member answered with an error of the cluster: refused, or of unknown outcome.", func(s *sample) uint64 { return s.ProposalsFailed }),
	total("kvd_raft_elections_total", "Times that this member asked to be elected.", func(s *sample) uint64 { return s.Raft.Campaigns }),
	total("kvd_raft_leader_changes_total", "Times that this member saw a new leader.", func(s *sample) uint64 { return s.Raft.LeaderChanges }),
	total("kvd_raft_readindex_rounds_total", "ReadIndex rounds that this member asked for.", func(s *sample) uint64 { return s.Raft.ReadRounds }),
	total("kvd_raft_readindex_requests_total", "Reads served by those rounds.", func(s *sample) uint64 { return s.Raft.ReadRequests }),
	total("kvd_raft_readindex_retries_total", "ReadIndex rounds that got no answer in time and were repeated.", func(s *sample) uint64 { return s.Raft.ReadRetries }),
	total("kvd_raft_readindex_failed_total", "Reads that could not be proved fresh within their time.", func(s *sample) uint64 { return s.ReadsFailed }),
	gauge("kvd_raft_memory_log_entries", "Log entries kept in memory for members that lag.", func(s *sample) float64 { return float64(s.Raft.LogEntries) }),
	gauge("kvd_raft_memory_log_bytes", "Size of those entries.", func(s *sample) float64 { return float64(s.Raft.LogBytes) }),
	gauge("kvd_store_history_bytes", "Size of superseded versions, before compression.", func(s *sample) float64 { return float64(s.Store.HistoryBytes) }),
	gauge("kvd_store_history_versions", "Superseded versions kept.", func(s *sample) float64 { return float64(s.Store.HistoryVersions) }),
	gauge("kvd_store_uncleaned_revisions", "Compacted revisions whose history is not removed yet.", func(s *sample) float64 { return float64(s.Work.UncleanedRevisions) }),
	total("kvd_store_cache_hits_total", "Writes that found their key's metadata in memory.", func(s *sample) uint64 { return s.Work.CacheHits }),
	total("kvd_store_cache_misses_total", "Writes that had to ask the engine for it.", func(s *sample) uint64 { return s.Work.CacheMisses }),
	total("kvd_engine_flushes_total", "Memtables written to disk.", func(s *sample) uint64 { return s.EngineStats.Flushes }),
	total("kvd_engine_compactions_total", "Compactions of the engine.", func(s *sample) uint64 { return s.EngineStats.Compactions }),
	gauge("kvd_engine_compaction_debt_bytes", "Bytes that compactions of the engine still have to go through.", func(s *sample) float64 { return float64(s.EngineStats.CompactionDebtBytes) }),
	gauge("kvd_engine_memtable_bytes", "Size of the memtables.", func(s *sample) float64 { return float64(s.EngineStats.MemTableBytes) }),
	gauge("kvd_engine_read_amplification", "Places on disk that one look-up may visit.", func(s *sample) float64 { return float64(s.EngineStats.ReadAmplification) }),
	gauge("kvd_engine_cache_bytes", "Size of the block cache.", func(s *sample) float64 { return float64(s.EngineStats.CacheBytes) }),
	total("kvd_engine_cache_hits_total", "Blocks found in the cache.", func(s *sample) uint64 { return uint64(s.EngineStats.CacheHits) }),
	total("kvd_engine_cache_misses_total", "Blocks read from disk.", func(s *sample) uint64 { return uint64(s.EngineStats.CacheMisses) }),
	total("kvd_state_hash_compared_total", "Pairs of state hashes that this member compared as leader.", func(s *sample) uint64 { return s.HashesCompared }),
	total("kvd_state_hash_diverged_total", "Comparisons in which replicas had different hashes at one log index.", func(s *sample) uint64 { return s.HashesDiverged }),
	gauge("kvd_disk_free_bytes", "Free space on the file system of the data directory.", func(s *sample) float64 { return float64(s.DiskFree) }),
	gauge("kvd_disk_size_bytes", "Size of that file system.", func(s *sample) float64 { return float64(s.DiskSize) }),
}

var (
	readyDesc     = desc("kvd_ready", "1 once client requests are served.")
	reachableDesc = desc("kvd_peer_reachable", "1 while the connection to the member works.", "peer")
	behindDesc    = desc("kvd_peer_behind_entries", "Log entries that the member lacks; shown by the leader only.", "peer")
)

// Node collects what the node says of itself. While it has no status yet it
// gives kvd_ready only.
type Node struct{ Source Source }

// collectTimeout bounds how long a scrape waits for the node.
const collectTimeout = 2 * time.Second

// Describe implements prometheus.Collector.
func (c Node) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, reachableDesc, behindDesc} {
		ch <- d
	}
	for _, table := range [][]figure{statusFigures, nodeFigures, etcdFigures} {
		for _, f := range table {
			ch <- f.desc
		}
	}
	describeEtcd(ch)
}

// Collect implements prometheus.Collector.
func (c Node) Collect(ch chan<- prometheus.Metric) {
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
	if s.Figures, err = c.Source.Figures(ctx); err != nil {
		return
	}
	collect(ch, s, nodeFigures)
	collect(ch, s, etcdFigures)
	for _, p := range s.Peers {
		peer := strconv.FormatUint(p.ID, 10)
		ch <- prometheus.MustNewConstMetric(reachableDesc, prometheus.GaugeValue, truth(p.Reachable), peer)
		if p.BehindKnown {
			ch <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, float64(p.Behind), peer)
		}
	}
}

func (c Node) ready() bool {
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
