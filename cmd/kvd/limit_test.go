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
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// limited is a listener under a limit, with what comes through it.
type limited struct {
	t        *testing.T
	limit    *connectionLimit
	inner    net.Listener
	accepted chan net.Conn
}

func newLimited(t *testing.T, limit *connectionLimit) *limited {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{t: t, limit: limit, inner: inner, accepted: make(chan net.Conn)}
	all := []net.Listener{inner}
	limit.wrap(all)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := all[0].Accept()
			if err != nil {
				ended <- err
				return
			}
			l.accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = inner.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l
}

func (l *limited) dial() net.Conn {
	l.t.Helper()
	c, err := net.Dial("tcp", l.inner.Addr().String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// open connects and returns the server's end.
func (l *limited) open(beyond bool) net.Conn {
	l.t.Helper()
	l.dial()
	c := <-l.accepted
	if (l.limit.mark(l.t.Context(), c).Value(beyondLimit{}) != nil) != beyond {
		l.t.Errorf("beyond the limit: %v", !beyond)
	}
	return c
}

// TestPlacesOfConnections: a few beyond the limit, none beyond those, and the
// place of one that was closed is free again.
func TestPlacesOfConnections(t *testing.T) {
	limit := newConnectionLimit(2)
	limit.spare = 1
	closed := make(chan api.Code, 1)
	limit.rejected = func(c api.Code) { closed <- c }
	l := newLimited(t, limit)
	first, second, extra := l.open(false), l.open(false), l.open(true)
	if n, err := l.dial().Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came on a connection that has no place", n)
	}
	if code := <-closed; code != api.Overloaded {
		t.Errorf("it was counted as %s", code)
	}
	_, _ = first.Close(), first.Close() // twice gives one place back
	third := l.open(false)
	_ = extra.Close()
	again := l.open(true)
	if open, extra := limit.open.Load(), limit.extra.Load(); open != 2 || extra != 1 {
		t.Errorf("%d and %d connections count", open, extra)
	}
	for _, c := range []net.Conn{second, third, again} {
		_ = c.Close()
	}
}

// TestConnectionBeyondTheLimitIsShort: one on which nothing is said keeps its
// place from probes for a moment only.
func TestConnectionBeyondTheLimitIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := newConnectionLimit(1)
		ours, theirs := net.Pipe()
		defer limit.admit(theirs).Close()
		silent, end := net.Pipe()
		limit.admit(end)
		begin := time.Now()
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(begin) != spareLifetime {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if n := limit.extra.Load(); n != 0 {
			t.Errorf("%d connections count", n)
		}
		_ = ours.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := ours.Read(make([]byte, 1)); errors.Is(err, io.EOF) || time.Since(begin) < time.Hour {
			t.Errorf("the one within the limit: %v after %v", err, time.Since(begin))
		}
	})
}

// TestConnectionsOverTheLimit asks a real node whose places are taken, in the
// clear, with TLS, and by way of net/http: probes are answered, others are told
// why not.
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
