package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// handshaken are the credentials of connections that Port has accepted: TLS, if there is
// any, has shaken hands already. They only tell gRPC, and through it the calls, whom the
// certificate names, and how to end the connection.
type handshaken struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if secured, ok := tlsOf(c); ok {
		return c, tlsAuth{credentials.TLSInfo{
			State:          secured.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}, connection{c}}, nil
	}
	return c, plainAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, connection{c}}, nil
}

// tlsOf returns the TLS connection that c is, or reads from.
func tlsOf(c net.Conn) (*tls.Conn, bool) {
	if p, ok := c.(*peeked); ok {
		c = p.Conn
	}
	secured, ok := c.(*tls.Conn)
	return secured, ok
}

// connection is what a call may do to its connection. It implements watchrpc.Connection.
type connection struct{ conn net.Conn }

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
