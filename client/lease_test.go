package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

func TestLease(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	lease, err := c.Grant(ctx, time.Minute)
	if err != nil || lease.ID <= 0 || lease.TTL != time.Minute {
		t.Fatalf("%+v %v", lease, err)
	}
	if _, err := c.Put(ctx, "k", nil, client.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if kv, err := c.Get(ctx, "k"); err != nil || kv.Lease != lease.ID {
		t.Errorf("%+v %v", kv, err)
	}
	if _, err := c.KeepAliveOnce(ctx, lease.ID); err != nil {
		t.Error(err)
	}
	if info, err := c.LeaseInfo(ctx, lease.ID); err != nil || info.TTL != time.Minute || info.Remaining <= 0 || info.Remaining > time.Minute {
		t.Errorf("%+v %v", info, err)
	}
	if err := c.Revoke(ctx, lease.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, "k"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("the key of an ended lease: %v", err)
	}
	if _, err := c.KeepAliveOnce(ctx, lease.ID); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("an ended lease: %v", err)
	}
	// A lease that nobody keeps alive ends.
	if _, err := c.Put(ctx, "short", nil, client.WithTTL(time.Second)); err != nil {
		t.Fatal(err)
	}
	for e, err := range c.Watch(ctx, client.Key("short"), client.WatchOptions{From: 2, DeletesOnly: true}) {
		if err != nil || !e.Deleted {
			t.Errorf("%+v %v", e, err)
		}
		break
	}
}

