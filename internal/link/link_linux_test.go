package link

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// accept returns both ends of a connection through a listener.
func accept(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("listen on %s: %v", address, err)
	}
	defer l.Close()
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

// wrapped is a layer over a connection, like that of a limit.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

// TestUnixPeer: the kernel tells who is at the other end of a socket, through any layer.
func TestUnixPeer(t *testing.T) {
	_, server := accept(t, "unix", filepath.Join(t.TempDir(), "s"))
	for _, c := range []net.Conn{server, wrapped{server}, tls.Server(wrapped{server}, new(tls.Config))} {
		l := Of(c)
		if !l.Unix || !l.known || l.uid != os.Getuid() || !l.SameUser() || l.Exposed {
			t.Errorf("%T: %+v", c, l)
		}
	}
	if other := (Link{Unix: true, known: true, uid: os.Geteuid() + 1}); other.SameUser() {
		t.Error("another user is taken for this one")
	}
	if unknown := (Link{Unix: true, uid: os.Geteuid()}); unknown.SameUser() {
		t.Error("a user that nobody told is taken for this one")
	}
}

// addressed is a connection that claims a local address.
type addressed struct {
	net.Conn
	local net.IP
}

func (a addressed) LocalAddr() net.Addr { return &net.TCPAddr{IP: a.local} }

// TestExposed: without TLS, whatever does not stay on this machine is exposed.
func TestExposed(t *testing.T) {
	_, loopback := accept(t, "tcp", "127.0.0.1:0")
	for _, c := range []struct {
		conn net.Conn
		want bool
	}{
		{loopback, false},
		{addressed{local: net.ParseIP("127.9.9.9")}, false},
		{addressed{local: net.ParseIP("::1")}, false},
		{addressed{local: net.ParseIP("10.0.0.1")}, true},
		{addressed{local: net.ParseIP("fe80::1")}, true},
		{wrapped{addressed{local: net.ParseIP("10.0.0.1")}}, true},
		{tls.Server(addressed{local: net.ParseIP("10.0.0.1")}, new(tls.Config)), false},
		{wrapped{tls.Server(wrapped{addressed{local: net.ParseIP("10.0.0.1")}}, new(tls.Config))}, false},
	} {
		if l := From(Label(context.Background(), c.conn)); l.Exposed != c.want || l.Unix || l.SameUser() {
			t.Errorf("%T at %v: %+v", c.conn, c.conn.LocalAddr(), l)
		}
	}
	if From(context.Background()) != (Link{}) {
		t.Error("a request without a connection has a link")
	}
}
