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

// outgoing makes the requests of rafthttp: it states who this member is, and
// connects as Security says. rafthttp's own transports would read authorities
// once, know no revocation, and go through the proxy that HTTP_PROXY names.
type outgoing struct {
	self identity
	rt   *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (o *outgoing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context()) // the caller's headers are not ours to change
	o.self.stamp(r.Header)
	return o.rt.RoundTrip(r)
}

// ownRequests has rafthttp's requests made by outgoing. rafthttp takes no
// transport from outside, but its two are http.Transports, and those hand the
// requests of a registered protocol on. A stream and a POST need different
// limits: a stream carries heartbeats, and silence means that the connection
// is dead; the answer to a POST may wait for a disk.
func (t *Transport) ownRequests() error {
	for field, stall := range map[string]time.Duration{"streamRt": rafthttp.ConnReadTimeout, "pipelineRt": 0} {
		theirs, err := httpTransport(t.tr, field)
		if err != nil {
			return err
		}
		ours := &outgoing{self: t.self, rt: t.newHTTPTransport(stall)}
		theirs.RegisterProtocol("http", ours)
		theirs.RegisterProtocol("https", ours)
		t.own = append(t.own, ours.rt)
	}
	return nil
}

func (t *Transport) newHTTPTransport(stall time.Duration) *http.Transport {
	// As rafthttp has it: a connection with deadlines would time out while it
	// is idle, so none is kept; of the others, enough that a burst of POSTs
	// does not use up ports.
	rt := &http.Transport{MaxIdleConnsPerHost: 1024}
	if stall > 0 {
		rt.MaxIdleConnsPerHost = -1
	}
	dialer := &net.Dialer{Timeout: t.cfg.DialTimeout, KeepAlive: 30 * time.Second}
	t.cfg.Security.DialWith(rt, func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil || stall == 0 {
			return c, err
		}
		return &stallingConn{Conn: c, stall: stall}, nil
	})
	return rt
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
