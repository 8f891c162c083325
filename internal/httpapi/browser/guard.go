package browser

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// Guard refuses requests that a web page causes a browser to send, where that
// browser can reach the node and the page's author cannot: on the machine of the
// node, in its network, or with a client certificate. Other programs do not notice
// it. It is immutable.
type Guard struct {
	names   map[string]bool // of this node, as canonicalName has them
	origins *http.CrossOriginProtection
	// readOnly refuses the changes of all pages, also of the node's own.
	readOnly bool
}

// New returns the Guard of a node with these names, besides IP addresses and
// localhost. A node that is readOnly takes no changes from any page.
func New(hosts []string, readOnly bool) *Guard {
	g := &Guard{names: make(map[string]bool, len(hosts)), origins: http.NewCrossOriginProtection(), readOnly: readOnly}
	for _, h := range hosts {
		g.names[canonicalName(h)] = true
	}
	return g
}

// canonicalName returns a host name without its optional dot at the end, in lower
// case.
func canonicalName(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// Refuse returns why a request is refused, or nil.
//
// The check of origins does not suffice: a page may have its own name resolve to
// an address of this node (DNS rebinding), and is then of the same origin as this
// server. But its name is in Host. On loopback, only known names are accepted, from
// whomever. Elsewhere a program may use any name that its network has for the node,
// and only a browser is held to the known ones. With TLS the certificate vouches for
// the name, and a unix socket is beyond the reach of a page.
func (g *Guard) Refuse(r *http.Request) error {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && r.TLS == nil && !g.knows(r.Host) {
		switch {
		case local.IP.IsLoopback():
			return api.Errorf(api.Misdirected, "the host %.100q of a request to the loopback address is not a name of this node, so a web page could have caused it; "+
				"use localhost or an IP address, or list the name in --advertise-client or --allowed-hosts", r.Host)
		case fromBrowser(r.Header):
			return api.Errorf(api.Misdirected, "the host %.100q of a request by a browser is not a name of this node, so a web page of that name could have caused it; "+
				"use an IP address, or list the name in --advertise-client or --allowed-hosts", r.Host)
		}
	}
	if err := g.origins.Check(r); err != nil {
		return api.Errorf(api.CrossOrigin, "a web page from another origin caused the request (%v); nothing was done; programs must not send the headers Origin and Sec-Fetch-Site", err)
	}
	if g.readOnly && changesFromPage(r) && !questions[r.URL.Path] {
		return api.Errorf(api.PermissionDenied, "this node takes no changes from web pages (--ui=read); nothing was done; use curl or the kvd command, or start the node with --ui=on")
	}
	return nil
}

// questions are the paths of requests that change nothing although they are not GET.
var questions = map[string]bool{"/v1/auth/login": true, "/v1/auth/check": true}

// changesFromPage reports whether a web page causes a request that may change something.
// Browsers send Origin with every method but GET and HEAD, and no page can keep them from
// it. Which page it is does not matter: a value of this node cannot be one, and a page
// that a proxy serves beside the node is as little wanted as the node's own.
func changesFromPage(r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions {
		return false
	}
	return len(r.Header["Origin"]) > 0 || len(r.Header["Sec-Fetch-Site"]) > 0
}

// fromBrowser reports whether a browser sent these headers, whatever a page in it does
// to hide that. Browsers send Origin with everything but GET and HEAD. The Sec-Fetch
// headers come only on connections that they trust, and not from a rebound name in
// clear text. What a page cannot suppress then is Accept-Language. Node's fetch sends
// that as well, but beside a Sec-Fetch-Mode without a Sec-Fetch-Site, which no page
// can produce.
func fromBrowser(h http.Header) bool {
	has := func(name string) bool { _, ok := h[name]; return ok }
	return has("Origin") || has("Sec-Fetch-Site") || has("Sec-Fetch-Dest") || has("Accept-Language") && !has("Sec-Fetch-Mode") ||
		strings.HasPrefix(h.Get("User-Agent"), "Mozilla/")
}

// knows reports whether a request with this host was certainly meant for this node:
// the host is an IP address, which cannot be rebound, or a name for loopback, or a
// name of the node. A request without a host does not come from a browser.
func (g *Guard) knows(host string) bool {
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
	name = canonicalName(name)
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || g.names[name]
}
