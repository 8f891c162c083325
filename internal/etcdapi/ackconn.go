package etcdapi

import (
	"bytes"
	"net"
	"sync"
	"time"
)

const (
	// ackDelay bounds how long the acknowledgment of a ping waits for something to go
	// along with. Most calls are answered sooner. Clients that ping to see whether the
	// connection lives wait for seconds.
	ackDelay = 20 * time.Millisecond
	// pairedBytes is how much is written together with acknowledgments. A longer write
	// costs much more than one without them, and would need a buffer as long.
	pairedBytes = 1 << 10
	// maxHeldAcks bounds the acknowledgments that wait.
	maxHeldAcks = 8
)

// A frame of HTTP/2 that acknowledges a ping (RFC 9113, section 6.7).
const (
	pingAckHead  = "\x00\x00\x08\x06\x01\x00\x00\x00\x00"
	pingAckBytes = len(pingAckHead) + 8
)

// ackConn is a connection of gRPC that delays acknowledgments of pings, so that they go out
// with the next answer.
//
// gRPC's clients measure the bandwidth: nearly every answer makes them send a ping, which
// arrives together with their next request. Acknowledged at once, it would cost the server
// a write and the client a read for each call, since the answer is not there yet.
type ackConn struct {
	net.Conn
	// mu is held while writing: gRPC has one goroutine that writes, and due is another.
	mu struct {
		sync.Mutex
		held []byte      // acknowledgments, written before everything else
		due  *time.Timer // writes them; nil before the first
		err  error       // of writing them
	}
}

// Write implements net.Conn.
func (c *ackConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.err != nil:
		return 0, c.mu.err
	case onlyPingAcks(p) && len(c.mu.held)+len(p) <= maxHeldAcks*pingAckBytes:
		c.holdLocked(p)
		return len(p), nil
	case len(c.mu.held) == 0:
		return c.Conn.Write(p)
	}
	c.mu.due.Stop()
	if len(p) > pairedBytes {
		if c.flushLocked(); c.mu.err != nil {
			return 0, c.mu.err
		}
		return c.Conn.Write(p)
	}
	c.mu.held = append(c.mu.held, p...)
	if c.flushLocked(); c.mu.err != nil {
		return 0, c.mu.err
	}
	return len(p), nil
}

// onlyPingAcks reports whether nothing but pings is acknowledged.
func onlyPingAcks(p []byte) bool {
	for len(p) >= pingAckBytes && bytes.HasPrefix(p, []byte(pingAckHead)) {
		if p = p[pingAckBytes:]; len(p) == 0 {
			return true
		}
	}
	return false
}

// holdLocked keeps acknowledgments. The first of them decides when they are written.
func (c *ackConn) holdLocked(acks []byte) {
	switch {
	case c.mu.due == nil:
		c.mu.due = time.AfterFunc(ackDelay, c.overdue)
	case len(c.mu.held) == 0:
		c.mu.due.Reset(ackDelay)
	}
	c.mu.held = append(c.mu.held, acks...)
}

// overdue writes the acknowledgments that nothing went along with.
func (c *ackConn) overdue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushLocked()
}

// flushLocked writes what is held. gRPC learns of a failure with its next write.
func (c *ackConn) flushLocked() {
	if len(c.mu.held) > 0 {
		_, c.mu.err = c.Conn.Write(c.mu.held)
		c.mu.held = c.mu.held[:0]
	}
}

// Close implements net.Conn.
func (c *ackConn) Close() error {
	err := c.Conn.Close() // ends a write that holds mu
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.due != nil {
		c.mu.due.Stop()
	}
	return err
}
