package frontdoor

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/connlimit"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/link"
)

// connectionLimit bounds the connections of several listeners together. Each
// costs a file descriptor and some memory, and a node without descriptors
// could not open its own files.
//
// A few connections beyond the limit (spare) are served briefly: probes get
// their answer (I3), and all other requests are told why they are refused and
// when to come back, which a connection that is just closed does not tell.
// Connections beyond those are closed.
type connectionLimit struct {
	lifetime time.Duration // of a spare connection, from its handshake to its answer
	// rejected is called for each connection that is closed and each request
	// that is refused. It is set before the first Accept.
	rejected func(api.Code)

	// open and extra are the places within and beyond the limit.
	open, extra *connlimit.Places
}

const (
	// spareConnections are enough for the probes and scrapers of a node, and
	// few enough for the descriptors that the limit leaves.
	spareConnections = 64
	spareLifetime    = 5 * time.Second
)

// ExtraConnections is the number of connections, on the listeners for clients and
// on those for metrics, that may be open beyond --max-connections.
const ExtraConnections = spareConnections + sideConnections

// newConnectionLimit allows most connections (0 means unlimited), and spare ones
// beyond them.
func newConnectionLimit(most, spare int64) *connectionLimit {
	return &connectionLimit{open: connlimit.New(most), extra: connlimit.New(spare), lifetime: spareLifetime, rejected: func(api.Code) {}}
}

// wrap makes a listener keep to the limit.
func (l *connectionLimit) wrap(inner net.Listener) net.Listener {
	return &limitedListener{Listener: inner, limit: l}
}

type limitedListener struct {
	net.Listener
	limit *connectionLimit
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
		l.limit.rejected(api.Overloaded)
		_ = c.Close() // nothing was sent on it
	}
}

// admit counts the connection and returns it, or nil if no place is left.
func (l *connectionLimit) admit(c net.Conn) net.Conn {
	if placed := l.open.Take(c); placed != nil {
		return placed
	}
	if placed := l.extra.Take(c); placed != nil {
		return &extraConn{Conn: placed, end: time.AfterFunc(l.lifetime, func() { _ = placed.Close() })}
	}
	return nil
}

// extraConn is a connection beyond the limit. It is a type of its own so that
// mark can tell it from the others under any layer, such as TLS.
type extraConn struct {
	*connlimit.Conn
	end *time.Timer // closes a connection on which nothing is sent
}

// Close implements net.Conn.
func (c *extraConn) Close() error {
	c.end.Stop()
	return c.Conn.Close()
}

// beyondLimit is the context key of requests on connections beyond the limit.
type beyondLimit struct{}

// mark is for http.Server.ConnContext.
func (l *connectionLimit) mark(ctx context.Context, c net.Conn) context.Context {
	ctx = link.Label(ctx, c)
	if isExtra(c) {
		return context.WithValue(ctx, beyondLimit{}, true)
	}
	return ctx
}

// isExtra reports whether a connection is beyond the limit. Layers above it, such as TLS,
// return the one below from NetConn.
func isExtra(c net.Conn) bool {
	for {
		switch layer := c.(type) {
		case *extraConn:
			return true
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		default:
			return false
		}
	}
}

// guard refuses requests on connections beyond the limit, except probes.
func (l *connectionLimit) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The counter spares the walk through the context in the normal case.
		if l.extra.Taken() == 0 || r.Context().Value(beyondLimit{}) == nil {
			next.ServeHTTP(w, r)
			return
		}
		w.Header()["Connection"] = closeConnection // the place is for the next probe
		if forMachines(r.URL.EscapedPath()) {
			next.ServeHTTP(w, r)
			return
		}
		l.rejected(api.Overloaded)
		httpapi.WriteProblem(w, &api.Error{
			Code:   api.Overloaded,
			Detail: "too many connections to this node (--max-connections); nothing was done; use fewer connections or another node",
		})
	})
}

// forMachines reports whether a path belongs to what watches a node: probes,
// metrics and the version.
func forMachines(path string) bool {
	switch path {
	case "/metrics", "/livez", "/healthz", "/health", "/version", "/readyz":
		return true
	}
	return strings.HasPrefix(path, "/readyz/")
}
