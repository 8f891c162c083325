// Package http1 serves small requests of HTTP/1.1 with few system calls and
// allocations, and leaves all others to net/http.
//
// On the way of a small request net/http costs more than everything else that
// a key-value store does for it: a second goroutine that watches the
// connection, a header map made and sorted anew, two timers. This package takes
// what nearly all requests are, and only that: a complete header in one read,
// a short body with a declared length, nothing unusual. The first request of a
// connection that is anything else (a header in pieces, a long or chunked
// body, an Expect or Upgrade, HTTP/2, a mistake of any kind) hands the
// connection over, with every byte that was read of that request, to the
// http.Server behind it, for good. So there is one HTTP implementation to
// judge what is right, and this one needs to know only what it is sure of:
//
//	I1  what parse accepts, http.ReadRequest reads as the same request
//	    (FuzzParse)
//	I2  nothing is answered here before the whole request was read; what has
//	    been read and not answered is handed over in full
//	I3  a handler sees one request of a connection at a time, and keeps
//	    nothing of it after it returned
//
// A client that leaves is noticed only when its answer is written. Requests
// that may wait for long therefore do not belong here; Server.Takes says which
// do.
package http1

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves the connections of plain listeners. Its limits are those of
// the http.Server that it was made with, and so is its ConnContext.
type Server struct {
	// whole serves what is handed over.
	whole *http.Server
	// takes reports whether a request is one for this package; called with
	// its method and its target as they came.
	takes    func(method, target string) bool
	handover *handover
	// closing asks every connection to end after its next answer.
	closing atomic.Bool

	mu struct {
		sync.Mutex
		conns     map[*conn]struct{}
		listeners map[net.Listener]struct{}
		shut      bool
	}
	running sync.WaitGroup // connections
}

// New returns a Server in front of whole, which it serves, shuts down and
// closes together with itself. takes chooses, by method and request target,
// the requests that are served here; they must not stream their answers or
// wait for long.
func New(whole *http.Server, takes func(method, target string) bool) *Server {
	s := &Server{whole: whole, takes: takes, handover: newHandover()}
	s.mu.conns = make(map[*conn]struct{})
	s.mu.listeners = make(map[net.Listener]struct{})
	return s
}

// Serve accepts connections until the listener fails or the server is shut
// down, which is http.ErrServerClosed. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	if !s.follow(l) {
		return http.ErrServerClosed
	}
	defer s.forget(l)
	s.handover.serve(s.whole)
	for pause := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(c)
		case s.closed():
			return http.ErrServerClosed
		case temporary(err): // such as too many open files
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
		default:
			return err
		}
	}
}

// temporary reports whether accepting may work again.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (s *Server) follow(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.shut {
		_ = l.Close()
		return false
	}
	s.mu.listeners[l] = struct{}{}
	return true
}

func (s *Server) forget(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.listeners, l)
	_ = l.Close()
}

func (s *Server) closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.shut
}

func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.mu.shut {
		s.mu.Unlock()
		_ = nc.Close()
		return
	}
	s.mu.conns[c] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		c.serve()
		s.mu.Lock()
		delete(s.mu.conns, c)
		s.mu.Unlock()
	}()
}

// Shutdown stops accepting, closes the connections that are between two
// requests, and waits for the others. It returns the context's error where
// that ends first; Close then cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(func(c *conn) { c.wake() })
	err := s.whole.Shutdown(ctx)
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close cuts all connections off.
func (s *Server) Close() error {
	s.stop(func(c *conn) { _ = c.nc.Close() })
	err := s.whole.Close()
	s.running.Wait()
	return err
}

func (s *Server) stop(each func(*conn)) {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.shut = true
	for l := range s.mu.listeners {
		_ = l.Close()
	}
	for c := range s.mu.conns {
		each(c)
	}
	s.handover.close()
}

// handover is the listener from which the http.Server gets its connections.
type handover struct {
	conns chan net.Conn // unbuffered: a connection always has an owner
	done  chan struct{}
	start sync.Once
	stop  sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// serve begins to serve what is handed over. It ends with the http.Server,
// whose Shutdown or Close closes the listener.
func (h *handover) serve(srv *http.Server) {
	h.start.Do(func() { go func() { _ = srv.Serve(h) }() })
}

// give passes the connection on, unless the server stops.
func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handover) Close() error {
	h.close()
	return nil
}

func (h *handover) close() { h.stop.Do(func() { close(h.done) }) }

// Addr implements net.Listener.
func (h *handover) Addr() net.Addr { return &net.TCPAddr{} }

// replayed is a connection some of whose bytes were read already.
type replayed struct {
	net.Conn
	read []byte
}

// NetConn returns the connection below, as tls.Conn does.
func (r *replayed) NetConn() net.Conn { return r.Conn }

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.read) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.read)
	if r.read = r.read[n:]; len(r.read) == 0 {
		r.read = nil
	}
	return n, nil
}
