package httpapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
)

const (
	// maxLockWaiters bounds the requests that wait for a lock on this node. They hold
	// no place of the limiter, and about 10 KiB each with their connections.
	maxLockWaiters = 16 << 10
	// leaveTimeout bounds leaving the queue for a client that has gone. If it fails,
	// the end of the lease does it.
	leaveTimeout = 10 * time.Second
	// renewals is how often a waiting request keeps its own lease alive in a TTL.
	renewals = 3
)

// acquiring is one request for a lock.
type acquiring struct {
	s      *Server
	x      *exchange
	ticket *kvstore.LockTicket
	wait   time.Duration
	// own is the TTL of the lease that was made for the request; 0 for a lease of the
	// client, which keeps it alive itself.
	own time.Duration
	// alive is until when the lease lives at least, zero if that is not known. It counts
	// from before the request that made or renewed the lease was sent.
	alive time.Time
}

// acquireLock answers POST /v1/locks/{name}.
func acquireLock(s *Server, x *exchange) error {
	a := &acquiring{s: s, x: x}
	cmd, err := a.command()
	if err != nil {
		return err
	}
	if cmd.Value, err = x.readBody(kvstore.MaxLockTextBytes, ""); err != nil {
		return err
	}
	sent := time.Now()
	res, err := x.do(cmd)
	if res.Outcome == kvstore.LockHeld {
		return lockHeld(res.Lock)
	}
	if err != nil {
		return err
	}
	if a.ticket = res.Lock; res.Lease != nil {
		a.own = millis(res.Lease.TTLMillis)
		if !res.Replayed { // the lease of a repeat is as old as the first request
			a.alive = sent.Add(a.own)
		}
	}
	// A repeat gets the answer of the first request, even if the lock was released since:
	// so does a client whose answer is late, which is what fencing tokens are for.
	if a.ticket.Held {
		return a.granted()
	}
	return a.queue()
}

// command reads the query.
func (a *acquiring) command() (*kvstore.Command, error) {
	cmd := &kvstore.Command{Op: kvstore.OpLock, Key: []byte(a.x.arg)}
	if err := checkLockName(a.x.arg); err != nil {
		return nil, err
	}
	if err := a.x.query.BindLock(cmd); err != nil {
		return nil, err
	}
	wait, _, err := a.x.query.Duration("wait")
	switch {
	case err != nil:
		return nil, err
	case wait > maxWait:
		return nil, badRequest("the parameter \"wait\" must be at most %v", maxWait)
	}
	a.wait, cmd.Wait = wait, wait > 0
	return cmd, nil
}

func checkLockName(name string) error {
	if name == "" || len(name) > kvstore.MaxKeyBytes {
		return badRequest("the name of a lock has 1 to %d bytes, not %d", kvstore.MaxKeyBytes, len(name))
	}
	return nil
}

func lockHeld(holder *kvstore.LockTicket) error {
	p := api.Errorf(api.LockHeld, "lease %d holds the lock; wait longer with ?wait=, or try again", holder.Lease)
	p.Fields = map[string]any{"token": holder.Token}
	return p
}

// queue waits until the ticket is the first one, or the wait ends, or the client goes.
func (a *acquiring) queue() error {
	if a.s.lockWaiters.Add(1) > maxLockWaiters {
		a.s.lockWaiters.Add(-1)
		return a.abandon(api.Errorf(api.Overloaded, "%d requests are waiting for locks on this node, the limit; use another node", maxLockWaiters))
	}
	defer a.s.lockWaiters.Add(-1)
	a.x.held.end()
	client, leave := attended(a.x)
	defer leave()
	ctx, cancel := context.WithTimeout(client, a.wait)
	defer cancel()
	defer context.AfterFunc(a.s.waits, cancel)()
	err := a.await(ctx)
	a.x.deadline = time.Time{} // what follows has the timeout of a request that begins now
	a.x.limitWriteTime(0)
	switch {
	case err == nil:
		return a.confirm()
	case errors.Is(err, kvstore.ErrTicketGone):
		return leaseGone(a.ticket.Lease)
	case client.Err() != nil:
		return a.abandon(err) // nobody hears the answer
	case a.s.waits.Err() != nil:
		return a.sendAway()
	case ctx.Err() != nil:
		return a.giveUp()
	}
	return a.abandon(err)
}

