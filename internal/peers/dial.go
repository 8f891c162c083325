package peers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
)

// Dial connects to an address, as net.Dialer.DialContext does.
type Dial = func(ctx context.Context, network, addr string) (net.Conn, error)

// Security is how members know each other. The zero value is nothing at all:
// they talk in the clear, and believe what they are told.
type Security struct {
	// Secure puts TLS on the connections that dial makes to https URLs. The
	// other side's certificate must name the host.
	Secure func(dial Dial) Dial
	// SecureOnly refuses to connect without TLS.
	SecureOnly bool
	// Authorize compares the certificate of whoever sends a request with the
	// peer URLs of the member that it claims to be. An error refuses it.
	Authorize func(state *tls.ConnectionState, peerURLs []string) error
}

// DialWith has the transport connect through dial, never through a proxy.
func (s *Security) DialWith(rt *http.Transport, dial Dial) {
	rt.Proxy = nil
	rt.DialContext = dial
	rt.DialTLSContext = nil
	if s.Secure != nil {
		rt.DialTLSContext = s.Secure(dial)
	}
	if s.SecureOnly {
		rt.DialContext = refuseDial
	}
}

// errInsecure: the URL of a member would be used without TLS.
var errInsecure = errors.New("members of this cluster are reached with TLS only; their URLs begin with https://")

func refuseDial(context.Context, string, string) (net.Conn, error) { return nil, errInsecure }

// ownDialling replaces how rafthttp connects: it would read authorities once,
// know no revocation, and go through the proxy that HTTP_PROXY names. It takes
// no transport from outside, so its two are changed before their first use.
func (t *Transport) ownDialling() error {
	dialer := &net.Dialer{Timeout: t.cfg.DialTimeout, KeepAlive: 30 * time.Second}
	// A stream carries heartbeats far more often; a POST may wait for a disk.
	for field, stall := range map[string]time.Duration{"streamRt": rafthttp.ConnReadTimeout, "pipelineRt": 0} {
		rt, err := httpTransport(t.tr, field)
		if err != nil {
			return err
		}
		rt.Dial = nil //lint:ignore SA1019 rafthttp sets it, and it would be used where the others fail
		t.cfg.Security.DialWith(rt, func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil || stall == 0 {
				return c, err
			}
			return &stallingConn{Conn: c, stall: stall}, nil
		})
	}
	return nil
}

// httpTransport is the http.Transport in an unexported field of rafthttp's.
func httpTransport(tr *rafthttp.Transport, field string) (*http.Transport, error) {
	f := reflect.ValueOf(tr).Elem().FieldByName(field)
	if !f.IsValid() || f.Kind() != reflect.Interface || f.IsNil() || f.Elem().Type() != reflect.TypeFor[*http.Transport]() {
		return nil, fmt.Errorf("rafthttp is not the version this was built for: its %s is no *http.Transport", field)
	}
	return (*http.Transport)(f.Elem().UnsafePointer()), nil
}

// stallingConn gives each read and write a deadline of its own.
type stallingConn struct {
	net.Conn
	stall time.Duration
}

// Read implements net.Conn.
func (c *stallingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *stallingConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
