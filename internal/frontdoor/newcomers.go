package frontdoor

import (
	"net"
	"net/http"
	"sync"
)

// newcomers are the connections that have not sent a byte yet, for example
// those that browsers and HTTP libraries open in advance.
// http.Server.Shutdown takes them for requests in progress and waits up to
// five seconds for them; that is half of what a supervisor gives a stopping
// node, so they are closed instead.
type newcomers struct {
	mu struct {
		sync.Mutex // held by the server's ConnState callback and by close
		conns      map[net.Conn]bool
		closed     bool
	}
}

// watch follows the connections of the server and closes the newcomers when
// the server shuts down.
func (n *newcomers) watch(srv *http.Server) {
	n.mu.conns = make(map[net.Conn]bool)
	srv.ConnState = n.note
	srv.RegisterOnShutdown(n.close)
}

func (n *newcomers) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(n.mu.conns, c)
	case n.mu.closed:
		// Accepted just before the listener was closed, noticed after.
		_ = c.Close()
	default:
		n.mu.conns[c] = true
	}
}

func (n *newcomers) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.closed = true
	for c := range n.mu.conns {
		_ = c.Close() // nothing was sent on it
	}
}
