package arrival

import (
	"net"
	"sync"
)

// bufferBytes is the size of the buffer that a Conn reads ahead into, which is that of gRPC.
const bufferBytes = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

// Conn reads ahead, as a bufio.Reader does, but has its buffer only while there are bytes in
// it. Who reads it in small pieces needs no other buffer. It has one reader at a time.
type Conn struct {
	net.Conn
	waiter  *Waiter
	buffer  *[bufferBytes]byte // nil while nothing is in it
	waiting []byte             // read, and not passed on yet
}

// Buffered returns a Conn that begins with what was read already. Without a
// socket, and if nothing was read, it returns c: TLS reads ahead itself.
func Buffered(c net.Conn, read []byte) net.Conn {
	if rawOf(c) == nil && len(read) == 0 {
		return c
	}
	b := &Conn{Conn: c, waiting: read}
	b.waiter = New(c, b)
	return b
}

// NetConn returns the connection below, as tls.Conn does.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.waiting) == 0 {
		if len(p) >= bufferBytes {
			return c.Conn.Read(p)
		}
		n, err := c.waiter.Read()
		if n == 0 {
			c.GiveBack()
			return 0, err
		}
		c.waiting = c.buffer[:n]
	}
	n := copy(p, c.waiting)
	if c.waiting = c.waiting[n:]; len(c.waiting) == 0 {
		c.GiveBack()
	}
	return n, nil
}

// Take implements Memory.
func (c *Conn) Take() []byte {
	c.buffer = buffers.Get().(*[bufferBytes]byte)
	return c.buffer[:]
}

// GiveBack implements Memory.
func (c *Conn) GiveBack() {
	if c.buffer != nil {
		buffers.Put(c.buffer)
		c.buffer = nil
	}
	c.waiting = nil
}
