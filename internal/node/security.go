package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/memberurl"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/roster"
)

// errIdentity means that a certificate does not match the identity that its
// owner claims.
var errIdentity = errors.New("the certificate does not match the claimed identity")

// errSender means that a call does not state the identity of a member of this
// cluster, or that this node does not believe it.
var errSender = errors.New("the caller is not believed to be a member of this cluster")

// caller is who makes a call.
type caller struct {
	tls *tls.ConnectionState // of its connection; nil without TLS
	r   *http.Request        // whose headers state its identity, if it is a member
}

// peering is how the members of this node's cluster talk to each other.
type peering struct {
	tls      *certs.Bundle                    // nil: plain HTTP
	insecure bool                             // plain HTTP is allowed beyond this machine
	through  func(dial peers.Dial) peers.Dial // how connections are made; nil: the usual way
}

// security returns the rules for package peers.
func (p peering) security() peers.Security {
	if p.tls == nil {
		return peers.Security{Through: p.through}
	}
	return peers.Security{Through: p.through, Secure: p.tls.Dial, SecureOnly: !p.insecure, Authorize: certs.Names}
}

// checkURLs refuses URLs under which a member would be reached in another way
// than the others, or in the clear where strangers can listen.
func (p peering) checkURLs(urls []string) error {
	for _, u := range urls {
		secure := strings.HasPrefix(u, "https:")
		switch {
		case p.tls == nil && secure:
			return fmt.Errorf("%w: %s uses TLS, but the members of this cluster do not", roster.ErrBadMember, u)
		case p.tls != nil && !secure && !p.insecure:
			return fmt.Errorf("%w: %s does not use TLS, but the members of this cluster do; use https://", roster.ErrBadMember, u)
		case !secure && !p.insecure && !memberurl.OnThisMachine(u):
			return fmt.Errorf("%w: %s would carry peer traffic without TLS beyond this machine; set up TLS for members, "+
				"or start all of them with --insecure-peers if nobody else can reach that network", roster.ErrBadMember, u)
		}
	}
	return nil
}

// listener adds TLS to the peer listener if its URL asks for it.
func (p peering) listener(l net.Listener, url string) (net.Listener, error) {
	switch {
	case !strings.HasPrefix(url, "https:"):
		return l, nil
	case p.tls == nil:
		return nil, fmt.Errorf("%w: %s needs a certificate, a key, and a CA", ErrConfig, url)
	}
	return p.tls.Listen(l), nil
}

// named refuses a caller whose certificate names none of the hosts in the URLs.
func named(c caller, whom string, urls []string) error {
	if err := certs.Names(c.tls, urls); err != nil {
		return fmt.Errorf("%w (%s): %w", errIdentity, whom, err)
	}
	return nil
}

// refusedByServer reports whether the error means that the other side rejected
// the certificate. With TLS 1.3 that comes with the first read, after the
// request was written, but before anybody looked at it. crypto/tls exports no
// type for it.
func refusedByServer(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate")
}
