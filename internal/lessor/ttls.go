package lessor

import (
	"sync/atomic"
	"time"
)

// ttlBuckets is the number of bounds of TTLs: 1 s to 97 days, each twice the one before.
const ttlBuckets = 24

// TTLs counts leases by their times to live. Its methods may be called from any goroutine.
type TTLs struct {
	millis  atomic.Uint64
	buckets [ttlBuckets + 1]atomic.Uint64 // the last one has what is longer than all bounds
}

// Add counts a lease.
func (t *TTLs) Add(ttl time.Duration) {
	i := 0
	for i < ttlBuckets && ttl > time.Second<<i {
		i++
	}
	t.millis.Add(uint64(ttl.Milliseconds()))
	t.buckets[i].Add(1)
}

// TTLCounts are the leases that were counted.
type TTLCounts struct {
	Count   uint64
	Seconds float64            // in total
	UpTo    map[float64]uint64 // by a number of seconds: how many live no longer than that
}

// Counts returns what was counted.
func (t *TTLs) Counts() TTLCounts {
	out := TTLCounts{Seconds: float64(t.millis.Load()) / 1000, UpTo: make(map[float64]uint64, ttlBuckets)}
	for i := range t.buckets {
		if out.Count += t.buckets[i].Load(); i < ttlBuckets {
			out.UpTo[float64(uint64(1)<<i)] = out.Count
		}
	}
	return out
}
