package http1

import (
	"errors"
	"os"
	"time"
)

// Attend watches the connection for a handler that is about to wait: it calls gone if the
// client disconnects, from another goroutine, until the handler calls the function that it
// returns. The handler must do so before it returns. http.Request.Context does not end
// with the client here, because nearly all requests are answered too soon for that to be
// worth a goroutine.
//
// A client that sends its next request meanwhile is watched no further: it is known to be
// gone when the handler's answer is written.
func (w *response) Attend(gone func()) (leave func()) {
	if w.streaming { // it is watched anyway
		return func() {}
	}
	return w.conn.attend(gone)
}

// attend reads into the part of the buffer that is free, or into another one: what arrives
// belongs to the next requests (I2), and the handler may be reading the body of this one.
// It reads no further ahead than one buffer: clients that send requests without waiting
// for answers would fill the memory.
func (c *conn) attend(gone func()) (leave func()) {
	if c.response.status == 0 {
		_ = c.response.flush() // earlier answers; if the connection is broken, reading fails, too
		c.response.head = 0
	}
	if c.start < c.end {
		return func() {} // the next request is there
	}
	if c.end == len(c.buf) {
		c.buf, c.start, c.end = make([]byte, readBufferBytes), 0, 0
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	free, read := c.buf[c.end:], make(chan int, 1)
	go func() {
		n, err := c.nc.Read(free)
		if n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			gone()
		}
		read <- n
	}()
	return func() {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		c.end += <-read
		_ = c.nc.SetReadDeadline(time.Time{})
		c.idleUntil = time.Time{} // set the deadlines anew for the next request
	}
}
