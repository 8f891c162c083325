package raftnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/lessor"
)

// Clients of leases and locks.

// grant makes a lease of a random time to live, and notes what its owner may rely on: its
// time since before the request. It returns 0 if there was no answer.
func (c *client) grant() (id uint64) {
	ttl := 2000 + c.w.s.rng.Int64N(1500)
	cmd := kvstore.Command{Op: kvstore.OpLeaseGrant, TTLMillis: ttl}
	if c.w.s.chance(0.5) {
		c.w.nextLease++
		cmd.Lease = 1<<40 + c.w.nextLease
	}
	if c.w.s.chance(0.3) {
		cmd.Grant = &kvstore.LeaseOptions{LockDelayMillis: c.w.s.rng.Int64N(2000)}
	}
	begin := c.w.s.now
	r := c.do(c.w.s.anyNode(), &cmd)
	if r == nil || r.Outcome != kvstore.OK {
		return 0
	}
	c.w.stats.granted++
	c.w.lastLease = r.Lease.ID
	c.w.truth.promise(r.Lease.ID, begin+c.w.promised(ttl*milli))
	return r.Lease.ID
}

// alive is a lease that its owner can rely on at the moment.
func (c *client) alive(lease uint64) bool { return c.w.s.now < c.w.truth.fate(lease).promised }

// keepAlive asks any member to renew a lease, and reports whether it was promised more time.
func (c *client) keepAlive(id uint64) bool { return c.keepAliveAt(c.w.s.anyNode(), id) }

func (c *client) keepAliveAt(n *simNode, id uint64) bool {
	begin := c.w.s.now
	answer, _ := c.askLease(n, id, true)
	c.w.s.reachIf(keepAliveAcrossEnd, c.w.truth.fate(id).ended >= begin && c.w.truth.fate(id).ended != 0)
	c.w.s.reachIf(keepAliveTooLate, answer.State == lessor.Ending)
	if answer.State != lessor.Alive {
		return false
	}
	c.w.stats.renewed++
	c.w.truth.promise(id, begin+c.w.promised(answer.Remaining.Microseconds()))
	return true
}

// askLease asks a member how long a lease lives on, and waits for the answer for a while.
func (c *client) askLease(n *simNode, id uint64, renew bool) (answer lessor.Answer, answered bool) {
	wake := c.waker()
	c.w.askLeader(n, lessor.Request{ID: id, Renew: renew}, func(a lessor.Answer) {
		answer, answered = a, true
		wake()
	})
	c.w.s.after(c.w.s.between(span{100 * milli, 500 * milli}), "client", wake)
	c.wait()
	return answer, answered
}

// askLeader carries a question about a lease from a member to its leader and back, if it can. Between
// the steps of the lessor lies a read, which proves that the leader still is one.
func (w *contractWorld) askLeader(n *simNode, q lessor.Request, done func(lessor.Answer)) {
	if !n.up || n.core.lead == 0 || w.s.nodes[n.core.lead] == nil {
		return
	}
	l := w.s.nodes[n.core.lead]
	w.carry(n, l, func() {
		m := storeOf(l)
		r, err := m.lessor.Renew([]lessor.Request{q})
		if err != nil {
			return
		}
		if w.s.opts.bug == bugKeepAliveUnproven {
			w.carry(l, n, func() {
				if answers, err := m.lessor.Confirm(r); err == nil {
					done(answers[0])
				}
			})
			return
		}
		proof := w.s.linearizable(l)
		proof.whenDone(func() {
			w.s.reachIf(keepAliveUnproven, proof.outcome != succeeded || l.core.term != r.Term)
			if proof.outcome != succeeded || l.core.lead != l.id || l.core.term != r.Term {
				return
			}
			if answers, err := m.lessor.Confirm(r); err == nil {
				w.carry(l, n, func() { done(answers[0]) })
			}
		})
	})
}

// carry has something done at another member, after the time that a message takes.
func (w *contractWorld) carry(from, to *simNode, do func()) {
	s := w.s
	s.after(s.between(s.net.delay), "call", func() {
		if s.now < to.pausedUntil {
			to.later(to.pausedUntil-s.now, "call", do)
			return
		}
		if to.up && from.up && !s.net.blocked[link{from.id, to.id}] && !s.chance(s.net.loss) {
			do()
		}
	})
}

