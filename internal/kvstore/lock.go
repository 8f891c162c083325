package kvstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/ticket"
)

// MaxLockTextBytes is the longest text of a holder.
const MaxLockTextBytes = 4096

// A lock is a queue of tickets, each with a token from counts.sequence and the lease of
// its client. The ticket with the least token holds the lock. Granting needs no step
// of its own: the next ticket holds the lock as soon as the first one is gone, which
// keeps FIFO order and makes the token of each holder greater than those before it.
//
//	L1  A ticket exists only while its lease does: the end of a lease removes its
//	    tickets in the same entry (TestLockEndsWithItsLease), or hands the ticket of a
//	    holder over to the lease of the lock delay (TestLockDelay).
//	L2  A lease has at most one ticket of a lock, so asking again is harmless.
//	L3  Tokens only grow (TestTokensGrow).
//	L4  Head.First is the least token of the queue (checked by the model tests).
//
// A holder that lost its lease may not know it yet. With a lock delay, the next ticket has
// to wait until such a holder has noticed: the ticket of the holder stays in front, under a
// lease that lives for the delay. So the time of the delay is kept by the leader, like
// that of all leases, and a new leader begins it anew.
//
// The rows are those of package ticket.

// locks is the part of leases for locks. It owns the tables of queues.
type locks struct{ ls *leases }

func (ls *leases) locks() locks { return locks{ls} }

// head returns the head of a lock with the overlay.
func (lk locks) head(name []byte) (h ticket.Head, exists bool, err error) {
	b, exists, err := lk.ls.x.rows.Get(layout.TableLock, name)
	if err != nil || !exists {
		return ticket.Head{}, false, err
	}
	h, err = ticket.DecodeHead(b)
	return h, err == nil, err
}

// ticket returns a ticket that must exist, in the form of results.
func (lk locks) ticket(name []byte, h *ticket.Head, token uint64) (*LockTicket, error) {
	b, exists, err := lk.ls.x.rows.Get(layout.TableTicket, ticket.Key(name, token))
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, fmt.Errorf("%w: lock without its ticket %d", layout.ErrMalformed, token)
	}
	t, err := ticket.Decode(b)
	if err != nil {
		return nil, err
	}
	return ticketOf(name, h, token, &t), nil
}

// ticketOf returns a ticket in the form of results.
func ticketOf(name []byte, h *ticket.Head, token uint64, t *ticket.Row) *LockTicket {
	return &LockTicket{Name: bytes.Clone(name), Token: token, Lease: t.Lease, Held: token == h.First, Body: bytes.Clone(t.Text)}
}

// lockOp runs OpLock.
func (lk locks) lockOp(c *Command, r *Result) error {
	if !lk.named(c, r) {
		return nil
	}
	if len(c.Value) > MaxLockTextBytes {
		r.Refuse(TooLarge, "the text of the holder exceeds the limit of %d bytes", MaxLockTextBytes)
		return nil
	}
	head, busy, err := lk.head(c.Key)
	if err != nil {
		return err
	}
	if done, err := lk.again(c, &head, r); done || err != nil {
		return err
	}
	if busy && !c.Wait {
		return lk.refuse(c, &head, r)
	}
	lease, err := lk.leaseFor(c, r)
	if err != nil || r.Outcome != OK {
		return err
	}
	return lk.add(c, lease, head, r)
}

// named refuses a name that a lock cannot have. They are bounded like keys.
func (lk locks) named(c *Command, r *Result) bool {
	switch n := int64(len(c.Key)); {
	case n == 0:
		r.Refuse(Invalid, "the name of the lock is empty")
	case n > lk.ls.x.settings.MaxKeyBytes && c.Op == OpLock:
		r.Refuse(TooLarge, "the name of the lock has %d bytes, but the limit is %d (max_key_bytes in the settings)", n, lk.ls.x.settings.MaxKeyBytes)
	default:
		return true
	}
	return false
}

// again answers with the ticket that the lease has already (L2).
func (lk locks) again(c *Command, h *ticket.Head, r *Result) (done bool, err error) {
	if c.Lease == 0 {
		return false, nil
	}
	b, exists, err := lk.ls.x.rows.Get(layout.TableLeaseLock, ticket.LeaseKey(c.Lease, c.Key))
	if err != nil || !exists {
		return false, err
	}
	token, err := ticket.DecodeToken(b)
	if err != nil {
		return false, err
	}
	if l, err := lk.ls.mustGet(c.Lease); err != nil || l.reserved(r) {
		return true, err
	}
	if token != h.First && !c.Wait {
		return true, lk.held(c, h, r)
	}
	r.Lock, err = lk.ticket(c.Key, h, token)
	return true, err
}

