package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/answer"
)

// unary is around every call of one answer: it counts the call, refuses what cannot be
// served, gives the rest a place, a deadline and its memory, and turns errors into those
// of etcd.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	c := s.methodOf(info.FullMethod)
	start := time.Now()
	c.metrics.began()
	defer func() { s.ended(ctx, info.FullMethod, c, start, err) }()
	defer s.recover(info.FullMethod, &err)
	if err := s.admissible(ctx, c, req); err != nil {
		return nil, err
	}
	if c.waits {
		claimOf(ctx).Release() // who waits holds nothing
		ctx, stop := s.untilLeaving(ctx)
		defer stop()
		ctx, rec, err := c.begin(ctx, s, info.FullMethod, req)
		defer func() { c.recorded(rec, req, err) }()
		if err != nil {
			return nil, err
		}
		if resp, err = handle(ctx, req); err == nil && unsettled(ctx) {
			resp, err = nil, errUnsettled
		}
		err = s.finalError(ctx, err)
		return resp, err
	}
	ctx, cancel := s.withDeadline(ctx)
	defer cancel()
	ctx, rec, err := c.begin(ctx, s, info.FullMethod, req)
	defer func() { c.recorded(rec, req, err) }()
	if err != nil {
		return nil, answer.Error(err)
	}
	ctx, claim := s.withClaim(ctx)
	defer claim.Release()
	if err := s.enter(ctx, claim, req); err != nil {
		return nil, err
	}
	defer s.places.Leave()
	if resp, err = handle(ctx, req); err == nil && unsettled(ctx) {
		err = errUnsettled
	}
	if err == nil && c.again {
		err = c.required(ctx, s.judge, req)
	}
	if err != nil {
		return nil, s.finalError(ctx, err)
	}
	return s.lend(ctx, resp, claim)
}

// stream is around every stream. A stream has no place and no deadline: it waits for
// events most of the time.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	c := s.methodOf(info.FullMethod)
	if c.unary != nil {
		return handle(srv, ss) // unary is around it
	}
	start := time.Now()
	c.metrics.began()
	ctx, stop := s.untilLeaving(ss.Context())
	defer stop()
	defer func() { s.ended(ctx, info.FullMethod, c, start, err) }()
	defer s.recover(info.FullMethod, &err)
	if err := s.admissible(ctx, c, nil); err != nil {
		return err
	}
	ctx, unled := s.whileLed(ctx)
	defer unled()
	ctx, rec, err := c.begin(ctx, s, info.FullMethod, nil)
	defer func() { c.recorded(rec, nil, err) }()
	if err != nil {
		return answer.Error(err)
	}
	bound := &boundStream{ServerStream: ss, ctx: ctx, metrics: c.metrics, server: s, oneRequest: !info.IsClientStream}
	if bound.oneRequest {
		bound.grace = s.opts.Grace
	}
	err = handle(srv, bound)
	return s.finalError(ctx, err)
}

// boundStream is a stream whose context ends when the server sends its clients away.
type boundStream struct {
	grpc.ServerStream
	ctx     context.Context //nolint:containedctx // a stream is its context
	metrics *callMetrics
	server  *Server
	// grace is how long the client may read nothing while a message waits for it; 0 means
	// forever. The answers to one request hold something that others wait for: memory, or
	// one of the few places for snapshots. Watches and keep-alives do not (package watchrpc).
	grace time.Duration
	// oneRequest is set if all messages answer one request, so that it must have been judged.
	oneRequest bool
	ahead      int64 // bytes of the message before, which gRPC may still have
}

// Context implements grpc.ServerStream.
func (b *boundStream) Context() context.Context { return b.ctx }

// SendMsg implements grpc.ServerStream.
func (b *boundStream) SendMsg(m any) error {
	if b.oneRequest && unsettled(b.ctx) {
		return errUnsettled
	}
	if p, ok := m.(proto.Message); ok && b.grace > 0 {
		size := int64(proto.Size(p))
		if due := cutLater(b.ctx, b.grace, b.ahead+size); due != nil {
			defer due.Stop()
		}
		b.ahead = size
	}
	err := b.ServerStream.SendMsg(m)
	if err == nil {
		b.metrics.sent.Add(1)
	}
	return err
}

// RecvMsg implements grpc.ServerStream.
func (b *boundStream) RecvMsg(m any) error {
	claim := b.server.opts.Memory.Claim()
	defer claim.Release()
	err := b.server.receive(b.ctx, b.ServerStream, m, &claim, false)
	if err == nil {
		b.metrics.received.Add(1)
	}
	return err
}

// Why the context of a stream ended.
var (
	errLeaving  = errors.New("the node is stopping")
	errNoLeader = errors.New("this node has known no leader for too long")
)

// untilLeaving returns a context that ends with the given one, or when the server sends
// its clients away.
func (s *Server) untilLeaving(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.leaving, func() { cancel(errLeaving) })
	return ctx, func() { stop(); cancel(nil) }
}

