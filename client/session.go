package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Session is a lease that is kept alive in the background, from NewSession to Close.
// Keys, locks, and leaderships that belong to it end with it, at the latest one TTL after
// the process was last heard of:
//
//	s, err := c.NewSession(ctx, 15*time.Second)
//	...
//	defer s.Close(context.Background())
//	_, err = c.Put(ctx, "service/web/1", address, client.WithLease(s.Lease()))
type Session struct {
	c     *Client
	lease *Lease
	lost  chan struct{} // closed by the goroutine that renews the lease, after err is set
	err   error
	end   context.CancelFunc
	alive sync.WaitGroup
}

// DefaultTTL is the time to live of the sessions of Lock and Campaign.
const DefaultTTL = 15 * time.Second

// NewSession grants a lease and keeps it alive. The context is for the grant only.
func (c *Client) NewSession(ctx context.Context, ttl time.Duration, options ...GrantOption) (*Session, error) {
	if ttl <= 0 {
		ttl = DefaultTTL
	}
	asked := time.Now()
	lease, err := c.Grant(ctx, ttl, options...)
	if err != nil {
		return nil, err
	}
	keep, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &Session{c: c, lease: lease, lost: make(chan struct{}), end: end}
	s.alive.Go(func() {
		if err := c.keepAlive(keep, lease, asked); keep.Err() == nil {
			s.err = err
			close(s.lost)
		}
	})
	return s, nil
}

// Lease returns the id of the lease, for WithLease.
func (s *Session) Lease() int64 { return s.lease.ID }

// TTL returns how long the session outlives its process.
func (s *Session) TTL() time.Duration { return s.lease.TTL }

// Lost is closed once the session may have ended: its lease has, or no node has
// confirmed it for its TTL. That is noticed without an answer from any node.
func (s *Session) Lost() <-chan struct{} { return s.lost }

// Err returns why the session was lost, an error that wraps ErrLost; nil while it lives.
func (s *Session) Err() error {
	select {
	case <-s.lost:
		return fmt.Errorf("%w: %w", ErrLost, s.err)
	default:
		return nil
	}
}

// Context returns a context that ends with ctx, and when the session is lost. Its cause
// is then the error of Err.
func (s *Session) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-s.lost:
			cancel(s.Err())
		case <-ctx.Done():
		case <-stop:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stop); cancel(nil) })
}

// Close ends the session, deletes its keys, and releases its locks. If it fails, the
// cluster does so one TTL later. A session that was lost has nothing left to end.
func (s *Session) Close(ctx context.Context) error {
	s.end()
	s.alive.Wait()
	err := s.c.Revoke(ctx, s.lease.ID)
	if errors.Is(err, ErrLeaseNotFound) {
		return nil
	}
	return err
}

// abandon closes a session whose owner does not wait for it.
func (s *Session) abandon() {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.lease.TTL)
		defer cancel()
		_ = s.Close(ctx) // otherwise the lease ends by itself
	}()
}
