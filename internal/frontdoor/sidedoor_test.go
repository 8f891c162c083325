package frontdoor

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/settings"
)

// TestSideDoorRefusesWithDocuments: what is not valid HTTP gets a problem document, as
// at the front door, and what is valid is served beside it.
func TestSideDoorRefusesWithDocuments(t *testing.T) {
	d, err := ListenSide(&settings.Settings{ListenMetrics: []string{"http://127.0.0.1:0"}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	d.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), false)
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		head, kind string
		code       int
	}{
		{"GET /metrics HTTP/1.1\r\n", "text/plain; charset=utf-8", 200},
		{"GET /%zz HTTP/1.1\r\n", "application/problem+json", 400},
		{"GET /metrics HTTP/1.1\r\nX: " + strings.Repeat("x", 70_000) + "\r\n", "application/problem+json", 431},
	} {
		conn, err := net.Dial("tcp", d.listeners[0].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() { _, _ = io.WriteString(conn, c.head+"Host: 127.0.0.1\r\nConnection: close\r\n\r\n") }()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%.30q: %v", c.head, err)
			continue
		}
		defer resp.Body.Close()
		if kind := resp.Header.Get("Content-Type"); resp.StatusCode != c.code || kind != c.kind {
			t.Errorf("%.30q: %d %s, want %d %s", c.head, resp.StatusCode, kind, c.code, c.kind)
		}
	}
}

func TestSideDoorHasItsRoutesOnly(t *testing.T) {
	clients := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "client "+r.URL.Path) })
	for _, c := range []struct {
		path     string
		profiles bool
		code     int
		body     string
	}{
		{"/metrics", false, 200, "client /metrics"},
		{"/livez", false, 200, "client /livez"},
		{"/readyz", false, 200, "client /readyz"},
		{"/readyz/leader", false, 200, "client /readyz/leader"},
		{"/healthz", false, 200, "client /healthz"},
		{"/version", false, 200, "client /version"},
		{"/v1/kv/a", true, 404, "--listen-client"},
		{"/v1/status", true, 404, "--listen-client"},
		{"/key", true, 404, "--listen-client"},
		{"/", true, 404, "--listen-client"},
		{"/debug/pprof/", false, 404, "--pprof"},
		{"/debug/pprof/", true, 200, "goroutine"},
		{"/debug/pprof/goroutine?debug=1", true, 200, "goroutine profile"},
		{"/debug/pprof/cmdline", true, 200, ""},
		{"/debug/vars", true, 404, ""},
	} {
		if w := ask(SideHandler(clients, c.profiles), "GET", c.path); w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s, profiles %v: %d %.200s, want %d with %q", c.path, c.profiles, w.Code, w.Body, c.code, c.body)
		}
	}
}
