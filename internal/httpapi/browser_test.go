package httpapi

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
)

func TestBrowserGuard(t *testing.T) {
	loopback, inner := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 12380}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 12380}
	d := newBrowserGuard([]string{"n1.example", "Workstation", "Dotted.Example."})
	browser := func(name, value string) map[string]string { return map[string]string{name: value} }
	for name, c := range map[string]struct {
		method, host string
		local        net.Addr
		tls          bool
		header       map[string]string
		want         api.Code
	}{
		"an address":                        {"PUT", "127.0.0.1:12380", loopback, false, nil, ""},
		"an IPv6 address":                   {"PUT", "[::1]:12380", loopback, false, nil, ""},
		"an IPv6 address without a port":    {"PUT", "[::1]", loopback, false, nil, ""},
		"another address":                   {"PUT", "10.0.0.1", loopback, false, nil, ""},
		"localhost":                         {"PUT", "LocalHost:12380", loopback, false, nil, ""},
		"below localhost":                   {"PUT", "kvd.localhost.:1", loopback, false, nil, ""},
		"no host":                           {"PUT", "", loopback, false, nil, ""},
		"an advertised name":                {"PUT", "N1.example:12380", loopback, false, nil, ""},
		"another advertised name":           {"PUT", "workstation", loopback, false, nil, ""},
		"a rebound name":                    {"PUT", "evil.example:12380", loopback, false, nil, api.Misdirected},
		"a rebound name reads":              {"GET", "evil.example:12380", loopback, false, nil, api.Misdirected},
		"a rebound name of digits":          {"GET", "1.evil.example", loopback, false, nil, api.Misdirected},
		"a number that is no address":       {"GET", "2130706433", loopback, false, nil, api.Misdirected},
		"a name that ends like localhost":   {"GET", "notlocalhost", loopback, false, nil, api.Misdirected},
		"a name that ends in a known one":   {"GET", "evil.n1.example", loopback, false, nil, api.Misdirected},
		"brackets around no address":        {"GET", "[evil.example]", loopback, false, nil, api.Misdirected},
		"a program uses any name elsewhere": {"PUT", "kvd:12380", inner, false, nil, ""},
		"curl uses any name elsewhere":      {"GET", "kvd:12380", inner, false, browser("User-Agent", "curl/8.5.0"), ""},
		"Node's fetch uses any name":        {"GET", "kvd:12380", inner, false, map[string]string{"Accept-Language": "*", "Sec-Fetch-Mode": "cors", "User-Agent": "node"}, ""},
		"a rebound name elsewhere writes":   {"PUT", "evil.example:12380", inner, false, browser("Origin", "http://evil.example:12380"), api.Misdirected},
		"a rebound name elsewhere fetches":  {"GET", "evil.example:12380", inner, false, browser("Sec-Fetch-Site", "same-origin"), api.Misdirected},
		"a rebound name elsewhere embeds":   {"GET", "evil.example:12380", inner, false, browser("Sec-Fetch-Dest", "image"), api.Misdirected},
		"a rebound name elsewhere reads":    {"GET", "evil.example", inner, false, browser("Accept-Language", "en"), api.Misdirected},
		"a rebound name with another agent": {"GET", "evil.example", inner, false, map[string]string{"Accept-Language": "*", "User-Agent": "curl/8"}, api.Misdirected},
		"a browser uses a rebound name":     {"GET", "evil.example.", inner, false, browser("User-Agent", "Mozilla/5.0"), api.Misdirected},
		"a browser uses a known name":       {"POST", "WORKSTATION.:12380", inner, false, browser("Origin", "http://WORKSTATION.:12380"), ""},
		"a browser uses a listed name":      {"GET", "dotted.EXAMPLE:80", inner, false, browser("User-Agent", "Mozilla/5.0"), ""},
		"a browser uses an address":         {"PUT", "10.0.0.1:12380", inner, false, browser("Origin", "http://10.0.0.1:12380"), ""},
		"a browser uses a scoped address":   {"GET", "[fe80::1%25eth0]:12380", inner, false, browser("User-Agent", "Mozilla/5.0"), ""},
		"a browser uses TLS":                {"GET", "kvd.example", inner, true, browser("User-Agent", "Mozilla/5.0"), ""},
		"any name on a socket":              {"PUT", "kvd", &net.UnixAddr{Name: "/run/kvd.sock", Net: "unix"}, false, nil, ""},
		"any name with TLS":                 {"PUT", "kvd.example", loopback, true, nil, ""},
		"a page of another site writes":     {"POST", "127.0.0.1:12380", loopback, false, map[string]string{"Sec-Fetch-Site": "cross-site"}, api.CrossOrigin},
		"an older browser's page writes":    {"PUT", "127.0.0.1:12380", loopback, false, map[string]string{"Origin": "https://evil.example"}, api.CrossOrigin},
		"a sandboxed page writes":           {"DELETE", "127.0.0.1:12380", loopback, false, map[string]string{"Origin": "null"}, api.CrossOrigin},
		"a page with a certificate writes":  {"POST", "n1.example", inner, true, map[string]string{"Sec-Fetch-Site": "same-site"}, api.CrossOrigin},
		"a page of another site reads":      {"GET", "127.0.0.1:12380", loopback, false, map[string]string{"Sec-Fetch-Site": "cross-site"}, ""},
		"its own page writes":               {"POST", "127.0.0.1:12380", loopback, false, map[string]string{"Sec-Fetch-Site": "same-origin"}, ""},
		"a person types the address":        {"GET", "localhost:12380", loopback, false, map[string]string{"Sec-Fetch-Site": "none"}, ""},
	} {
		r := httptest.NewRequest(c.method, "/4", nil)
		r.Host = c.host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, c.local))
		if c.tls {
			r.TLS = new(tls.ConnectionState)
		}
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		var got api.Code
		if err := d.refuse(r); err != nil {
			got = reply.Problem(err).Code
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The guard protects every route: a web page must neither add members nor read under a
// name of its own.
func TestBrowserGuardStandsBeforeRoutes(t *testing.T) {
	srv := New(Options{RootMembers: true, Hosts: []string{"n1.example"}})
	ask := func(method, target, host, site string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader("http://127.0.0.1:42379"))
		r.Host = host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, r)
		return w
	}
	for _, rt := range srv.router.all {
		target := strings.NewReplacer("{key}", "k", "{id}", "4", "{check}", "log").Replace(rt.pattern)
		for _, m := range rt.methods {
			if w := ask(m.name, target, "evil.example", ""); w.Code != http.StatusMisdirectedRequest || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s for another host: %d %s", m.name, target, w.Code, w.Body)
			}
			safe := m.name == http.MethodGet || m.name == http.MethodHead
			if w := ask(m.name, target, "127.0.0.1", "cross-site"); !safe && (w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), string(api.CrossOrigin))) {
				t.Errorf("%s %s by another site: %d %s", m.name, target, w.Code, w.Body)
			}
		}
	}
}
