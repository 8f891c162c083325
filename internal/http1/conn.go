package http1

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/arrival"
)

const (
	// readBufferBytes is the size of a connection's buffer, enough for an ordinary
	// request. A header that does not fit is left to net/http.
	readBufferBytes = 4 << 10
	// maxBodyBytes is the size of the largest body that is read here.
	maxBodyBytes = 32 << 10
	// bodyTimeout is how long a body may take before it is left to net/http, where the
	// handler's limits apply.
	bodyTimeout = 2 * time.Second
	// answerTimeout bounds handling a request, which is quick here, and sending its
	// answer. The handler allows more time for a long one.
	answerTimeout = time.Minute
	// slack is how much too early an idle connection may be closed. Setting a deadline
	// is expensive, so it is not renewed for every request.
	slack = 5 * time.Second
	// lastLook is how long a connection is read once more before it is closed: enough
	// for a request that has already arrived.
	lastLook = time.Millisecond
	// keptBytes is the size of the largest buffer that the next request finds.
	keptBytes = 16 << 10
)

// conn is a connection. Its goroutine owns all fields but waiting.
type conn struct {
	srv     *Server
	nc      net.Conn
	arrival *arrival.Waiter
	// buf[start:end] has been read, and is for requests that no handler has yet. It is that
	// of desk, or one of its own if that is too short.
	buf        []byte
	start, end int
	desk       *desk  // nil while the connection waits
	piece      []byte // of a header whose rest is being waited for

	request  request
	response response

	// silent is set until the first byte arrives. Browsers and libraries open
	// connections in advance, but seldom long in advance, and one that has never
	// sent anything is as likely to be there to take a place.
	silent bool
	// idleUntil is the deadline for reading; zero if it has to be set anew.
	idleUntil time.Time
	// waiting is set while the goroutine waits for a request. wake reads it.
	waiting atomic.Bool
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, silent: true}
	c.arrival = arrival.New(nc, c)
	c.response.conn = c
	return c
}

// init makes what a connection needs from its first request on.
func (c *conn) init() {
	ctx := context.WithValue(context.Background(), http.LocalAddrContextKey, c.nc.LocalAddr())
	if label := c.srv.whole.ConnContext; label != nil {
		ctx = label(ctx, c.nc)
	}
	c.request.init(ctx, c.nc.RemoteAddr().String())
	c.response.header = make(http.Header, 8)
}

// outcome says what happens to a connection next.
type outcome uint8

const (
	next     outcome = iota // serve the next request
	handOver                // to net/http
	hangUp                  // close it
)

// serve serves the connection until it is closed or handed over.
func (c *conn) serve() {
	then := next
	for then == next {
		then = c.serveOne()
	}
	defer c.clear()
	if then == handOver {
		c.give()
		return
	}
	_ = c.nc.Close()
}

// give hands over the connection with everything that was read and not answered (I2).
func (c *conn) give() {
	_ = c.nc.SetDeadline(time.Time{})
	c.srv.handover.give(&replayed{Conn: c.nc, read: bytes.Clone(c.buf[c.start:c.end]), refusal: c.srv.Refusal})
}

// serveOne serves one request.
func (c *conn) serveOne() outcome {
	if c.start == c.end {
		if !c.await() {
			return hangUp
		}
	}
	head, ok := c.request.parse(c.buf[c.start:c.end])
	if !ok && c.mayComplete() {
		if then := c.gather(); then != next {
			return then
		}
		head, ok = c.request.parse(c.buf[c.start:c.end])
	}
	if ok && c.request.http.ContentLength == 0 && c.srv.streams(c.request.http.Method, c.request.http.RequestURI) {
		if c.flush(next) == hangUp {
			return hangUp
		}
		return c.stream()
	}
	if !ok || !c.srv.takes(c.request.http.Method, c.request.http.RequestURI) {
		return c.flush(handOver)
	}
	size := head + int(c.request.http.ContentLength)
	if !c.fill(size) {
		return c.flush(handOver)
	}
	c.request.setBody(c.buf[c.start+head : c.start+size])
	c.start += size
	if !c.answer() {
		return hangUp
	}
	if c.start == c.end {
		c.start, c.end = 0, 0
	}
	if c.response.last {
		return c.flush(hangUp)
	}
	if c.start < c.end && len(c.response.out) < keptBytes {
		return next // pipelined: the answers are sent together
	}
	return c.flush(next)
}

// flush sends the answers that are waiting. It returns what is to happen next.
func (c *conn) flush(then outcome) outcome {
	if !c.response.flush() {
		return hangUp
	}
	return then
}

// fill reads until need bytes of the request are there. If they do not arrive in time it
// returns false, and net/http takes over.
func (c *conn) fill(need int) bool {
	if c.end-c.start >= need {
		return true
	}
	_ = c.flush(next) // if the connection is broken, reading fails, too
	c.start, c.end = 0, copy(c.buf, c.buf[c.start:c.end])
	c.idleUntil = time.Time{}
	_ = c.nc.SetReadDeadline(time.Now().Add(bodyTimeout))
	for c.end < need {
		if c.end == len(c.buf) {
			// A body that is only announced takes no memory: at most as much as has come.
			c.buf = append(c.buf, make([]byte, min(need-c.end, c.end))...)
		}
		n, err := c.nc.Read(c.buf[c.end:])
		if c.end += n; err != nil {
			return c.end >= need
		}
	}
	return true
}

// answer calls the handler. It returns false if the answer is incomplete (I5).
func (c *conn) answer() (complete bool) {
	defer func() {
		if v := recover(); v != nil {
			complete = false
			c.response.abandon()
			c.desk = nil // whatever has panicked may still hold a part of it
			c.report(v)
		}
	}()
	c.response.begin(c.request.http.Method == http.MethodHead)
	c.srv.whole.Handler.ServeHTTP(&c.response, c.request.http)
	return c.response.finish(c.srv.closing.Load())
}

// report logs a panic of the handler, as net/http does.
func (c *conn) report(v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return
	}
	if l := c.srv.whole.ErrorLog; l != nil {
		l.Printf("http1: panic serving %v: %v\n%s", c.nc.RemoteAddr(), v, debug.Stack())
	}
}
