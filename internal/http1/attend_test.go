package http1

import (
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// waiting starts a server whose handler waits: it sends on arrived, and waits until it
// receives from proceed or its client is gone, which it tells left. The whole answer is the
// body of the request.
func waiting(t *testing.T) (addr string, srv *Server, arrived, proceed chan string, left chan struct{}) {
	t.Helper()
	arrived, proceed, left = make(chan string), make(chan string), make(chan struct{}, 1)
	over := make(chan struct{}) // the test has ended, perhaps early
	whole := &http.Server{IdleTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		leave := attend(w, cancel)
		defer leave()
		select {
		case arrived <- r.URL.Path:
		case <-over:
		}
		select {
		case <-proceed:
		case <-over:
		case <-ctx.Done():
			left <- struct{}{}
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.URL.Path+" "+string(body))
	})}
	srv = New(whole, func(string, string) bool { return true }, never)
	addr = serveOnLoopback(t, srv, asItIs)
	t.Cleanup(func() { close(over) }) // before the server ends
	return addr, srv, arrived, proceed, left
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, 4<<10)
	for all := ""; !strings.HasSuffix(all, want); {
		n, err := r.Read(b)
		if all += string(b[:n]); err != nil {
			t.Fatalf("received %q (%v), not %q", all, err, want)
		}
	}
}

// TestAttend: a handler that waits learns that its client is gone, before and after
// requests that were answered.
func TestAttend(t *testing.T) {
	addr, _, arrived, proceed, left := waiting(t)
	c, r := dial(t, addr)
	for range 3 {
		send(t, c, "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
		<-arrived
		proceed <- ""
		receive(t, r, "/a hi")
	}
	send(t, c, get)
	<-arrived
	_ = c.Close()
	<-left
}

// TestAttendClosed: the end of the server ends the wait.
func TestAttendClosed(t *testing.T) {
	addr, srv, arrived, _, left := waiting(t)
	c, _ := dial(t, addr)
	send(t, c, get)
	<-arrived
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	<-left
}

// TestAttendShutdown: a request that waits is answered during a shutdown.
func TestAttendShutdown(t *testing.T) {
	addr, srv, arrived, proceed, left := waiting(t)
	c, r := dial(t, addr)
	send(t, c, get)
	<-arrived
	done := make(chan error)
	go func() { done <- srv.Shutdown(t.Context()) }()
	for !srv.closed() {
		runtime.Gosched()
	}
	proceed <- ""
	receive(t, r, "/a ")
	if err := <-done; err != nil || len(left) > 0 {
		t.Errorf("shutdown: %v, %d clients gone", err, len(left))
	}
}

// TestAttendPipelined: earlier answers do not wait, and requests that arrive during a wait,
// whole or in part, are served after it, with the body of the first one intact.
func TestAttendPipelined(t *testing.T) {
	_, srv, arrived, proceed, left := waiting(t)
	c, served := net.Pipe() // a write returns once the server has read it
	defer c.Close()
	srv.start(served)
	body := strings.Repeat("b", 6000) // the buffer is full of it
	send(t, c, "POST /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n")
	<-arrived
	proceed <- ""
	receive(t, c, "/1 ")
	send(t, c, body)
	<-arrived
	send(t, c, "GET /3 HTTP/1.1\r\nHost: x\r\n\r\nGET /4 HTT")
	proceed <- ""
	receive(t, c, "/2 "+body)
	<-arrived
	proceed <- ""
	receive(t, c, "/3 ")
	send(t, c, "P/1.1\r\nHost: x\r\n\r\n")
	<-arrived
	proceed <- ""
	receive(t, c, "/4 ")
	if len(left) > 0 {
		t.Error("a client is said to be gone")
	}
}

// TestAttendReadsOneBufferAhead: a client that sends requests all the time, each of which
// waits, fills no memory.
func TestAttendReadsOneBufferAhead(t *testing.T) {
	_, srv, arrived, proceed, _ := waiting(t)
	c, served := net.Pipe()
	defer c.Close()
	counted := &countedConn{Conn: served}
	srv.start(counted)
	go func() {
		for {
			if _, err := io.WriteString(c, strings.Repeat(get, 1000)); err != nil {
				return
			}
		}
	}()
	go func() { _, _ = io.Copy(io.Discard, c) }()
	for n := int64(1); n <= 500; n++ {
		<-arrived
		if ahead := counted.read.Load() - n*int64(len(get)); ahead > 2*readBufferBytes {
			t.Fatalf("%d bytes were read ahead during request %d", ahead, n)
		}
		proceed <- ""
	}
}

// countedConn counts what is read.
type countedConn struct {
	net.Conn
	read atomic.Int64
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}
