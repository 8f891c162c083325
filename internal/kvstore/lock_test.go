package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// ask is a request for a lock by a lease, which waits.
func ask(name string, lease uint64) Command {
	return Command{Op: OpLock, Key: []byte(name), Lease: lease, Wait: true}
}

func unlock(name string, lease uint64) Command {
	return Command{Op: OpUnlock, Key: []byte(name), Lease: lease}
}

// withLeases grants leases 1 to n.
func withLeases(t *testing.T, s *Store, n uint64) {
	t.Helper()
	for id := range n {
		only(t, s, OK, grant(id+1, 1000))
	}
}

// queueOf returns the leases in the queue of a lock, the holder first.
func queueOf(t *testing.T, s *Store, name string) (leases []uint64) {
	t.Helper()
	info, queue, err := s.Lock([]byte(name), 1000)
	if errors.Is(err, ErrLockNotFound) {
		return nil
	}
	must(t, err)
	leases = append(leases, info.Holder.Lease)
	for _, ticket := range queue {
		leases = append(leases, ticket.Lease)
	}
	return leases
}

func wantQueue(t *testing.T, s *Store, name string, want ...uint64) {
	t.Helper()
	if got := queueOf(t, s, name); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the queue of %q is %v, want %v", name, got, want)
	}
}

func TestLockIsFIFO(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 4)
		last := uint64(0)
		for lease := range uint64(4) {
			r := only(t, s, OK, ask("l", lease+1))
			if r.Lock.Held != (lease == 0) || r.Lock.Token <= last {
				t.Fatalf("%+v after token %d", r.Lock, last)
			}
			last = r.Lock.Token
		}
		again := only(t, s, OK, ask("l", 4))
		if again.Lock.Token != last || again.Lock.Held {
			t.Fatalf("asking again gives %+v, the place has token %d", again.Lock, last)
		}
		only(t, s, LeaseNotFound, Command{Op: OpLock, Key: []byte("l"), Lease: 99})
		r := only(t, s, LockHeld, Command{Op: OpLock, Key: []byte("l"), Lease: 4})
		if r.Lock == nil || r.Lock.Lease != 1 {
			t.Fatalf("the holder is %+v", r.Lock)
		}
		only(t, s, OK, unlock("l", 3)) // it leaves the queue
		wantQueue(t, s, "l", 1, 2, 4)
		only(t, s, LockNotFound, unlock("l", 3))
		only(t, s, OK, unlock("l", 1))
		wantQueue(t, s, "l", 2, 4)
		only(t, s, OK, unlock("l", 2))
		only(t, s, OK, unlock("l", 4))
		wantQueue(t, s, "l")
		checkCounters(t, s)
	})
}

// TestLockEndsWithItsLease: the tickets of a lease go with it, wherever they are in the
// queues, and the next one holds the lock.
func TestLockEndsWithItsLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 3)
		do(t, s, ask("l", 1), ask("l", 2), ask("m", 2), ask("m", 1), ask("l\x00", 1), ask("l", 3), expire(100, 1))
		wantQueue(t, s, "l", 2, 3)
		wantQueue(t, s, "m", 2)
		wantQueue(t, s, "l\x00")
		only(t, s, LockNotFound, unlock("l", 1))
		only(t, s, LeaseNotFound, ask("l", 1))
		checkCounters(t, s)
	})
}

// TestLockChecksTheLease: a lease that ended before the request was applied gets nothing,
// though it existed when the request was made.
func TestLockChecksTheLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 1)
		r := do(t, s, revoke(1), ask("l", 1))
		if r[1].Outcome != LeaseNotFound || r[1].Lock != nil {
			t.Errorf("%+v", r[1])
		}
		only(t, s, Invalid, ask("l", 0))
		only(t, s, Invalid, ask("", 1))
		wantQueue(t, s, "l")
	})
}

