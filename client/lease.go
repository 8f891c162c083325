package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Lease is a promise of the cluster to delete what is bound to it, unless it is kept
// alive. A lease is a hint, not a lock: who must not act on an outdated one needs
// the fencing token of a Lock.
type Lease struct {
	ID  int64
	TTL time.Duration // the full time to live
	// Name is what it was granted under, for people; empty if it has none.
	Name string
	// LockDelay is how long a lock stays closed that it holds when it ends.
	LockDelay time.Duration
	// Remaining is the time left when the leader answered; only of LeaseInfo.
	Remaining time.Duration
	KeyCount  uint64 // keys bound to it
	LockCount uint64 // locks that it holds or waits for
}

// wireLease is a lease as JSON has it.
type wireLease struct {
	ID        wireInt  `json:"id"`
	TTL       string   `json:"ttl"`
	Name      string   `json:"name"`
	LockDelay string   `json:"lock_delay"`
	Remaining string   `json:"remaining"`
	KeyCount  uint64   `json:"key_count"`
	LockCount uint64   `json:"lock_count"`
	Keys      []wireKV `json:"keys"`
	Next      string   `json:"next"`
}

func (w *wireLease) lease() (*Lease, error) {
	l := &Lease{ID: int64(w.ID), Name: w.Name, KeyCount: w.KeyCount, LockCount: w.LockCount}
	for _, d := range []struct {
		text string
		to   *time.Duration
	}{{w.TTL, &l.TTL}, {w.LockDelay, &l.LockDelay}, {w.Remaining, &l.Remaining}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return nil, fmt.Errorf("kvd client: read the answer: %w", err)
		}
		*d.to = v
	}
	return l, nil
}

func (c *sender) leaseCall(ctx context.Context, r *request) (*Lease, error) {
	var out wireLease
	if _, err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return out.lease()
}

func leasePath(id int64) string { return "/v1/leases/" + strconv.FormatInt(id, 10) }

// GrantOption changes how a lease is granted.
type GrantOption func(doc map[string]any)

// LeaseID chooses the id of the lease. If it is taken, the error is ErrLeaseExists.
func LeaseID(id int64) GrantOption {
	return func(doc map[string]any) { doc["id"] = strconv.FormatInt(id, 10) }
}

// LeaseName names the lease for people who look at it.
func LeaseName(name string) GrantOption { return func(doc map[string]any) { doc["name"] = name } }

// LockDelay keeps a lock that the lease holds when it ends closed for a while, which
// gives a holder that was cut off time to stop.
func LockDelay(d time.Duration) GrantOption {
	return func(doc map[string]any) { doc["lock_delay"] = d.String() }
}

// Grant creates a lease. The cluster raises a TTL that is too short to survive a change
// of leaders; Lease.TTL is the one that counts.
func (c *Client) Grant(ctx context.Context, ttl time.Duration, options ...GrantOption) (*Lease, error) {
	doc := map[string]any{"ttl": ttl.String()}
	for _, o := range options {
		o(doc)
	}
	r, err := change(http.MethodPost, "/v1/leases", nil).withJSON(doc)
	if err != nil {
		return nil, err
	}
	return c.leaseCall(ctx, r)
}

// LeaseInfo returns a lease with the time it has left.
func (c *Client) LeaseInfo(ctx context.Context, id int64) (*Lease, error) {
	return c.leaseCall(ctx, newRequest(http.MethodGet, leasePath(id)))
}

// Leases yields all leases in the order of their ids.
func (c *Client) Leases(ctx context.Context) iter.Seq2[*Lease, error] {
	return pages(ctx, c, "/v1/leases", nil, func(p *struct {
		Leases []wireLease `json:"leases"`
		Next   string      `json:"next"`
	}) ([]wireLease, string) {
		return p.Leases, p.Next
	}, (*wireLease).lease)
}

