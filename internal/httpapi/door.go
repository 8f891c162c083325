package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// door keeps out what a web page makes the browser of somebody on this
// machine, or with a certificate, send. Programs do not notice it.
type door struct {
	names   map[string]bool // in lower case
	origins *http.CrossOriginProtection
}

func newDoor(hosts []string) *door {
	d := &door{names: make(map[string]bool, len(hosts)), origins: http.NewCrossOriginProtection()}
	for _, h := range hosts {
		d.names[strings.ToLower(h)] = true
	}
	return d
}

// refuse returns why the request is not let in, nil if it is.
//
// A page may let its own name resolve to 127.0.0.1 (DNS rebinding) and is then
// of the same origin as this server; but its name is in Host. Elsewhere than
// on loopback a name is how clients find the node, and TLS has a certificate
// for its name.
func (d *door) refuse(r *http.Request) error {
	if r.TLS == nil && !d.knows(r.Host) && onLoopback(r) {
		return api.Errorf(api.Misdirected, "the request came to this machine's loopback address for host %.100q, which is not a name of this node: "+
			"a web page could have caused it. Use localhost or an address, or list the name with --advertise-client", r.Host)
	}
	if err := d.origins.Check(r); err != nil {
		return api.Errorf(api.CrossOrigin, "a web page of another origin caused the request (%v); nothing was done. Programs leave out the headers Origin and Sec-Fetch-Site", err)
	}
	return nil
}

// knows reports whether the host of a request is this node for sure: an
// address, a name for loopback, or one of its own names. Browsers send a host
// in HTTP/1.1 and HTTP/2; without one it is no browser.
func (d *door) knows(host string) bool {
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
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || d.names[name]
}

// onLoopback reports whether the connection came to a loopback address.
func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}
