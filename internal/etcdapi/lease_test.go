package etcdapi_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestLeases(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	raw := pb.NewLeaseClient(c.ActiveConnection())
	grant := must[*pb.LeaseGrantResponse](t)
	chosen := grant(raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100}))
	if chosen.ID <= 0 || chosen.ID >= 1<<53 || chosen.TTL != 100 || chosen.Header.Revision != 1 {
		t.Errorf("%v", chosen)
	}
	const least = 2 // two election timeouts
	for ttl, want := range map[int64]int64{0: least, -5: least, math.MinInt64/1000 - 1: least, 1: least, 3: 3, 9_000_000_000: 9_000_000_000} {
		if g := grant(raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})); g.TTL != want {
			t.Errorf("a time to live of %d s became %d s", ttl, g.TTL)
		}
	}
	if g := grant(raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60, ID: math.MaxInt64})); g.ID != math.MaxInt64 {
		t.Errorf("%v", g)
	}
	_, err := raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60, ID: math.MaxInt64})
	refused(t, "an id that is taken", err, rpctypes.ErrGRPCLeaseExist)
	_, err = raw.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})
	refused(t, "a time to live beyond the limit", err, rpctypes.ErrGRPCLeaseTTLTooLarge)

	for _, key := range []string{"a", "b", "other"} {
		must[*clientv3.PutResponse](t)(c.Put(ctx, key, "", clientv3.WithLease(math.MaxInt64)))
	}
	must[*clientv3.PutResponse](t)(c.Put(ctx, "other", "")) // detached
	left := must[*pb.LeaseTimeToLiveResponse](t)(raw.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: math.MaxInt64, Keys: true}))
	if got := fmt.Sprintf("%s", left.Keys); got != "[a b]" || left.GrantedTTL != 60 || left.TTL < 50 || left.TTL > 60 || left.Header.Revision != 5 {
		t.Errorf("%v, keys %s", left, got)
	}
	all := must[*pb.LeaseLeasesResponse](t)(raw.LeaseLeases(ctx, new(pb.LeaseLeasesRequest)))
	if !slices.ContainsFunc(all.Leases, func(l *pb.LeaseStatus) bool { return l.ID == chosen.ID }) || all.Header.Revision != 5 {
		t.Errorf("%v lacks %d", all, chosen.ID)
	}
	if r := must[*pb.LeaseRevokeResponse](t)(raw.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: math.MaxInt64})); r.Header.Revision != 6 {
		t.Errorf("%v", r)
	}
	if r := must[*clientv3.GetResponse](t)(c.Get(ctx, "", clientv3.WithPrefix())); keysOf(r) != "other" {
		t.Errorf("after the end of the lease: %s", keysOf(r))
	}
	_, err = raw.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: math.MaxInt64})
	refused(t, "a lease that ended", err, rpctypes.ErrGRPCLeaseNotFound)
	gone := must[*pb.LeaseTimeToLiveResponse](t)(raw.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: math.MaxInt64}))
	if gone.TTL != -1 || gone.GrantedTTL != 0 || gone.ID != math.MaxInt64 || gone.Header.Revision != 6 {
		t.Errorf("%v", gone)
	}
}

// TestLeaseOrder: the leader lists the leases in the order in which they end, also after one
// was kept alive; the other members list the same leases.
func TestLeaseOrder(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	ctx := t.Context()
	for id, ttl := range map[int64]int64{11: 300, 12: 100, 13: 400, 14: 200} {
		must[*pb.LeaseGrantResponse](t)(pb.NewLeaseClient(clientOf(t, nodes[0]).ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}))
	}
	if _, err := nodes[0].Do(ctx, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: 10}, nil); err != nil { // it does not end
		t.Fatal(err)
	}
	// A leader that answers tracks leases.
	must[*clientv3.LeaseTimeToLiveResponse](t)(clientOf(t, nodes[0]).TimeToLive(ctx, 11))
	list := func(n *etcdtest.Node) string {
		if err := n.Barrier(ctx, nil); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, l := range must[*clientv3.LeaseLeasesResponse](t)(clientOf(t, n).Leases(ctx)).Leases {
			ids = append(ids, fmt.Sprint(int64(l.ID)))
		}
		return strings.Join(ids, " ")
	}
	for _, n := range nodes {
		want := "10 11 12 13 14"
		if n.IsLeader() {
			want = "12 14 11 13 10"
		}
		if got := list(n); got != want {
			t.Errorf("member %d, which leads: %t, lists %s, want %s", n.ID(), n.IsLeader(), got, want)
		}
	}
}

