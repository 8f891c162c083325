package client

import (
	"context"
	"errors"
	"iter"
)

// Election chooses one of several processes. It has the name of a key: while somebody
// leads, the key exists and has the leader's value, so that anything that can read or
// watch a key can follow the election.
//
// A candidate waits for the lock of that name. With it, the candidate writes the key,
// bound to the lease that holds the lock. So lock and key end together, in one step, and a
// leader that was paused for too long can no longer write it.
type Election struct {
	Name string
	c    *Client
}

// Election returns the election with a name, which is that of its lock and of its key.
func (c *Client) Election(name string) *Election { return &Election{Name: name, c: c} }

// Leadership is the office that a Campaign won, until Resign.
type Leadership struct {
	*Lock
	e *Election
}

// Campaign waits until this process leads, and proclaims value. Candidates win in the
// order of their campaigns. It returns ErrLockHeld if LockOptions.Wait has passed.
func (e *Election) Campaign(ctx context.Context, value []byte, o LockOptions) (*Leadership, error) {
	lock, err := e.c.Lock(ctx, e.Name, o)
	if err != nil {
		return nil, err
	}
	l := &Leadership{lock, e}
	if err := l.Proclaim(ctx, value); err != nil {
		if l.own {
			l.session.abandon()
		} else {
			l.leave(ctx)
		}
		return nil, err
	}
	return l, nil
}

// Proclaim replaces the leader's value. Once the office is lost, it returns
// ErrLeaseNotFound and changes nothing.
func (l *Leadership) Proclaim(ctx context.Context, value []byte) error {
	_, err := l.c.Put(ctx, l.e.Name, value, WithLease(l.session.Lease()))
	return err
}

// Resign gives up the office. If it fails, the office is free one TTL later.
func (l *Leadership) Resign(ctx context.Context) error {
	if !l.own {
		// The key first: the next leader may write it as soon as the lock is free.
		if err := l.withdraw(ctx); err != nil {
			return err
		}
	}
	return l.Unlock(ctx)
}

// withdraw deletes the key if it is still this leader's.
func (l *Leadership) withdraw(ctx context.Context) error {
	_, err := l.c.Txn().If(LeaseOf(l.e.Name).Equals(uint64(l.session.Lease()))).Then(OpDelete(l.e.Name)).Commit(ctx)
	return err
}

// Elected is what the leader of an election has proclaimed.
type Elected struct {
	Value []byte
	Lease int64 // of the leader's session
	// Revision is that of the value, and Since that at which the office began. Each
	// leader has a greater Since than those before.
	Revision, Since uint64
}

func elected(kv *KV) *Elected {
	return &Elected{Value: kv.Value, Lease: kv.Lease, Revision: kv.ModRevision, Since: kv.CreateRevision}
}

// Leader returns the leader, or ErrKeyNotFound if nobody leads.
func (e *Election) Leader(ctx context.Context) (*Elected, error) {
	kv, err := e.c.Get(ctx, e.Name)
	if err != nil {
		return nil, err
	}
	return elected(kv), nil
}

// Observe yields the leader, and then each new leader and each new value. nil means that
// nobody leads. What happened while history was compacted under a slow observer is left
// out; the newest is always yielded.
func (e *Election) Observe(ctx context.Context) iter.Seq2[*Elected, error] {
	return func(yield func(*Elected, error) bool) {
		for {
			err, wanted := e.observe(ctx, yield)
			if !wanted {
				return
			}
			if !errors.Is(err, ErrCompacted) {
				yield(nil, err)
				return
			}
		}
	}
}

// observe yields the leader and what follows until something fails.
func (e *Election) observe(ctx context.Context, yield func(*Elected, error) bool) (err error, wanted bool) {
	var at uint64
	kv, err := e.c.Get(ctx, e.Name, ReportRevision(&at))
	switch {
	case err == nil && !yield(elected(kv), nil) || errors.Is(err, ErrKeyNotFound) && !yield(nil, nil):
		return nil, false
	case err != nil && !errors.Is(err, ErrKeyNotFound):
		return err, true
	}
	for event, err := range e.c.Watch(ctx, Key(e.Name), WatchOptions{From: at + 1}) {
		if err != nil {
			return err, true
		}
		var now *Elected
		if !event.Deleted {
			now = elected(&event.KV)
		}
		if !yield(now, nil) {
			return nil, false
		}
	}
	return ctx.Err(), true
}
