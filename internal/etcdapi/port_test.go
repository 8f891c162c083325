package etcdapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
)

// protocolOf answers with the protocol of the request.
func protocolOf(*etcdapi.Server, node.Face) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
}

// serverTLS returns the certificates of a node on 127.0.0.1, and who trusts them.
func serverTLS(t *testing.T) (*certs.Bundle, *tls.Config) {
	t.Helper()
	ca, err := certs.NewAuthority("test", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(certs.Order{Name: "node", Hosts: []string{"127.0.0.1"}, NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := certs.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for name, data := range map[string][]byte{files.Cert: cert, files.Key: key} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := certs.Load(certs.Config{Name: "clients", Files: files, Protocols: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertPEM)
	return b, &tls.Config{RootCAs: roots}
}

// Every listener serves both gRPC and HTTP, whatever the client of TLS offers.
func TestListeners(t *testing.T) {
	bundle, trust := serverTLS(t)
	n := etcdtest.Start(t, 1, &etcdtest.Config{
		Listen: "http://127.0.0.1:0,https://127.0.0.1:0,unix://" + filepath.Join(t.TempDir(), "etcd.sock"), Bundle: bundle, Web: protocolOf,
	})[0]
	both := trust.Clone()
	both.NextProtos = []string{"h2", "http/1.1"}
	for what, use := range map[string]struct {
		url string
		tls *tls.Config
	}{
		"plain": {n.All[0], nil}, "TLS": {n.All[1], trust}, "TLS that offers both": {n.All[1], both}, "a socket": {n.All[2], nil},
	} {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{use.url}, TLS: use.tls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer c.Close()
		p := must[*clientv3.PutResponse](t)(c.Put(t.Context(), what, "1"))
		if kv := must[*clientv3.GetResponse](t)(c.Get(t.Context(), what)); p.Header.MemberId != 1 || kv.Count != 1 {
			t.Errorf("%s: %v", what, kv)
		}
	}
	for what, use := range map[string]struct {
		url, want string
		transport *http.Transport
	}{
		"plain":  {n.All[0], "HTTP/1.1", new(http.Transport)},
		"TLS":    {n.All[1], "HTTP/1.1", &http.Transport{TLSClientConfig: trust}},
		"HTTP/2": {n.All[1], "HTTP/2.0", &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}},
		"a socket": {"http://socket", "HTTP/1.1", &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(n.All[2], "unix://"))
		}}},
	} {
		c := http.Client{Transport: use.transport}
		r, err := c.Get(use.url + "/health")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if string(body) != use.want {
			t.Errorf("%s: %s, want %s", what, body, use.want)
		}
		c.CloseIdleConnections()
	}
}

// Beyond the limit on connections, calls find no node and probes are answered.
func TestConnectionLimit(t *testing.T) {
	n := etcdtest.Start(t, 1, &etcdtest.Config{MaxConnections: "1", Web: protocolOf})[0]
	silent := must[net.Conn](t)(net.Dial("tcp", strings.TrimPrefix(n.Etcd, "http://")))
	defer silent.Close()
	web := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	status := func(path string) int {
		r := must[*http.Response](t)(web.Get(n.Etcd + path))
		defer r.Body.Close()
		return r.StatusCode
	}
	waitFor(t, "the connection to take the only place", func() bool { return status("/v3/kv/range") == http.StatusTooManyRequests })
	if got := status("/health"); got != http.StatusOK {
		t.Errorf("a probe got %d", got)
	}
	c := clientOf(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if r, err := c.Get(ctx, "a"); err == nil {
		t.Errorf("a call beyond the limit was answered: %v", r)
	}
	_ = silent.Close()
	must[*clientv3.GetResponse](t)(c.Get(t.Context(), "a"))
}

// Nodes that stop and start one after another cost a client no call.
func TestRollingRestart(t *testing.T) {
	nodes := etcdtest.Start(t, 3, &etcdtest.Config{Tick: 100 * time.Millisecond})
	c := clientOf(t, nodes...)
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	var done [4]atomic.Int64
	for i := range done {
		calls.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				key, value := fmt.Sprint("k", i), fmt.Sprint(done[i].Load())
				if _, err := c.Put(t.Context(), key, value); err != nil {
					t.Errorf("put: %v", err)
				}
				if r, err := c.Get(t.Context(), key); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != value {
					t.Errorf("get: %v %v", r, err)
				}
				done[i].Add(1)
			}
		})
	}
	for _, n := range nodes {
		n.Stop()
		n.Restart()
		for i := range done {
			before := done[i].Load()
			waitFor(t, "calls after a restart", func() bool { return done[i].Load() > before+1 || t.Failed() })
		}
	}
}

