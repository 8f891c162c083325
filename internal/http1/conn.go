package http1

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// readBufferBytes holds an ordinary request. A header that does not fit
	// is net/http's.
	readBufferBytes = 4 << 10
	// maxBodyBytes is the longest body that is read here.
	maxBodyBytes = 32 << 10
	// bodyTimeout is how long a body may take before net/http goes on with
	// it, under the limits of the handler.
	bodyTimeout = 2 * time.Second
	// answerTimeout bounds the work for a request, which is short here, and
	// sending its answer, unless the handler allows more time for a long one.
	answerTimeout = time.Minute
	// slack is how much earlier than said a deadline of an idle connection
	// may end: setting one costs, so it is not done for every request.
	slack = 5 * time.Second
	// lastLook is how long a connection that is to be closed is read from:
	// long enough for what has arrived already.
	lastLook = time.Millisecond
	// keptBytes is the most that a connection keeps of a buffer.
	keptBytes = 16 << 10
)

// conn is one connection. Its goroutine owns everything but idle.
type conn struct {
	srv *Server
	nc  net.Conn
	// buf[start:end] was read and not served yet.
	buf        []byte
	start, end int

	request  request
	response response

	// deadline of reading, as set last; zero where it has to be set anew.
	idleUntil time.Time
	// waiting is set while the goroutine waits for the next request.
	waiting atomic.Bool
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, buf: make([]byte, readBufferBytes)}
	ctx := context.WithValue(context.Background(), http.LocalAddrContextKey, nc.LocalAddr())
	if mark := s.whole.ConnContext; mark != nil {
		ctx = mark(ctx, nc)
	}
	c.request.init(ctx, nc.RemoteAddr().String())
	c.response.init(c)
	return c
}

// outcome is what becomes of a connection after a step.
type outcome uint8

const (
	goOn  outcome = iota // with the next request
	give                 // the connection to net/http
	leave                // it is closed
)

// serve runs the connection to its end or hand-over.
func (c *conn) serve() {
	next := goOn
	for next == goOn {
		next = c.turn()
	}
	if next == give {
		c.give()
		return
	}
	_ = c.nc.Close()
}

// give hands the connection over with all that was read and not served (I2).
func (c *conn) give() {
	_ = c.nc.SetDeadline(time.Time{})
	c.srv.handover.give(&replayed{Conn: c.nc, read: c.buf[c.start:c.end]})
}

// turn serves one request.
func (c *conn) turn() outcome {
	if c.start == c.end {
		if !c.await() {
			return leave
		}
	}
	head, ok := c.request.parse(c.buf[c.start:c.end])
	if !ok || !c.srv.takes(c.request.http.Method, c.request.http.RequestURI) {
		return c.flush(give)
	}
	size := head + int(c.request.http.ContentLength)
	if !c.fill(size) {
		return c.flush(give)
	}
	c.request.setBody(c.buf[c.start+head : c.start+size])
	if !c.answer() {
		return leave
	}
	c.start += size
	if c.start == c.end {
		c.start, c.end = 0, 0
	}
	if c.response.last {
		return c.flush(leave)
	}
	if c.start < c.end && len(c.response.out) < keptBytes {
		return goOn // pipelined: answered together
	}
	return c.flush(goOn)
}

// flush sends the answers that wait, and says what comes then.
func (c *conn) flush(then outcome) outcome {
	if !c.response.flush() {
		return leave
	}
	return then
}

// await reads the beginning of the next request, and says whether there is
// one.
func (c *conn) await() bool {
	if cap(c.buf) > keptBytes {
		c.buf = make([]byte, readBufferBytes)
	}
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	c.limitIdle()
	if !c.srv.closing.Load() || !c.srv.closed() {
		if n, err := c.nc.Read(c.buf); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			c.end = n
			return n > 0
		}
	}
	if !c.srv.closed() {
		return false // idle for too long
	}
	// What was sent before the shutdown is still answered.
	_ = c.nc.SetReadDeadline(time.Now().Add(lastLook))
	c.end, _ = c.nc.Read(c.buf)
	return c.end > 0
}

// limitIdle sets the deadlines for waiting and for the answer after it.
func (c *conn) limitIdle() {
	now := time.Now()
	limit := c.srv.whole.IdleTimeout
	if limit <= 0 || c.idleUntil.Sub(now) > limit-slack {
		return
	}
	c.idleUntil = now.Add(limit)
	_ = c.nc.SetReadDeadline(c.idleUntil)
	if w := c.srv.whole.WriteTimeout; w > 0 {
		_ = c.nc.SetWriteDeadline(c.idleUntil.Add(min(w, answerTimeout)))
	}
}

// wake ends the wait for a request, unless one has arrived.
func (c *conn) wake() {
	if c.waiting.Load() {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// fill reads until need bytes of the request are there. It fails where the
// rest does not come in time; net/http then takes over.
func (c *conn) fill(need int) bool {
	if c.end-c.start >= need {
		return true
	}
	_ = c.flush(goOn) // a broken connection is noticed by reading
	if c.start > 0 || need > len(c.buf) {
		buf := c.buf
		if need > len(buf) {
			buf = make([]byte, need)
		}
		c.end = copy(buf, c.buf[c.start:c.end])
		c.buf, c.start = buf, 0
	}
	c.idleUntil = time.Time{}
	_ = c.nc.SetReadDeadline(time.Now().Add(bodyTimeout))
	for c.end < need {
		n, err := c.nc.Read(c.buf[c.end:])
		if c.end += n; err != nil {
			return c.end >= need
		}
	}
	return true
}

// answer calls the handler. It reports false where the answer is not whole
// and the connection therefore can not go on.
func (c *conn) answer() (whole bool) {
	defer func() {
		if v := recover(); v != nil {
			whole = false
			c.report(v)
		}
	}()
	c.response.begin(c.request.http.Method == http.MethodHead)
	c.srv.whole.Handler.ServeHTTP(&c.response, c.request.http)
	return c.response.finish(c.srv.closing.Load())
}

// report logs a panic that the handler let through, as net/http does.
func (c *conn) report(v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return
	}
	if l := c.srv.whole.ErrorLog; l != nil {
		l.Printf("http1: panic serving %v: %v\n%s", c.nc.RemoteAddr(), v, debug.Stack())
	}
}
