package http1

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"time"
)

// desk is the memory that a connection works with. One that waits for a request, or for the
// rest of a header, has none: of ten thousand connections, nearly all wait.
type desk struct {
	in        []byte // readBufferBytes
	out, body []byte // what response collects; at most keptBytes each
}

// desks are those that no connection has.
var desks = sync.Pool{New: func() any { return &desk{in: make([]byte, readBufferBytes)} }}

// Take implements arrival.Memory.
func (c *conn) Take() []byte {
	if c.desk == nil {
		c.desk = desks.Get().(*desk)
		c.buf, c.response.out, c.response.body = c.desk.in, c.desk.out, c.desk.body
	}
	return c.buf[len(c.piece):]
}

// GiveBack implements arrival.Memory. Everything that was written has been sent.
func (c *conn) GiveBack() { c.clear() }

// clear gives the desk back to whoever needs one.
func (c *conn) clear() {
	c.buf, c.start, c.end = nil, 0, 0
	if d := c.desk; d != nil {
		d.out, d.body = c.response.out[:0], c.response.body[:0]
		c.desk, c.response.out, c.response.body = nil, nil, nil
		desks.Put(d)
	}
}

// await reads the beginning of the next request, and reports whether there is one.
func (c *conn) await() bool {
	if c.start, c.end = 0, 0; c.desk != nil {
		c.buf = c.desk.in // the next request may be there already
	}
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	c.limitIdle()
	n, _ := c.read()
	if c.end = n; n > 0 {
		c.heard()
	}
	return n > 0
}

// read waits for bytes, and puts them behind the piece that is there. It fails if the client
// has gone, if the deadline has passed, and if the server is shut down.
func (c *conn) read() (int, error) {
	if !c.srv.closing.Load() || !c.srv.closed() {
		if n, err := c.arrival.Read(); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	if !c.srv.closed() {
		return 0, os.ErrDeadlineExceeded
	}
	// What was sent before the shutdown is still answered.
	_ = c.nc.SetReadDeadline(time.Now().Add(lastLook))
	return c.arrival.Read()
}

// gather waits for the rest of a header, of which a piece has come. Meanwhile it keeps no
// more than that piece: whoever sends half a header may never send the rest.
func (c *conn) gather() outcome {
	if c.flush(next) == hangUp {
		return hangUp
	}
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	c.idleUntil = time.Time{} // set the deadlines anew for the next request
	_ = c.nc.SetReadDeadline(time.Now().Add(c.srv.whole.ReadHeaderTimeout))
	for c.mayComplete() {
		c.piece = bytes.Clone(c.buf[c.start:c.end])
		c.clear()
		n, err := c.read()
		switch {
		case n > 0:
			c.end = copy(c.buf, c.piece) + n
		case errors.Is(err, os.ErrDeadlineExceeded):
			return hangUp
		default: // the client has ended its side, and net/http says what is missing
			c.buf, c.end = c.piece, len(c.piece)
			return handOver
		}
		c.piece = nil
	}
	return next
}

// mayComplete reports whether a header that is not complete may become one of a request that
// is served here: the lines that are there are ordinary, and there is room for more.
func (c *conn) mayComplete() bool {
	text := c.buf[c.start:c.end]
	if c.srv.whole.ReadHeaderTimeout <= 0 || len(text) >= readBufferBytes || bytes.Contains(text, []byte("\r\n\r\n")) {
		return false
	}
	complete := bytes.LastIndexByte(text, '\n') + 1
	if complete == 0 {
		return true
	}
	line, fields, ok := strings.Cut(string(text[:complete]), "\r\n")
	return ok && c.request.parseLine(line) && ordinaryFields(fields)
}

// ordinaryFields reports whether each line is a header field that ends in CRLF.
func ordinaryFields(text string) bool {
	for text != "" {
		line, rest, ended := strings.Cut(text, "\r\n")
		if _, _, ok := field(line); !ok || !ended {
			return false
		}
		text = rest
	}
	return true
}

// heard notes that the connection is in use: from now on, it may be idle between requests.
func (c *conn) heard() {
	if c.silent {
		c.silent, c.idleUntil = false, time.Time{}
		c.init()
	}
}

// limitIdle sets the deadlines for waiting and for sending the next answer.
func (c *conn) limitIdle() {
	now := time.Now()
	limit := c.srv.whole.IdleTimeout
	if first := c.srv.whole.ReadHeaderTimeout; c.silent && first > 0 {
		limit = first
	}
	if limit <= 0 || c.idleUntil.Sub(now) > limit-slack {
		return
	}
	c.idleUntil = now.Add(limit)
	_ = c.nc.SetReadDeadline(c.idleUntil)
	if w := c.srv.whole.WriteTimeout; w > 0 {
		_ = c.nc.SetWriteDeadline(c.idleUntil.Add(min(w, answerTimeout)))
	}
}

// wake ends the wait for a request. One that has arrived is served first.
func (c *conn) wake() {
	if c.waiting.Load() {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}
