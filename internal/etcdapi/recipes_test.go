package etcdapi_test

import (
	"context"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// A lock goes from one to the next in the order of their requests, on whatever member they
// wait.
func TestLock(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	ctx := t.Context()
	c := clientOf(t, nodes[0])
	lock := func(n *etcdtest.Node, ctx context.Context, lease clientv3.LeaseID) (*v3lockpb.LockResponse, error) {
		return v3lockpb.NewLockClient(clientOf(t, n).ActiveConnection()).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: int64(lease)})
	}
	var leases []clientv3.LeaseID
	for range 4 {
		leases = append(leases, must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 60)).ID)
	}
	held := must[*v3lockpb.LockResponse](t)(lock(nodes[0], ctx, leases[0]))
	if want := fmt.Sprintf("l/%x", leases[0]); string(held.Key) != want || held.Header.Revision != 2 {
		t.Errorf("%v, want the key %s", held, want)
	}
	again := must[*v3lockpb.LockResponse](t)(lock(nodes[1], ctx, leases[0]))
	if string(again.Key) != string(held.Key) {
		t.Errorf("again: %v", again)
	}
	locked := make(chan string, len(leases))
	waiting := func(n int) {
		waitFor(t, fmt.Sprint(n, " keys"), func() bool {
			return must[*clientv3.GetResponse](t)(c.Get(ctx, "l/", clientv3.WithPrefix(), clientv3.WithCountOnly())).Count == int64(n)
		})
	}
	givesUp, giveUp := context.WithCancel(ctx)
	for i, lease := range leases[1:] {
		ctx := ctx
		if i == 1 {
			ctx = givesUp
		}
		go func() {
			r, err := lock(nodes[i], ctx, lease)
			if i != 1 && err != nil {
				t.Error(err)
			}
			locked <- string(r.GetKey())
		}()
		waiting(i + 2)
	}
	giveUp()
	waiting(3)
	if got := <-locked; got != "" {
		t.Errorf("%s got the lock after it had given up", got)
	}
	for i, key := range []string{string(held.Key), fmt.Sprintf("l/%x", leases[1])} {
		r := must[*v3lockpb.UnlockResponse](t)(v3lockpb.NewLockClient(c.ActiveConnection()).Unlock(ctx, &v3lockpb.UnlockRequest{Key: []byte(key)}))
		if got, want := <-locked, fmt.Sprintf("l/%x", leases[1+2*i]); got != want || r.Header.Revision == 0 {
			t.Errorf("%s has the lock, want %s", got, want)
		}
	}
	_, err := lock(nodes[0], ctx, 77)
	refused(t, "an unknown lease", err, status.Error(codes.Unknown, rpctypes.ErrorDesc(rpctypes.ErrGRPCLeaseNotFound))) // as in etcd
	own := must[*v3lockpb.LockResponse](t)(v3lockpb.NewLockClient(c.ActiveConnection()).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("own")}))
	kv := must[*clientv3.GetResponse](t)(c.Get(ctx, string(own.Key))).Kvs[0]
	if ttl := must[*clientv3.LeaseTimeToLiveResponse](t)(c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))); ttl.GrantedTTL != 60 {
		t.Errorf("a lease of its own: %v", ttl)
	}
}

// Who waits for a lock whose lease ends is told.
func TestLockOfEndedLease(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	locks := v3lockpb.NewLockClient(c.ActiveConnection())
	must[*v3lockpb.LockResponse](t)(locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l")}))
	lease := must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 60)).ID
	ended := make(chan error, 1)
	go func() {
		_, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: int64(lease)})
		ended <- err
	}()
	waitFor(t, "the key of the second", func() bool {
		return must[*clientv3.GetResponse](t)(c.Get(ctx, "l/", clientv3.WithPrefix())).Count == 2
	})
	must[*clientv3.LeaseRevokeResponse](t)(c.Revoke(ctx, lease))
	must[*clientv3.DeleteResponse](t)(c.Delete(ctx, "l/", clientv3.WithPrefix()))
	if err := <-ended; status.Code(err) != codes.Unknown || status.Convert(err).Message() != "mutex: session is expired" {
		t.Errorf("%v", err)
	}
}

func TestElection(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	ctx := t.Context()
	c := clientOf(t, nodes[0])
	e := v3electionpb.NewElectionClient(c.ActiveConnection())
	unknown := func(what string, err error, text string) {
		t.Helper()
		if status.Code(err) != codes.Unknown || status.Convert(err).Message() != text {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := e.Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	unknown("no leader", err, "election: no leader")
	_, err = e.Proclaim(ctx, new(v3electionpb.ProclaimRequest))
	unknown("no leader key", err, `"leader" field must be provided`)
	_, err = e.Resign(ctx, new(v3electionpb.ResignRequest))
	unknown("no leader key", err, `"leader" field must be provided`)

	observed := must[v3electionpb.Election_ObserveClient](t)(v3electionpb.NewElectionClient(clientOf(t, nodes[2]).ActiveConnection()).Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")}))
	says := func(value string) {
		t.Helper()
		if r := must[*v3electionpb.LeaderResponse](t)(observed.Recv()); string(r.Kv.Value) != value || r.Header.Revision < r.Kv.ModRevision {
			t.Errorf("observed %v, want %s", r, value)
		}
	}
	campaign := func(n int, value string) *v3electionpb.CampaignResponse {
		lease := must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 60)).ID
		return must[*v3electionpb.CampaignResponse](t)(v3electionpb.NewElectionClient(clientOf(t, nodes[n]).ActiveConnection()).
			Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Lease: int64(lease), Value: []byte(value)}))
	}
	first := campaign(0, "one")
	says("one")
	must[*v3electionpb.ProclaimResponse](t)(e.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: first.Leader, Value: []byte("uno")}))
	says("uno")
	second := make(chan *v3electionpb.CampaignResponse, 1)
	go func() { second <- campaign(1, "two") }()
	waitFor(t, "the second candidate", func() bool {
		return must[*clientv3.GetResponse](t)(c.Get(ctx, "e/", clientv3.WithPrefix())).Count == 2
	})
	if r := must[*v3electionpb.LeaderResponse](t)(e.Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})); string(r.Kv.Value) != "uno" {
		t.Errorf("the leader is %v", r)
	}
	must[*v3electionpb.ResignResponse](t)(e.Resign(ctx, &v3electionpb.ResignRequest{Leader: first.Leader}))
	says("two")
	if r := <-second; string(r.Leader.Name) != "e" || r.Leader.Rev == 0 {
		t.Errorf("%v", r)
	}
	_, err = e.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: first.Leader, Value: []byte("x")})
	unknown("a leader that has resigned", err, "election: not leader")
	must[*v3electionpb.ResignResponse](t)(e.Resign(ctx, &v3electionpb.ResignRequest{Leader: first.Leader}))
}
