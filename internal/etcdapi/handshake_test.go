package etcdapi

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/peer"

	"github.com/kvd-io/kvd/internal/link"
)

// TestCallsKnowTheirLink: a call on a connection of gRPC, and one on a connection of
// net/http, know that they come from this user over a Unix socket.
func TestCallsKnowTheirLink(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, info, err := handshaken{}.ServerHandshake(&peeked{Conn: c})
	if err != nil {
		t.Fatal(err)
	}
	for name, ctx := range map[string]context.Context{
		"gRPC":     peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info}),
		"net/http": peer.NewContext(link.Label(context.Background(), c), new(peer.Peer)),
	} {
		if got := linkOf(ctx); !got.Unix || got.SameUser() != link.Of(c).SameUser() {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := linkOf(context.Background()); got != (link.Link{}) {
		t.Errorf("without a connection: %+v", got)
	}
}
