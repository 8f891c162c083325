package watchrpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	// DefaultProgress is how often a quiet watch is told of progress if it asked for that.
	DefaultProgress = 10 * time.Minute
	// MinProgress is the shortest such interval.
	MinProgress = 100 * time.Millisecond
	// DefaultFragment is the size beyond which a response is split if the client asked for
	// that: etcd's limit on requests, with its allowance for what surrounds them.
	DefaultFragment = 2 << 20
	// DefaultGrace is how long a client may read nothing of what memory was claimed for.
	DefaultGrace = 60 * time.Second
)

// Watches opens streams of events. The errors are those of package watch.
type Watches interface {
	OpenStream() (*watch.Stream, error)
	// Revision returns the newest revision that readers see.
	Revision() uint64
}

// Rights judges what the client of a stream may watch. Its errors are those of gRPC.
type Rights interface {
	Allow(ctx context.Context, needs ...rights.Need) error
	// Changed returns a channel that is closed with the next change of the rights, before
	// anything is visible that was written after it.
	Changed() <-chan struct{}
}

// Options say what a Server needs. Watches and Header must be set.
type Options struct {
	Watches Watches
	// Rights may be nil, and then everybody may watch everything.
	Rights Rights
	// Header returns the header of a response, with the ids of cluster and member, and the
	// term.
	Header func(revision uint64) *pb.ResponseHeader
	// Progress is the interval of progress, DefaultProgress if it is 0.
	Progress time.Duration
	// Fragment is the largest size of a response for a client that allows it to be split,
	// DefaultFragment if it is 0.
	Fragment int
	// Memory is claimed for what exceeds budget.Free; nil means that nothing is counted.
	Memory *budget.Budget
	// Grace is how long a client may keep claimed memory without reading; DefaultGrace if
	// it is 0. See Connection. Sessions wait for memory twice as long.
	Grace time.Duration
}

// Server is the service. It is safe for concurrent use.
type Server struct {
	pb.UnimplementedWatchServer
	opts   Options
	memory *budget.Share // nil if nothing is counted
}

// New returns a Server.
func New(o Options) *Server {
	if o.Progress == 0 {
		o.Progress = DefaultProgress
	}
	o.Progress = max(o.Progress, MinProgress)
	if o.Fragment == 0 {
		o.Fragment = DefaultFragment
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	s := &Server{opts: o}
	if o.Memory != nil {
		s.memory = o.Memory.Share()
	}
	return s
}

// Watch implements etcdserverpb.WatchServer.
func (s *Server) Watch(rpc pb.Watch_WatchServer) error {
	stream, err := s.opts.Watches.OpenStream()
	if err != nil {
		return ending(err)
	}
	defer stream.Close()
	x := &session{
		server: s, rpc: rpc, stream: stream,
		watchers: make(map[int64]*watcher), owners: make(map[*watch.Watch]*watcher),
		requests: make(chan *pb.WatchRequest, queuedRequests), broken: make(chan error, 1),
	}
	defer x.end()
	x.await()
	// It ends soon after this method: gRPC ends the context that Recv waits for. Waiting
	// for it here would be waiting for the client.
	go x.receive()
	return ending(x.run(rpc.Context()))
}

// interval is the interval of progress with a little jitter, so that sessions that began
// together do not go on in step.
func (s *Server) interval() time.Duration {
	return s.opts.Progress + rand.N(s.opts.Progress/10)
}

// claim returns a claim on the memory for watches.
func (s *Server) claim() (c budget.SharedClaim) {
	if s.memory != nil {
		c = s.memory.Claim()
	}
	return c
}

// ending gives the end of a session its status. Clients resume after Unavailable, on
// another member if need be; any other code ends their watches.
func ending(err error) error {
	var full *budget.FullError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, watch.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCWatchCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.As(err, &full):
		return status.Errorf(codes.Unavailable, "etcdserver: %v; slow watches hold it", full)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Errorf(codes.Unavailable, "etcdserver: watch: %v", err)
}
