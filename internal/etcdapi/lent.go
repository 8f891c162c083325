package etcdapi

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/etcdapi/watchrpc"
	"github.com/kvd-io/kvd/internal/pace"
)

// lent is an answer on its way to a client of gRPC, with the memory that was claimed for
// it. gRPC queues a whole answer and writes it as the client reads, long after the call
// has ended: only the last byte written gives the memory back. It is a codec.Message, and
// the mem.BufferPool of its own buffer.
type lent struct {
	of      protoreflect.MessageType
	encoded []byte
	claim   budget.Claim
	once    sync.Once
	on      *lendingConn // nil for a connection of net/http
	due     *time.Timer  // cuts the connection; nil if nobody can
}

var _ codec.Message = (*lent)(nil)

// lend returns the answer of a call with what its claim holds, or the answer itself if
// that is nothing or if the caller is in this process.
func (s *Server) lend(ctx context.Context, answer any, claim *budget.Claim) (any, error) {
	m, ok := answer.(proto.Message)
	if !ok || claim.Bytes() == 0 || grpc.ServerTransportStreamFromContext(ctx) == nil {
		return answer, nil
	}
	// The claim may have been for a request, or for more than the answer became. gRPC
	// tells nobody when it is done with a small buffer.
	if proto.Size(m) <= budget.Free {
		return answer, nil
	}
	encoded, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	claim.Lower(int64(len(encoded)))
	l := &lent{of: m.ProtoReflect().Type(), encoded: encoded, claim: *claim}
	*claim = budget.Claim{} // it is lent
	l.due = cutLater(ctx, s.opts.Grace, l.claim.Bytes())
	if c, ok := watchrpc.ConnectionOf(ctx); ok {
		if at, ok := c.(interface{ lending() *lendingConn }); ok {
			l.on = at.lending()
		}
	}
	if l.on != nil && !l.on.add(l) { // the client has gone
		l.Put(nil)
		return nil, context.Canceled
	}
	return l, nil
}

// cutLater cuts the connection of a call once its client has taken too long for size bytes.
// gRPC cannot drop a part of a stream. The timer is nil if there is no connection.
func cutLater(ctx context.Context, grace time.Duration, size int64) *time.Timer {
	c, ok := watchrpc.ConnectionOf(ctx)
	if !ok {
		return nil
	}
	return time.AfterFunc(grace+pace.TransferTime(size), c.Cut)
}

// Buffers implements codec.Message.
func (l *lent) Buffers() mem.BufferSlice { return mem.BufferSlice{mem.NewBuffer(&l.encoded, l)} }

// Empty implements codec.Message.
func (l *lent) Empty() proto.Message { return l.of.New().Interface() }

// Get implements mem.BufferPool; nobody allocates from an answer.
func (l *lent) Get(int) *[]byte { panic("etcdapi: an answer has no buffers to give") }

// Put implements mem.BufferPool: gRPC is done with the answer.
func (l *lent) Put(*[]byte) {
	l.once.Do(func() {
		if l.due != nil {
			l.due.Stop()
		}
		if l.on != nil {
			l.on.remove(l)
		}
		l.claim.Release()
	})
}
