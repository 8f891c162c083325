package client

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// Lease is a promise of the cluster to delete what is bound to it, unless it is kept
// alive. A lease is a hint, not a lock: who must not act on an outdated one needs
// the fencing token of a Lock.
type Lease struct {
	ID  int64
	TTL time.Duration // the full time to live
	// Remaining is the time left when the leader answered.
	Remaining time.Duration
	Keys      []string // only of LeaseInfo
}

// wireLease is a lease as JSON has it.
type wireLease struct {
	ID        wireInt `json:"id"`
	TTL       string  `json:"ttl"`
	Remaining string  `json:"remaining"`
	Keys      []struct {
		Key       *string `json:"key"`
		KeyBase64 *string `json:"key_base64"`
	} `json:"-"`
}

func (w *wireLease) lease() (*Lease, error) {
	l := &Lease{ID: int64(w.ID)}
	for _, d := range []struct {
		text string
		to   *time.Duration
	}{{w.TTL, &l.TTL}, {w.Remaining, &l.Remaining}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return nil, err
		}
		*d.to = v
	}
	return l, nil
}

func (c *Client) leaseCall(ctx context.Context, r *request) (*Lease, error) {
	var out wireLease
	if _, err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return out.lease()
}

func leasePath(id int64) string { return "/v1/leases/" + strconv.FormatInt(id, 10) }

// Grant creates a lease.
func (c *Client) Grant(ctx context.Context, ttl time.Duration) (*Lease, error) {
	r, err := change(http.MethodPost, "/v1/leases", nil).withJSON(map[string]any{"ttl": ttl.String()})
	if err != nil {
		return nil, err
	}
	return c.leaseCall(ctx, r)
}

// LeaseInfo returns a lease with the time it has left.
func (c *Client) LeaseInfo(ctx context.Context, id int64) (*Lease, error) {
	return c.leaseCall(ctx, newRequest(http.MethodGet, leasePath(id)))
}

// Revoke ends a lease and deletes its keys.
func (c *Client) Revoke(ctx context.Context, id int64) error {
	_, err := c.call(ctx, change(http.MethodDelete, leasePath(id), nil), nil)
	return err
}

// KeepAliveOnce gives a lease its full time to live again.
func (c *Client) KeepAliveOnce(ctx context.Context, id int64) (*Lease, error) {
	// A repeat does no harm, and the cluster remembers nothing about it.
	return c.leaseCall(ctx, newRequest(http.MethodPost, leasePath(id)+"/keepalive"))
}

// KeepAlive keeps a lease alive until the context ends. It returns ErrNotFound once
// the lease has ended, and ErrUnavailable if no node confirmed it for its whole time
// to live: it may have ended then.
func (c *Client) KeepAlive(ctx context.Context, lease *Lease) error {
	confirmed := time.Now()
	for {
		timer := time.NewTimer(lease.TTL / 3)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		asked := time.Now()
		attempt, cancel := context.WithDeadline(ctx, confirmed.Add(lease.TTL))
		_, err := c.KeepAliveOnce(attempt, lease.ID)
		cancel()
		switch {
		case err == nil:
			confirmed = asked
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrNotFound):
			return err
		case time.Since(confirmed) >= lease.TTL:
			return errors.Join(ErrUnavailable, err)
		}
	}
}
