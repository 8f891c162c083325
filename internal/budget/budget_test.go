package budget

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const mib = 1 << 20

// all returns what both parts have given out, after comparing it with the semaphores'
// own count.
func all(t *testing.T, b *Budget) int64 {
	t.Helper()
	for _, p := range []*part{&b.small, &b.large} {
		rest := p.size - p.taken.Load()
		if !p.bytes.TryAcquire(rest) {
			t.Fatalf("a part of %d bytes has no %d left", p.size, rest)
		}
		if rest < p.size && p.bytes.TryAcquire(1) {
			t.Fatalf("a part of %d bytes has more than %d left", p.size, rest)
		}
		p.bytes.Release(rest)
	}
	return b.small.taken.Load() + b.large.taken.Load()
}

func TestDefault(t *testing.T) {
	for limit, want := range map[int64]int64{
		math.MaxInt64: withoutLimit, 0: withoutLimit, 256 * mib: 64 * mib, 1 << 20: 4 * mib,
	} {
		if got := Default(limit); got != want {
			t.Errorf("with a memory limit of %d: %d, want %d", limit, got, want)
		}
	}
}

// Small claims pass while the rest is taken, and use it while their own part is (B1).
func TestSmallClaimsPass(t *testing.T) {
	b := New(8 * mib) // 2 MiB of it for small ones
	big := b.Claim()
	if !big.Try(6*mib) || big.Try(6*mib+1) && big.Bytes() > 6*mib {
		t.Fatal("the large part is not 6 MiB")
	}
	var small []Claim
	for range 2 * mib / Small {
		c := b.Claim()
		if !c.Try(Small) {
			t.Fatal("a small claim found no room")
		}
		small = append(small, c)
	}
	more := b.Claim()
	if more.Try(Small) || !more.Try(Free) {
		t.Error("the small part gave out more than it has, or refused what is free")
	}
	big.Lower(5 * mib)
	if !more.Try(Small) || more.from != &b.large {
		t.Error("a small claim did not use the rest")
	}
	if got := all(t, b); got != 7*mib+Small {
		t.Errorf("%d bytes are taken", got)
	}
	more.Release()
	big.Release()
	for i := range small {
		small[i].Release()
	}
	if got := all(t, b); got != 0 {
		t.Errorf("%d bytes were not given back (B4)", got)
	}
}

// A claim that outgrows the small part leaves nothing there, and one that exceeds
// everything gets everything (B1).
func TestClaimsGrow(t *testing.T) {
	b := New(8 * mib)
	c := b.Claim()
	for _, step := range []struct{ ask, small, large int64 }{
		{Free, 0, 0}, {Free + 1, Free + 1, 0}, {Small, Small, 0}, {Small + 1, 0, Small + 1}, {mib, 0, mib}, {mib - 1, 0, mib}, {100 * mib, 0, 6 * mib}, {200 * mib, 0, 6 * mib},
	} {
		if !c.Try(step.ask) {
			t.Fatalf("no room for %d", step.ask)
		}
		if s, l := b.small.taken.Load(), b.large.taken.Load(); s != step.small || l != step.large || c.Bytes() != s+l {
			t.Errorf("after %d: %d small and %d large, the claim says %d", step.ask, s, l, c.Bytes())
		}
	}
	c.Lower(Small)
	if got := all(t, b); got != Small || c.Bytes() != Small {
		t.Errorf("%d bytes are taken", got)
	}
	c.Release()
	if got := all(t, b); got != 0 {
		t.Errorf("%d bytes were not given back", got)
	}
}

// Waiting claims are served in their order (B2), and refused after Patience (B3).
func TestWaitingClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(8 * mib)
		big := b.Claim()
		big.Try(6 * mib)
		served := make(chan int64, 2)
		for _, n := range []int64{4 * mib, mib} {
			go func() {
				c := b.Claim()
				if err := c.Wait(t.Context(), n); err != nil {
					t.Error(err)
				}
				served <- n
				c.Release()
			}()
			synctest.Wait()
		}
		big.Lower(4 * mib) // enough for the second, which is not the first
		synctest.Wait()
		if len(served) != 0 {
			t.Error("a later claim was served first")
		}
		big.Lower(2 * mib)
		synctest.Wait()
		if len(served) != 2 || <-served != 4*mib {
			t.Error("the claims were not served in their order")
		}
		big.Try(6 * mib)
		late, begin := b.Claim(), time.Now()
		var full *FullError
		if err := late.Wait(t.Context(), mib); !errors.As(err, &full) || time.Since(begin) != Patience || late.Bytes() != 0 {
			t.Errorf("%v after %v, with %d bytes", err, time.Since(begin), late.Bytes())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := late.Wait(ctx, mib); !errors.As(err, &full) || time.Since(begin) != Patience {
			t.Errorf("%v for a client that has gone", err)
		}
		big.Release()
		series := make(chan prometheus.Metric, 9)
		b.Collect(series)
		if n := len(series); n != 4 || b.refused.Load() != 2 || all(t, b) != 0 {
			t.Errorf("%d series, %d refusals, %d bytes", n, b.refused.Load(), all(t, b))
		}
	})
}

// Whatever claims do at the same time, the limit holds and everything comes back.
func TestClaimsAtOnce(t *testing.T) {
	const limit = 8 * mib
	b := New(limit)
	var clients sync.WaitGroup
	for seed := range uint64(8) {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 2000 {
				c := b.Claim()
				for range 1 + rng.IntN(4) {
					switch n := rng.Int64N(4 << rng.IntN(20)); rng.IntN(3) {
					case 0:
						c.Lower(n)
					case 1:
						_ = c.WaitFor(t.Context(), n, time.Millisecond)
					default:
						c.Try(n)
					}
					if got := b.small.taken.Load() + b.large.taken.Load(); got > limit {
						t.Errorf("%d bytes are taken", got)
					}
				}
				c.Release()
			}
		})
	}
	clients.Wait()
	if got := all(t, b); got != 0 {
		t.Errorf("%d bytes were not given back", got)
	}
}
