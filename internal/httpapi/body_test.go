package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/http1"
)

const (
	mib = 1 << 20
	// valueLimit is the default of max_value_bytes.
	valueLimit = 1536 << 10
)

func TestValueLimit(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/kv/k", strings.Repeat("v", valueLimit)).want(201)
	f.do("PUT", "/v1/kv/k", strings.Repeat("v", valueLimit+1)).problem(413, api.TooLarge, "1572864", "max_value_bytes in the settings")
	f.do("POST", "/v1/kv/k?append", "v").problem(413, api.TooLarge)
	f.do("PUT", "/v1/settings", `{"max_value_bytes":4}`).want(200)
	f.do("PUT", "/k", "12345").problem(413, api.TooLarge, "max_value_bytes")
	f.do("PUT", "/k", "1234").want(204)
	f.do("GET", "/k", "").wantBody(200, "1234")
}

// A fragment must not replace the value, whatever the request does with its body.
func TestBodyThatIsNotTheWholeContent(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/kv/k", "0123456789").want(201)
	for _, target := range []string{"PUT /v1/kv/k", "PUT /k", "POST /v1/kv/k?append", "PUT /v1/settings", "POST /v1/members", "POST /4", "POST /v1/batch"} {
		method, path, _ := strings.Cut(target, " ")
		f.do(method, path, "6789", "Content-Range: bytes 6-9/10").problem(400, api.BadRequest, "Content-Range", "whole content")
		f.do(method, path, "6789", "Content-Encoding: gzip").problem(400, api.BadRequest, "Content-Encoding", "gzip")
	}
	f.do("GET", "/v1/kv/k", "").wantBody(200, "0123456789")
	f.do("PUT", "/v1/kv/k", "x", "Content-Encoding: identity").want(200)
}

// A body that declares too much is refused before the client is told to send it.
func TestExpectContinueIsRefusedBeforeTheBody(t *testing.T) {
	f := newFixture(t)
	conn := f.dial()
	fmt.Fprintf(conn, "PUT /big HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", 10*mib)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 413 ") {
		t.Fatalf("first line %q, %v", line, err)
	}
	conn = f.dial()
	fmt.Fprintf(conn, "PUT /small HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	r := bufio.NewReader(conn)
	if line, err = r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("first line %q, %v", line, err)
	}
	_, _ = r.ReadString('\n')
	_, _ = io.WriteString(conn, "ok")
	if line, err = r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 204 ") {
		t.Fatalf("followed by %q, %v", line, err)
	}
}

// The answer to a body that turns out to be too large reaches a client that is still sending
// it, also one that was told to go on: the end of the connection is no reset.
func TestLargeBodyAfterContinue(t *testing.T) {
	f := newFixture(t)
	conn := f.dial()
	fmt.Fprintf(conn, "PUT /big HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("first line %q, %v", line, err)
	}
	go func() { // until the connection ends
		_, _ = fmt.Fprintf(conn, "%x\r\n", 64*mib)
		_, _ = io.Copy(conn, io.LimitReader(endless('v'), 2*valueLimit))
	}()
	if text, err := io.ReadAll(r); err != nil || !strings.Contains(string(text), "HTTP/1.1 413 ") {
		t.Errorf("%.100q, %v", text, err)
	}
}

func TestChunkedBodies(t *testing.T) {
	f := newFixture(t)
	send := func(size int) *answer {
		// A reader without a known length makes the client send chunks.
		req, err := http.NewRequest("PUT", f.http.URL+"/v1/kv/k", io.LimitReader(endless('v'), int64(size)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.http.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return readAnswer(t, fmt.Sprintf("PUT of %d bytes in chunks", size), resp)
	}
	send(valueLimit+1).problem(413, api.TooLarge)
	f.do("GET", "/k", "").problem(404, api.KeyNotFound)
	send(valueLimit).want(201)
	send(0).want(200)
	f.do("GET", "/k", "").wantBody(200, "")
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// A body that ends before its declared length stores nothing.
func TestCutBodyStoresNothing(t *testing.T) {
	f := newFixture(t)
	conn := f.dial()
	_, _ = io.WriteString(conn, "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	_ = conn.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	readAnswer(t, "cut body", resp).problem(400, api.BadRequest, "nothing was done")
	if f.node.Revision() != 1 {
		t.Error("something was stored")
	}
}

// pipeListener accepts connections in memory, whose deadlines follow the virtual clock
// of the test.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, errors.New("closed")
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// inBubble serves over a pipe in virtual time and passes the client's end to run, once
// with net/http alone, as with TLS, and once with package http1 in front of it.
func inBubble(t *testing.T, run func(t *testing.T, f *fixture, conn net.Conn)) {
	t.Run("net/http", func(t *testing.T) { bubble(t, run, func(srv *http.Server) serving { return srv }) })
	t.Run("http1", func(t *testing.T) {
		bubble(t, run, func(srv *http.Server) serving { return http1.New(srv, Small, Streams) })
	})
}

// clientEnd is a connection that reports when the server has closed it.
type clientEnd struct {
	net.Conn
	cut <-chan struct{}
}

type notedConn struct {
	net.Conn
	closed func()
}

func (c *notedConn) Close() error { c.closed(); return c.Conn.Close() }

type serving interface {
	Serve(net.Listener) error
	Close() error
}

// stallTime is how long package pace lets a client stop within a body or an answer.
const stallTime = 10 * time.Second

// handoverTime is how long package http1 waits for a body before it hands over.
const handoverTime = 2 * time.Second

func bubble(t *testing.T, run func(t *testing.T, f *fixture, conn net.Conn), serve func(*http.Server) serving) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(t)
		f.t = t
		l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		srv := serve(NewServer(s, nil))
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		ours, theirs := net.Pipe()
		cut := make(chan struct{})
		l.conns <- &notedConn{Conn: theirs, closed: sync.OnceFunc(func() { close(cut) })}
		run(t, f, clientEnd{ours, cut})
		_ = ours.Close()
		_ = srv.Close()
		<-served
		synctest.Wait()
	})
}

func TestSlowBodyIsCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
		start := time.Now()
		_, _ = io.WriteString(conn, "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhal")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		readAnswer(t, "slow body", resp).problem(400, api.BadRequest, "too slowly")
		if took := time.Since(start); took < stallTime || took > stallTime+handoverTime {
			t.Errorf("it took %v, want %v", took, stallTime)
		}
		if f.node.Revision() != 1 {
			t.Error("something was stored")
		}
	})
}

