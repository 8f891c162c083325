package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/kvd-io/kvd/internal/arrival"
	"github.com/kvd-io/kvd/internal/link"
)

// handshaken are the credentials of connections that Port has accepted: TLS, if there is
// any, has shaken hands already. They only tell gRPC, and through it the calls, whom the
// certificate names, and how to end the connection.
type handshaken struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	at := connection{conn: &lendingConn{Conn: &ackConn{Conn: readAhead(c)}}, link: link.Of(c)}
	if secured, ok := tlsOf(c); ok {
		return at.conn, tlsAuth{credentials.TLSInfo{
			State:          secured.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}, at}, nil
	}
	return at.conn, plainAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, at}, nil
}

// tlsOf returns the TLS connection that c is, or reads from.
func tlsOf(c net.Conn) (*tls.Conn, bool) {
	if p, ok := c.(*peeked); ok {
		c = p.Conn
	}
	secured, ok := c.(*tls.Conn)
	return secured, ok
}

// readAhead returns the connection as gRPC reads it, without a buffer of its own
// (newGRPC): one that waits for a frame has none. Port may have read its first bytes.
func readAhead(c net.Conn) net.Conn {
	if p, ok := c.(*peeked); ok {
		return arrival.Buffered(p.Conn, p.head)
	}
	return arrival.Buffered(c, nil)
}

// lendingConn knows what its client was lent. gRPC forgets the answers that it has begun to
// write when a connection ends, so the end of the connection gives them back.
type lendingConn struct {
	net.Conn
	mu struct {
		sync.Mutex
		ended bool
		lent  map[*lent]struct{}
	}
}

// Close implements net.Conn.
func (c *lendingConn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	all := c.mu.lent
	c.mu.ended, c.mu.lent = true, nil
	c.mu.Unlock()
	for l := range all {
		l.Put(nil)
	}
	return err
}

// add notes an answer, and reports whether the connection may still carry it.
func (c *lendingConn) add(l *lent) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.lent == nil && !c.mu.ended {
		c.mu.lent = make(map[*lent]struct{})
	}
	if !c.mu.ended {
		c.mu.lent[l] = struct{}{}
	}
	return !c.mu.ended
}

// remove forgets an answer that was written.
func (c *lendingConn) remove(l *lent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.lent, l)
}

// connection is what a call may do to its connection, and what that says about the client.
// It implements watchrpc.Connection.
type connection struct {
	conn net.Conn
	link link.Link
}

// Link returns how the calls on the connection come here.
func (c connection) Link() link.Link { return c.link }

// linkOf returns how a call came here. Connections of gRPC tell it by what they know of
// the peer, those of net/http by their context.
func linkOf(ctx context.Context) link.Link {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(interface{ Link() link.Link }); ok {
			return c.Link()
		}
	}
	return link.From(ctx)
}

// lending returns the connection if it knows what it was lent.
func (c connection) lending() *lendingConn {
	l, _ := c.conn.(*lendingConn)
	return l
}

// Cut closes the connection.
func (c connection) Cut() { _ = c.conn.Close() }

// tlsAuth says what TLS knows about a client.
type tlsAuth struct {
	credentials.TLSInfo
	connection
}

// plainAuth says that nothing is known about a client.
type plainAuth struct {
	credentials.CommonAuthInfo
	connection
}

// AuthType implements credentials.AuthInfo.
func (plainAuth) AuthType() string { return "insecure" }

var errServerOnly = errors.New("these credentials are for a server")

// ClientHandshake implements credentials.TransportCredentials.
func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerOnly
}

// Info implements credentials.TransportCredentials.
func (handshaken) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone implements credentials.TransportCredentials.
func (h handshaken) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshaken) OverrideServerName(string) error { return nil }
