// Package link describes the connection of a request: whether it is exposed on a network
// and, on a Unix socket, the user of the peer process. The listeners determine that once for
// each connection; packages access and httpapi/door read it from the context.
//
// A Unix socket authenticates without a secret, because the kernel reports the user of the
// peer. An operator who has lost root's password can get back in that way, as with
// PostgreSQL's peer authentication.
package link

import (
	"context"
	"crypto/tls"
	"net"
	"os"
)

// Link is what a connection says about its client. The zero value says nothing, and is
// that of a request which came over no connection, as in a test.
type Link struct {
	// Exposed is set if others can read what the client sends: the connection has no TLS
	// and its address here is not a loopback address.
	Exposed bool
	// Unix is set for a Unix socket, and known if the kernel told the user of the process
	// at its other end, uid.
	Unix  bool
	known bool
	uid   int
}

// SameUser reports whether the client is a process of the user that this process runs as.
func (l Link) SameUser() bool { return l.known && l.uid == os.Geteuid() }

// Of returns what a connection says. It looks below the layers that return the one below
// from NetConn, as *tls.Conn does.
func Of(c net.Conn) Link {
	for secure := false; ; {
		switch layer := c.(type) {
		case *tls.Conn:
			secure, c = true, layer.NetConn()
		case *net.UnixConn:
			uid, err := peerUID(layer)
			return Link{Unix: true, known: err == nil, uid: uid}
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		default:
			local, isTCP := c.LocalAddr().(*net.TCPAddr)
			return Link{Exposed: !secure && isTCP && !local.IP.IsLoopback()}
		}
	}
}

type key struct{}

// With returns a context for requests on a connection.
func With(ctx context.Context, l Link) context.Context { return context.WithValue(ctx, key{}, l) }

// From returns the link of a request.
func From(ctx context.Context) Link {
	l, _ := ctx.Value(key{}).(Link)
	return l
}

// Label is for http.Server.ConnContext.
func Label(ctx context.Context, c net.Conn) context.Context { return With(ctx, Of(c)) }
