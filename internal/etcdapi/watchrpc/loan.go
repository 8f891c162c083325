package watchrpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/pace"
)

// loan is memory that is claimed for responses until gRPC has written them. It is a
// mem.BufferPool: gRPC puts the last buffer of the responses into it when it is done. The
// session returns what gRPC has not, when it ends.
//
// A client may not keep it forever, or a few that read nothing would keep everybody else
// from large events. gRPC cannot drop what it has of a stream: even the end of the stream
// waits behind it. So the connection is cut.
type loan struct {
	claim budget.SharedClaim
	once  sync.Once
	done  chan struct{} // closed once it is returned
	due   *time.Timer   // cuts the connection; nil until gRPC has the responses
}

func newLoan(claim budget.SharedClaim) *loan { return &loan{claim: claim, done: make(chan struct{})} }

// Connection is what a call may do to the connection that it came on.
type Connection interface {
	// Cut closes the connection.
	Cut()
}

// connectionKey is the context key of a Connection that net/http has accepted.
type connectionKey struct{}

// WithConnection returns a context for the calls on a connection of net/http.
func WithConnection(ctx context.Context, c Connection) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// ConnectionOf returns the connection of a call. gRPC's own transport keeps it as the
// authentication (credentials.AuthInfo), which its handler for net/http makes itself.
func ConnectionOf(ctx context.Context) (c Connection, ok bool) {
	if p, known := peer.FromContext(ctx); known {
		if c, ok = p.AuthInfo.(Connection); ok {
			return c, true
		}
	}
	c, ok = ctx.Value(connectionKey{}).(Connection)
	return c, ok
}

// lend begins the time that the client has for reading size bytes.
func (l *loan) lend(ctx context.Context, grace time.Duration, size int) {
	if c, ok := ConnectionOf(ctx); ok {
		l.due = time.AfterFunc(grace+pace.TransferTime(int64(size)), c.Cut)
	}
}

// Get implements mem.BufferPool; nobody allocates from a loan.
func (l *loan) Get(int) *[]byte { panic("a loan has no buffers") }

// Put implements mem.BufferPool.
func (l *loan) Put(*[]byte) { l.release() }

func (l *loan) release() {
	l.once.Do(func() {
		if l.due != nil {
			l.due.Stop()
		}
		l.claim.Release()
		close(l.done)
	})
}

func (l *loan) returned() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// borrow waits for the memory that was missing. Nothing but the position is held meanwhile.
// It waits for longer than others may keep what they do not read.
//
// A session has one loan at a time. With more, one whose client reads slowly would compete
// with itself: it would wait for memory that comes back only when its client has read on,
// and give up for lack of memory instead of waiting for the client.
func (s *session) borrow(ctx context.Context) error {
	if s.wanted == 0 {
		return nil
	}
	n := s.wanted
	s.wanted = 0
	if s.lent != nil {
		select {
		case <-s.lent.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l := newLoan(s.server.claim())
	if err := l.claim.WaitFor(ctx, n, 2*s.server.opts.Grace); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	s.loan = l
	return nil
}

// tryBorrow is borrow without waiting.
func (s *session) tryBorrow(n int64) bool {
	if s.lent != nil && !s.lent.returned() {
		return false
	}
	l := newLoan(s.server.claim())
	if !l.claim.Try(n) {
		return false
	}
	s.loan = l
	return true
}

// giveBack returns a loan for which there was no use.
func (s *session) giveBack() {
	if s.loan != nil {
		s.loan.release()
		s.loan = nil
	}
}
