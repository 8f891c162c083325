package browser

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

func TestBrowserGuard(t *testing.T) {
	loopback, inner := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 12380}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 12380}
	d := New([]string{"n1.example", "Workstation", "Dotted.Example."}, false)
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
		var refusal *api.Error
		if errors.As(d.Refuse(r), &refusal) {
			got = refusal.Code
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
