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

// Security is how members authenticate each other. The zero value is no
// security: they talk in the clear and believe what they are told.
type Security struct {
	// Through replaces how connections are made; nil leaves it. Tests cut members off
	// with it.
	Through func(dial Dial) Dial
	// Secure adds TLS to the connections that dial makes, for https URLs. The
	// certificate of the other side must name the host.
	Secure func(dial Dial) Dial
	// SecureOnly refuses to connect without TLS.
	SecureOnly bool
	// Authorize compares the certificate of a sender with the peer URLs of the
	// member that it claims to be. An error refuses the request.
	Authorize func(state *tls.ConnectionState, peerURLs []string) error
}

// DialWith makes rt connect through dial and with the TLS of s, and never through
// a proxy: members are reached directly or not at all.
func (s *Security) DialWith(rt *http.Transport, dial Dial) {
	rt.Proxy = nil
	if s.Through != nil {
		dial = s.Through(dial)
	}
	rt.DialContext = dial
	rt.DialTLSContext = nil
	if s.Secure != nil {
		rt.DialTLSContext = s.Secure(dial)
	}
	if s.SecureOnly {
		rt.DialContext = refuseDial
	}
}

// errInsecure is the outcome of a dial to an http URL in a cluster with TLS.
var errInsecure = errors.New("this cluster requires TLS between members: use an https URL")

func refuseDial(context.Context, string, string) (net.Conn, error) { return nil, errInsecure }

// outgoing makes the requests of rafthttp. It states the identity of this member,
// and connects as Security demands. rafthttp's own transports read authorities
// only once, check no revocation list, and use the proxy that HTTP_PROXY names.
type outgoing struct {
	t  *Transport
	rt *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (o *outgoing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context()) // a RoundTripper must not modify its request
	o.t.self.stamp(r.Header)
	if r.URL.Path == rafthttp.RaftSnapshotPrefix {
		return o.t.roundTripBody(o.rt, r)
	}
	resp, err := o.rt.RoundTrip(r)
	if err == nil {
		o.t.warnRefused(r, resp)
		o.t.noteClone(r, resp)
		resp.Body = bind(o.t, r, resp)
	}
	return resp, err
}

// ownRequests makes outgoing carry the requests of rafthttp. rafthttp accepts no
// transport from its caller, but its two are of type http.Transport, which passes
// requests on to whatever is registered for their scheme.
//
// The two need different limits. A stream carries heartbeats, so silence means
// that the connection is dead. The answer to a POST may have to wait for a disk.
func (t *Transport) ownRequests() error {
	for field, stall := range map[string]time.Duration{"streamRt": rafthttp.ConnReadTimeout, "pipelineRt": 0} {
		theirs, err := httpTransport(t.tr, field)
		if err != nil {
			return err
		}
		ours := &outgoing{t: t, rt: t.newHTTPTransport(stall)}
		theirs.RegisterProtocol("http", ours)
		theirs.RegisterProtocol("https", ours)
		t.own = append(t.own, ours.rt)
	}
	return nil
}

// newHTTPTransport returns a transport whose connections fail when they make no
// progress for the time stall; 0 means that they may wait.
func (t *Transport) newHTTPTransport(stall time.Duration) *http.Transport {
	// The numbers are rafthttp's. A connection that can stall would time out
	// while it is idle, so none is kept. Of the others, enough are kept that a
	// burst of POSTs does not exhaust the ports.
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

// httpTransport returns the http.Transport in an unexported field of rafthttp's
// Transport. If a release of rafthttp moves the field, every start fails: losing
// Security silently would be worse.
func httpTransport(tr *rafthttp.Transport, field string) (*http.Transport, error) {
	f := reflect.ValueOf(tr).Elem().FieldByName(field)
	if !f.IsValid() || f.Kind() != reflect.Interface || f.IsNil() || f.Elem().Type() != reflect.TypeFor[*http.Transport]() {
		return nil, fmt.Errorf("unsupported version of rafthttp: field %s is not an *http.Transport", field)
	}
	return (*http.Transport)(f.Elem().UnsafePointer()), nil
}

// stallingConn sets a new deadline for each read and each write.
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
