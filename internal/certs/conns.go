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

// handshakeTimeout bounds the handshake of connections that are made. For
// those that are taken, http.Server sets it by its ReadHeaderTimeout.
const handshakeTimeout = 5 * time.Second

// These and the errors of x509 are why a certificate is refused.
var (
	errRevoked     = errors.New("the certificate was revoked")
	errClientsOnly = errors.New("the certificate is one for clients (its extended key usage lacks serverAuth), not for members")
)

// check holds the certificate of a connection's other side against material.
type check func(*material) error

// Listen puts TLS on what the listener accepts. What it returns accepts a
// *tls.Conn each time, as http.Server wants it for HTTP/2.
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

// Dial connects with dial and puts TLS on the connection, showing the
// certificate. The other side's must name the host of the address.
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
			_ = c.Close() // nothing was said on it
			return nil, &net.OpError{Op: "dial", Net: network, Addr: raw.RemoteAddr(), Err: fmt.Errorf("TLS with %s: %w", host, err)}
		}
		return secured, nil
	}
}

// base is what all configurations have in common; m may be nil.
func (b *Bundle) base(m *material) *tls.Config {
	c := &tls.Config{MinVersion: b.cfg.MinVersion, NextProtos: b.cfg.Protocols}
	if m != nil {
		c.Certificates = []tls.Certificate{*m.cert}
	}
	return c
}

// configFor is the configuration of one connection that is taken. Session
// tickets are those of the listener's, so that sessions resume across reloads.
func (b *Bundle) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	m := b.current.Load()
	c := b.base(m)
	if b.cfg.ClientAuth == Off {
		return c, nil
	}
	c.ClientAuth, c.ClientCAs = b.cfg.ClientAuth.tls(), m.pool
	conn, ok := hello.Conn.(*tracked)
	if !ok {
		return nil, errors.New("the connection was not accepted by Bundle.Listen")
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 && b.cfg.ClientAuth == Request {
			return nil
		}
		// The authority may be that of mere clients too.
		if b.cfg.Mutual && len(s.PeerCertificates) > 0 && !usableFor(s.PeerCertificates[0], x509.ExtKeyUsageServerAuth) {
			return errClientsOnly
		}
		return conn.admit(s.PeerCertificates, x509.ExtKeyUsageClientAuth, "")
	}
	return c, nil
}

// clientConfig is the configuration of one connection that is made.
func (b *Bundle) clientConfig(host string, conn *tracked) *tls.Config {
	m := b.current.Load()
	c := b.base(m)
	c.RootCAs, c.ServerName = m.pool, host
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return conn.admit(s.PeerCertificates, x509.ExtKeyUsageServerAuth, host)
	}
	return c
}

// tracked is a connection below TLS whose other side's certificate is held
// against each new set of files.
type tracked struct {
	net.Conn
	b    *Bundle
	once sync.Once
}

// NetConn returns the connection below, as tls.Conn does.
func (c *tracked) NetConn() net.Conn { return c.Conn }

// admit decides about the other side's certificates, and remembers them.
//
// It is called as VerifyConnection, which crypto/tls calls last in every
// handshake. A resumed one has no certificates on the wire, and the checks of
// crypto/tls and VerifyPeerCertificate are those of the session's beginning:
// only here a certificate that was revoked since then, or whose authority was
// dropped, is still seen.
func (c *tracked) admit(shown []*x509.Certificate, usage x509.ExtKeyUsage, host string) error {
	if len(shown) == 0 {
		return errNoCertificate
	}
	verify := func(m *material) error { return m.verify(shown, usage, host) }
	c.b.remember(c, verify) // before the look at the files, or a change in between is missed
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

// recheck closes the connections whose certificates are no longer good.
func (b *Bundle) recheck(m *material) {
	var refused []*tracked
	b.conns.Lock()
	for c, verify := range b.conns.open {
		if err := verify(m); err != nil {
			b.refusals.Add(1)
			b.log.Warn("a connection is closed: its certificate is no longer good", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
			refused = append(refused, c)
		}
	}
	b.conns.Unlock()
	for _, c := range refused {
		_ = c.Close() // whoever uses it notices
	}
}

// refuse counts, and logs once a second: who is refused tries again and again.
func (b *Bundle) refuse(c *tracked, leaf *x509.Certificate, err error) {
	b.refusals.Add(1)
	now := time.Now().Unix()
	if b.refusalLogged.Swap(now) == now {
		return
	}
	b.log.Warn("a certificate is refused", zap.Stringer("remote", c.RemoteAddr()), zap.Stringer("subject", leaf.Subject), zap.Stringer("serial", leaf.SerialNumber), zap.Error(err))
}

// verify holds what the other side showed against the files: there must be a
// chain to an authority in which nothing is revoked.
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

func (m *material) revokedIn(chain []*x509.Certificate) bool {
	for i := range len(chain) - 1 {
		if m.revoked.has(chain[i], chain[i+1]) {
			return true
		}
	}
	return false
}

// Names returns nil when the other side's certificate names the host of one of
// the URLs, by name, wildcard or address.
func Names(state *tls.ConnectionState, urls []string) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return errNoCertificate
	}
	err := errors.New("there is no URL that the certificate could name")
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
