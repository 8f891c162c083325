package clients

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"

	"github.com/kvd-io/kvd/test/conformance/cluster"
)

// limit is how long a test may take on a busy machine.
const limit = 2 * time.Minute

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// interrupt stops one of several members, the leader if the test asks for it,
// and returns a function that starts it again. A member alone goes on.
func interrupt(ctx context.Context, t *testing.T, c *cluster.Cluster, leader bool) (resume func()) {
	t.Helper()
	if len(c.Members) == 1 {
		return func() {}
	}
	m := c.Members[len(c.Members)-1]
	if leader {
		m = c.Leader(ctx, t)
	}
	m.Kill()
	return m.Start
}

// patiently repeats a call of the client that a member has taken with it: the
// library repeats only reads by itself.
func patiently(ctx context.Context, call func(context.Context) error) error {
	for {
		err := call(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// session opens a session, which ends with the test.
func session(t *testing.T, client *clientv3.Client, ttl int) *concurrency.Session {
	t.Helper()
	s, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestSession: a session lasts while its client lives, across the death of the
// leader, and its keys go with it.
func TestSession(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	s := session(t, client, 10)
	if _, err := client.Put(ctx, "mine", "v", clientv3.WithLease(s.Lease())); err != nil {
		t.Fatal(err)
	}
	resume := interrupt(ctx, t, c, true)
	defer resume()
	left, err := client.TimeToLive(ctx, s.Lease(), clientv3.WithAttachedKeys())
	if err != nil || left.TTL <= 0 || left.GrantedTTL != 10 || len(left.Keys) != 1 || string(left.Keys[0]) != "mine" {
		t.Fatalf("got %+v, %v", left, err)
	}
	select {
	case <-s.Done():
		t.Fatal("the session ended")
	default:
	}
	gone := client.Watch(ctx, "mine")
	if err := patiently(ctx, func(context.Context) error { return s.Close() }); err != nil {
		t.Fatal(err)
	}
	if e := next(ctx, t, gone); e.Type != clientv3.EventTypeDelete {
		t.Errorf("got %v", e)
	}
}

// next returns the next event of a watch.
func next(ctx context.Context, t *testing.T, w clientv3.WatchChan) *clientv3.Event {
	t.Helper()
	for {
		select {
		case r, ok := <-w:
			if !ok || r.Err() != nil {
				t.Fatalf("the watch ended: %v", r.Err())
			}
			if len(r.Events) > 0 {
				return r.Events[0]
			}
		case <-ctx.Done():
			t.Fatal("no event came")
		}
	}
}

// TestMutex: a holder of the lock is alone, whatever happens to a member.
func TestMutex(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	const workers, turns = 5, 10
	var mu sync.Mutex // held by the holder of the lock; never contended
	var g errgroup.Group
	half := make(chan struct{}, workers*turns)
	for range workers {
		s := session(t, c.Client(t), 30)
		g.Go(func() error {
			for range turns {
				m := concurrency.NewMutex(s, "lock")
				if err := patiently(ctx, m.Lock); err != nil {
					return fmt.Errorf("lock: %w", err)
				}
				if !mu.TryLock() {
					return errors.New("two hold the lock")
				}
				if m.Header().Revision < 2 {
					return fmt.Errorf("locked at revision %d", m.Header().Revision)
				}
				mu.Unlock()
				half <- struct{}{}
				if err := patiently(ctx, m.Unlock); err != nil {
					return fmt.Errorf("unlock: %w", err)
				}
			}
			return nil
		})
	}
	for range workers * turns / 2 {
		<-half
	}
	resume := interrupt(ctx, t, c, false)
	defer resume()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTryLock: a lock that another session holds is refused at once, and free
// once that session has ended.
func TestTryLock(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	holder, other := session(t, c.Client(t), 30), session(t, c.Client(t), 30)
	if err := concurrency.NewMutex(holder, "lock").Lock(ctx); err != nil {
		t.Fatal(err)
	}
	m := concurrency.NewMutex(other, "lock")
	if err := m.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatalf("got %v", err)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Lock(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestElection: the second candidate takes over when the first one resigns or
// dies, and observers see each leader.
func TestElection(t *testing.T) {
	ctx, c := within(t), cluster.Start(t)
	first, second := session(t, c.Client(t), 5), session(t, c.Client(t), 30)
	a, b := concurrency.NewElection(first, "office"), concurrency.NewElection(second, "office")
	if err := a.Campaign(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	observed := concurrency.NewElection(second, "office").Observe(ctx)
	leads(ctx, t, observed, "a")
	if err := a.Proclaim(ctx, "a again"); err != nil {
		t.Fatal(err)
	}
	leads(ctx, t, observed, "a again")
	won := make(chan error, 1)
	go func() {
		won <- patiently(ctx, func(ctx context.Context) error { return b.Campaign(ctx, "b") })
	}()
	resume := interrupt(ctx, t, c, true)
	defer resume()
	first.Orphan() // it no longer keeps its lease alive, as if it had died
	if err := <-won; err != nil {
		t.Fatal(err)
	}
	leads(ctx, t, observed, "b")
	if l, err := a.Leader(ctx); err != nil || string(l.Kvs[0].Value) != "b" {
		t.Errorf("got %v, %v", l, err)
	}
	if err := patiently(ctx, b.Resign); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("got %v", err)
	}
}

// leads waits until the observer sees this proclamation.
func leads(ctx context.Context, t *testing.T, observed <-chan *clientv3.GetResponse, value string) {
	t.Helper()
	for {
		select {
		case r, ok := <-observed:
			if !ok {
				t.Fatal("the observer ended")
			}
			if string(r.Kvs[0].Value) == value {
				return
			}
		case <-ctx.Done():
			t.Fatalf("%q was not observed", value)
		}
	}
}

// TestSTM: transfers between accounts neither make nor lose money, at each
// isolation that forbids it.
func TestSTM(t *testing.T) {
	for _, isolation := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable} {
		t.Run(fmt.Sprint(isolation), func(t *testing.T) { transfers(t, isolation) })
	}
}

func transfers(t *testing.T, isolation concurrency.Isolation) {
	ctx, c := within(t), cluster.Start(t)
	client := c.Client(t)
	const accounts, workers, turns = 5, 4, 20
	for i := range accounts {
		if _, err := client.Put(ctx, account(i), "100"); err != nil {
			t.Fatal(err)
		}
	}
	var g errgroup.Group
	half := make(chan struct{}, workers*turns)
	for w := range workers {
		g.Go(func() error {
			for i := range turns {
				from, to := account((w+i)%accounts), account((w+3*i+1)%accounts)
				if err := patiently(ctx, func(ctx context.Context) error { return transfer(ctx, client, isolation, from, to) }); err != nil {
					return err
				}
				half <- struct{}{}
			}
			return nil
		})
	}
	for range workers * turns / 2 {
		<-half
	}
	resume := interrupt(ctx, t, c, false)
	defer resume()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	all, err := client.Get(ctx, "account/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, kv := range all.Kvs {
		n, _ := strconv.Atoi(string(kv.Value))
		sum += n
	}
	if len(all.Kvs) != accounts || sum != 100*accounts {
		t.Errorf("%d accounts have %d", len(all.Kvs), sum)
	}
}

func account(i int) string { return fmt.Sprintf("account/%d", i) }

// transfer may run again after it succeeded unknown to the caller, which moves
// money twice but keeps the sum.
func transfer(ctx context.Context, client *clientv3.Client, isolation concurrency.Isolation, from, to string) error {
	_, err := concurrency.NewSTM(client, func(s concurrency.STM) error {
		a, _ := strconv.Atoi(s.Get(from))
		if from == to {
			return nil
		}
		b, _ := strconv.Atoi(s.Get(to))
		s.Put(from, strconv.Itoa(a-1))
		s.Put(to, strconv.Itoa(b+1))
		return nil
	}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
	return err
}
