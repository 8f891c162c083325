package node

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/kvd-io/kvd/internal/peers"
)

// TestPeerCallsFollowNoRedirect: a member could otherwise send the others
// anywhere in the network.
func TestPeerCallsFollowNoRedirect(t *testing.T) {
	var reached atomic.Bool
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer target.Close()
	peer := httptest.NewServer(http.RedirectHandler(target.URL, http.StatusTemporaryRedirect))
	defer peer.Close()
	client := newPeerCaller(peers.Security{}).client
	defer client.CloseIdleConnections()
	resp, err := client.Get(peer.URL + "/kvd/status")
	if err == nil {
		_ = resp.Body.Close()
		t.Error("the redirect was followed")
	}
	if reached.Load() {
		t.Error("the target was asked")
	}
}
