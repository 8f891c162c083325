package etcdapi

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/etcdapi/recipes"
	"github.com/kvd-io/kvd/internal/etcdapi/watchrpc"
)

// Defaults of Options, as in etcd.
const (
	DefaultMaxRequestBytes = 1536 << 10
	DefaultMaxTxnOps       = 128
	DefaultMaxLearners     = 1
	DefaultMaxInFlight     = 4096
	DefaultWatchProgress   = watchrpc.DefaultProgress
	DefaultElection        = time.Second
	DefaultGrace           = watchrpc.DefaultGrace
	// CallTime is what a call may take, beside two election timeouts.
	CallTime = 5 * time.Second
)

// What etcd's clients rely on about connections.
const (
	// requestOverhead is how much larger than the largest request a message may be.
	// Between the two, a client gets etcd's error; beyond, that of gRPC.
	requestOverhead = 512 << 10
	// maxSendBytes: an answer is never cut, and never refused for its size.
	maxSendBytes = math.MaxInt32
	// minPing is how far apart the pings of a client must be.
	minPing = 5 * time.Second
	// pingAfter and pingTimeout are when the server pings, and for how long it waits.
	pingAfter   = 2 * time.Hour
	pingTimeout = 20 * time.Second
	// maxHeaderBytes bounds the metadata of a call. gRPC's default is 16 MiB, which a
	// client could make the node hold for each of its streams.
	maxHeaderBytes = 64 << 10
)

