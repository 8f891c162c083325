package client

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Lock is a lock that this process holds, from Client.Lock to Unlock.
type Lock struct {
	Name string
	// Token only grows from holder to holder. Whatever the lock protects should
	// refuse a token below one that it has seen: no lock service can keep a process
	// that was paused for longer than its TTL from believing that it holds the lock.
	Token uint64

	c       *Client
	session *Session
	own     bool // the session was made for the lock
}

// LockOptions configure Client.Lock and Election.Campaign.
type LockOptions struct {
	// Session holds the lock, which ends with it at the latest. nil makes a session of
	// the lock's own, with TTL.
	Session *Session
	// TTL is how long the lock outlives a holder that stopped answering, DefaultTTL by
	// default. It does not count if there is a Session.
	TTL time.Duration
	// Wait bounds the time to wait for the lock. 0 means to wait until the context
	// ends, and less than 0 not to wait.
	Wait time.Duration
	// Text is shown to those who look at the lock, up to 4 KiB.
	Text string
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
	l := &Lock{Name: name, c: c, session: o.Session}
	if l.session == nil {
		var err error
		if l.session, err = c.NewSession(ctx, o.TTL); err != nil {
			return nil, err
		}
		l.own = true
	}
	err := l.acquire(ctx, o)
	switch {
	case err == nil:
		return l, nil
	case l.own: // this also leaves the queue
		l.session.abandon()
	default:
		l.leave(ctx)
	}
	return nil, err
}

// acquire waits for the lock in requests of bounded length. They have one lease, which
// keeps its place in the queue between them.
func (l *Lock) acquire(ctx context.Context, o LockOptions) error {
	began := time.Now()
	ctx, cancel := l.session.Context(ctx)
	defer cancel()
	for {
		wait := maxLockWait
		if o.Wait != 0 {
			wait = min(wait, max(0, o.Wait-time.Since(began)))
		}
		r := change(http.MethodPost, lockPath(l.Name), []byte(o.Text))
		r.wait = wait
		r.query = url.Values{"lease": {strconv.FormatInt(l.session.Lease(), 10)}}
		if wait > 0 {
			r.query.Set("wait", wait.String())
		}
		var out wireLock
		_, err := l.c.call(ctx, r, &out)
		switch {
		case err == nil:
			l.Token = out.Token
			return nil
		case l.session.Err() != nil:
			return l.session.Err()
		case !errors.Is(err, ErrLockHeld) || o.Wait != 0 && time.Since(began) >= o.Wait:
			return err
		}
	}
}

// leave gives up the place in the queue of a request that failed, without keeping its
// caller. What fails here, the end of the session makes up for.
func (l *Lock) leave(ctx context.Context) {
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.session.TTL())
		defer cancel()
		_ = l.release(ctx)
	}()
}

func (l *Lock) release(ctx context.Context) error {
	r := change(http.MethodDelete, lockPath(l.Name), nil)
	r.query.Set("lease", strconv.FormatInt(l.session.Lease(), 10))
	_, err := l.c.call(ctx, r, nil)
	if errors.Is(err, ErrNotFound) { // it ended, with its lease or before
		return nil
	}
	return err
}

func lockPath(name string) string { return "/v1/locks/" + escape(name) }

// Lost is closed once the lock may have been lost, because its session was.
func (l *Lock) Lost() <-chan struct{} { return l.session.Lost() }

// Session returns the session that holds the lock.
func (l *Lock) Session() *Session { return l.session }

// Unlock releases the lock. If it fails, the lock is free one TTL later.
func (l *Lock) Unlock(ctx context.Context) error {
	if l.own {
		return l.session.Close(ctx)
	}
	return l.release(ctx)
}

// LockTicket is a place in the queue for a lock.
type LockTicket struct {
	Lease int64
	Token uint64
	Text  string // LockOptions.Text
}

// LockInfo describes a lock that is held.
type LockInfo struct {
	Name    string
	Holder  LockTicket
	Waiting uint64       // those who wait
	Queue   []LockTicket // the first of them, up to 1000; only of LockInfo
}

type wireTicket struct {
	Lease      wireInt `json:"lease"`
	Token      uint64  `json:"token"`
	Text       *string `json:"text"`
	TextBase64 *string `json:"text_base64"`
}

type wireLockInfo struct {
	Name       *string      `json:"name"`
	NameBase64 *string      `json:"name_base64"`
	Holder     wireTicket   `json:"holder"`
	Waiting    uint64       `json:"waiting"`
	Queue      []wireTicket `json:"queue"`
}

func (w *wireTicket) ticket() (LockTicket, error) {
	t, err := text(w.Text, w.TextBase64)
	return LockTicket{Lease: int64(w.Lease), Token: w.Token, Text: t}, err
}

func (w *wireLockInfo) info() (*LockInfo, error) {
	name, err := text(w.Name, w.NameBase64)
	if err != nil {
		return nil, err
	}
	out := &LockInfo{Name: name, Waiting: w.Waiting}
	if out.Holder, err = w.Holder.ticket(); err != nil {
		return nil, err
	}
	for i := range w.Queue {
		t, err := w.Queue[i].ticket()
		if err != nil {
			return nil, err
		}
		out.Queue = append(out.Queue, t)
	}
	return out, nil
}

// LockInfo returns who holds a lock, and who waits for it; ErrLockNotFound if nobody
// does.
func (c *Client) LockInfo(ctx context.Context, name string) (*LockInfo, error) {
	out, err := get[wireLockInfo](ctx, c, lockPath(name))
	if err != nil {
		return nil, err
	}
	return out.info()
}

// Locks yields the locks that are held in the order of their names.
func (c *Client) Locks(ctx context.Context) iter.Seq2[*LockInfo, error] {
	return pages(ctx, c, "/v1/locks", nil, func(p *struct {
		Locks []wireLockInfo `json:"locks"`
		Next  string         `json:"next"`
	}) ([]wireLockInfo, string) {
		return p.Locks, p.Next
	}, (*wireLockInfo).info)
}
