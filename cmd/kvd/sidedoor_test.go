package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
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

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
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

// A node in its stop does not serve clients any more, and still tells probes
// so.
func TestSideDoorClosesLast(t *testing.T) {
	side := freeURL(t)
	p := startNode(t, nil, "--listen-metrics", side, "--pprof")
	p.awaitReady(t)
	for url, want := range map[string]int{
		side + "/readyz": 200, side + "/metrics": 200, side + "/debug/pprof/heap": 200, side + "/v1/status": 404,
		p.client + "/metrics": 200, p.client + "/debug/pprof/heap": 404,
	} {
		if code, body := fetch(t, url); code != want {
			t.Errorf("%s: %d %.200s", url, code, body)
		}
	}
	// A request in work holds the stop up.
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.client, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PUT /k HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := bufio.NewReader(conn)
	if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("%q, %v", line, err)
	}
	p.signal(t, syscall.SIGTERM)
	for deadline := time.Now().Add(patience); ; {
		code, body := fetch(t, side+"/readyz")
		if code == 503 && strings.Contains(body, "draining") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("in a stop /readyz says %d %s", code, body)
		}
	}
	if code, body := fetch(t, side+"/metrics"); code != 200 || !strings.Contains(body, "kvd_raft_term") {
		t.Errorf("in a stop /metrics is %d %.200s", code, body)
	}
	if _, err := io.WriteString(conn, "vv"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		if code := codeOf(t, err); code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("the node does not stop")
	}
}
