package httpapi

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// awaitWaiting waits until a number of requests wait for the lock.
func (f *fixture) awaitWaiting(name string, n uint64) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		waiting := uint64(0)
		if info, _, err := f.node.Lock([]byte(name), 1); err == nil {
			waiting = info.Tickets - 1
		}
		if waiting == n {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.t.Fatalf("%d requests wait for %q, want %d", waiting, name, n)
		}
	}
}

// TestLockDelay: a lease can keep the locks that its end frees closed for a while.
func TestLockDelay(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/leases", `{"id":7,"ttl":"30s","lock_delay":"15s"}`).want(201)
	f.do("GET", "/v1/leases/7", "").want(200, `"lock_delay":"15s"`)
	f.do("POST", "/v1/locks/l?lease=7", "me").want(200, `"token":2`)
	f.do("DELETE", "/v1/leases/7", "").want(200)
	f.do("POST", "/v1/locks/l?ttl=30s", "you").problem(409, api.LockHeld, `"token":2`, "lease 3")
	f.do("GET", "/v1/leases/3", "").want(200, `"id":3,"ttl":"15s","name":"lock delay"`)
	f.do("POST", "/v1/locks/l?lease=3", "").problem(404, api.LeaseNotFound, "lock delay")
	f.do("DELETE", "/v1/leases/3", "").want(200) // who knows better may open it
	f.do("POST", "/v1/locks/l?ttl=30s", "you").want(200, `"token":5`)
	f.do("POST", "/v1/leases", `{"ttl":"30s","lock_delay":"-1s"}`).problem(400, api.BadRequest, "lock_delay")
}

// TestLockDelayOfOwnLease: a lock whose request made its lease stays closed, too, if the
// lease ends, but not if the lock is released.
func TestLockDelayOfOwnLease(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=15s", "me").want(200, `"lease":1,"token":2,"ttl":"30s"`)
	f.do("GET", "/v1/leases/1", "").want(200, `"lock_delay":"15s"`)
	f.do("DELETE", "/v1/locks/l?lease=1", "").want(204)
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=1.5", "me").want(200, `"lease":3,"token":4`)
	f.do("DELETE", "/v1/leases/3", "").want(200)
	f.do("POST", "/v1/locks/l?ttl=30s", "you").problem(409, api.LockHeld, `"token":4`, "lease 5")
	f.do("GET", "/v1/leases/5", "").want(200, `"ttl":"1.5s","name":"lock delay"`)
	f.do("DELETE", "/v1/locks/l?lease=5", "").want(204)
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=0s", "you").want(200, `"lease":6`)
	f.do("DELETE", "/v1/leases/6", "").want(200)
	f.do("GET", "/v1/locks/l", "").problem(404, api.LockNotFound)

	f.do("POST", "/v1/leases", `{"ttl":"30s"}`).want(201, `"id":8`)
	f.do("POST", "/v1/locks/l?lease=8&lock_delay=15s", "").problem(400, api.BadRequest, "lock_delay", "ttl")
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=x", "").problem(400, api.BadRequest, "lock_delay")
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=-1s", "").problem(400, api.BadRequest, "lock_delay")
	f.do("POST", "/v1/locks/l?ttl=30s&lock_delay=2500001h", "").problem(413, api.TooLarge, "lock delay")
	f.do("PUT", "/v1/kv/k?ttl=30s&lock_delay=15s", "x").problem(400, api.BadRequest, "lock_delay")
}

func TestLocks(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "me").wantBody(200, `{"name":"l","lease":1,"token":2,"ttl":"30s"}`+"\n")
	f.do("POST", "/v1/locks/l?ttl=30s", "you").problem(409, api.LockHeld, `"token":2`)
	f.do("POST", "/v1/locks/l?lease=77", "you").problem(404, api.LeaseNotFound) // trying again would not help
	f.do("POST", "/v1/leases", `{"ttl":"30s"}`).want(201, `"id":3`)
	f.do("POST", "/v1/locks/a%2Fb%FF?lease=3", "").wantBody(200, `{"name_base64":"YS9i/w==","lease":3,"token":4}`+"\n")
	f.do("POST", "/v1/locks/a/b%FF?lease=3", "").want(200, `"token":4`) // the same name, and the same ticket
	f.do("GET", "/v1/locks/l", "").wantBody(200, `{"name":"l","holder":{"lease":1,"token":2,"text":"me"},"waiting":0,"queue":[]}`+"\n")
	f.do("GET", "/v1/locks", "").want(200, `{"locks":[{"name_base64":"YS9i/w==","holder":{"lease":3,"token":4,"text":""},"waiting":0},{"name":"l",`)
	f.do("GET", "/v1/locks?limit=1", "").want(200, `"next":"`)
	f.do("DELETE", "/v1/locks/l?lease=3", "").problem(404, api.LockNotFound)
	f.do("DELETE", "/v1/locks/l?lease=1", "").want(204)
	f.do("GET", "/v1/locks/l", "").problem(404, api.LockNotFound)
	f.do("DELETE", "/v1/leases/3", "").want(200)
	f.do("GET", "/v1/locks", "").wantBody(200, `{"locks":[]}`+"\n")
}

func TestLockRequestsAreChecked(t *testing.T) {
	f := newFixture(t)
	for _, target := range []string{"/v1/locks/l", "/v1/locks/?ttl=1s", "/v1/locks/l?ttl=1s&lease=3", "/v1/locks/l?ttl=1s&wait=1h", "/v1/locks/l?ttl=0"} {
		f.do("POST", target, "").problem(400, api.BadRequest)
	}
	f.do("DELETE", "/v1/locks/l", "").problem(400, api.BadRequest, "lease")
	f.do("POST", "/v1/locks/l?ttl=1s", strings.Repeat("x", 5000)).problem(413, api.TooLarge)
	f.do("POST", "/v1/locks/l?lease=77", "").problem(404, api.LeaseNotFound)
}

