package etcdapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// learner is a member without a vote.
type learner struct{ etcdapi.Member }

func (learner) IsLearner() bool { return true }

// A learner answers what describes itself and what may be stale, and sends clients to
// other members with everything else.
func TestLearner(t *testing.T) {
	_, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { o.Member = learner{o.Member} }})
	ctx, conn := t.Context(), c.ActiveConnection()
	kv, leases := pb.NewKVClient(conn), pb.NewLeaseClient(conn)
	must[*pb.RangeResponse](t)(kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true}))
	must[*pb.StatusResponse](t)(pb.NewMaintenanceClient(conn).Status(ctx, new(pb.StatusRequest)))
	snapshot := must[pb.Maintenance_SnapshotClient](t)(pb.NewMaintenanceClient(conn).Snapshot(ctx, new(pb.SnapshotRequest)))
	must[*pb.SnapshotResponse](t)(snapshot.Recv())
	_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	refused(t, "a linearizable read", err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("a")})
	refused(t, "a write", err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = must[pb.Lease_LeaseKeepAliveClient](t)(leases.LeaseKeepAlive(ctx)).Recv()
	refused(t, "keep-alives", err, rpctypes.ErrGRPCNotSupportedForLearner)
}

// gate is a replicator whose writes wait until it is opened.
type gate struct {
	etcdapi.Replicator
	entered, open chan struct{}
	bug           bool
}

func (g *gate) Do(ctx context.Context, cmd *kvstore.Command, note etcdapi.NoteStage) (kvstore.Result, error) {
	if g.bug {
		panic("planted")
	}
	select {
	case g.entered <- struct{}{}:
	default:
	}
	select {
	case <-g.open:
		return g.Replicator.Do(ctx, cmd, note)
	case <-ctx.Done():
		return kvstore.Result{}, ctx.Err()
	}
}

func gated(t *testing.T, more func(*etcdapi.Options)) (*gate, *clientv3.Client) {
	g := &gate{entered: make(chan struct{}, 1), open: make(chan struct{})}
	_, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) {
		g.Replicator, o.Replicator = o.Replicator, g
		more(o)
	}})
	return g, c
}

// Calls beyond the limit wait for a moment, and are then refused; those in progress are
// answered.
func TestTooManyCalls(t *testing.T) {
	g, c := gated(t, func(o *etcdapi.Options) { o.MaxInFlight = 1 })
	var first sync.WaitGroup
	first.Go(func() { must[*clientv3.PutResponse](t)(c.Put(t.Context(), "a", "")) })
	<-g.entered
	_, err := c.Put(t.Context(), "b", "")
	refused(t, "a call beyond the limit", err, rpctypes.ErrGRPCRequestTooManyRequests)
	close(g.open)
	first.Wait()
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "b", ""))
}

// A call that takes longer than the server allows has an outcome that nobody knows, and a
// client that allows less meets its own deadline.
func TestDeadlines(t *testing.T) {
	g, c := gated(t, func(o *etcdapi.Options) { o.RequestTimeout = 50 * time.Millisecond })
	_, err := c.Put(t.Context(), "a", "")
	refused(t, "a call that takes too long", err, rpctypes.ErrGRPCTimeout)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Put(ctx, "a", ""); status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call of an impatient client: %v", err)
	}
	close(g.open)
}

// The request log has calls and streams without keys and values; a bug costs one call.
func TestRequestLog(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	g, c := gated(t, func(o *etcdapi.Options) { o.RequestLog, o.Logger = "all", zap.New(core) })
	close(g.open)
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "secret", "secret"))
	g.bug = true
	if _, err := c.Put(t.Context(), "secret", "secret"); status.Code(err) != codes.Internal {
		t.Errorf("a bug: %v", err)
	}
	g.bug = false
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "secret", "secret"))
	stream := must[pb.Lease_LeaseKeepAliveClient](t)(pb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(t.Context()))
	_ = stream.CloseSend()
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("the end of a stream: %v", err)
	}
	var lines []string
	for _, e := range logged.All() {
		encoded, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "m"}).EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, encoded.String())
	}
	all := strings.Join(lines, "")
	for _, want := range []string{`"request","method":"KV/Put","code":"OK"`, `"code":"Internal"`, `"panic: planted"`, `"method":"Lease/LeaseKeepAlive","code":"OK"`, `"remote":"127.0.0.1:`} {
		if !strings.Contains(all, want) {
			t.Errorf("the log lacks %s:\n%s", want, all)
		}
	}
	if strings.Contains(all, `"secret"`) {
		t.Errorf("the log has a key or a value:\n%s", all)
	}
}

// What is not understood in the metadata is refused.
func TestClientVersion(t *testing.T) {
	n, c := alone(t, nil)
	bad := metadata.NewIncomingContext(t.Context(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "\xff"))
	_, err := n.Calls.Call(bad, "/etcdserverpb.KV/Range", func(any) error { return nil })
	refused(t, "a version that is no text", err, rpctypes.ErrGRPCInvalidClientAPIVersion)
	_, err = n.Calls.Call(t.Context(), "/etcdserverpb.KV/Nothing", nil)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	must[*clientv3.GetResponse](t)(c.Get(t.Context(), "a"))
}