// refuse refuses a request that would have to wait. That its lease does not exist is the
// better reason: another attempt would fail, too.
func (lk locks) refuse(c *Command, h *ticket.Head, r *Result) error {
	if c.TTLMillis == 0 {
		if _, err := lk.leaseFor(c, r); err != nil || r.Outcome != OK {
			return err
		}
	}
	return lk.held(c, h, r)
}

// held refuses with the ticket of the holder.
func (lk locks) held(c *Command, h *ticket.Head, r *Result) error {
	holder, err := lk.ticket(c.Key, h, h.First)
	if err != nil {
		return err
	}
	r.Refuse(LockHeld, "lease %d holds the lock", holder.Lease)
	r.Lock = holder
	return nil
}

// leaseFor returns the lease of a new ticket. It is judged here, when the request is
// applied: that it existed when the request was made is worth nothing.
func (lk locks) leaseFor(c *Command, r *Result) (l leaseRow, err error) {
	id := c.Lease
	switch {
	case c.TTLMillis != 0:
		if id, err = lk.ls.own(c, ownedByLock, r); err != nil || r.Outcome != OK {
			return leaseRow{}, err
		}
	case id == 0:
		r.Refuse(Invalid, "a lock needs a lease or a time to live")
		return leaseRow{}, nil
	}
	l, exists, err := lk.ls.get(id)
	switch {
	case err != nil:
		return leaseRow{}, err
	case !exists:
		r.Refuse(LeaseNotFound, "lease %d does not exist", id)
	case l.reserved(r):
	default:
		l.roomForOne(r)
	}
	return l, nil
}

// add appends a ticket to the queue.
func (lk locks) add(c *Command, l leaseRow, h ticket.Head, r *Result) error {
	t := ticket.Row{Lease: l.ID, Text: bytes.Clone(c.Value)}
	if !lk.ls.fits(ticket.Bytes(c.Key, &t), r) {
		return nil
	}
	n := lk.ls.count()
	n.sequence++
	n.tickets++
	token := n.sequence
	if h.Tickets++; h.Tickets == 1 {
		h.First = token
		n.locks++
	}
	lk.ls.x.rows.Set(layout.TableLock, c.Key, h.Encode())
	lk.ls.x.rows.Set(layout.TableTicket, ticket.Key(c.Key, token), t.Encode())
	lk.ls.x.rows.Set(layout.TableLeaseLock, ticket.LeaseKey(l.ID, c.Key), ticket.EncodeToken(token))
	l.tickets++
	lk.ls.set(&l)
	lk.ls.draft.bytes += ticket.Bytes(c.Key, &t)
	r.Lock = ticketOf(c.Key, &h, token, &t)
	return nil
}

// unlockOp runs OpUnlock. The ticket is looked up by the lease, so a lease never gives up
// what another one holds.
func (lk locks) unlockOp(c *Command, r *Result) error {
	if !lk.named(c, r) {
		return nil
	}
	b, exists, err := lk.ls.x.rows.Get(layout.TableLeaseLock, ticket.LeaseKey(c.Lease, c.Key))
	if err != nil {
		return err
	}
	if !exists {
		r.Refuse(LockNotFound, "lease %d neither holds the lock nor waits for it", c.Lease)
		return nil
	}
	token, err := ticket.DecodeToken(b)
	if err != nil {
		return err
	}
	h, _, err := lk.head(c.Key)
	if err != nil {
		return err
	}
	if r.Lock, err = lk.ticket(c.Key, &h, token); err != nil || r.Lock.Held && c.OnlyWaiting {
		return err
	}
	return lk.giveUp(c, token, r)
}

// giveUp removes a ticket, and with its last one a lease that was made for a lock: clients
// may have bound other locks to it, which keep it.
func (lk locks) giveUp(c *Command, token uint64, r *Result) error {
	l, err := lk.ls.mustGet(c.Lease)
	if err != nil {
		return err
	}
	if l.tickets == 1 && (l.owner == ownedByLock || l.owner == ownedByDelay) {
		l.LockDelayMillis = 0 // whoever releases a lock knows that it does not hold it
		return lk.ls.end(&l, r)
	}
	l.tickets--
	lk.ls.set(&l)
	return lk.remove(c.Key, token)
}