// await waits for the ticket. Meanwhile it keeps the request's own lease alive: its
// client does not know the id yet.
func (a *acquiring) await(ctx context.Context) error {
	if a.own > 0 && a.alive.IsZero() {
		_ = a.renew(ctx)
	}
	for {
		err := a.awaitUntilRenewal(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
		if err := a.stillMay(); err != nil {
			return err
		}
		// A renewal that fails is tried again; if the lease has ended, so has the ticket.
		_ = a.renew(ctx)
	}
}

func (a *acquiring) awaitUntilRenewal(ctx context.Context) error {
	if a.own > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.own/renewals)
		defer cancel()
	}
	return a.s.opts.Locks.AwaitLock(ctx, a.ticket.Name, a.ticket.Token)
}

// stillMay judges again: the caller may have lost the right while it waited.
func (a *acquiring) stillMay() error {
	return a.x.visit.Permit(&kvstore.Command{Op: kvstore.OpLock, Key: a.ticket.Name, Lease: a.ticket.Lease})
}

// renew keeps the lease alive, or only asks for it if it is the client's.
func (a *acquiring) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, param.DefaultTimeout)
	defer cancel()
	sent := time.Now()
	at, err := a.s.opts.LeaseTimes.AskLease(ctx, a.ticket.Lease, a.own > 0)
	if err == nil {
		a.alive = sent.Add(at.Remaining)
	}
	return err
}

// confirm answers that the lock is held if the lease certainly lives. This node may have
// been suspended since it saw the ticket come to the front: then only the leader knows.
func (a *acquiring) confirm() error {
	if err := a.stillMay(); err != nil {
		return a.abandon(err)
	}
	if time.Until(a.alive) < a.own/2 || a.own == 0 {
		if err := a.renew(a.x.r.Context()); err != nil {
			return a.abandon(err)
		}
	}
	return a.granted()
}

func (a *acquiring) granted() error {
	doc := reply.AppendBytes([]byte{'{'}, "name", a.ticket.Name)
	doc = reply.AppendNumber(reply.AppendLease(doc, "lease", a.ticket.Lease), "token", a.ticket.Token)
	if a.own > 0 {
		doc = appendTime(doc, "ttl", a.own)
	}
	a.x.writeDocument(jsonType, http.StatusOK, append(doc, '}', '\n'))
	return nil
}

// sendAway ends the wait because the node stops. A client that can find its ticket
// again, by its lease or its idempotency key, keeps its place in the queue.
func (a *acquiring) sendAway() error {
	stopping := api.Errorf(api.Stopping, "this node is stopping; wait at another node")
	if a.own == 0 || a.x.once != nil && a.x.once.Key != "" {
		return stopping
	}
	return a.abandon(stopping)
}

// giveUp leaves the queue at the end of the wait. If the lock was granted meanwhile, it
// is kept.
func (a *acquiring) giveUp() error {
	res, err := a.leave(true)
	switch {
	case err != nil:
		return err
	case res.Outcome == kvstore.LockNotFound:
		return leaseGone(a.ticket.Lease)
	case res.Lock.Held:
		return a.confirm()
	}
	if info, _, err := a.s.opts.Locks.Lock(a.ticket.Name, 1); err == nil {
		return lockHeld(&info.Holder)
	}
	return api.Errorf(api.LockHeld, "the lock was not free in time; wait longer with ?wait=, or try again")
}

