package budget

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// Share bounds what the requests of one kind, streams of events, hold of a Budget together:
// half of its large part. Requests whose clients may stop reading for long have one, so that they wait for
// each other and not everybody else for them. It is safe for concurrent use.
//
// The claims of a share wait for room in it before they wait in the budget, so a queue of
// them never stands before the claims of others (B5).
type Share struct {
	budget *Budget
	size   int64
	bytes  *semaphore.Weighted // the owner of what is taken
}

// Share returns the share of the budget. There is one: two of them, say for watches over
// different protocols, would together be all of it.
func (b *Budget) Share() *Share { return &b.share }

func (s *Share) init(b *Budget) {
	s.budget, s.size = b, b.large.size/2
	s.bytes = semaphore.NewWeighted(s.size)
}

// SharedClaim is a Claim that counts in a Share, too. The zero SharedClaim is always
// granted, for tests. The goroutine of the request owns it.
type SharedClaim struct {
	claim Claim
	share *Share // nil if nothing is counted
	held  int64  // of the share
}

// Claim returns a claim of nothing yet.
func (s *Share) Claim() SharedClaim { return SharedClaim{claim: s.budget.Claim(), share: s} }

// Try raises the claim to a total of n bytes, or to all of the share if that is less (B1),
// and reports whether there was room. If not, the claim holds nothing.
func (c *SharedClaim) Try(n int64) bool {
	if c.share == nil || n <= Free {
		return true
	}
	n = min(n, c.share.size)
	if c.reserve(n, c.share.bytes.TryAcquire) && c.claim.Try(n) {
		return true
	}
	c.Release()
	return false
}

// WaitFor is Try that waits, at most for patience and no longer than the context. The
// error is a *FullError.
func (c *SharedClaim) WaitFor(ctx context.Context, n int64, patience time.Duration) error {
	if c.Try(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n = min(n, c.share.size)
	if !c.reserve(n, func(m int64) bool { return c.share.bytes.Acquire(ctx, m) == nil }) {
		c.share.budget.refused.Add(1)
		return &FullError{Limit: c.share.budget.limit}
	}
	if err := c.claim.WaitFor(ctx, n, patience); err != nil {
		c.Release()
		return err
	}
	return nil
}

// reserve takes what is missing to n bytes of the share.
func (c *SharedClaim) reserve(n int64, acquire func(int64) bool) bool {
	if n <= c.held {
		return true
	}
	if !acquire(n - c.held) {
		return false
	}
	c.held = n
	return true
}

// Release returns everything. The claim can be used again.
func (c *SharedClaim) Release() {
	c.claim.Release()
	if c.held > 0 {
		c.share.bytes.Release(c.held)
		c.held = 0
	}
}