// errTimeout is why the context of a call ended that took longer than the server allows.
var errTimeout = errors.New("the request took too long")

// withDeadline bounds a call by what the server allows, unless its client allows less.
func (s *Server) withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if d, ok := ctx.Deadline(); ok && time.Until(d) <= s.opts.RequestTimeout {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.opts.RequestTimeout, errTimeout)
}

// finalError turns an error into one of etcd. What ended because its context did is told
// by the reason of the end: only a stop and the server's own deadline are of interest to
// a client that is still there.
func (s *Server) finalError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	why := err
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.Canceled {
		why = context.Cause(ctx)
	}
	switch {
	case errors.Is(why, errLeaving):
		return rpctypes.ErrGRPCStopped
	case errors.Is(why, errNoLeader):
		return rpctypes.ErrGRPCNoLeader
	case errors.Is(why, errTimeout):
		return rpctypes.ErrGRPCTimeout
	}
	return answer.Error(err)
}

// enter claims memory for a request and waits for a place.
func (s *Server) enter(ctx context.Context, claim *budget.Claim, req any) error {
	if m, ok := req.(proto.Message); ok && claim.Bytes() == 0 {
		if n := int64(proto.Size(m)); n > budget.Free {
			if err := claim.Wait(ctx, n); err != nil {
				return answer.Error(err)
			}
		}
	}
	if s.places.Try() {
		return nil
	}
	deadline, _ := ctx.Deadline() // withDeadline has seen to it that there is one
	return answer.Error(s.places.Wait(ctx, deadline))
}

// callContext is the context of a call, with what it has claimed.
type callContext struct {
	context.Context
	claim budget.Claim
}

// claimKey is the context key of the claim, for contexts that are derived.
type claimKey struct{}

// Value implements context.Context.
func (c *callContext) Value(key any) any {
	if key == (claimKey{}) {
		return &c.claim
	}
	return c.Context.Value(key)
}

// withClaim returns the claim that the context has, or a context with a new one, for a call
// that did not come over a connection.
func (s *Server) withClaim(ctx context.Context) (context.Context, *budget.Claim) {
	if c, ok := ctx.Value(claimKey{}).(*budget.Claim); ok {
		return ctx, c
	}
	held := &callContext{ctx, s.opts.Memory.Claim()}
	return held, &held.claim
}

// claimOf returns what the call has claimed, which grows with its answer. Without one
// (streams) everything is granted.
func claimOf(ctx context.Context) *budget.Claim {
	if c, ok := ctx.Value(claimKey{}).(*budget.Claim); ok {
		return c
	}
	return new(budget.Claim)
}

// admissible refuses a call for what its metadata say, or for what this member is.
func (s *Server) admissible(ctx context.Context, c *call, req any) error {
	version := "unknown"
	// One field at a time: all of them together would be copied for each call.
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
	}
	if !utf8.ValidString(version) {
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	s.opts.Metrics.client(c.metrics, version)
	switch {
	case s.opts.Member.IsLearner() && !forLearners(c, req):
		return rpctypes.ErrGRPCNotSupportedForLearner
	case requiresLeader(ctx) && !s.opts.Member.HasLeader():
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

func requiresLeader(ctx context.Context) bool {
	v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return len(v) > 0 && v[0] == rpctypes.MetadataHasLeader
}

// recover answers Internal for a panic of a service, so that a bug costs one call and not
// the node.
func (s *Server) recover(method string, err *error) {
	v := recover()
	if v == nil {
		return
	}
	s.log.Error("panic in a call of an etcd client", zap.String("method", shortName(method)),
		zap.Error(fmt.Errorf("panic: %v", v)), zap.ByteString("stack", debug.Stack()))
	*err = status.Error(codes.Internal, "etcdserver: the node failed to handle the request; its log has the cause")
}

// ended counts a call that has ended, and logs it if it belongs in the request log.
func (s *Server) ended(ctx context.Context, method string, c *call, start time.Time, err error) {
	code := status.Code(err)
	c.metrics.ended(code)
	failed := isFailure(code)
	if code == codes.Internal {
		s.log.Error("request failed", zap.String("method", shortName(method)), zap.Error(err))
	}
	if s.opts.RequestLog != "all" && (s.opts.RequestLog != "errors" || !failed) {
		return
	}
	level := zapcore.InfoLevel
	if failed {
		level = zapcore.WarnLevel
	}
	if ce := s.log.Check(level, "request"); ce != nil {
		ce.Write(zap.String("method", shortName(method)), zap.Stringer("code", code), zap.Duration("duration", time.Since(start)),
			zap.Bool("led", s.opts.Leadership.IsLeader()), zap.String("remote", remoteOf(ctx)))
	}
}

// isFailure reports whether a code is something that an operator should look at.
func isFailure(code codes.Code) bool {
	switch code {
	case codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.DataLoss, codes.DeadlineExceeded:
		return true
	}
	return false
}

func remoteOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