// LeaseKeys yields the keys that are bound to a lease.
func (c *Client) LeaseKeys(ctx context.Context, id int64) iter.Seq2[string, error] {
	return pages(ctx, c, leasePath(id), url.Values{"keys": {""}}, func(p *wireLease) ([]wireKV, string) { return p.Keys, p.Next },
		func(w *wireKV) (string, error) { return text(w.Key, w.KeyBase64) })
}

// pages yields the items of a listing that a node answers in pages of type P.
func pages[P, W, T any](ctx context.Context, c *Client, path string, query url.Values, items func(*P) ([]W, string), item func(*W) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		r := newRequest(http.MethodGet, path)
		for name, values := range query {
			r.query[name] = values
		}
		for {
			page := new(P)
			if _, err := c.call(ctx, r, page); err != nil {
				var none T
				yield(none, err)
				return
			}
			found, next := items(page)
			for i := range found {
				v, err := item(&found[i])
				if !yield(v, err) || err != nil {
					return
				}
			}
			if next == "" {
				return
			}
			r.query.Set("cursor", next)
		}
	}
}

// Revoke ends a lease, deletes its keys, and releases its locks.
func (c *Client) Revoke(ctx context.Context, id int64) error {
	_, err := c.call(ctx, change(http.MethodDelete, leasePath(id), nil), nil)
	return err
}

// KeepAliveOnce gives a lease its full time to live again.
func (c *Client) KeepAliveOnce(ctx context.Context, id int64) (*Lease, error) {
	return c.leaseCall(ctx, renewal(id))
}

// renewal needs no idempotency key: a repeat does no harm, and the cluster remembers
// nothing about it.
func renewal(id int64) *request { return newRequest(http.MethodPost, leasePath(id)+"/keepalive") }

const (
	// renewals is how often a lease is renewed in its time to live, and attempts how
	// many nodes can be asked in the rest of that time although they hang.
	renewals = 3
	attempts = 4
	// renewalPause is the longest pause between two renewals that failed.
	renewalPause = 250 * time.Millisecond
)

// KeepAlive keeps a lease alive until the context ends. It returns ErrLeaseNotFound once
// the lease has ended, and ErrUnavailable if no node has confirmed it for its whole time
// to live: it may have ended then.
func (c *Client) KeepAlive(ctx context.Context, lease *Lease) error {
	return c.keepAlive(ctx, lease, time.Now())
}

// keepAlive is KeepAlive for a lease that lives since confirmed at least. That is when a
// request was sent, not when its answer came: the cluster may count from then on.
func (c *sender) keepAlive(ctx context.Context, lease *Lease, confirmed time.Time) error {
	for {
		if err := sleep(ctx, time.Until(confirmed.Add(lease.TTL/renewals))); err != nil {
			return err
		}
		asked, err := c.renew(ctx, lease, confirmed.Add(lease.TTL))
		if err != nil {
			return err
		}
		confirmed = asked
	}
}

// renew renews the lease before the deadline, and returns when the successful request
// was sent.
func (c *sender) renew(ctx context.Context, lease *Lease, deadline time.Time) (asked time.Time, err error) {
	attempt, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	for {
		r := renewal(lease.ID)
		r.brief = lease.TTL / renewals / attempts
		asked = time.Now()
		_, err = c.leaseCall(attempt, r)
		switch {
		case err == nil:
			return asked, nil
		case ctx.Err() != nil:
			return asked, ctx.Err()
		case errors.Is(err, ErrLeaseNotFound):
			return asked, err
		}
		// leaseCall also ends when there is no time for another attempt of its own.
		if sleep(attempt, min(renewalPause, lease.TTL/renewals/attempts)) != nil {
			if ctx.Err() != nil {
				return asked, ctx.Err()
			}
			return asked, fmt.Errorf("%w: lease %d was not confirmed for its time to live of %v: %w", ErrUnavailable, lease.ID, lease.TTL, err)
		}
	}
}
