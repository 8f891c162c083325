package memberurl

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// numericHost reads a host as inet_aton of the C library does, which some resolvers use:
// one to four numbers, decimal, octal, or hexadecimal, the last of which fills the rest.
func numericHost(host string) (netip.Addr, bool) {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var sum uint64
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 0, 32)
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if err != nil || strings.ContainsAny(part, "_bBoO+") || n >= 1<<bits {
			return netip.Addr{}, false
		}
		sum = sum<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}), true
}

// FuzzNormalize compares what is accepted with others who read it: net/url and etcd, which
// dial it, a resolver that takes numbers for addresses, and the lists in which commas
// separate URLs. Whatever is refused, the message keeps the password.
func FuzzNormalize(f *testing.F) {
	for _, text := range []string{
		"http://127.0.0.1:2380", "https://kvd-1.example.com:2380/", "HTTP://[::1]:1", "http://[fe80::1%25eth0]:80", "http://[::ffff:169.254.1.1]:80", "http://0xa9.0xfe.1:80",
		"http://169.254.169.%EF%BC%92%EF%BC%95%EF%BC%94:80", "http://a,b:1", "http://%ff:1", "http://a\"b:1", "http://u:pass@h:1", "ftp://h:1", "http://h", "//", "http://1.example.:65535",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		const secret = "s3cr3t-passw0rd"
		if err := Validate([]string{"http://user:" + secret + "@" + text}); err == nil || strings.Contains(err.Error(), secret) && !strings.Contains(text, secret) {
			t.Fatalf("a URL with a password: %v", err)
		}
		urls, err := Normalize([]string{text})
		if err != nil {
			return
		}
		n := urls[0]
		if again, err := Normalize(urls); err != nil || again[0] != n || Validate(urls) != nil {
			t.Fatalf("%q becomes %q, and that %q, %v", text, n, again, err)
		}
		if list := strings.Split(n, ","); len(list) != 1 {
			t.Fatalf("%q is two in a list", n)
		}
		others, err := types.NewURLs(urls)
		if err != nil || others.String() != n {
			t.Fatalf("etcd reads %q as %v, %v", n, others, err)
		}
		u, err := url.Parse(n)
		if err != nil {
			t.Fatal(err)
		}
		checkHost(t, n, u)
	})
}

// checkHost checks where an accepted URL leads.
func checkHost(t *testing.T, text string, u *url.URL) {
	host, port, err := net.SplitHostPort(u.Host)
	if n, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || n == 0 || host == "" || host != u.Hostname() {
		t.Fatalf("%q leads to host %q, port %q, %v", text, host, port, err)
	}
	ip, err := netip.ParseAddr(host)
	if numeric, ok := numericHost(strings.TrimSuffix(host, ".")); ok {
		if err != nil || ip != numeric {
			t.Fatalf("a resolver takes %q for %v", text, numeric)
		}
	}
	switch {
	case err == nil && ip.Unmap().IsLinkLocalUnicast():
		t.Fatalf("%q is link-local", text)
	case err != nil && strings.ContainsFunc(host, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.", r) }):
		t.Fatalf("%q has a host %q that clients and resolvers may turn into another one", text, host)
	}
}
