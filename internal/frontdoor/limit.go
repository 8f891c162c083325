package frontdoor

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// ConnectionLimit bounds the connections of all listeners for clients
// together. Each costs a file descriptor and some memory, and without
// descriptors the node could not open its own files.
//
// A few connections beyond the limit are served all the same, shortly: probes
// get their answer, since a supervisor that gets none would kill a node that is
// merely busy, and all others are told why not and when to come again. What
// comes beyond those is closed.
type ConnectionLimit struct {
	most  int64 // 0: no limit
	open  atomic.Int64
	spare int64 // connections beyond the limit
	extra atomic.Int64
	// lifetime is all the time that one beyond the limit has, from its
	// handshake to its answer.
	lifetime time.Duration
	// Rejected hears of each connection that is closed, and of each request
	// that is refused.
	Rejected func(api.Code)
}

const (
	spareConnections = 64
	spareLifetime    = 5 * time.Second
)

func NewConnectionLimit(most int64) *ConnectionLimit {
	return &ConnectionLimit{most: most, spare: spareConnections, lifetime: spareLifetime, Rejected: func(api.Code) {}}
}

// Wrap makes the listeners keep to the limit.
func (l *ConnectionLimit) Wrap(listeners []net.Listener) {
	for i := range listeners {
		listeners[i] = &limitedListener{Listener: listeners[i], limit: l}
	}
}

type limitedListener struct {
	net.Listener
	limit *ConnectionLimit
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted := l.limit.admit(c); admitted != nil {
			return admitted, nil
		}
		l.limit.Rejected(api.Overloaded)
		_ = c.Close() // nothing was said on it
	}
}

// admit counts the connection; nil means that there is no place for it.
func (l *ConnectionLimit) admit(c net.Conn) net.Conn {
	if n := l.open.Add(1); l.most == 0 || n <= l.most {
		return &countedConn{Conn: c, count: &l.open}
	}
	l.open.Add(-1)
	if l.extra.Add(1) <= l.spare {
		x := &extraConn{countedConn: countedConn{Conn: c, count: &l.extra}}
		x.end = time.AfterFunc(l.lifetime, func() { _ = x.countedConn.Close() })
		return x
	}
	l.extra.Add(-1)
	return nil
}

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	count *atomic.Int64
	once  sync.Once
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.once.Do(func() { c.count.Add(-1) })
	return c.Conn.Close()
}

// extraConn is a connection beyond the limit.
type extraConn struct {
	countedConn
	end *time.Timer
}

// Close implements net.Conn.
func (c *extraConn) Close() error {
	c.end.Stop()
	return c.countedConn.Close()
}

// beyondLimit is the key of a request's context that came on such a one.
type beyondLimit struct{}

// Mark is for http.Server.ConnContext. What lies over the connection, such as
// TLS, says with NetConn what is below.
func (l *ConnectionLimit) Mark(ctx context.Context, c net.Conn) context.Context {
	for {
		switch layer := c.(type) {
		case *extraConn:
			return context.WithValue(ctx, beyondLimit{}, true)
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		default:
			return ctx
		}
	}
}

// Guard refuses what came on a connection beyond the limit, but for probes.
func (l *ConnectionLimit) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.extra.Load() == 0 || r.Context().Value(beyondLimit{}) == nil {
			next.ServeHTTP(w, r)
			return
		}
		w.Header()["Connection"] = closeConnection // its place is for the next one
		if forMachines(r.URL.EscapedPath()) {
			next.ServeHTTP(w, r)
			return
		}
		l.Rejected(api.Overloaded)
		writeProblem(w, http.StatusTooManyRequests, api.Overloaded,
			"too many connections to this node (--max-connections); nothing was done. Use fewer, or another node")
	})
}

// forMachines reports whether a path is of what watches a node: probes and
// metrics.
func forMachines(path string) bool {
	switch path {
	case "/metrics", "/livez", "/healthz", "/version", "/readyz":
		return true
	}
	return strings.HasPrefix(path, "/readyz/")
}
