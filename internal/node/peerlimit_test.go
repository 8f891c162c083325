package node

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestPeerConnectionsAreLimited: connections to the peer port beyond its limit are
// closed, so that they cannot use up the descriptors of the node, and a place that is
// given back serves the next one.
func TestPeerConnectionsAreLimited(t *testing.T) {
	const limit = 4
	ms := startCluster(t, 1, func(c *Config) { c.Engine, c.MaxPeerConnections = "memory", limit })
	var open []net.Conn
	served := func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(ms[0].cfg.ListenPeer, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // the answer tells
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		open = append(open, conn)
		return true
	}
	for i := range 2 * limit {
		if got := served(); got != (i < limit) {
			t.Errorf("connection %d: served %v", i+1, got)
		}
	}
	_ = open[0].Close()
	eventually(t, "a place that was given back", served)
}
