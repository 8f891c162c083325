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

// TestSideDoorClosesLast: a stopping node no longer serves clients, and probes
// on the side door see that.
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
	// A request in progress delays the stop.
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
		if code == 503 && strings.Contains(body, "[-]not-draining") {
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