// TestUnlockOfAnotherLease: an old holder never frees what somebody else holds by now.
func TestUnlockOfAnotherLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 2)
		do(t, s, ask("l", 1), revoke(1), grant(1, 1000), ask("l", 2))
		only(t, s, LockNotFound, unlock("l", 1))
		wantQueue(t, s, "l", 2)
	})
}

// TestOnlyWaiting: a waiter that gives up keeps the lock if it came to the front first.
func TestOnlyWaiting(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 2)
		do(t, s, ask("l", 1), ask("l", 2))
		leave := unlock("l", 2)
		leave.OnlyWaiting = true
		if r := do(t, s, unlock("l", 1), leave)[1]; r.Outcome != OK || !r.Lock.Held {
			t.Errorf("%+v", r)
		}
		wantQueue(t, s, "l", 2)
		only(t, s, OK, ask("l", 1))
		leave.Lease = 1
		if r := only(t, s, OK, leave); r.Lock.Held {
			t.Errorf("%+v", r.Lock)
		}
		wantQueue(t, s, "l", 2)
	})
}

// TestOwnLeaseOfALock: it ends when the lock is given up, with what the holder bound.
func TestOwnLeaseOfALock(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		c := Command{Op: OpLock, Key: []byte("l"), TTLMillis: 15_000, Value: []byte("me")}
		r := only(t, s, OK, c)
		if r.Lease == nil || r.Lock.Lease != r.Lease.ID || !r.Lock.Held || string(r.Lock.Body) != "me" {
			t.Fatalf("%+v", r)
		}
		only(t, s, LockHeld, c) // and no lease is left behind
		do(t, s, putBound("a", r.Lease.ID))
		if r := only(t, s, OK, unlock("l", r.Lease.ID)); r.Deleted != 1 {
			t.Errorf("%+v", r)
		}
		if ids := leaseIDs(t, s); len(ids) > 0 || len(contentOf(t, s)) > 0 {
			t.Errorf("leases %v, %q", ids, contentOf(t, s))
		}
	})
}

// TestTokensGrow: over releases, refusals, restarts and restores.
func TestTokensGrow(t *testing.T) {
	s := openStore(t, engine.NewMemory(), Options{})
	withLeases(t, s, 1)
	last := uint64(0)
	for i := range 50 {
		r := only(t, s, OK, ask("l", 1))
		if r.Lock.Token <= last {
			t.Fatalf("token %d after %d", r.Lock.Token, last)
		}
		last = r.Lock.Token
		only(t, s, OK, unlock("l", 1))
		switch i % 10 {
		case 3:
			other := openStore(t, engine.NewMemory(), Options{})
			must(t, other.Restore(bytes.NewReader(bodyOf(t, s))))
			must(t, s.Close())
			s = other
		case 7:
			s = openStore(t, s.eng, Options{})
		case 9:
			must(t, s.RaiseCounters())
			last += RaisedBy - 1
			checkCounters(t, s)
		}
	}
	must(t, s.Close())
}

// TestAwaitLock: a waiter hears when its ticket comes to the front, when it goes, and when
// the whole state is replaced, and leaves nothing behind.
func TestAwaitLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, engine.NewMemory(), Options{})
		defer s.Close()
		withLeases(t, s, 4)
		tokens := make(map[uint64]uint64)
		for lease := range uint64(4) {
			tokens[lease+1] = only(t, s, OK, ask("l", lease+1)).Lock.Token
		}
		ended := make(map[uint64]chan error)
		ctx, cancel := context.WithCancel(t.Context())
		for lease, token := range tokens {
			end := make(chan error, 1)
			ended[lease] = end
			go func() { end <- s.AwaitLock(ctx, []byte("l"), token) }()
		}
		hears := func(lease uint64, want error) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-ended[lease]:
				if !errors.Is(err, want) {
					t.Fatalf("lease %d: %v, want %v", lease, err, want)
				}
			default:
				t.Fatalf("lease %d heard nothing", lease)
			}
		}
		hears(1, nil)
		only(t, s, OK, unlock("l", 1))
		hears(2, nil)
		only(t, s, OK, expire(100, 3))
		hears(3, ErrTicketGone)
		empty := openStore(t, engine.NewMemory(), Options{})
		must(t, s.Restore(bytes.NewReader(bodyOf(t, empty))))
		must(t, empty.Close())
		hears(4, ErrTicketGone)
		cancel()
		if err := s.AwaitLock(ctx, []byte("l"), 99); !errors.Is(err, ErrTicketGone) {
			t.Errorf("a ticket that never was: %v", err)
		}
		if n := s.waiters.Len(); n != 0 {
			t.Errorf("%d tokens have waiters", n)
		}
	})
}

