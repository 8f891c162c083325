// Package metrics turns what a node says of itself into Prometheus metrics:
// kvd's own names, and beside them those of etcd on which its dashboards and
// alerts build.
package metrics

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvd-io/kvd/internal/raftnode"
)

// slowApply is from when on a run of entries counts as applied slowly; etcd
// draws the same line.
const slowApply = 100 * time.Millisecond

// diskBuckets go from 125 µs to 8.2 s. They contain the bounds that etcd's
// disk histograms have.
var diskBuckets = prometheus.ExponentialBuckets(0.000125, 2, 17)

// Loops is the raftnode.Observer that counts for Prometheus. Nothing in it is
// looked up by labels when it is called.
type Loops struct {
	commands, bytes     prometheus.Histogram
	saved, applied      prometheus.Histogram
	slow                prometheus.Counter
	entries, operations prometheus.Counter
	snapshots           map[raftnode.SnapshotWork]snapshotMetrics
}

// snapshotMetrics are those of one kind of work.
type snapshotMetrics struct {
	took       prometheus.Observer
	bytes      prometheus.Counter
	ok, failed prometheus.Counter
}

// NewLoops registers the metrics of the loops.
func NewLoops(reg prometheus.Registerer) (*Loops, error) {
	l := &Loops{
		commands: histogram("kvd_raft_batch_commands", "Commands packed into one log entry.", prometheus.ExponentialBuckets(1, 2, 15)),
		bytes:    histogram("kvd_raft_batch_bytes", "Size of a packed log entry.", prometheus.ExponentialBuckets(64, 4, 9)),
		saved:    histogram("kvd_wal_save_duration_seconds", "Time of one write of the log, its fsync included.", diskBuckets),
		applied:  histogram("kvd_apply_duration_seconds", "Time that the store took for one run of committed entries.", diskBuckets),
		slow:     counter("kvd_apply_slow_total", "Runs of entries that took the store more than 100 ms."),

		entries:    counter("kvd_apply_entries_total", "Log entries applied."),
		operations: counter("kvd_apply_commands_total", "Commands applied, those of all members."),
		snapshots:  make(map[raftnode.SnapshotWork]snapshotMetrics),
	}
	aliases := aliased{
		{desc("etcd_disk_backend_commit_duration_seconds", "kvd_apply_duration_seconds under etcd's name: what a change costs the store."), l.applied},
		{desc("etcd_server_slow_apply_total", "kvd_apply_slow_total under etcd's name."), l.slow},
	}
	return l, errors.Join(register(reg, l.commands, l.bytes, l.saved, l.applied, l.slow, l.entries, l.operations, aliases), l.registerSnapshots(reg))
}

func (l *Loops) registerSnapshots(reg prometheus.Registerer) error {
	done := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvd_snapshot_total", Help: "Work with snapshots, by kind and result: checkpoints of the own log; bodies for lagging members built, sent, installed.",
	}, []string{"work", "result"})
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kvd_snapshot_duration_seconds", Help: "Time that successful work with a snapshot took, by kind.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
	}, []string{"work"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kvd_snapshot_bytes_total", Help: "Bytes of snapshot bodies, by kind of work.",
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
