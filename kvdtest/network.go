package kvdtest

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// network makes all connections between the members of a cluster, and cuts some.
//
// A cut link breaks its connections, and new ones hang until the link is mended or the
// dial times out. So members see what a network without a route shows them: they cannot
// tell it from a machine that has lost its power.
type network struct {
	ids map[string]uint64 // by the address of the peer listener
	mu  struct {
		sync.Mutex
		cut     map[link]bool
		conns   map[*memberConn]link
		changed chan struct{} // closed and replaced with each change of cut
	}
}

// link is a pair of members, the lower id first.
type link struct{ a, b uint64 }

func linkOf(a, b uint64) link { return link{min(a, b), max(a, b)} }

func newNetwork() *network {
	n := &network{ids: make(map[string]uint64)}
	n.mu.cut, n.mu.conns = make(map[link]bool), make(map[*memberConn]link)
	n.mu.changed = make(chan struct{})
	return n
}

// dial is how connections are made.
type dial = func(ctx context.Context, network, addr string) (net.Conn, error)

// from returns how a member makes connections.
func (n *network) from(id uint64) func(dial) dial {
	return func(inner dial) dial {
		return func(ctx context.Context, protocol, addr string) (net.Conn, error) {
			l := linkOf(id, n.ids[addr])
			if err := n.await(ctx, l); err != nil {
				return nil, &net.OpError{Op: "dial", Net: protocol, Err: err}
			}
			c, err := inner(ctx, protocol, addr)
			if err != nil {
				return nil, err
			}
			return n.add(c, l)
		}
	}
}

// dialTimeout is how long a dial over a cut link lasts at most.
const dialTimeout = time.Second

// await waits until the link is mended.
func (n *network) await(ctx context.Context, l link) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		n.mu.Lock()
		cut, changed := n.mu.cut[l], n.mu.changed
		n.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var errCut = errors.New("kvdtest: the link was cut")

// add registers a connection, unless its link was cut meanwhile.
func (n *network) add(c net.Conn, l link) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.cut[l] {
		return nil, errors.Join(errCut, c.Close())
	}
	mc := &memberConn{Conn: c, n: n}
	n.mu.conns[mc] = l
	return mc, nil
}

// set cuts or mends links, and breaks the connections of those that are cut.
func (n *network) set(cut bool, links ...link) {
	n.mu.Lock()
	var broken []*memberConn
	for _, l := range links {
		n.mu.cut[l] = cut
		for c, at := range n.mu.conns {
			if cut && at == l {
				broken = append(broken, c)
			}
		}
	}
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
	n.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

// silence cuts the links of a member that are not cut, and returns a function that mends
// them.
func (n *network) silence(id uint64) (mend func()) {
	var links []link
	n.mu.Lock()
	for _, other := range n.ids {
		if l := linkOf(id, other); other != id && !n.mu.cut[l] {
			links = append(links, l)
		}
	}
	n.mu.Unlock()
	n.set(true, links...)
	return func() { n.set(false, links...) }
}

// memberConn is a connection between members.
type memberConn struct {
	net.Conn
	n *network
}

// Close implements net.Conn.
func (c *memberConn) Close() error {
	c.n.mu.Lock()
	delete(c.n.mu.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}
