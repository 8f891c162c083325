package frontdoor

import (
	"net"
	"net/http"
	"sync"
)

// Newcomers are the connections that have not sent a byte yet, such as those
// that browsers and HTTP libraries open in advance. http.Server.Shutdown waits
// for them as it does for requests in work, up to five seconds; they are
// closed instead.
type Newcomers struct {
	mu struct {
		sync.Mutex
		conns  map[net.Conn]bool
		closed bool
	}
}

// Watch follows the connections of the server and closes the newcomers when
// it shuts down.
func (n *Newcomers) Watch(srv *http.Server) {
	n.mu.conns = make(map[net.Conn]bool)
	srv.ConnState = n.note
	srv.RegisterOnShutdown(n.close)
}

func (n *Newcomers) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(n.mu.conns, c)
	case n.mu.closed:
		_ = c.Close() // accepted just before the listener was closed
	default:
		n.mu.conns[c] = true
	}
}

func (n *Newcomers) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.closed = true
	for c := range n.mu.conns {
		_ = c.Close() // nothing was said on it
	}
}
