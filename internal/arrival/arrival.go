// Package arrival reads a connection into memory that is taken when bytes have arrived.
//
// Most connections of a server wait: for the next request, for the rest of one, or for a
// client that has gone without a word. A read that waits in the ordinary way holds the buffer
// that it reads into, so ten thousand of them hold ten thousand buffers.
//
// # Algorithm
//
// A socket is read as package net reads it: one attempt, and if nothing is there, a wait for
// the poller and another attempt. The buffer is taken before each attempt, and given back
// before the wait. That costs no further system call, and the deadlines of the connection
// apply as ever. Other connections, such as those of TLS and the pipes of tests, are read in the
// ordinary way.
//
// # Rejected
//
// Waiting without the first attempt would miss bytes that came before: the poller reports
// changes only.
package arrival

import (
	"io"
	"net"
	"syscall"
)

// Memory is where a connection is read to. Take is called before an attempt to read, and
// returns where to; GiveBack is called if nothing was there. The goroutine that reads owns it.
type Memory interface {
	Take() []byte
	GiveBack()
}

// Waiter reads one connection. It is for one goroutine at a time.
type Waiter struct {
	conn   net.Conn
	memory Memory
	raw    syscall.RawConn // nil if the connection is no socket
	try    func(fd uintptr) bool
	n      int
	err    error
}

// New returns the Waiter of a connection, whose bytes nothing else may change on the way.
func New(c net.Conn, m Memory) *Waiter {
	w := &Waiter{conn: c, memory: m, raw: rawOf(c)}
	w.try = w.attempt
	return w
}

// rawOf returns the socket that a connection is, or nil. A wrapper says so itself by having
// the method: it may do more than pass bytes on.
func rawOf(c net.Conn) syscall.RawConn {
	s, ok := c.(syscall.Conn)
	if !ok || !canRead {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// Read waits for bytes, and reads what is there. The memory has been taken if n > 0, and also
// if the connection is no socket. The end of the connection is io.EOF, and a deadline of it
// os.ErrDeadlineExceeded, as with net.Conn.
func (w *Waiter) Read() (n int, err error) {
	if w.raw == nil {
		return w.conn.Read(w.memory.Take())
	}
	w.n, w.err = 0, nil
	if err := w.raw.Read(w.try); err != nil {
		return 0, err // of the wait, or the connection is closed
	}
	if w.n == 0 && w.err == nil {
		return 0, io.EOF
	}
	return w.n, w.err
}

// attempt reads what is there, and reports whether Read need not wait.
func (w *Waiter) attempt(fd uintptr) bool {
	w.n, w.err = readSocket(fd, w.memory.Take())
	if w.n > 0 {
		return true
	}
	w.memory.GiveBack()
	return w.err != syscall.EAGAIN
}
