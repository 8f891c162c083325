package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// browserGuard refuses requests that a web page causes a browser to send, where that
// browser can reach the node and the page's author cannot: on the machine of the
// node, or with a client certificate. Other programs do not notice it. It is
// immutable.
type browserGuard struct {
	names   map[string]bool // of this node, in lower case
	origins *http.CrossOriginProtection
}

func newBrowserGuard(hosts []string) *browserGuard {
	g := &browserGuard{names: make(map[string]bool, len(hosts)), origins: http.NewCrossOriginProtection()}
	for _, h := range hosts {
		g.names[strings.ToLower(h)] = true
	}
	return g
}

// refuse returns why a request is refused, or nil.
//
// The check of origins does not suffice: a page may have its own name resolve to
// 127.0.0.1 (DNS rebinding), and is then of the same origin as this server. But its
// name is in Host, so on loopback only known names are accepted. Elsewhere any name
// is: it is how clients find the node, and the page's author could reach it as
// well. With TLS the certificate vouches for the name.
func (g *browserGuard) refuse(r *http.Request) error {
	if r.TLS == nil && !g.knows(r.Host) && onLoopback(r) {
		return api.Errorf(api.Misdirected, "the host %.100q of a request to the loopback address is not a name of this node, so a web page could have caused it; "+
			"use localhost or an IP address, or list the name in --advertise-client", r.Host)
	}
	if err := g.origins.Check(r); err != nil {
		return api.Errorf(api.CrossOrigin, "a web page from another origin caused the request (%v); nothing was done; programs must not send the headers Origin and Sec-Fetch-Site", err)
	}
	return nil
}

// knows reports whether a request with this host was certainly meant for this node:
// the host is an IP address, which cannot be rebound, or a name for loopback, or a
// name of the node. A request without a host does not come from a browser.
func (g *browserGuard) knows(host string) bool {
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name = host[:i]
	}
	if name == "" {
		return true
	}
	switch c := name[0]; {
	case c == '[':
		_, err := netip.ParseAddr(strings.TrimSuffix(name[1:], "]"))
		return err == nil
	case c >= '0' && c <= '9':
		if _, err := netip.ParseAddr(name); err == nil {
			return true
		}
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || g.names[name]
}

// onLoopback reports whether the connection came to a loopback address.
func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}