// BenchmarkLockHandOver takes and gives up one lock over and over: the cost must not grow
// with the number of tickets that there were.
func BenchmarkLockHandOver(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		b.Run(name, func(b *testing.B) {
			s := newStore(b, name)
			do(b, s, grant(1, 1000), grant(2, 1000), ask("l", 1))
			b.ReportAllocs()
			for lease := uint64(1); b.Loop(); lease = 3 - lease {
				do(b, s, ask("l", 3-lease), unlock("l", lease))
			}
		})
	}
}

// TestLockDelay: the end of a lease with a lock delay leaves the lock that it held closed,
// and only that one. Then the queue goes on, with the tokens that it had.
func TestLockDelay(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		grant := func(id uint64, delay int64) {
			t.Helper()
			only(t, s, OK, Command{Op: OpLeaseGrant, Lease: id, TTLMillis: 1000, Grant: &LeaseOptions{LockDelayMillis: delay}})
		}
		for id := uint64(101); id <= 104; id++ {
			grant(id, 5000)
		}
		first := only(t, s, OK, ask("l", 101)).Lock.Token
		only(t, s, OK, ask("l", 102))
		only(t, s, OK, ask("other", 103))
		only(t, s, OK, ask("other", 101))
		wantQueue(t, s, "other", 103, 101)
		only(t, s, OK, Command{Op: OpLeaseRevoke, Lease: 101})
		wantQueue(t, s, "other", 103) // it only waited there
		_, queue, err := s.Lock([]byte("l"), 10)
		must(t, err)
		info := mustGet[LockInfo](t)(firstOf(s.Lock([]byte("l"), 10)))
		delay := mustGet[LeaseInfo](t)(s.Lease(info.Holder.Lease))
		if info.Holder.Token != first || delay.TTLMillis != 5000 || delay.Name != "lock delay" || delay.Tickets != 1 || queue[0].Held {
			t.Fatalf("the lock is held by %+v with %+v, before %+v", info.Holder, delay, queue)
		}
		// The lease of the delay is nobody's.
		only(t, s, LeaseNotFound, ask("l", delay.ID))
		only(t, s, LeaseNotFound, ask("new", delay.ID))
		only(t, s, LeaseNotFound, Command{Op: OpPut, Key: []byte("k"), Lease: delay.ID})
		only(t, s, LockHeld, Command{Op: OpLock, Key: []byte("l"), Lease: 104})
		only(t, s, OK, Command{Op: OpLeaseExpire, Term: 1, Sequence: delay.Seq, Leases: []uint64{delay.ID}})
		wantQueue(t, s, "l", 102)
		only(t, s, OK, unlock("l", 102)) // a client that gives a lock up knows that it is over
		if _, _, err := s.Lock([]byte("l"), 10); !errors.Is(err, ErrLockNotFound) {
			t.Fatalf("after the release: %v", err)
		}
		only(t, s, OK, unlock("other", 103))
		for id := uint64(102); id <= 104; id++ {
			only(t, s, OK, Command{Op: OpLeaseRevoke, Lease: id})
		}
		if n := s.Counts(); n != (Counts{}) {
			t.Errorf("%+v is left", n)
		}
		only(t, s, TooLarge, Command{Op: OpLeaseGrant, TTLMillis: 1, Grant: &LeaseOptions{LockDelayMillis: MaxTTLMillis + 1}})
		checkCounters(t, s)
	})
}

