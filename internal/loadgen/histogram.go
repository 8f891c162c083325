package loadgen

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets whose width grows with the value: 128
// for each power of two nanoseconds, so that a quantile is at most 0.8 % off.
// The zero value is empty. Its memory is fixed, 60 KiB.
type Histogram struct {
	counts [histogramBuckets]uint64
	count  uint64
	sum    time.Duration
	max    time.Duration
}

const (
	histogramBits    = 7
	histogramBuckets = (64 - histogramBits) << histogramBits
)

// bucket returns where a duration is counted.
func bucket(d time.Duration) int {
	v := uint64(max(0, d))
	shift := max(0, bits.Len64(v)-histogramBits-1)
	return shift<<histogramBits + int(v>>shift)
}

// upper is the greatest duration of a bucket.
func upper(b int) time.Duration {
	if b < 2<<histogramBits {
		return time.Duration(b)
	}
	shift := b>>histogramBits - 1
	return time.Duration((uint64(b)-uint64(shift)<<histogramBits+1)<<shift - 1)
}

// Record counts one duration.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucket(d)]++
	h.count++
	h.sum += d
	h.max = max(h.max, d)
}

// Merge adds what the other has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.count += o.count
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Count is the number of durations.
func (h *Histogram) Count() uint64 { return h.count }

// Max is the greatest duration, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is the average; 0 of nothing.
func (h *Histogram) Mean() time.Duration { return h.sum / time.Duration(max(1, h.count)) }

// Quantile returns a duration that the share q of all does not exceed; 0 of
// nothing.
func (h *Histogram) Quantile(q float64) time.Duration {
	need := max(1, uint64(q*float64(h.count)+0.5))
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += n; seen >= need && n > 0 {
			return min(upper(i), h.max)
		}
	}
	return h.max
}