// Options configure a Server. Those without a word about nil are required.
type Options struct {
	// State is what calls read. It is used only after Open.
	Replicator Replicator
	Members    Members
	Member     Member
	Leadership Leadership
	Inspector  Inspector
	LeaseTimes LeaseTimes
	Watches    watchrpc.Watches
	// Gate says who calls, and who may do what.
	Gate *access.Gate

	// Logger receives what an operator should look at; nil discards it.
	Logger *zap.Logger
	// RequestLog selects the calls that Logger receives: "errors", "all", or "off" or
	// "" for none.
	RequestLog string
	// Metrics counts calls; nil counts them for nobody.
	Metrics *Metrics
	// MaxInFlight is how many calls are handled at once; 0 means DefaultMaxInFlight.
	MaxInFlight int
	// Audit records changes, refusals, and administrative calls; may be nil.
	Audit *audit.Log
	// Memory bounds what requests and answers hold. nil means one of budget.Default
	// for a process without a memory limit.
	Memory *budget.Budget
	// MaxRequestBytes bounds a request, and MaxTxnOps the operations on one level of a
	// transaction. 0 means the defaults.
	MaxRequestBytes int
	MaxTxnOps       int
	// MaxLearners bounds the members that stay learners; 0 means DefaultMaxLearners.
	MaxLearners int
	// RequestTimeout bounds a call whose client allows it more, or does not say; 0
	// means CallTime and two election timeouts, as in etcd.
	RequestTimeout time.Duration
	// Election is the election timeout; 0 means DefaultElection. See ledStreams.
	Election time.Duration
	// WatchProgress is how often a client is notified of the progress of a watch that asks
	// for it; 0 means DefaultWatchProgress.
	WatchProgress time.Duration
	// Grace is how long a client may read nothing of what it was sent, in addition to the
	// time that its size allows, before its connection is cut; 0 means DefaultGrace.
	Grace time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Memory == nil {
		o.Memory = budget.New(budget.Default(0))
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	setDefault(&o.MaxInFlight, DefaultMaxInFlight)
	setDefault(&o.MaxRequestBytes, DefaultMaxRequestBytes)
	setDefault(&o.MaxTxnOps, DefaultMaxTxnOps)
	setDefault(&o.MaxLearners, DefaultMaxLearners)
	setDefault(&o.Election, DefaultElection)
	setDefault(&o.RequestTimeout, CallTime+2*o.Election)
	setDefault(&o.WatchProgress, DefaultWatchProgress)
	setDefault(&o.Grace, DefaultGrace)
}

func setDefault[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// Server has etcd's services. It is safe for concurrent use. Its life is that of a Door
// in package frontdoor: it refuses calls until Open, ends its streams with SendAway, and
// is closed by Stop.
type Server struct {
	*judge
	opts Options
	log  *zap.Logger
	// served are the services as gRPC sees them, and servers makes its servers when they
	// are first needed.
	served  []served
	servers func() servers
	headers *answer.Headers
	places  *budget.Places
	// snapshots are places for those that are being sent.
	snapshots *budget.Places
	// state is set by Open. Until then Port closes the connections of gRPC, so no call
	// of a client finds it missing; calls by Call are refused.
	state atomic.Pointer[State]
	calls map[string]*call // by full method name
	// leaving ends with SendAway, and with it the streams, and calls that wait for a
	// lock or an office.
	leaving context.Context
	leave   context.CancelFunc
	counts  *countCache
	led     ledStreams
	codec   *codec.Codec
}

// New returns a Server without state: it starts nothing.
func New(opts Options) *Server {
	opts.setDefaults()
	s := &Server{
		judge: &judge{opts.Gate},
		opts:  opts, log: opts.Logger, places: budget.NewPlaces(opts.MaxInFlight), snapshots: budget.NewPlaces(maxSnapshots),
		calls: make(map[string]*call), counts: newCountCache(), codec: codec.New(),
	}
	s.led.member, s.led.interval = opts.Member, opts.Election
	s.headers = answer.NewHeaders(opts.Member, func() uint64 { return s.store().Revision() })
	s.leaving, s.leave = context.WithCancel(context.Background())
	opts.Metrics.codec.Store(s.codec)
	s.servers = sync.OnceValue(s.newServers)
	s.register()
	return s
}

// served is a service of gRPC.
type served struct {
	desc    *grpc.ServiceDesc
	service any
}

// servers are those of gRPC.
type servers struct {
	own *grpc.Server
	// shared is for the connections of net/http, which lets their calls end when it shuts
	// down. A grpc.Server that stops gracefully breaks them off.
	shared *grpc.Server
}

// newServers starts goroutines, which Stop ends.
func (s *Server) newServers() servers {
	out := servers{own: s.newGRPC(grpc.NumStreamWorkers(callWorkers)), shared: s.newGRPC()}
	for _, v := range s.served {
		out.own.RegisterService(v.desc, v.service)
		out.shared.RegisterService(v.desc, v.service)
	}
	return out
}

func (s *Server) newGRPC(more ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(more,
		grpc.StreamInterceptor(s.stream),
		grpc.ForceServerCodecV2(s.codec),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(0), // see readAhead
		grpc.MaxRecvMsgSize(s.MaxMessage()),
		grpc.MaxSendMsgSize(maxSendBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.Creds(handshaken{}),
		grpc.WaitForHandlers(true),
	)...)
}

// register names the services.
func (s *Server) register() {
	kv, leases := &kvService{Server: s}, &leaseService{Server: s}
	pb.RegisterKVServer(s, kv)
	pb.RegisterLeaseServer(s, leases)
	pb.RegisterAuthServer(s, s.newAuth())
	pb.RegisterClusterServer(s, &clusterService{Server: s})
	pb.RegisterMaintenanceServer(s, &maintenanceService{Server: s})
	pb.RegisterWatchServer(s, watchrpc.New(watchrpc.Options{
		Watches: s.opts.Watches, Header: s.headers.At, Progress: s.opts.WatchProgress,
		Fragment: s.MaxMessage(), Memory: s.opts.Memory, Grace: s.opts.Grace, Rights: s.judge,
	}))
	made := recipes.Options{KV: kv, Leases: leases, Watches: s.opts.Watches, Bound: s.withDeadline, Rights: s.judge}
	v3lockpb.RegisterLockServer(s, &recipes.LockService{Options: made})
	v3electionpb.RegisterElectionServer(s, &recipes.ElectionService{Options: made})
	healthpb.RegisterHealthServer(s, &healthService{leaving: s.leaving})
}

// RegisterService implements grpc.ServiceRegistrar, for clients on the port and for
// Call and Stream alike. It must not be called once the server serves. To gRPC each method
// is a stream: those of one answer receive their request themselves (single).
func (s *Server) RegisterService(desc *grpc.ServiceDesc, service any) {
	streams := *desc
	streams.Methods, streams.Streams = nil, slices.Clone(desc.Streams)
	for i := range desc.Methods {
		m := &desc.Methods[i]
		c := &call{service: service, unary: m, kind: "unary"}
		s.addCall(desc.ServiceName, m.MethodName, c)
		streams.Streams = append(streams.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: s.single(c)})
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		s.addCall(desc.ServiceName, m.StreamName, &call{service: service, stream: m, kind: kindOf(m)})
	}
	s.served = append(s.served, served{&streams, service})
}

func (s *Server) addCall(service, method string, c *call) {
	name := "/" + service + "/" + method
	c.metrics = s.opts.Metrics.of(service, method, c.kind)
	c.waits, c.required, c.administrative = waitsLong[method], required[name], administrative(name)
	c.again = readBehindBarrier[method]
	s.calls[name] = c
}

// Open lets calls through to the state.
func (s *Server) Open(state State) { s.state.Store(&state) }

// Opened reports whether Open was called.
func (s *Server) Opened() bool { return s.state.Load() != nil }

// store returns the state. It is nil-safe only after Open.
func (s *Server) store() *State { return s.state.Load() }

// SendAway ends the streams, and what waits for a lock or an office, so that clients
// continue on other nodes. All other calls are answered as before.
func (s *Server) SendAway() { s.leave() }

// MaxMessage is the size of the largest message that a client may send.
func (s *Server) MaxMessage() int { return s.opts.MaxRequestBytes + requestOverhead }

// FinishCalls tells the connections of gRPC to begin no further call, and waits until the
// last one has ended. Those of net/http are told by its Shutdown.
func (s *Server) FinishCalls() { s.servers().own.GracefulStop() }

// Stop breaks off all calls.
func (s *Server) Stop() {
	all := s.servers()
	all.own.Stop()
	all.shared.Stop()
}

// Call carries out a call of one answer in this process, as if it came from a
// connection. decode fills the request in. The method has the form
// "/etcdserverpb.KV/Range".
func (s *Server) Call(ctx context.Context, method string, decode func(request any) error) (any, error) {
	c := s.calls[method]
	switch {
	case c == nil || c.unary == nil:
		return nil, status.Errorf(codes.Unimplemented, "unknown method %s", method)
	case !s.Opened():
		return nil, rpctypes.ErrGRPCNoLeader
	}
	return c.unary.Handler(c.service, ctx, decode, s.unary)
}

// Stream is Call for a stream, whose messages go through the given one.
func (s *Server) Stream(method string, stream grpc.ServerStream) error {
	c := s.calls[method]
	switch {
	case c == nil || c.stream == nil:
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	case !s.Opened():
		return rpctypes.ErrGRPCNoLeader
	}
	info := &grpc.StreamServerInfo{FullMethod: method, IsClientStream: c.stream.ClientStreams, IsServerStream: c.stream.ServerStreams}
	return s.stream(c.service, stream, info, c.stream.Handler)
}

// call is a method with what is known about it beforehand.
type call struct {
	service any
	unary   *grpc.MethodDesc // nil for a stream
	stream  *grpc.StreamDesc // nil for a call of one answer
	kind    string           // as etcd's metrics name it
	metrics *callMetrics
	waits   bool // for somebody else, for as long as the client likes
	// administrative calls are in the audit log even if they change nothing.
	administrative bool
	// required judges who calls; nil takes the role root.
	required requirement
	// again has it judge once more before the answer: what that has may be newer than the
	// rights by which the call was let in.
	again bool
}

// readBehindBarrier are the methods whose services do not judge again what they have read.
var readBehindBarrier = map[string]bool{"MemberList": true, "UserGet": true, "UserList": true, "RoleGet": true, "RoleList": true}

// waitsLong are the methods of one answer that may wait for another client.
var waitsLong = map[string]bool{"Lock": true, "Campaign": true}

func kindOf(m *grpc.StreamDesc) string {
	switch {
	case m.ClientStreams && m.ServerStreams:
		return "bidi_stream"
	case m.ClientStreams:
		return "client_stream"
	}
	return "server_stream"
}

// methodOf returns the call of a full method name. gRPC itself answers those that do not
// exist.
func (s *Server) methodOf(name string) *call {
	c := s.calls[name]
	if c == nil {
		panic(fmt.Sprintf("etcdapi: method %s was not registered", name))
	}
	return c
}

// shortName returns a method without the package of its service.
func shortName(method string) string {
	return method[strings.LastIndexByte(method[:strings.LastIndexByte(method, '/')], '.')+1:]
}