// leave removes all tickets of a lease that ends (L1).
func (lk locks) leave(l *leaseRow) error {
	names, err := lk.ls.boundTo(layout.TableLeaseLock, l.ID)
	if err != nil {
		return err
	}
	for _, name := range names {
		b, _, err := lk.ls.x.rows.Get(layout.TableLeaseLock, ticket.LeaseKey(l.ID, name))
		if err != nil {
			return err
		}
		token, err := ticket.DecodeToken(b)
		if err != nil {
			return err
		}
		if err := lk.abandon(l, name, token); err != nil {
			return err
		}
	}
	return nil
}

// abandon removes a ticket of a lease that ends, or closes the lock for the lock delay.
func (lk locks) abandon(l *leaseRow, name []byte, token uint64) error {
	if l.LockDelayMillis > 0 {
		if h, _, err := lk.head(name); err != nil || h.First == token {
			return cmp.Or(err, lk.close(l, name, token))
		}
	}
	return lk.remove(name, token)
}

// delayName is the name of the lease of a lock delay.
const delayName = "lock delay"

// close hands the ticket of a holder over to a lease that lives for the lock delay. The
// quota does not matter: the end of a lease cannot be refused.
func (lk locks) close(l *leaseRow, name []byte, token uint64) error {
	d := leaseRow{Lease: Lease{TTLMillis: l.LockDelayMillis, LeaseOptions: LeaseOptions{Name: delayName}}, owner: ownedByDelay, tickets: 1}
	if _, err := lk.ls.number(&d); err != nil {
		return err
	}
	rows := lk.ls.x.rows
	b, exists, err := rows.Get(layout.TableTicket, ticket.Key(name, token))
	if err != nil || !exists {
		return orBroken(err, "ticket %d of a queue does not exist", token)
	}
	t, err := ticket.Decode(b)
	if err != nil {
		return err
	}
	rows.Set(layout.TableTicket, ticket.Key(name, token), (&ticket.Row{Lease: d.ID, Text: bytes.Clone(t.Text)}).Encode())
	rows.Delete(layout.TableLeaseLock, ticket.LeaseKey(l.ID, name))
	rows.Set(layout.TableLeaseLock, ticket.LeaseKey(d.ID, name), ticket.EncodeToken(token))
	lk.ls.add(&d)
	return nil
}

// remove takes a ticket out of its queue. If it was the first, the next one holds
// the lock from now on.
func (lk locks) remove(name []byte, token uint64) error {
	b, exists, err := lk.ls.x.rows.Get(layout.TableTicket, ticket.Key(name, token))
	if err != nil || !exists {
		return orBroken(err, "ticket %d of a queue does not exist", token)
	}
	t, err := ticket.Decode(b)
	if err != nil {
		return err
	}
	h, exists, err := lk.head(name)
	if err != nil || !exists {
		return orBroken(err, "ticket %d has no lock", token)
	}
	lk.ls.x.rows.Delete(layout.TableTicket, ticket.Key(name, token))
	lk.ls.x.rows.Delete(layout.TableLeaseLock, ticket.LeaseKey(t.Lease, name))
	lk.ls.draft.bytes -= ticket.Bytes(name, &t)
	lk.ls.draft.woken = append(lk.ls.draft.woken, token)
	n := lk.ls.count()
	n.tickets--
	if h.Tickets--; h.Tickets == 0 {
		n.locks--
		lk.ls.x.rows.Delete(layout.TableLock, name)
		return nil
	}
	if h.First == token {
		if h.First, err = lk.next(name, token); err != nil {
			return err
		}
		lk.ls.draft.woken = append(lk.ls.draft.woken, h.First)
	}
	lk.ls.x.rows.Set(layout.TableLock, name, h.Encode())
	return nil
}

// orBroken returns the error, or if there is none, that the layout is broken.
func orBroken(err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", layout.ErrMalformed, fmt.Sprintf(format, args...))
}

// next returns the least token of a queue above one.
func (lk locks) next(name []byte, above uint64) (token uint64, err error) {
	prefix := ticket.Prefix(name)
	err = lk.ls.x.rows.EachFrom(layout.TableTicket, prefix, ticket.Key(name, above+1), func(key, _ []byte) bool {
		token = binary.BigEndian.Uint64(key[len(prefix):])
		return false
	})
	if err != nil || token == 0 {
		return 0, orBroken(err, "the queue of a lock ends at ticket %d", above)
	}
	return token, nil
}