// abandon leaves the queue for a request that fails, and returns why. A lock that was
// granted meanwhile is released if the lease was made for the request, since nobody else
// could. With a lease of the client, the client can ask again, and finds it.
func (a *acquiring) abandon(reason error) error {
	_, _ = a.leave(a.own == 0) // what fails here, the end of the lease makes up for
	return reason
}

// leave gives up the ticket, whatever has become of the client.
func (a *acquiring) leave(onlyWaiting bool) (kvstore.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.x.r.Context()), leaveTimeout)
	defer cancel()
	cmd := &kvstore.Command{Op: kvstore.OpUnlock, Key: a.ticket.Name, Lease: a.ticket.Lease, OnlyWaiting: onlyWaiting}
	a.x.visit.Sign(cmd)
	return a.s.opts.Replicator.Do(ctx, cmd, nil)
}

// releaseLock answers DELETE /v1/locks/{name}?lease=ID.
func releaseLock(_ *Server, x *exchange) error {
	if err := checkLockName(x.arg); err != nil {
		return err
	}
	text, ok := x.query.Get("lease")
	if !ok {
		return badRequest("the parameter \"lease\" is missing; it is the lease that holds the lock, or waits for it")
	}
	lease, err := param.LeaseID(text)
	if err != nil {
		return err
	}
	if _, err := x.do(&kvstore.Command{Op: kvstore.OpUnlock, Key: []byte(x.arg), Lease: lease}); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// getLock answers GET /v1/locks/{name}: the holder, and those who wait.
func getLock(s *Server, x *exchange) error {
	if err := checkLockName(x.arg); err != nil {
		return err
	}
	limit, err := pageLimit(&x.query)
	if err != nil {
		return err
	}
	if err := x.visit.ReadsLock([]byte(x.arg)); err != nil {
		return err
	}
	if err := x.freshen(0); err != nil {
		return err
	}
	info, queue, err := s.opts.Locks.Lock([]byte(x.arg), limit)
	if err := x.visit.Again(); err != nil {
		return err
	}
	if errors.Is(err, kvstore.ErrLockNotFound) {
		return api.Errorf(api.LockNotFound, "nobody holds the lock")
	}
	if err != nil {
		return err
	}
	doc := append(appendLock(nil, &info), `,"queue":[`...)
	for i := range queue {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = appendTicket(doc, &queue[i])
	}
	x.setRevision(s.opts.Store.Revision())
	x.writeDocument(jsonType, http.StatusOK, append(doc, "]}\n"...))
	return nil
}

// appendLock appends a lock without the end of its object.
func appendLock(dst []byte, l *kvstore.LockInfo) []byte {
	dst = reply.AppendBytes(append(dst, '{'), "name", l.Holder.Name)
	dst = appendTicket(append(dst, `,"holder":`...), &l.Holder)
	return reply.AppendNumber(dst, "waiting", l.Tickets-1)
}

func appendTicket(dst []byte, t *kvstore.LockTicket) []byte {
	dst = append(dst, '{')
	dst = append(dst, reply.AppendLease(nil, "lease", t.Lease)[1:]...) // without the comma
	dst = reply.AppendNumber(dst, "token", t.Token)
	return append(reply.AppendBytes(append(dst, ','), "text", t.Body), '}')
}

// listLocks answers GET /v1/locks.
func listLocks(s *Server, x *exchange) error {
	limit, err := pageLimit(&x.query)
	if err != nil {
		return err
	}
	from, err := position(&x.query)
	if err != nil {
		return err
	}
	if err := x.freshen(0); err != nil {
		return err
	}
	locks, next, err := s.opts.Locks.Locks(from, limit)
	if err := x.visit.After(err); err != nil {
		return err
	}
	// Others are left out, as in the list of leases.
	locks = slices.DeleteFunc(locks, func(l kvstore.LockInfo) bool { return x.visit.ReadsLock(l.Holder.Name) != nil })
	writePage(x, "locks", locks, appendLock, next)
	return nil
}