// TestLockDelayOfOwnLease: a lease that was made for a lock can have a lock delay, too. The
// release of the lock ends the lease without it.
func TestLockDelayOfOwnLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		take := Command{Op: OpLock, Key: []byte("l"), TTLMillis: 1000, Wait: true, Grant: &LeaseOptions{LockDelayMillis: 5000}}
		first, second, third := only(t, s, OK, take).Lock, only(t, s, OK, take).Lock, only(t, s, OK, take).Lock
		only(t, s, OK, unlock("l", second.Lease)) // it only waited
		wantQueue(t, s, "l", first.Lease, third.Lease)
		only(t, s, OK, unlock("l", first.Lease))
		wantQueue(t, s, "l", third.Lease)
		only(t, s, OK, Command{Op: OpLeaseExpire, Term: 1, Sequence: third.Token, Leases: []uint64{third.Lease}})
		holder := mustGet[LockInfo](t)(firstOf(s.Lock([]byte("l"), 1))).Holder
		delay := mustGet[LeaseInfo](t)(s.Lease(holder.Lease))
		if holder.Token != third.Token || delay.TTLMillis != 5000 || delay.Name != "lock delay" || delay.LockDelayMillis != 0 {
			t.Fatalf("the lock is held by %+v with %+v", holder, delay)
		}
		only(t, s, OK, Command{Op: OpLeaseExpire, Term: 1, Sequence: delay.Seq, Leases: []uint64{delay.ID}})
		if n := s.Counts(); n != (Counts{}) {
			t.Errorf("%+v is left", n)
		}
		take.Grant.LockDelayMillis = -1
		only(t, s, Invalid, take)
		take.Grant.LockDelayMillis = MaxTTLMillis + 1
		only(t, s, TooLarge, take)
		checkCounters(t, s)
	})
}

// TestOwnLeaseOfTwoLocks: a lease that was made for one lock, and is given for another one
// too, ends with the last of them, in either order.
func TestOwnLeaseOfTwoLocks(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		for _, order := range [][]string{{"b", "a"}, {"a", "b"}} {
			own := only(t, s, OK, Command{Op: OpLock, Key: []byte("a"), TTLMillis: 1000, Grant: &LeaseOptions{LockDelayMillis: 5000}}).Lock
			other := only(t, s, OK, Command{Op: OpLock, Key: []byte("b"), TTLMillis: 1000}).Lock
			only(t, s, OK, Command{Op: OpLock, Key: []byte("b"), Lease: own.Lease, Wait: true})
			only(t, s, OK, unlock(order[0], own.Lease))
			mustGet[LeaseInfo](t)(s.Lease(own.Lease))
			if order[0] == "b" {
				wantQueue(t, s, "a", own.Lease)
			} else {
				wantQueue(t, s, "b", other.Lease, own.Lease)
			}
			only(t, s, OK, unlock(order[1], own.Lease))
			only(t, s, OK, unlock("b", other.Lease))
			if n := s.Counts(); n != (Counts{}) {
				t.Errorf("released in the order %v: %+v is left", order, n)
			}
		}
		checkCounters(t, s)
	})
}

func firstOf[T, U any](v T, _ U, err error) (T, error) { return v, err }

// TestGivenUpTicketLeavesItsLease: the lease counts the tickets that it still has.
func TestGivenUpTicketLeavesItsLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withLeases(t, s, 1)
		do(t, s, ask("l", 1), ask("m", 1), unlock("l", 1))
		if l := mustGet[LeaseInfo](t)(s.Lease(1)); l.Tickets != 1 {
			t.Errorf("the lease has %d tickets, want 1", l.Tickets)
		}
		checkCounters(t, s)
	})
}
