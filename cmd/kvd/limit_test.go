package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestConnectionsOverTheLimit: they are told so, and the place of one that was
// closed is free again.
func TestConnectionsOverTheLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 10)
	limit := newConnectionLimit(2)
	limit.refused = func() { refused <- struct{}{} }
	all := []net.Listener{inner}
	limit.wrap(all, []string{"http://127.0.0.1"})
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := all[0].Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	second := <-accepted
	for range 3 {
		c := dial()
		if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), "--max-connections") {
			t.Errorf("%s %s %v", resp.Status, body, err)
		}
		<-refused
	}
	_ = first.Close()
	_ = first.Close() // twice gives one place back
	dial()
	third := <-accepted
	if n := limit.open.Load(); n != 2 {
		t.Errorf("%d connections count", n)
	}
	_ = inner.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	_, _ = second.Close(), third.Close()
}
