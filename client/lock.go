package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Lock is a lock that this process holds. It is kept alive in the background until
// Unlock.
type Lock struct {
	Name string
	// Token only grows from holder to holder. Whatever the lock protects should
	// refuse a token below one that it has seen: no lock service can keep a process
	// that was paused for longer than its TTL from believing that it holds the lock.
	Token uint64

	c     *Client
	lease *Lease
	lost  chan struct{} // closed by the goroutine that renews the lease
	end   context.CancelFunc
	alive sync.WaitGroup
}

// LockOptions configure Lock.
type LockOptions struct {
	// TTL is how long the lock outlives a holder that stopped answering, 15 s by
	// default.
	TTL time.Duration
	// Wait bounds the time to wait for the lock. 0 means to wait until the context
	// ends.
	Wait time.Duration
	// Body is shown to whoever looks at the lock.
	Body []byte
}

type wireLock struct {
	Lease wireInt `json:"lease"`
	Token uint64  `json:"token"`
}

// maxLockWait is the longest wait of one request.
const maxLockWait = 30 * time.Second

// Lock acquires a lock. Those who wait get it in the order of their requests. It
// returns ErrLockHeld if LockOptions.Wait has passed.
func (c *Client) Lock(ctx context.Context, name string, o LockOptions) (*Lock, error) {
	if o.TTL <= 0 {
		o.TTL = 15 * time.Second
	}
	// One lease for all requests: its place in the queue is kept between them.
	lease, err := c.Grant(ctx, o.TTL)
	if err != nil {
		return nil, err
	}
	keep, end := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lock{Name: name, c: c, lease: lease, lost: make(chan struct{}), end: end}
	l.alive.Go(func() {
		if _ = c.KeepAlive(keep, lease); keep.Err() == nil {
			close(l.lost)
		}
	})
	if err := l.acquire(ctx, o); err != nil {
		end()
		l.alive.Wait()
		// The lease would end by itself; this frees the place in the queue at once.
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.TTL)
			defer cancel()
			_ = c.Revoke(ctx, lease.ID)
		}()
		return nil, err
	}
	return l, nil
}

// acquire waits for the lock in requests of bounded length.
func (l *Lock) acquire(ctx context.Context, o LockOptions) error {
	began := time.Now()
	for {
		wait := maxLockWait
		if o.Wait > 0 {
			wait = min(wait, max(0, o.Wait-time.Since(began)))
		}
		r := change(http.MethodPost, "/v1/locks/"+escape(l.Name), o.Body)
		r.stream = true
		r.query = url.Values{"lease": {strconv.FormatInt(l.lease.ID, 10)}, "wait": {wait.String()}}
		var out wireLock
		_, err := l.c.call(ctx, r, &out)
		if err == nil {
			l.Token = out.Token
			return nil
		}
		if !errors.Is(err, ErrLockHeld) || o.Wait > 0 && time.Since(began) >= o.Wait {
			return err
		}
	}
}

// Lost is closed once the lock may have been lost: its lease has ended, or no node
// has confirmed it for its TTL.
func (l *Lock) Lost() <-chan struct{} { return l.lost }

// Unlock releases the lock.
func (l *Lock) Unlock(ctx context.Context) error {
	l.end()
	l.alive.Wait()
	return l.c.Revoke(ctx, l.lease.ID)
}