// slowPuts holds puts until they are released.
type slowPuts struct {
	etcdapi.Replicator
	arrived chan struct{}
	release chan struct{}
}

// Do implements etcdapi.Replicator.
func (s *slowPuts) Do(ctx context.Context, cmd *kvstore.Command, note etcdapi.NoteStage) (kvstore.Result, error) {
	if cmd.Op == kvstore.OpPut {
		s.arrived <- struct{}{}
		<-s.release
	}
	return s.Replicator.Do(ctx, cmd, note)
}

// A node that stops answers the calls that it has begun, however they came.
func TestCallsEndBeforeStop(t *testing.T) {
	bundle, trust := serverTLS(t)
	both := trust.Clone()
	both.NextProtos = []string{"h2", "http/1.1"}
	slow := &slowPuts{arrived: make(chan struct{}), release: make(chan struct{})}
	n := etcdtest.Start(t, 1, &etcdtest.Config{
		Listen: "http://127.0.0.1:0,https://127.0.0.1:0", Bundle: bundle,
		Options: func(o *etcdapi.Options) { slow.Replicator, o.Replicator = o.Replicator, slow },
	})[0]
	var calls sync.WaitGroup
	var streams []healthpb.Health_WatchClient
	for what, use := range map[string]struct {
		url string
		tls *tls.Config
	}{"plain": {n.All[0], nil}, "TLS": {n.All[1], trust}, "TLS that offers both": {n.All[1], both}} {
		c := must[*clientv3.Client](t)(clientv3.New(clientv3.Config{Endpoints: []string{use.url}, TLS: use.tls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second}))
		t.Cleanup(func() { _ = c.Close() })
		s := must[healthpb.Health_WatchClient](t)(healthpb.NewHealthClient(c.ActiveConnection()).Watch(t.Context(), new(healthpb.HealthCheckRequest)))
		must[*healthpb.HealthCheckResponse](t)(s.Recv())
		streams = append(streams, s)
		calls.Go(func() {
			if _, err := c.Put(t.Context(), what, "1"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
		<-slow.arrived
	}
	var stopping sync.WaitGroup
	stopping.Go(n.Stop)
	for _, s := range streams { // their end is the sign that clients were sent away
		for err := error(nil); err == nil; {
			_, err = s.Recv()
		}
	}
	close(slow.release)
	calls.Wait()
	stopping.Wait()
}

// A stream of keep-alives ends with a stop, and the client library goes on elsewhere.
func TestStreamsEndWithStop(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	c := clientOf(t, nodes[0])
	stream := must[pb.Lease_LeaseKeepAliveClient](t)(pb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(t.Context()))
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	must[*pb.LeaseKeepAliveResponse](t)(stream.Recv())
	nodes[0].Stop()
	_, err := stream.Recv()
	refused(t, "a stream of a node that stopped", err, rpctypes.ErrGRPCStopped)
}

// Without a leader, calls that ask for one are refused at once, and streams that do end.
func TestRequireLeader(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	c := clientOf(t, nodes[0])
	asking := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	leases := pb.NewLeaseClient(c.ActiveConnection())
	asks, does := must[pb.Lease_LeaseKeepAliveClient](t)(leases.LeaseKeepAlive(asking)), must[pb.Lease_LeaseKeepAliveClient](t)(leases.LeaseKeepAlive(t.Context()))
	for _, stream := range []pb.Lease_LeaseKeepAliveClient{asks, does} {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
			t.Fatal(err)
		}
		must[*pb.LeaseKeepAliveResponse](t)(stream.Recv())
	}
	nodes[1].Stop()
	nodes[2].Stop()
	_, err := asks.Recv()
	refused(t, "a stream without a leader", err, rpctypes.ErrGRPCNoLeader)
	_, err = pb.NewKVClient(c.ActiveConnection()).Range(asking, &pb.RangeRequest{Key: []byte("a"), Serializable: true})
	refused(t, "a call without a leader", err, rpctypes.ErrGRPCNoLeader)
	must[*pb.RangeResponse](t)(pb.NewKVClient(c.ActiveConnection()).Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true}))
	if err := does.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := does.Recv(); err != io.EOF {
		t.Errorf("a stream that asked for no leader: %v", err)
	}
}
