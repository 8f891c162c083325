package http1

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// trickle accepts connections whose bytes arrive a few at a time.
type trickle struct{ net.Listener }

func (l trickle) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return trickling{c}, err
}

type trickling struct{ net.Conn }

func (c trickling) Read(p []byte) (int, error) {
	return c.Conn.Read(p[:min(len(p), 1+rand.IntN(9))])
}

// startPatient is startServer with a limit on the time for a header, without which all
// headers in pieces are left to net/http.
func startPatient(t *testing.T, wrap func(net.Listener) net.Listener) (addr string, srv *Server) {
	t.Helper()
	whole := &http.Server{Handler: http.HandlerFunc(echo), IdleTimeout: time.Minute, ReadHeaderTimeout: time.Minute}
	srv = New(whole, func(_, target string) bool { return !strings.HasPrefix(target, "/slow") }, never)
	return serveOnLoopback(t, srv, wrap), srv
}

func asItIs(l net.Listener) net.Listener { return l }

// TestHeadersInPieces: it does not matter to the answers how a request arrives (I4).
func TestHeadersInPieces(t *testing.T) {
	addr, _ := startPatient(t, func(l net.Listener) net.Listener { return trickle{l} })
	slow, _ := startServer(t, false)
	compared := 0
	for _, c := range conversations {
		want := talk(t, slow, c.text+last)
		if c.stream || !strings.Contains(want, `"/last"`) {
			continue // what is sent after the last answer is not read, so that may be lost
		}
		compared++
		if got := talk(t, addr, c.text+last); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, want)
		}
	}
	if compared < 20 {
		t.Errorf("only %d conversations were compared", compared)
	}
}

// TestPiecesAreServedHere: a header in pieces is no reason to leave a connection to net/http.
func TestPiecesAreServedHere(t *testing.T) {
	addr, srv := startPatient(t, asItIs)
	srv.whole.ConnState = func(net.Conn, http.ConnState) { t.Error("the connection was handed over") }
	c, r := dial(t, addr)
	for at := 1; at < len(get); at += 5 {
		// The answer to the first shows that the piece was read, too: they came together.
		if _, err := ask(t, c, r, get+get[:at]); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t, c, r, get[at:]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPiecesThatEnd: net/http answers a header whose rest does not come, and a shutdown does
// not wait for it.
func TestPiecesThatEnd(t *testing.T) {
	const half = "GET /a HTTP/1.1\r\nHo"
	answer := func(addr string) string {
		c, _ := dial(t, addr)
		send(t, c, half)
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		return answersTo(t, c, half)
	}
	slow, _ := startServer(t, false)
	addr, srv := startPatient(t, asItIs)
	if want, got := answer(slow), answer(addr); got != want || want == "" {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	c, r := dial(t, addr)
	if _, err := ask(t, c, r, get+half); err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(r); err != nil || strings.Contains(string(rest), "HTTP/1.1") {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestConnectionsThatWaitAreSmall: neither a connection that is idle nor one that waits for
// the rest of a header has a buffer.
func TestConnectionsThatWaitAreSmall(t *testing.T) {
	if each := eachThatWaits(t, "", "GET /half"); each > readBufferBytes+1536 {
		t.Errorf("%d bytes for each connection", each)
	}
}

// TestAnnouncedBodiesAreSmall: a body that does not come takes no more than the buffer that
// its header has.
func TestAnnouncedBodiesAreSmall(t *testing.T) {
	if each := eachThatWaits(t, "PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: 32768\r\n\r\n"); each > 2*readBufferBytes+4096 {
		t.Errorf("%d bytes for each connection", each)
	}
}

// eachThatWaits returns the memory for both ends of a connection on which one request was
// answered, and then what is sent in turn, and no more.
func eachThatWaits(t *testing.T, sent ...string) int64 {
	t.Helper()
	const conns = 200
	addr, _ := startPatient(t, asItIs)
	before := heap()
	var clients []net.Conn // both ends count
	for i := range conns {
		c, r := dial(t, addr)
		if _, err := ask(t, c, r, get+sent[i%len(sent)]); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	// The answers show that all are about to wait. A buffer that one still has is not in a
	// pool, from which the collector takes what nobody needs.
	each := (heap() - before) / conns
	runtime.KeepAlive(clients)
	return each
}

// heap returns the bytes that live.
func heap() int64 {
	for range 3 { // pools keep what they have for a round, and connections begin to wait
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
