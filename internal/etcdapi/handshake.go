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
// certificate names.
type handshaken struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if secured, ok := tlsOf(c); ok {
		return c, credentials.TLSInfo{
			State:          secured.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}, nil
	}
	return c, plainAuth{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}

// tlsOf returns the TLS connection that c is, or reads from.
func tlsOf(c net.Conn) (*tls.Conn, bool) {
	if p, ok := c.(*peeked); ok {
		c = p.Conn
	}
	secured, ok := c.(*tls.Conn)
	return secured, ok
}

// plainAuth says that nothing is known about a client.
type plainAuth struct{ credentials.CommonAuthInfo }

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
