package metrics

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/raftnode"
)

// slowApply is the duration from which a run of entries counts as applied
// slowly, the same as in etcd.
const slowApply = 100 * time.Millisecond

// diskBuckets go from 125 µs to 8.2 s. They refine the buckets of etcd's disk
// histograms (1 ms to 8.2 s), which put every save of a fast disk into the first
// one.
var diskBuckets = prometheus.ExponentialBuckets(0.000125, 2, 17)

// Loops is the raftnode.Observer that counts for Prometheus. raftnode's append,
// apply and snapshot loops call it while they hold up others, so each series is
// resolved beforehand (M2). It is safe for concurrent use.
type Loops struct {
	commands, bytes     prometheus.Histogram
	saved, applied      prometheus.Histogram
	slow                prometheus.Counter
	entries, operations prometheus.Counter
	snapshots           map[raftnode.SnapshotWork]snapshotMetrics
}

// snapshotMetrics are the series of one kind of work.
type snapshotMetrics struct {
	took       prometheus.Observer
	bytes      prometheus.Counter
	ok, failed prometheus.Counter
}

// NewLoops registers the metrics of the loops.
func NewLoops(reg prometheus.Registerer) (*Loops, error) {
	l := &Loops{
		commands: histogram("kvd_raft_batch_commands", "Commands packed into one log entry.", prometheus.ExponentialBuckets(1, 2, 15)),
		bytes:    histogram("kvd_raft_batch_bytes", "Size of one log entry of packed commands in bytes.", prometheus.ExponentialBuckets(64, 4, 9)),
		saved:    histogram("kvd_wal_save_duration_seconds", "Time to write to the raft log and sync to disk.", diskBuckets),
		applied:  histogram("kvd_apply_duration_seconds", "Time to apply one run of committed log entries to the store.", diskBuckets),
		slow:     counter("kvd_apply_slow_total", "Runs of committed log entries that took more than 100 ms to apply."),

		entries:    counter("kvd_apply_entries_total", "Log entries that this member has applied."),
		operations: counter("kvd_apply_commands_total", "Commands that this member has applied, proposed by any member."),
		snapshots:  make(map[raftnode.SnapshotWork]snapshotMetrics),
	}
	aliases := aliased{
		{desc("etcd_disk_backend_commit_duration_seconds", "Alias of kvd_apply_duration_seconds."), l.applied},
		{desc("etcd_server_slow_apply_total", "Alias of kvd_apply_slow_total."), l.slow},
	}
	return l, errors.Join(register(reg, l.commands, l.bytes, l.saved, l.applied, l.slow, l.entries, l.operations, aliases), l.registerSnapshots(reg))
}

func (l *Loops) registerSnapshots(reg prometheus.Registerer) error {
	done := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvd_snapshot_total", Help: "Snapshot operations by kind of work (checkpoint, build, spool, send, receive, install) and result (ok, or failed, which is tried again).",
	}, []string{"work", "result"})
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kvd_snapshot_duration_seconds", Help: "Duration of successful snapshot operations by kind of work.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
	}, []string{"work"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvd_snapshot_bytes_total", Help: "Size of snapshot bodies in bytes, added up by kind of work.",
	}, []string{"work"})
	for _, w := range raftnode.SnapshotWorks {
		l.snapshots[w] = snapshotMetrics{
			took: took.WithLabelValues(string(w)), bytes: bytes.WithLabelValues(string(w)),
			ok: done.WithLabelValues(string(w), "ok"), failed: done.WithLabelValues(string(w), "failed"),
		}
	}
	return register(reg, done, took, bytes)
}

// Packed implements raftnode.Observer.
func (l *Loops) Packed(commands, bytes int) {
	l.commands.Observe(float64(commands))
	l.bytes.Observe(float64(bytes))
}

// Saved implements raftnode.Observer.
func (l *Loops) Saved(took time.Duration) { l.saved.Observe(took.Seconds()) }

// Applied implements raftnode.Observer.
func (l *Loops) Applied(took time.Duration, entries, commands int) {
	l.applied.Observe(took.Seconds())
	l.entries.Add(float64(entries))
	l.operations.Add(float64(commands))
	if took > slowApply {
		l.slow.Inc()
	}
}

// Snapshot implements raftnode.Observer.
func (l *Loops) Snapshot(work raftnode.SnapshotWork, took time.Duration, bytes int64, err error) {
	m := l.snapshots[work]
	if err != nil {
		m.failed.Inc()
		return
	}
	m.ok.Inc()
	m.took.Observe(took.Seconds())
	m.bytes.Add(float64(bytes))
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func register(reg prometheus.Registerer, cs ...prometheus.Collector) (err error) {
	for _, c := range cs {
		err = errors.Join(err, reg.Register(c))
	}
	return err
}
