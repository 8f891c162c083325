package node

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

// brokenListener fails for good, as one does whose socket was taken away.
type brokenListener struct{ net.Listener }

var errBroken = errors.New("broken")

func (brokenListener) Accept() (net.Conn, error) { return nil, errBroken }

// A node whose peer listener fails ends: deaf, it would hold up its cluster.
func TestFailedPeerListenerEndsTheNode(t *testing.T) {
	url := freeURL(t)
	n, err := New(Config{ID: 1, DataDir: t.TempDir(), Engine: "memory", ListenPeer: url, Initial: []Peer{{ID: 1, URL: url}}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait, err := n.servePeersOn(ctx, brokenListener{l})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-n.failed; !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "peer listener") {
		t.Errorf("the node ends with: %v", err)
	}
	cancel()
	wait()
}
