package http1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves the connections of listeners without TLS. Its timeouts, ConnContext and
// ErrorLog are those of the http.Server that it was made with.
type Server struct {
	// whole serves the connections that are handed over.
	whole *http.Server
	// takes reports, by method and request target, whether a request may be served
	// here.
	takes func(method, target string) bool
	// streams reports the same of requests whose answers are streams.
	streams  func(method, target string) bool
	handover *handover
	// Refusal returns the document that answers a request which is not valid HTTP, or
	// whose header is too long, instead of net/http's line of text. reason says what
	// net/http has found. nil leaves the text. It is set before Serve.
	Refusal func(status int, reason string) (contentType string, document []byte)
	// closing makes every answer the last of its connection.
	closing atomic.Bool

	// mu is held by Serve and Shutdown to add, remove, and list. Nobody holds it while
	// reading or writing a connection.
	mu struct {
		sync.Mutex
		conns     map[*conn]struct{}
		listeners map[net.Listener]struct{}
		shut      bool
	}
	running sync.WaitGroup // the goroutines of the connections
}

// New returns a Server in front of whole, which it serves, shuts down and closes together
// with itself. takes and streams select, by method and request target, the requests that
// are served here. Those of takes must not stream their answers, and must call Attend to
// wait for long; those of streams may do both, and end their connection.
func New(whole *http.Server, takes, streams func(method, target string) bool) *Server {
	s := &Server{whole: whole, takes: takes, streams: streams, handover: newHandover()}
	s.mu.conns = make(map[*conn]struct{})
	s.mu.listeners = make(map[net.Listener]struct{})
	return s
}

// Serve accepts connections until the listener fails or the server is shut down, for which
// it returns http.ErrServerClosed. It may be called for several listeners.
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
		case temporary(err): // for example, too many open files
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
		default:
			return err
		}
	}
}

// temporary reports whether accepting may succeed again.
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

// Shutdown stops accepting, closes connections that are between two requests, and waits
// for the others. If the context ends first, it returns the context's error; Close then
// closes the rest.
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

// Close closes all connections.
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

// handover is the listener from which the http.Server accepts its connections.
type handover struct {
	conns chan net.Conn // unbuffered, so that a connection always has an owner
	done  chan struct{} // closed by close
	start sync.Once
	stop  sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// serve starts serving what is handed over. It ends when Shutdown or Close of the
// http.Server closes the listener.
func (h *handover) serve(srv *http.Server) {
	h.start.Do(func() { go func() { _ = srv.Serve(h) }() })
}

// give hands over a connection, or closes it if the server has stopped.
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

// replayed is a connection of which some bytes have already been read, for net/http.
type replayed struct {
	net.Conn
	read    []byte
	refusal func(status int, reason string) (contentType string, document []byte)
	wrote   bool // net/http's goroutine that writes owns it
}

// refusalHead is how net/http ends the header of its own refusals.
const refusalHead = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// Write implements net.Conn. net/http has no hook for the requests that it refuses
// itself, so its refusal is recognized by its text. Only the first write is looked at:
// a later one may be the middle of an answer, whose text is up to clients. The first is
// the beginning of an answer, and those of a handler have a Date.
func (r *replayed) Write(p []byte) (int, error) {
	first := !r.wrote
	r.wrote = true
	line, reason, ok := bytes.Cut(p, []byte(refusalHead))
	if !first || !ok || r.refusal == nil || len(line) < len("HTTP/1.1 400") {
		return r.Conn.Write(p)
	}
	status, err := strconv.Atoi(string(line[len("HTTP/1.1 "):len("HTTP/1.1 400")]))
	if err != nil || bytes.Contains(line, []byte("\n")) {
		return r.Conn.Write(p)
	}
	contentType, document := r.refusal(status, string(reason))
	answer := fmt.Appendf(nil, "%sDate: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%s",
		statusLine(status), date(), contentType, len(document), document)
	_, err = r.Conn.Write(answer)
	return len(p), err
}

// NetConn returns the underlying connection, as tls.Conn does.
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
