package loadgen

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The geometry of a histogram: a quantile is at most 1 % too high, up to
// maxLatency, in 36 KiB. Three significant digits would take eight times as
// much for each of what may be thousands of workers.
const (
	maxLatency        = time.Hour
	significantDigits = 2
)

// Histogram counts latencies with a bounded relative error. One goroutine owns
// it.
type Histogram struct{ counts *hdrhistogram.Histogram }

// NewHistogram returns an empty histogram.
func NewHistogram() Histogram {
	return Histogram{hdrhistogram.New(1, int64(maxLatency), significantDigits)}
}

// Record counts one latency. One above maxLatency counts as maxLatency.
func (h Histogram) Record(d time.Duration) {
	// It fails only for values beyond the geometry.
	_ = h.counts.RecordValue(int64(min(max(0, d), maxLatency)))
}

// Merge adds the counts of another histogram.
func (h Histogram) Merge(o Histogram) { h.counts.Merge(o.counts) }

// Count returns the number of latencies.
func (h Histogram) Count() uint64 { return uint64(h.counts.TotalCount()) }

// Max returns the highest latency, within the error of a quantile; 0 if there
// is none.
func (h Histogram) Max() time.Duration { return time.Duration(h.counts.Max()) }

// Mean returns the average latency; 0 if there is none.
func (h Histogram) Mean() time.Duration { return time.Duration(h.counts.Mean()) }

// Quantile returns the latency that the fraction q of all do not exceed, within
// 1 %; 0 if there is none.
func (h Histogram) Quantile(q float64) time.Duration {
	return time.Duration(h.counts.ValueAtPercentile(100 * q))
}