// TestLockQueue: those who wait get the lock in the order of their requests, and hold no
// place meanwhile.
func TestLockQueue(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxInFlight = 1 })
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200, `"token":2`)
	answers := make([]chan *answer, 3)
	for i := range answers {
		answers[i] = make(chan *answer, 1)
		go func() { answers[i] <- f.do("POST", "/v1/locks/l?ttl=30s&wait=30s", "") }()
		f.awaitWaiting("l", uint64(i+1))
	}
	lease := "1"
	for i, next := range []string{"3", "5", "7"} {
		f.do("DELETE", "/v1/locks/l?lease="+lease, "").want(204)
		(<-answers[i]).want(200, `"lease":`+next+`,`)
		lease = next
	}
	if n := f.server.lockWaiters.Load(); n != 0 {
		t.Errorf("%d requests still count as waiting", n)
	}
}

// TestLockWaitEnds: the request leaves the queue, and its lease ends with it.
func TestLockWaitEnds(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200)
	f.do("POST", "/v1/locks/l?ttl=150ms&wait=200ms", "").problem(409, api.LockHeld, `"token":2`)
	f.awaitWaiting("l", 0)
	f.do("GET", "/v1/leases/3", "").problem(404, api.LeaseNotFound)
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	if f.node.renewed == 0 {
		t.Error("the lease of a waiting request was not kept alive")
	}
}

// TestLockClientLeaves: a request whose client has gone must not get the lock, or nobody
// would release it.
func TestLockClientLeaves(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", f.http.URL+"/v1/locks/l?ttl=30s&wait=30s", nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		_, err := f.http.Client().Do(req) //nolint:bodyclose // there is no answer
		gone <- err
	}()
	f.awaitWaiting("l", 1)
	cancel()
	<-gone
	f.awaitWaiting("l", 0)
	f.do("GET", "/v1/leases/3", "").problem(404, api.LeaseNotFound)
}

// TestLockLeaseEndsWhileWaiting: the answer says so, at once.
func TestLockLeaseEndsWhileWaiting(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200)
	waiter := make(chan *answer, 1)
	go func() { waiter <- f.do("POST", "/v1/locks/l?ttl=30s&wait=30s", "") }()
	f.awaitWaiting("l", 1)
	if _, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: 3}, nil); err != nil {
		t.Fatal(err)
	}
	(<-waiter).problem(404, api.LeaseNotFound)
}

// TestLockIsConfirmed: a waiting request whose lease the leader no longer knows is not told
// that it holds the lock.
func TestLockIsConfirmed(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/leases", `{"ttl":"30s"}`).want(201)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200, `"lease":2`)
	f.server.opts.LeaseTimes = noLeases{}
	waiter := make(chan *answer, 1)
	go func() { waiter <- f.do("POST", "/v1/locks/l?lease=1&wait=30s", "") }()
	f.awaitWaiting("l", 1)
	f.do("DELETE", "/v1/locks/l?lease=2", "").want(204)
	(<-waiter).problem(404, api.LeaseNotFound)
}

// noLeases is a leader for whom every lease has ended.
type noLeases struct{}

func (noLeases) AskLease(context.Context, uint64, bool) (api.LeaseTime, error) {
	return api.LeaseTime{}, api.Errorf(api.LeaseNotFound, "gone")
}

// TestLockRepeatIsConfirmed: a repeat of a request that went away knows nothing about the
// time of its lease. It renews it before it waits, and is not told that it holds the lock if
// the leader no longer knows the lease.
func TestLockRepeatIsConfirmed(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200, `"lease":1`)
	answers := make(chan *answer)
	wait := func() { answers <- f.do("POST", "/v1/locks/l?ttl=1h&wait=5m", "", "Idempotency-Key: k") }
	go wait()
	f.awaitWaiting("l", 1)
	f.server.SendAway()
	(<-answers).problem(503, api.Stopping)
	asked := make(goneLeases, 2)
	f.server.waits, f.server.opts.LeaseTimes = t.Context(), asked // as another node
	go wait()
	if renewed := <-asked; !renewed {
		t.Error("the lease was not renewed before the wait")
	}
	f.do("DELETE", "/v1/locks/l?lease=1", "").want(204)
	(<-answers).problem(404, api.LeaseNotFound)
}

// goneLeases is noLeases, and tells what was asked.
type goneLeases chan bool

func (g goneLeases) AskLease(ctx context.Context, lease uint64, renew bool) (api.LeaseTime, error) {
	g <- renew
	return noLeases{}.AskLease(ctx, lease, renew)
}

// A stopping node ends the waits for locks. A client that can name its ticket keeps its
// place in the queue, and a repeat at another node goes on waiting there; the ticket of
// one that cannot is given up.
func TestLockWaitersAreSentAway(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/locks/l?ttl=30s", "").want(200, `"token":2`)
	answers := make(chan *answer)
	wait := func(n uint64, target string, headers ...string) {
		go func() { answers <- f.do("POST", target, "", headers...) }()
		f.awaitWaiting("l", n)
	}
	wait(1, "/v1/locks/l?ttl=30s&wait=60s", "Idempotency-Key: k")
	wait(2, "/v1/locks/l?ttl=30s&wait=60s")
	f.server.SendAway()
	for range 2 {
		(<-answers).problem(503, api.Stopping, "another node")
	}
	f.awaitWaiting("l", 1)
}
