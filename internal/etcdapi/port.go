package etcdapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/etcdapi/watchrpc"
	"github.com/kvd-io/kvd/internal/link"
)

// preface is what a client of HTTP/2 sends first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// helloTimeout is how long a client may take to shake hands and to say what it speaks.
const helloTimeout = 10 * time.Second

// ALPN names.
const (
	protocolHTTP1 = "http/1.1"
	protocolHTTP2 = "h2"
)

// Port tells the connections of one port apart.
//
// Without TLS the first bytes decide, as in etcd: the preface of HTTP/2 is gRPC, anything
// else HTTP/1. With TLS, both protocols may speak HTTP/2, since curl and browsers prefer
// it. Who offers HTTP/2 alone is gRPC, and gets gRPC's own transport. Who also offers
// HTTP/1.1 gets net/http's HTTP/2, where the content type of each request decides: some
// libraries of gRPC offer both.
//
// A connection of gRPC is closed while the node starts. To a client that is a node which
// cannot be reached yet, and it turns to another one; an error would reach
// the caller.
type Port struct {
	// Refuse reports whether a connection may not carry gRPC, for example because it is
	// beyond a limit and lives only for a probe; nil means that all may. It is set before
	// Serve.
	Refuse func(net.Conn) bool

	server *Server
	web    *http.Server
	pages  *queue // of connections for web
	calls  *queue // of connections for gRPC
}

// NewPort returns a port that passes calls to the server, and everything else to web.
func NewPort(server *Server, web *http.Server) *Port {
	return &Port{server: server, web: web, pages: newQueue(), calls: newQueue()}
}

// handler answers the requests on a connection that may carry both kinds.
func (p *Port) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			next.ServeHTTP(w, r)
			return
		}
		if !p.server.Opened() {
			panic(http.ErrAbortHandler)
		}
		// A stream of gRPC lasts as long as its client wants, other than the answers of
		// net/http. A writer without deadlines has none to lift.
		conn := http.NewResponseController(w)
		_ = errors.Join(conn.SetReadDeadline(time.Time{}), conn.SetWriteDeadline(time.Time{}))
		p.server.servers().shared.ServeHTTP(w, r)
	})
}

// Serve accepts connections of the listeners until all of them are closed. The error is
// that of the first listener that failed for another reason.
func (p *Port) Serve(listeners []net.Listener) error {
	p.web.Handler = p.handler(p.web.Handler)
	p.web.ConnContext = p.label(p.web.ConnContext)
	var serving, accepting sync.WaitGroup
	serving.Go(func() { _ = p.web.Serve(p.pages) })
	serving.Go(func() { _ = p.server.servers().own.Serve(p.calls) })
	errs := make([]error, len(listeners))
	for i, l := range listeners {
		accepting.Go(func() { errs[i] = p.accept(l) })
	}
	accepting.Wait()
	_ = p.pages.Close()
	_ = p.calls.Close()
	serving.Wait()
	return errors.Join(errs...)
}

// label tells the calls on a connection of net/http how to end it.
func (p *Port) label(next func(context.Context, net.Conn) context.Context) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, c)
		}
		return watchrpc.WithConnection(ctx, connection{conn: c, link: link.From(ctx)})
	}
}

// accept passes on the connections of a listener.
func (p *Port) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		go p.sort(c)
	}
}

// sort passes a connection on to whom it belongs.
func (p *Port) sort(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(helloTimeout))
	to, c, err := p.look(c)
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil || to == p.calls && !p.takesCalls(c) || !to.put(c) {
		_ = c.Close() // nothing was sent on it
	}
}

// takesCalls reports whether a connection may carry gRPC now.
func (p *Port) takesCalls(c net.Conn) bool {
	return p.server.Opened() && (p.Refuse == nil || !p.Refuse(c))
}

// look finds out what a client speaks.
func (p *Port) look(c net.Conn) (*queue, net.Conn, error) {
	if secured, ok := c.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
		defer cancel()
		err := secured.HandshakeContext(ctx)
		if err == nil && secured.ConnectionState().NegotiatedProtocol == protocolHTTP2 && !offersBoth(secured) {
			return p.calls, c, nil
		}
		return p.pages, c, err
	}
	begin, err := peek(c)
	if err != nil {
		return nil, c, err
	}
	if string(begin.head) == preface {
		return p.calls, begin, nil
	}
	return p.pages, begin, nil
}

// peek reads as much of a connection as tells HTTP/2 from anything else.
func peek(c net.Conn) (*peeked, error) {
	p := &peeked{Conn: c, head: make([]byte, 0, len(preface))}
	for len(p.head) < len(preface) {
		n, err := c.Read(p.head[len(p.head):cap(p.head)])
		p.head = p.head[:len(p.head)+n]
		if !bytes.HasPrefix([]byte(preface), p.head) {
			return p, nil // an error comes again
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// peeked is a connection whose first bytes were read already.
type peeked struct {
	net.Conn
	head []byte
}

// Read implements net.Conn.
func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.head)
	p.head = p.head[n:]
	return n, nil
}

// NetConn returns the connection below, as tls.Conn does.
func (p *peeked) NetConn() net.Conn { return p.Conn }

// queue is a listener of connections that were accepted already. It has no buffer: a
// connection waits in its own goroutine.
type queue struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), closed: make(chan struct{})} }

// put passes a connection on, and reports whether somebody took it.
func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.closed:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return queueAddr{} }

// queueAddr is the address of a queue, which has none of its own.
type queueAddr struct{}

// Network implements net.Addr.
func (queueAddr) Network() string { return "queue" }

// String implements net.Addr.
func (queueAddr) String() string { return "connections of --listen-etcd" }

// offersBoth reports whether the client of TLS has offered HTTP/1.1 beside HTTP/2.
func offersBoth(c *tls.Conn) bool {
	offered, ok := c.NetConn().(interface{ Offered() []string })
	return ok && slices.Contains(offered.Offered(), protocolHTTP1)
}
