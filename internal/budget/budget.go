// Package budget bounds what the requests of a node hold: the bytes of their bodies
// and answers (Budget), and how many of them are in progress (Places).
//
// # Algorithm
//
// A request claims bytes before it allocates them and gives them back once its answer
// has been written, so what it costs is accounted for even if its client stops reading
// or writing. Up to Free bytes need no claim: the number of connections and of places
// bounds those, and nearly all requests are of that size.
//
// The budget has two parts. A quarter serves claims of up to Small bytes, the rest all
// others, so that small requests pass while large ones wait. A small claim that finds
// its part taken uses the other one if there is room at once.
//
// # Invariants
//
//	B1  The sum of all claims never exceeds the limit. A claim that is larger than
//	    its whole part takes all of it: such a request runs alone, and is not
//	    refused forever.
//	B2  Waiting claims of a part are served in the order in which they came
//	    (semaphore.Weighted): a large one is not passed over forever.
//	B3  A claim waits for at most Patience. Then it is refused, and keeps what it had.
//	B4  A claim returns exactly what it took, to the part that it took it from.
//	B5  The claims of the Share never keep others waiting for more than half of the large
//	    part.
//
// # Rejected alternatives
//
// Counting requests, which is what --max-inflight does, says nothing about memory: a
// request of 60 bytes can ask for a page of 4 MiB. Waiting while holding what a
// request does not need yet lets requests wait for each other, so a request that
// can drop what it has and make it again (a value that was read) does so first.
package budget

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kvd-io/kvd/internal/limits"
)

const (
	// Free is what a request may hold without a claim.
	Free = 16 << 10
	// Small is the largest claim that the reserved part serves.
	Small = 64 << 10
	// Patience is how long a claim, or a request for a place, waits. It is also
	// the time after which refused clients are asked to come back.
	Patience = time.Second
	// withoutLimit is the default budget of a process without a memory limit.
	withoutLimit = 512 << 20
	// reservedParts: one part in reservedParts is for small claims.
	reservedParts = 4
)

// Default returns the budget of a process that may use memoryLimit bytes in total: a
// quarter, since the engine's caches, the log and the garbage of all of these need
// room as well. math.MaxInt64 means that there is no limit.
func Default(memoryLimit int64) int64 {
	const beyondAnyMachine = 1 << 50
	if memoryLimit <= 0 || memoryLimit >= beyondAnyMachine {
		return withoutLimit
	}
	return max(limits.MinRequestMemory, memoryLimit/4)
}

// Budget is a number of bytes that requests share. It is safe for concurrent use.
type Budget struct {
	limit        int64
	small, large part
	share        Share
	refused      atomic.Uint64
}

// part is one of the two parts.
type part struct {
	size  int64
	bytes *semaphore.Weighted // the owner of what is taken
	taken atomic.Int64        // the same, for metrics
}

func (p *part) init(size int64) { p.size, p.bytes = size, semaphore.NewWeighted(size) }

// New returns a budget of limit bytes, or limits.MinRequestMemory if that is more.
func New(limit int64) *Budget {
	b := &Budget{limit: max(limit, limits.MinRequestMemory)}
	b.small.init(b.limit / reservedParts)
	b.large.init(b.limit - b.small.size)
	b.share.init(b)
	return b
}

// Limit returns the size of the budget.
func (b *Budget) Limit() int64 { return b.limit }

// Taken returns what is claimed of the two parts.
func (b *Budget) Taken() (small, large int64) { return b.small.taken.Load(), b.large.taken.Load() }

// FullError says that a claim found no room in time.
type FullError struct{ Limit int64 }

// Error implements error.
func (e *FullError) Error() string { return "the memory for requests is exhausted" }

// Claim is what one request holds. The zero Claim of no Budget is always granted, for
// tests. The goroutine of the request owns it.
type Claim struct {
	budget *Budget
	from   *part // nil if it holds nothing
	bytes  int64
}

// Claim returns a claim of nothing yet.
func (b *Budget) Claim() Claim { return Claim{budget: b} }

// Bytes returns what is held, which is less than what was asked for if that exceeds
// the whole part (B1).
func (c *Claim) Bytes() int64 { return c.bytes }

// Try raises the claim to a total of n bytes and reports whether there was room. It
// does not wait, not even behind others that do.
func (c *Claim) Try(n int64) bool {
	if c.enough(n) {
		return true
	}
	p := c.partFor(n)
	if c.take(p, n, p.bytes.TryAcquire) {
		return true
	}
	// B2 holds here too: TryAcquire fails while others wait.
	return p == &c.budget.small && c.from == nil && c.take(&c.budget.large, n, c.budget.large.bytes.TryAcquire)
}

// Wait raises the claim to a total of n bytes. It waits at most Patience, and no longer
// than the context. The error is a *FullError.
func (c *Claim) Wait(ctx context.Context, n int64) error {
	return c.WaitFor(ctx, n, Patience)
}

// WaitFor is Wait with another patience, for a stream whose client is made to wait
// instead of being refused.
func (c *Claim) WaitFor(ctx context.Context, n int64, patience time.Duration) error {
	if c.Try(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := c.partFor(n)
	if !c.take(p, n, func(m int64) bool { return p.bytes.Acquire(ctx, m) == nil }) {
		c.budget.refused.Add(1)
		return &FullError{Limit: c.budget.limit}
	}
	return nil
}

// enough reports whether nothing has to be taken for a total of n.
func (c *Claim) enough(n int64) bool {
	return c.budget == nil || n <= c.bytes || n <= Free && c.from == nil
}

// partFor returns the part that a total of n comes from. A claim never returns from
// the large part to the small one.
func (c *Claim) partFor(n int64) *part {
	if n > Small || c.from == &c.budget.large {
		return &c.budget.large
	}
	return &c.budget.small
}

// take takes what is missing to a total of n. A claim that outgrows the small part
// takes everything from the large one and then returns what it had.
func (c *Claim) take(p *part, n int64, acquire func(int64) bool) bool {
	n = min(n, p.size)
	missing := n
	if c.from == p {
		missing -= c.bytes
	}
	if missing > 0 && !acquire(missing) {
		return false
	}
	p.taken.Add(missing)
	if c.from != nil && c.from != p {
		c.from.put(c.bytes)
	}
	c.from, c.bytes = p, n
	return true
}

// Lower returns what exceeds a total of n bytes.
func (c *Claim) Lower(n int64) {
	if c.from == nil || n >= c.bytes {
		return
	}
	c.from.put(c.bytes - n)
	if c.bytes = n; n == 0 {
		c.from = nil
	}
}

// Steps rounds a number of bytes up, so that something that grows by little claims
// seldom. What is Free stays free.
func Steps(n int64) int64 {
	if n <= Free {
		return n
	}
	return (n + Small - 1) / Small * Small
}

// Release returns everything. The claim can be used again.
func (c *Claim) Release() { c.Lower(0) }

func (p *part) put(n int64) {
	p.taken.Add(-n)
	p.bytes.Release(n)
}
