package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
)

// handshakeTimeout bounds the handshake of outgoing connections. For incoming ones,
// http.Server bounds it by its ReadHeaderTimeout.
const handshakeTimeout = 5 * time.Second

// The reasons to refuse a certificate, beside the errors of x509.
var (
	errRevoked     = errors.New("certificate was revoked")
	errClientsOnly = errors.New("certificate is for clients only: its extended key usage lacks serverAuth, which members need")
)

// check judges the other side of a connection by a material.
type check func(*material) error

// Listen returns a listener that adds TLS to the connections l accepts. They are of
// type *tls.Conn, which http.Server requires for HTTP/2.
func (b *Bundle) Listen(l net.Listener) net.Listener { return &listener{l, b} }

type listener struct {
	net.Listener
	b *Bundle
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(&tracked{Conn: c, b: l.b}, l.b.server), nil
}

// Dial returns a function that connects with dial and adds TLS. It presents the
// certificate of b, and requires that the other side's certificate names the host of
// the address.
func (b *Bundle) Dial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &tracked{Conn: raw, b: b}
		secured := tls.Client(c, b.clientConfig(host, c))
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = c.Close() // nothing was sent on it
			return nil, &net.OpError{Op: "dial", Net: network, Addr: raw.RemoteAddr(), Err: fmt.Errorf("TLS with %s: %w", host, err)}
		}
		return secured, nil
	}
}

// base returns what all configurations have in common. m may be nil.
func (b *Bundle) base(m *material) *tls.Config {
	c := &tls.Config{MinVersion: b.cfg.MinVersion, NextProtos: b.cfg.Protocols}
	if m != nil {
		c.Certificates = []tls.Certificate{*m.cert}
	}
	return c
}

// configFor returns the configuration of one incoming connection. It sets no keys
// for session tickets, so those of b.server apply, and sessions resume across
// reloads.
func (b *Bundle) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	m := b.current.Load()
	c := b.base(m)
	conn, ok := hello.Conn.(*tracked)
	if !ok {
		return nil, errors.New("connection was not accepted by Bundle.Listen")
	}
	conn.offered = hello.SupportedProtos
	if b.cfg.ClientAuth == Off {
		return c, nil
	}
	c.ClientAuth, c.ClientCAs = b.cfg.ClientAuth.tls(), m.pool
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 && b.cfg.ClientAuth == Request {
			return nil
		}
		// The same authority may sign certificates for clients.
		if b.cfg.Mutual && len(s.PeerCertificates) > 0 && !usableFor(s.PeerCertificates[0], x509.ExtKeyUsageServerAuth) {
			return errClientsOnly
		}
		return conn.admit(s.PeerCertificates, x509.ExtKeyUsageClientAuth, "")
	}
	return c, nil
}

// clientConfig returns the configuration of one outgoing connection.
func (b *Bundle) clientConfig(host string, conn *tracked) *tls.Config {
	m := b.current.Load()
	c := b.base(m)
	c.RootCAs, c.ServerName = m.pool, host
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return conn.admit(s.PeerCertificates, x509.ExtKeyUsageServerAuth, host)
	}
	return c
}

// tracked is the connection below TLS. Its other side's certificate is judged by
// each new material.
type tracked struct {
	net.Conn
	b    *Bundle
	once sync.Once
	// offered are the protocols that a client has offered by ALPN. The handshake sets it.
	offered []string
}

// Offered returns the protocols that the client of an incoming connection has offered by
// ALPN, once the handshake is over.
func (c *tracked) Offered() []string { return c.offered }

// NetConn returns the underlying connection, as tls.Conn does.
func (c *tracked) NetConn() net.Conn { return c.Conn }

// admit judges the certificates of the other side, and registers the connection.
//
// crypto/tls calls it, as VerifyConnection, at the end of every handshake. When a
// session is resumed, no certificate is sent, and crypto/tls does not verify again
// and does not call VerifyPeerCertificate. Only here does it show that a certificate
// was revoked since the session began, or that its authority was dropped (B1).
func (c *tracked) admit(shown []*x509.Certificate, usage x509.ExtKeyUsage, host string) error {
	if len(shown) == 0 {
		return errNoCertificate
	}
	verify := func(m *material) error { return m.verify(shown, usage, host) }
	c.b.remember(c, verify) // before it is judged (B2)
	if err := verify(c.b.current.Load()); err != nil {
		c.b.refuse(c, shown[0], err)
		return err
	}
	return nil
}

// Close implements net.Conn.
func (c *tracked) Close() error {
	c.once.Do(func() { c.b.forget(c) })
	return c.Conn.Close()
}

// remember registers a connection for recheck, until forget.
func (b *Bundle) remember(c *tracked, verify check) {
	b.conns.Lock()
	defer b.conns.Unlock()
	b.conns.open[c] = verify
}

func (b *Bundle) forget(c *tracked) {
	b.conns.Lock()
	defer b.conns.Unlock()
	delete(b.conns.open, c)
}

// recheck closes the connections that the new material refuses.
func (b *Bundle) recheck(m *material) {
	var refused []*tracked
	b.conns.Lock()
	for c, verify := range b.conns.open {
		if err := verify(m); err != nil {
			b.refusals.Add(1)
			b.log.Warn("connection closed: its certificate is no longer valid", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
			refused = append(refused, c)
		}
	}
	b.conns.Unlock()
	for _, c := range refused {
		_ = c.Close() // its user gets an error
	}
}

// refuse counts a refusal, and logs at most one a second: a client that is refused
// tends to try again and again.
func (b *Bundle) refuse(c *tracked, leaf *x509.Certificate, err error) {
	b.refusals.Add(1)
	now := time.Now().Unix()
	if b.refusalLogged.Swap(now) == now {
		return
	}
	b.log.Warn("certificate refused", zap.Stringer("remote", c.RemoteAddr()), zap.Stringer("subject", leaf.Subject), zap.Stringer("serial", leaf.SerialNumber), zap.Error(err))
}

// verify judges what the other side presented. There must be a chain to one of the
// authorities in which no certificate is revoked.
func (m *material) verify(shown []*x509.Certificate, usage x509.ExtKeyUsage, host string) error {
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	chains, err := shown[0].Verify(x509.VerifyOptions{
		Roots: m.pool, Intermediates: between, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if !m.revokedIn(chain) {
			return nil
		}
	}
	return fmt.Errorf("%w: serial number %s of %q", errRevoked, shown[0].SerialNumber, shown[0].Issuer)
}

// revokedIn reports whether a certificate of the chain was revoked by the next one.
// The last one has no issuer that could revoke it: an authority is dropped by removing
// it from the file.
func (m *material) revokedIn(chain []*x509.Certificate) bool {
	for i := range len(chain) - 1 {
		if m.revoked.has(chain[i], chain[i+1]) {
			return true
		}
	}
	return false
}

// Names returns nil if the certificate of the other side names the host of one of the
// URLs, by name, wildcard, or address.
func Names(state *tls.ConnectionState, urls []string) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return errNoCertificate
	}
	err := errors.New("no URL to compare the certificate with")
	for _, text := range urls {
		u, perr := url.Parse(text)
		if perr != nil {
			continue
		}
		if err = state.PeerCertificates[0].VerifyHostname(u.Hostname()); err == nil {
			return nil
		}
	}
	return err
}
