package watchrpc

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	clusterID, memberID, term = 0xfedcba9876543210, 3, 7
	// enough is how long a test waits for what must come.
	enough = 20 * time.Second
)

// fixture is a real store with its hub, behind a real gRPC server.
type fixture struct {
	t       testing.TB
	store   *kvstore.Store
	hub     *watch.Hub
	server  *Server
	grpc    *grpc.Server
	address string

	connections connections

	mu    sync.Mutex
	index uint64 // of the last entry
}

func newFixture(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	f := newUnserved(t, change...)
	f.serve()
	return f
}

// newUnserved returns a fixture without the gRPC server.
func newUnserved(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, hub: watch.New(watch.Options{MaxWatches: 200}), connections: connections{TransportCredentials: insecure.NewCredentials()}}
	store, err := kvstore.Open(engine.NewMemory(), kvstore.Options{Observer: f.hub})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	f.store = store
	f.hub.Attach(store)
	o := Options{Watches: f.hub, Header: func(revision uint64) *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: clusterID, MemberId: memberID, Revision: int64(revision), RaftTerm: term}
	}}
	for _, c := range change {
		c(&o)
	}
	f.server = New(o)
	return f
}

func (f *fixture) serve() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.address = l.Addr().String()
	f.grpc = grpc.NewServer(grpc.ForceServerCodecV2(codec.New()), grpc.Creds(&f.connections), grpc.MaxRecvMsgSize(8<<20), grpc.MaxSendMsgSize(1<<30), grpc.WaitForHandlers(true))
	pb.RegisterWatchServer(f.grpc, f.server)
	var served sync.WaitGroup
	served.Go(func() { _ = f.grpc.Serve(l) })
	f.t.Cleanup(func() { f.grpc.Stop(); served.Wait() })
}

// connections are the credentials of a server without TLS that can cut its connections.
type connections struct {
	credentials.TransportCredentials
	mu  sync.Mutex
	all []net.Conn
}

func (c *connections) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, conn)
	return conn, cuttable{conn}, nil
}

func (c *connections) Clone() credentials.TransportCredentials { return c }

func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		_ = conn.Close()
	}
	c.all = nil
}

type cuttable struct{ net.Conn }

func (cuttable) AuthType() string { return "insecure" }
func (c cuttable) Cut()           { _ = c.Close() }

// apply applies commands as the entries of a log and returns the last revision.
func (f *fixture) apply(commands ...*kvstore.Command) uint64 {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var revision uint64
	for _, c := range commands {
		f.index++
		entries := []kvstore.Entry{{Index: f.index, Term: 1, WantResults: true, Commands: [][]byte{kvstore.EncodeCommand(nil, c)}}}
		if err := f.store.Apply(entries); err != nil {
			f.t.Fatal(err)
		}
		r := entries[0].Results[0].(*kvstore.Result)
		if r.Outcome != kvstore.OK {
			f.t.Fatalf("%v: %s", r.Outcome, r.Detail)
		}
		revision = r.Revision
	}
	return revision
}

func put(key, value string) *kvstore.Command {
	return &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte(value)}
}

func remove(key string) *kvstore.Command {
	return &kvstore.Command{Op: kvstore.OpDelete, Key: []byte(key)}
}

func txn(commands ...*kvstore.Command) *kvstore.Command {
	t := new(kvstore.Txn)
	for _, c := range commands {
		t.Then = append(t.Then, *c)
	}
	return &kvstore.Command{Op: kvstore.OpTxn, Txn: t}
}

func (f *fixture) put(key, value string) uint64 { f.t.Helper(); return f.apply(put(key, value)) }

func (f *fixture) compact(revision uint64) {
	f.t.Helper()
	f.apply(&kvstore.Command{Op: kvstore.OpCompact, Revision: revision})
}

// client returns a clientv3.
func (f *fixture) client() *clientv3.Client {
	f.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{f.address}, Logger: zap.NewNop()})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// call is a stream that the test speaks by itself.
type call struct {
	t    testing.TB
	conn *grpc.ClientConn
	rpc  pb.Watch_WatchClient
}

// open opens a stream on a connection of its own.
func (f *fixture) open(options ...grpc.DialOption) *call {
	f.t.Helper()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient(f.address, options...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return (&call{t: f.t, conn: conn}).again()
}

// again opens another stream on the same connection.
func (c *call) again() *call {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), enough)
	c.t.Cleanup(cancel)
	rpc, err := pb.NewWatchClient(c.conn).Watch(ctx, grpc.MaxCallRecvMsgSize(1<<30))
	if err != nil {
		c.t.Fatal(err)
	}
	return &call{c.t, c.conn, rpc}
}

func (c *call) send(r *pb.WatchRequest) *call {
	c.t.Helper()
	if err := c.rpc.Send(r); err != nil {
		c.t.Fatal(err)
	}
	return c
}

func (c *call) create(r *pb.WatchCreateRequest) *call {
	c.t.Helper()
	return c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

// created creates a watch and returns its id and the revision of its beginning.
func (c *call) created(r *pb.WatchCreateRequest) (id, revision int64) {
	c.t.Helper()
	got := c.create(r).next()
	if !got.Created || got.Canceled || len(got.Events) > 0 {
		c.t.Fatalf("not created: %v", got)
	}
	return got.WatchId, got.Header.Revision
}

func (c *call) cancel(id int64) *call {
	c.t.Helper()
	return c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (c *call) askProgress() *call {
	c.t.Helper()
	return c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: new(pb.WatchProgressRequest)}})
}

func (c *call) next() *pb.WatchResponse {
	c.t.Helper()
	r, err := c.rpc.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if h := r.Header; h.GetClusterId() != clusterID || h.GetMemberId() != memberID || h.GetRaftTerm() != term {
		c.t.Errorf("header %v", h)
	}
	return r
}

// text is an event in short: "a=1@3" or "-a@4", with "<" and the previous value.
func text(e *mvccpb.Event) string {
	out := string(e.Kv.Key)
	if e.Type == mvccpb.Event_DELETE {
		out = "-" + out
	} else {
		out += "=" + string(e.Kv.Value)
	}
	out += "@" + number(e.Kv.ModRevision)
	if e.PrevKv != nil {
		out += "<" + string(e.PrevKv.Value) + "@" + number(e.PrevKv.ModRevision)
	}
	return out
}

func texts(events []*mvccpb.Event) (out []string) {
	for _, e := range events {
		out = append(out, text(e))
	}
	return out
}