// tenant binds keys to a lease, keeps it for a while, and then gives it up, or lets it end.
func tenant(c *client) {
	lease := c.grant()
	if lease == 0 {
		return
	}
	home := c.w.s.anyNode()
	stays := c.w.s.chance(0.5)
	for range c.w.s.rng.IntN(20) {
		if !stays {
			home = c.w.s.anyNode()
		}
		if c.w.s.chance(0.2) {
			key := fmt.Appendf(nil, "lease/%d", c.w.s.rng.IntN(6))
			c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpPut, Key: key, Value: []byte(c.name), Lease: lease})
		}
		c.keepAliveAt(home, lease)
		c.pause(span{100 * milli, 1200 * milli})
	}
	switch {
	case c.w.s.chance(0.2):
		c.grantAgain(lease)
	case c.w.s.chance(0.4):
		c.giveUp(lease, kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: lease})
	}
}

// giveUp ends a lease, or a lock that it holds. From then on nothing is promised.
func (c *client) giveUp(lease uint64, cmd kvstore.Command) {
	if cmd.Op == kvstore.OpLeaseRevoke {
		c.w.truth.fate(lease).givenUp = true
	}
	c.do(c.w.s.anyNode(), &cmd)
}

// guarded is something outside of kvd that a lock protects: it takes writes with the
// newest token only.
type guarded struct{ token uint64 }

// locker takes a lock, writes to what it protects, and gives it up. Sometimes it sleeps
// for longer than its lease lives, and then writes with a token that may be stale.
func locker(c *client) {
	name := fmt.Sprintf("lock%d", c.w.s.rng.IntN(2))
	lease := c.grant()
	if lease == 0 {
		return
	}
	if c.w.s.chance(0.15) {
		c.pause(span{second, 6 * second}) // the lease may be gone by then
	}
	r := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpLock, Key: []byte(name), Lease: lease, Wait: true})
	if r == nil || r.Outcome != kvstore.OK || !c.queue(name, lease, r.Lock) {
		c.giveUp(lease, kvstore.Command{Op: kvstore.OpUnlock, Key: []byte(name), Lease: lease})
		return
	}
	c.w.stats.locked++
	for range 1 + c.w.s.rng.IntN(4) {
		c.write(name, lease, r.Lock.Token)
		c.keepAlive(lease)
		c.pause(span{10 * milli, 500 * milli})
	}
	if c.w.s.chance(0.2) {
		c.pause(span{2 * second, 8 * second})
	}
	c.write(name, lease, r.Lock.Token)
	c.leave(name, lease)
}

// leave gives up a lock in one of the ways that there are.
func (c *client) leave(name string, lease uint64) {
	switch c.w.s.rng.IntN(3) {
	case 0:
		c.giveUp(lease, kvstore.Command{Op: kvstore.OpUnlock, Key: []byte(name), Lease: lease})
	case 1:
		c.giveUp(lease, kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: lease})
	}
}

// queue waits for the lock, at one member after the other, and keeps the lease meanwhile.
func (c *client) queue(name string, lease uint64, ticket *kvstore.LockTicket) bool {
	for held := ticket.Held; !held; {
		if !c.keepAlive(lease) && !c.alive(lease) {
			return false
		}
		c.pause(span{20 * milli, 200 * milli})
		n := c.w.s.anyNode()
		if !n.up {
			continue
		}
		now, cancel := context.WithTimeout(context.Background(), -time.Second) // a look, without waiting
		err := storeOf(n).store.AwaitLock(now, []byte(name), ticket.Token)
		cancel()
		held = err == nil
		if errors.Is(err, kvstore.ErrTicketGone) && storeOf(n).store.Position().Index >= c.w.truth.ticketAt[ticket.Token] {
			return false
		}
	}
	return true
}

// write writes with a token, and checks X5: while its lease cannot have ended, nobody with
// a later token was there before.
func (c *client) write(name string, lease, token uint64) {
	g := c.w.resources[name]
	if g == nil {
		g = new(guarded)
		c.w.resources[name] = g
	}
	if token >= g.token {
		g.token = token
		return
	}
	c.w.stats.staleTokens++
	c.w.s.reach(tokenStale)
	if f := c.w.truth.fate(lease); c.alive(lease) && !f.givenUp {
		c.w.s.violate("X5: the holder of %s with token %d and a lease until %d ms comes after one with token %d", name, token, f.promised/milli, g.token)
	}
}
