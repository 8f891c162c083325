package browser

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// FuzzHost: a host that is taken for the node's own is, as a browser would read it, an
// address, a name for loopback, or one of the node's names. Any other name could be that of
// a page whose author makes it resolve to the node.
func FuzzHost(f *testing.F) {
	for _, host := range []string{
		"localhost", "LOCALHOST.:80", "a.localhost:1", "127.0.0.1:12380", "[::1]:1", "[::1", "[::1]evil.example", "1.2.3.4.evil.example", "node.example.:9", "evil.example:localhost",
		"evil.example]", "[::1%25x]:1", "evil.example:80:localhost", "localhost:x@evil.example", "[evil.example]", "", ":80", "evil.example/.localhost",
	} {
		f.Add(host)
	}
	g := New([]string{"node.example"}, false)
	f.Fuzz(func(t *testing.T, host string) {
		u, err := url.Parse("http://" + host + "/")
		if err != nil || u.Path != "/" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return // no browser sends this for a page that it has loaded
		}
		name := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		_, err = netip.ParseAddr(name)
		own := name == "" || err == nil || name == "localhost" || strings.HasSuffix(name, ".localhost") || name == "node.example"
		if g.knows(host) && !own {
			t.Fatalf("%q is taken for the node, and leads to %q", host, name)
		}
	})
}
