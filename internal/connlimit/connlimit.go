// Package connlimit bounds how many connections are open at the same time.
//
// Each connection costs a file descriptor, and a node without descriptors cannot
// open the next segment of its log: it has to stop. So every listener of a node
// has places, and all places together leave enough descriptors for its files.
//
// A connection beyond the places is closed at once. To leave it in the queue of
// the listener, as netutil.LimitListener does, was rejected: idle connections
// would then keep out the others for as long as they like, without a sign.
package connlimit

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Places counts the connections of one or more listeners. It is safe for
// concurrent use.
type Places struct {
	most  int64
	taken atomic.Int64
}

// New returns the given number of places; 0 means that there is no limit.
func New(most int64) *Places { return &Places{most: most} }

// Take gives the connection a place until it is closed. It returns nil, and leaves
// the connection as it is, if no place is left.
func (p *Places) Take(c net.Conn) *Conn {
	if n := p.taken.Add(1); p.most != 0 && n > p.most {
		p.taken.Add(-1)
		return nil
	}
	return &Conn{Conn: c, places: p}
}

// Taken returns the number of open connections.
func (p *Places) Taken() int64 { return p.taken.Load() }

// Conn gives its place back when it is closed.
type Conn struct {
	net.Conn
	places *Places
	once   sync.Once // net/http closes a connection more than once
}

// NetConn returns the connection below, as tls.Conn does.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// SyscallConn implements syscall.Conn: nothing is done to the bytes on their way.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.once.Do(func() { c.places.taken.Add(-1) })
	return c.Conn.Close()
}

// Listen returns a listener that closes the connections for which no place is
// left, after calling refused.
func Listen(l net.Listener, places *Places, refused func()) net.Listener {
	return &listener{Listener: l, places: places, refused: refused}
}

type listener struct {
	net.Listener
	places  *Places
	refused func()
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if placed := l.places.Take(c); placed != nil {
			return placed, nil
		}
		l.refused()
		_ = c.Close() // nothing was sent on it
	}
}
