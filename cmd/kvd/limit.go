package main

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// connectionLimit bounds the connections of all listeners for clients
// together. Each costs a file descriptor and some memory, and without
// descriptors the node could not open its own files.
type connectionLimit struct {
	most int64 // 0: no limit
	open atomic.Int64
	// refused hears of each connection over the limit.
	refused func()
	// polite has a place for each connection that is being refused with an
	// answer; where it is full, they are just closed.
	polite chan struct{}
}

const (
	// refusalTimeout is how long a refused client has to take its answer.
	refusalTimeout = time.Second
	maxRefusals    = 64
)

func newConnectionLimit(most int64) *connectionLimit {
	return &connectionLimit{most: most, refused: func() {}, polite: make(chan struct{}, maxRefusals)}
}

// refusal429 is the whole answer to a connection over the limit. It is sent
// before anything is read: reading would take the time that is lacking.
const refusal429 = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\nConnection: close\r\n\r\n" +
	`{"title":"Too Many Requests","status":429,"code":"overloaded","detail":"too many connections to this node (--max-connections); use fewer, or another node"}` + "\n"

// wrap makes the listeners keep to the limit. Where clients speak TLS, no
// answer can be sent before their handshake; the connection is closed.
func (l *connectionLimit) wrap(listeners []net.Listener, urls []string) {
	for i, u := range urls {
		listeners[i] = &limitedListener{Listener: listeners[i], limit: l, secure: strings.HasPrefix(u, "https:")}
	}
}

type limitedListener struct {
	net.Listener
	limit  *connectionLimit
	secure bool
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if n := l.limit.open.Add(1); l.limit.most == 0 || n <= l.limit.most {
			return &countedConn{Conn: c, limit: l.limit}, nil
		}
		l.limit.open.Add(-1)
		l.refuse(c)
	}
}

func (l *limitedListener) refuse(c net.Conn) {
	l.limit.refused()
	select {
	case l.limit.polite <- struct{}{}:
	default:
		_ = c.Close()
		return
	}
	go func() {
		defer func() { <-l.limit.polite }()
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(refusalTimeout))
		if l.secure {
			return
		}
		_, _ = c.Write([]byte(refusal429)) // who does not take it has left
		// Closed with its request unread, the connection would be reset, and
		// the answer with it.
		if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.CopyN(io.Discard, c, maxRefusedBytes)
		}
	}()
}

// maxRefusedBytes is the most that is read of a request that is not answered.
const maxRefusedBytes = 64 << 10

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	limit *connectionLimit
	once  sync.Once
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.once.Do(func() { c.limit.open.Add(-1) })
	return c.Conn.Close()
}