// A lock goes from holder to holder in the order of their requests, under growing
// tokens.
func TestLock(t *testing.T) {
	ctx := t.Context()
	nodes := kvdtest.Cluster(t, 3)
	c := nodes.Client()
	first, err := c.Lock(ctx, "job", client.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lock(ctx, "job", client.LockOptions{Wait: time.Millisecond}); !errors.Is(err, client.ErrLockHeld) {
		t.Errorf("a lock that is held: %v", err)
	}
	second := make(chan *client.Lock, 1)
	go func() {
		l, err := nodes[1].Client().Lock(ctx, "job", client.LockOptions{Text: "second"})
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	if err := first.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	l := <-second
	if l == nil {
		t.FailNow()
	}
	if l.Token <= first.Token {
		t.Errorf("token %d after %d", l.Token, first.Token)
	}
	// Somebody takes the lease away: the holder learns that it holds nothing.
	select {
	case <-l.Lost():
		t.Error("lost while it is kept alive")
	default:
	}
	if err := l.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

// A session that its lease leaves is lost, and says why.
func TestSessionIsLost(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	s, err := c.NewSession(ctx, time.Second, client.LeaseName("test"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := c.LeaseInfo(ctx, s.Lease()); err != nil || info.Name != "test" {
		t.Errorf("%+v %v", info, err)
	}
	work, cancel := s.Context(ctx)
	defer cancel()
	if s.Err() != nil || work.Err() != nil {
		t.Fatalf("a session that lives: %v, %v", s.Err(), work.Err())
	}
	if err := c.Revoke(ctx, s.Lease()); err != nil {
		t.Fatal(err)
	}
	<-work.Done()
	if err := context.Cause(work); !errors.Is(err, client.ErrLost) || !errors.Is(err, client.ErrLeaseNotFound) {
		t.Errorf("cause: %v", err)
	}
	<-s.Lost()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// A holder that no node answers notices by itself that its lock may be lost.
func TestLockIsLostWithoutAnswer(t *testing.T) {
	n := kvdtest.New(t)
	l, err := n.Client().Lock(t.Context(), "job", client.LockOptions{TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	n.Stop()
	<-l.Lost()
	if err := l.Session().Err(); !errors.Is(err, client.ErrLost) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("lost: %v", err)
	}
}

// The lease of a cut node's client lives on through the other nodes. Only the time to live is
// measured in real time, and a renewal needs milliseconds of it, so a busy machine cannot end
// the lease: TestRenewalsSkipHangingNodes has the deadlines, in virtual time.
func TestSessionOutlivesItsNode(t *testing.T) {
	t.Parallel() // most of the time, it waits
	ctx := t.Context()
	nodes := kvdtest.Cluster(t, 3)
	c, err := client.New(client.Config{Endpoints: nodes.Endpoints(), AttemptTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewSession(ctx, 12*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.Cut()
		awaitRenewal(t, c, s)
		n.Mend()
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// awaitRenewal waits until a lease is given its full time.
func awaitRenewal(t *testing.T, c *client.Client, s *client.Session) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for last := s.TTL(); ; <-ticker.C {
		lease, err := c.LeaseInfo(t.Context(), s.Lease())
		if err != nil || s.Err() != nil {
			t.Fatalf("the lease has ended: %v, %v", err, s.Err())
		}
		if lease.Remaining > last {
			return
		}
		last = lease.Remaining
	}
}

func TestListsOfLeasesAndLocks(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	first, err := c.Grant(ctx, time.Minute, client.LeaseID(1<<60), client.LeaseName("first"), client.LockDelay(time.Second))
	if err != nil || first.ID != 1<<60 {
		t.Fatalf("%+v %v", first, err)
	}
	if _, err := c.Grant(ctx, time.Minute, client.LeaseID(1<<60)); !errors.Is(err, client.ErrLeaseExists) {
		t.Errorf("an id that is taken: %v", err)
	}
	if _, err := c.Put(ctx, "k\xff", nil, client.WithLease(first.ID)); err != nil {
		t.Fatal(err)
	}
	for key, err := range c.LeaseKeys(ctx, first.ID) {
		if key != "k\xff" || err != nil {
			t.Errorf("%q %v", key, err)
		}
	}
	l, err := c.Lock(ctx, "odd \xff", client.LockOptions{Text: "me"})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		second, err := c.Lock(ctx, "odd \xff", client.LockOptions{Text: "you"})
		if err == nil {
			err = second.Unlock(ctx)
		}
		waiting <- err
	}()
	info := new(client.LockInfo)
	for info.Waiting == 0 {
		if info, err = c.LockInfo(ctx, "odd \xff"); err != nil {
			t.Fatal(err)
		}
	}
	if info.Holder.Text != "me" || info.Holder.Token != l.Token || len(info.Queue) != 1 || info.Queue[0].Text != "you" {
		t.Errorf("%+v", info)
	}
	n := 0
	for lease, err := range c.Leases(ctx) {
		if n++; err != nil || lease.TTL == 0 {
			t.Errorf("%+v %v", lease, err)
		}
	}
	for lock, err := range c.Locks(ctx) {
		if err != nil || lock.Name != "odd \xff" || lock.Waiting != 1 {
			t.Errorf("%+v %v", lock, err)
		}
	}
	if n != 3 {
		t.Errorf("%d leases", n)
	}
	if err := errors.Join(l.Unlock(ctx), <-waiting); err != nil {
		t.Error(err)
	}
	if _, err := c.LockInfo(ctx, "odd \xff"); !errors.Is(err, client.ErrLockNotFound) {
		t.Errorf("a free lock: %v", err)
	}
}

// The office goes from candidate to candidate, and an observer sees all of it.
func TestElection(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	e := c.Election("chief")
	seen := make(chan string)
	go func() {
		defer close(seen)
		for leader, err := range e.Observe(ctx) {
			switch {
			case err != nil:
				return
			case leader == nil:
				seen <- "-"
			default:
				seen <- string(leader.Value)
			}
		}
	}()
	expect := func(want string) {
		t.Helper()
		if got := <-seen; got != want {
			t.Fatalf("observed %q, want %q", got, want)
		}
	}
	expect("-")
	first, err := e.Campaign(ctx, []byte("a"), client.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect("a")
	if err := first.Proclaim(ctx, []byte("a2")); err != nil {
		t.Fatal(err)
	}
	expect("a2")
	if _, err := e.Campaign(ctx, nil, client.LockOptions{Wait: -1}); !errors.Is(err, client.ErrLockHeld) {
		t.Errorf("an office that is held: %v", err)
	}
	session, err := c.NewSession(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan *client.Leadership, 1)
	go func() {
		l, err := e.Campaign(ctx, []byte("b"), client.LockOptions{Session: session})
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	if err := first.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	expect("-")
	expect("b")
	l := <-second
	if l == nil || l.Token <= first.Token {
		t.Fatalf("%+v after token %d", l, first.Token)
	}
	if err := first.Proclaim(ctx, []byte("late")); !errors.Is(err, client.ErrLeaseNotFound) {
		t.Errorf("a leader that resigned proclaims: %v", err)
	}
	if err := l.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	expect("-")
	if session.Err() != nil {
		t.Errorf("the session ended with the office: %v", session.Err())
	}
}