// A lease may have more keys than are read at once.
func TestKeysOfLease(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	id := must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 600)).ID
	for from := 0; from < 2500; from += 100 {
		var puts ops
		for i := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%05d", from+i), "", clientv3.WithLease(id)))
		}
		must[*clientv3.TxnResponse](t)(c.Txn(ctx).Then(puts...).Commit())
	}
	left := must[*clientv3.LeaseTimeToLiveResponse](t)(c.TimeToLive(ctx, id, clientv3.WithAttachedKeys()))
	if n := len(left.Keys); n != 2500 || string(left.Keys[n-1]) != "02499" || string(left.Keys[1000]) != "01000" {
		t.Errorf("%d keys", n)
	}
}

// Answers come in the order of the requests, on any member, and a stream goes on after a
// lease that does not exist.
func TestKeepAlives(t *testing.T) {
	for i, n := range etcdtest.Start(t, 3, nil) {
		c := clientOf(t, n)
		ctx := t.Context()
		id := must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 60)).ID
		stream := must[pb.Lease_LeaseKeepAliveClient](t)(pb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(ctx))
		var want, got []string
		for range 600 {
			for _, ask := range []clientv3.LeaseID{id, 99} {
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(ask)}); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, fmt.Sprint(id, " 60"), "99 0")
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for {
			r, err := stream.Recv()
			if err != nil {
				break
			}
			if r.Header.Revision != 1 || r.Header.MemberId != uint64(i+1) {
				t.Fatalf("%v", r)
			}
			got = append(got, fmt.Sprint(r.ID, " ", r.TTL))
		}
		if !slices.Equal(got, want) {
			t.Errorf("member %d: %d answers, want %d: %s", i+1, len(got), len(want), strings.Join(got[:min(len(got), 4)], ", "))
		}
	}
}

// A lease that is kept alive by the client library outlives its time, and one that is not
// ends.
func TestLeaseEnds(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	kept, left := must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 1)).ID, must[*clientv3.LeaseGrantResponse](t)(c.Grant(ctx, 1)).ID
	must[*clientv3.PutResponse](t)(c.Put(ctx, "kept", "", clientv3.WithLease(kept)))
	must[*clientv3.PutResponse](t)(c.Put(ctx, "left", "", clientv3.WithLease(left)))
	alive := must[<-chan *clientv3.LeaseKeepAliveResponse](t)(c.KeepAlive(ctx, kept))
	waitFor(t, "the key of the lease that ended", func() bool {
		select {
		case <-alive:
		default:
		}
		return must[*clientv3.GetResponse](t)(c.Get(ctx, "left")).Count == 0
	})
	if must[*clientv3.GetResponse](t)(c.Get(ctx, "kept")).Count != 1 {
		t.Error("the key of the lease that is kept alive is gone")
	}
}

// waitFor waits for a condition.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestLeaseEndsBehindItsTime: a lease that ends after the leader has told its time, and
// before its keys are read, does not exist.
func TestLeaseEndsBehindItsTime(t *testing.T) {
	l := new(laggard)
	n, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { l.Replicator, o.Replicator = o.Replicator, l }})
	id := bound(t, n, turns.Add(1))
	l.late = func() {
		res, err := n.Do(t.Context(), &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: uint64(id)}, nil)
		if err != nil || res.Outcome != kvstore.OK {
			t.Error(res, err)
		}
	}
	r := must[*clientv3.LeaseTimeToLiveResponse](t)(c.TimeToLive(t.Context(), clientv3.LeaseID(id), clientv3.WithAttachedKeys()))
	if r.TTL != -1 || len(r.Keys) != 0 {
		t.Errorf("%d seconds and %d keys", r.TTL, len(r.Keys))
	}
}