// A body that no handler wants delays the answer only briefly.
func TestUnwantedBodyDoesNotHoldTheAnswer(t *testing.T) {
	for _, line := range []string{"GET /k", "DELETE /3", "PUT /v1/nothing", "PUT /k?nonsense"} {
		inBubble(t, func(t *testing.T, _ *fixture, conn net.Conn) {
			start := time.Now()
			_, _ = io.WriteString(conn, line+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhal")
			if _, err := io.ReadAll(conn); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 2*drainGrace+handoverTime {
				t.Errorf("%s: it took %v", line, took)
			}
		})
	}
}

func TestSlowHeaderIsCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fixture, conn net.Conn) {
		start := time.Now()
		_, _ = io.WriteString(conn, "PUT /k HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		_, _ = io.ReadAll(conn)
		if took := time.Since(start); took != readHeaderTimeout {
			t.Errorf("it took %v, want %v", took, readHeaderTimeout)
		}
	})
}

// A connection on which nothing was ever sent is closed soon; one between two requests
// may be idle.
func TestSilentConnectionsAreClosed(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *fixture, conn net.Conn) {
		start := time.Now()
		<-conn.(clientEnd).cut
		if took := time.Since(start); took != readHeaderTimeout {
			t.Errorf("it took %v, want %v", took, readHeaderTimeout)
		}
	})
	inBubble(t, func(t *testing.T, _ *fixture, conn net.Conn) {
		r := bufio.NewReader(conn)
		for range 2 {
			time.Sleep(readHeaderTimeout - time.Millisecond)
			_, _ = io.WriteString(conn, "GET /k HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			readAnswer(t, "get", resp).want(404)
			time.Sleep(idleTimeout / 2)
		}
	})
}

// A bug costs its request, and not the answers of the connection before it.
func TestPanicInAPipeline(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
		f.put("k", "v")
		f.node.onDo = func(context.Context) { panic("a bug") }
		go func() {
			_, _ = io.WriteString(conn, "GET /k HTTP/1.1\r\nHost: x\r\n\r\nPUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nw")
		}()
		r := bufio.NewReader(conn)
		for _, want := range []int{200, 500} {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if a := readAnswer(t, "pipelined", resp).want(want); want == 500 {
				a.problem(500, api.Internal, "request_id", a.header.Get("X-Request-Id"))
			}
		}
	})
}

// The deadline of a body must not end a request that waits longer for its commit.
func TestBodyDeadlineEndsWithTheBody(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
		const wait = 5 * time.Minute
		f.node.onDo = func(ctx context.Context) {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				t.Error("the request's context expired too early")
			}
		}
		_, _ = io.WriteString(conn, "PUT /k?timeout=10m HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		readAnswer(t, "slow commit", resp).want(204)
	})
}

// A client that accepts nothing of a stream or of a large value is disconnected.
func TestSlowReadersAreCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		target string
		after  time.Duration
	}{
		"stream": {"/v1/kv?prefix=k", writeGrace}, "value": {"/k1", stallTime}, "page": {"/v1/kv?prefix=k", stallTime},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
				for i := range 8 {
					f.put(fmt.Sprintf("k%d", i), strings.Repeat("v", 100_000))
				}
				start, accept := time.Now(), "*/*"
				if name == "stream" {
					accept = ndjsonType
				}
				_, _ = io.WriteString(conn, "GET "+c.target+" HTTP/1.1\r\nHost: x\r\nAccept: "+accept+"\r\n\r\n")
				<-conn.(clientEnd).cut
				if took := time.Since(start); took < c.after || took > c.after+5*time.Second {
					t.Errorf("it took %v, want about %v", took, c.after)
				}
			})
		})
	}
}

// A client that pipelines and never reads occupies bounded memory for a bounded time:
// nothing more is read from it.
func TestPipelinersThatDoNotReadAreCutOff(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
		f.put("k", "v")
		const request = "GET /k HTTP/1.1\r\nHost: x\r\n\r\n"
		start, sent := time.Now(), 0
		for {
			n, err := io.WriteString(conn, request)
			if sent += n; err != nil {
				break
			}
		}
		limit := writeTimeout
		if strings.HasSuffix(t.Name(), "/http1") {
			limit = idleTimeout + time.Minute
		}
		if took := time.Since(start); took > limit {
			t.Errorf("it took %v", took)
		}
		if sent > 64<<10 {
			t.Errorf("%d bytes of requests were read", sent)
		}
	})
}
