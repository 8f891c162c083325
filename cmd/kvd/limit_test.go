package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

// TestConnectionsOverTheLimit: a real node at its limit answers probes and
// refuses other requests with the reason, without TLS, with it, and through
// net/http.
func TestConnectionsOverTheLimit(t *testing.T) {
	t.Parallel()
	f := newTLSFiles(t)
	plain, secure := freeURL(t), freeSecureURL(t)
	p := startSecure(t, 1, []string{freeSecureURL(t)}, plain+","+secure, nil, append(f.flags("member"), "--max-connections", "2"))
	p.client = plain
	free := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	awaitSecure(t, free, p)
	taken := take(t, strings.TrimPrefix(plain, "http://"), 2)
	for name, base := range map[string]string{"in the clear": plain, "with TLS": secure} {
		t.Run(name, func(t *testing.T) {
			c := f.client(t, "client")
			for _, probe := range []string{"/livez", "/readyz", "/readyz/leader", "/metrics", "/version"} {
				resp, err := c.Get(base + probe)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK || !resp.Close && resp.ProtoMajor == 1 {
					t.Errorf("%s: %s, connection ends: %v", probe, resp.Status, resp.Close)
				}
			}
			for _, path := range []string{"/a", "/v1/kv?prefix=a", "/v1/status", "/v1/kv/a?timeout=1m"} {
				wantOverloaded(t, c, base+path)
			}
		})
	}
	_ = taken[0].Close()
	await(t, "the place is free again", func() error { return probe(free, plain+"/v1/status") })
}

// take opens connections and uses them, so that their places are taken.
func take(t *testing.T, host string, count int) (all []net.Conn) {
	t.Helper()
	for range count {
		await(t, "a place", func() error {
			c, err := net.Dial("tcp", host)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			if _, err := io.WriteString(c, "GET /v1/kv/none HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				return err
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusNotFound {
				return errors.New(resp.Status)
			}
			all = append(all, c)
			return nil
		})
	}
	return all
}

func wantOverloaded(t *testing.T, c *http.Client, url string) {
	t.Helper()
	resp, err := c.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var problem struct{ Code, Detail string }
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil {
		t.Error(err)
	}
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || problem.Code != string(api.Overloaded) || !strings.Contains(problem.Detail, "--max-connections") {
		t.Errorf("%s: %s %v %+v", url, resp.Status, resp.Header, problem)
	}
}
