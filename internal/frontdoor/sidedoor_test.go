package frontdoor

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

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
		h := sideHandler{clients: clients}
		if c.profiles {
			h.profiles = profileHandler()
		}
		if w := ask(h, "GET", c.path); w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s, profiles %v: %d %.200s, want %d with %q", c.path, c.profiles, w.Code, w.Body, c.code, c.body)
		}
	}
}

// Connections beyond the limit are closed at once; one that ends makes room.
func TestSideDoorLimitsConnections(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &fewConnections{Listener: inner, limit: 1}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	first := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("the second connection was not closed")
	}
	for range 2 { // closing twice counts once
		_ = first.Close()
	}
	dial()
	second := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the limit was not closed")
	}
	_ = second.Close()
}
