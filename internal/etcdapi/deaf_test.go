package etcdapi_test

import (
	"crypto/tls"
	"net/url"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// deaf makes calls on one connection and reads none of the answers. security may be nil.
func deaf(t *testing.T, at, method string, request any, calls int, security *tls.Config) (streams []grpc.ClientStream) {
	t.Helper()
	creds := insecure.NewCredentials()
	if security != nil {
		creds = credentials.NewTLS(security)
	}
	u := must[*url.URL](t)(url.Parse(at))
	// With small windows, the server has to wait early. What fits into one needs no reader.
	conn := must[*grpc.ClientConn](t)(grpc.NewClient(u.Host, grpc.WithTransportCredentials(creds),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10)))
	t.Cleanup(func() { _ = conn.Close() })
	for range calls {
		s := must[grpc.ClientStream](t)(conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method))
		if err := s.SendMsg(request); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	return streams
}

// Clients that read no answers hold no more than the budget has for them, and lose their
// connections in the end, however they came.
func TestDeafReaders(t *testing.T) {
	bundle, trust := serverTLS(t)
	both := trust.Clone()
	both.NextProtos = []string{"h2", "http/1.1"}
	memory := budget.New(4 << 20)
	n := etcdtest.Start(t, 1, &etcdtest.Config{
		Listen: "http://127.0.0.1:0,https://127.0.0.1:0", Bundle: bundle,
		Options: func(o *etcdapi.Options) { o.Memory, o.Grace = memory, 300*time.Millisecond },
	})[0]
	c := clientOf(t, n)
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "k", strings.Repeat("v", 120<<10)))
	taken := func() int64 { small, large := memory.Taken(); return small + large }
	for what, use := range map[string]struct {
		url string
		tls *tls.Config
	}{"plain": {n.All[0], nil}, "TLS": {n.All[1], trust}, "TLS that offers both": {n.All[1], both}} {
		waitFor(t, "the memory before "+what, func() bool { return taken() == 0 })
		deaf(t, use.url, pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte("k")}, 10, use.tls)
		waitFor(t, "the answers over "+what, func() bool { return taken() > 200<<10 })
	}
	waitFor(t, "the memory", func() bool { return taken() == 0 })
}

// Clients that read nothing do not keep others from streams for which there are few places.
func TestDeafStreams(t *testing.T) {
	n, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { o.Grace = time.Second }})
	for _, key := range []string{"a", "b", "c", "d"} {
		must[*clientv3.PutResponse](t)(c.Put(t.Context(), key, noise(100<<10)))
	}
	save := func() error {
		s, err := pb.NewMaintenanceClient(c.ActiveConnection()).Snapshot(t.Context(), new(pb.SnapshotRequest))
		for err == nil {
			var r *pb.SnapshotResponse
			if r, err = s.Recv(); err == nil && len(r.Blob) == 32 {
				return nil
			}
		}
		return err
	}
	for _, s := range deaf(t, n.Etcd, pb.Maintenance_Snapshot_FullMethodName, new(pb.SnapshotRequest), 4, nil) {
		must[metadata.MD](t)(s.Header()) // it has a place
	}
	refused(t, "a fifth snapshot", save(), rpctypes.ErrGRPCRequestTooManyRequests)
	waitFor(t, "a place", func() bool { return save() == nil })
}

// noise returns bytes that cannot be compressed.
func noise(size int) string {
	out, x := make([]byte, size), uint64(1)
	for i := range out {
		x = x*6364136223846793005 + 1442695040888963407
		out[i] = byte(x >> 56)
	}
	return string(out)
}
