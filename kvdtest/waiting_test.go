package kvdtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestWaiterLeaves: a client that disconnects while it waits for a lock leaves the queue,
// and the lease that was made for it ends. One that stays gets the lock, and its connection
// serves the next request.
func TestWaiterLeaves(t *testing.T) {
	n := New(t)
	ask := func(method, path string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, n.Endpoint+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(resp.StatusCode, " ", string(body))
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain for %s: %s", what, ask("GET", "/v1/locks/l"))
			}
		}
	}
	waiting := func(number int) func() bool {
		return func() bool { return strings.Contains(ask("GET", "/v1/locks/l"), fmt.Sprintf(`"waiting":%d`, number)) }
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", strings.TrimPrefix(n.Endpoint, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	wait := func(c net.Conn) {
		t.Helper()
		if _, err := io.WriteString(c, "POST /v1/locks/l?ttl=10m&wait=9m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	held := ask("POST", "/v1/locks/l?ttl=10m")
	if !strings.Contains(held, `"lease":1,`) {
		t.Fatal(held)
	}
	leaver, stayer := dial(), dial()
	wait(leaver)
	until("the first waiter", waiting(1))
	wait(stayer)
	until("the second waiter", waiting(2))
	_ = leaver.Close()
	until("the first to leave", waiting(1))
	if got := ask("DELETE", "/v1/locks/l?lease=1"); !strings.HasPrefix(got, "204") {
		t.Fatal(got)
	}
	r := bufio.NewReader(stayer)
	for _, want := range []string{`"name":"l"`, `"id":`} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if _ = resp.Body.Close(); err != nil || !strings.Contains(string(body), want) {
			t.Fatalf("%s: %s, %v", resp.Status, body, err)
		}
		if _, err := io.WriteString(stayer, "GET /v1/leases/5 HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask("GET", "/v1/leases/3"); !strings.HasPrefix(got, "404") {
		t.Errorf("the lease of the client that left: %s", got)
	}
}
