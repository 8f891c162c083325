package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// behind is what a node tells about its cluster at a client URL.
type behind struct {
	ClusterID string       `json:"cluster_id"`
	Members   []api.Member `json:"members"`
	// Code and PeerURLs are those of a node that does not serve yet.
	Code     api.Code `json:"code"`
	PeerURLs []string `json:"peer_urls"`
}

// newFinder returns a client for client URLs. Unlike peerCaller's it may use plain HTTP:
// client ports may be without TLS where members have it.
func newFinder(p peering) *http.Client {
	plain := p.security()
	plain.SecureOnly = false
	return &http.Client{
		Transport: callTransport(plain),
		Timeout:   callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a node does not redirect")
		},
	}
}

// askBehind asks the node at a client URL for its members.
func askBehind(ctx context.Context, finder *http.Client, clientURL string) (behind, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(clientURL, "/")+"/v1/members", nil)
	if err != nil {
		return behind{}, err
	}
	resp, err := finder.Do(req)
	if err != nil {
		return behind{}, err
	}
	defer resp.Body.Close()
	var b behind
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxCallBytes)).Decode(&b); err != nil {
		return behind{}, fmt.Errorf("decode the members from %s (status %d): %w", clientURL, resp.StatusCode, err)
	}
	return b, nil
}

// peerURLs returns those of all members, or of a node that has no place yet.
func (b *behind) peerURLs() (urls []string) {
	for _, m := range b.Members {
		urls = append(urls, m.PeerURLs...)
	}
	if len(urls) == 0 && b.Code == api.Starting {
		return b.PeerURLs
	}
	return urls
}

// Newcomers asks nodes that are to become members of this node's cluster.
type Newcomers struct{ Node *Node }

// PeerURLsOf asks the node behind a client URL for its peer URLs. The node must be one
// that waits to become a member of a cluster. The errors are *api.Error.
func (n Newcomers) PeerURLsOf(ctx context.Context, clientURL string) ([]string, error) {
	m, err := n.Node.serving()
	if err != nil {
		return nil, err
	}
	b, err := askBehind(ctx, newFinder(n.Node.peering), clientURL)
	own := hex(m.replica.Membership().ClusterID)
	switch {
	case err != nil:
		return nil, api.Errorf(api.BadRequest, "the node at %s does not say what its peer URLs are (%v); start it first, with --join", clientURL, err)
	case b.ClusterID == own:
		return nil, api.Errorf(api.MemberExists, "the node at %s is a member of this cluster already", clientURL)
	case b.ClusterID != "":
		return nil, api.Errorf(api.UnsafeChange, "the node at %s is a member of another cluster, %s, whose data it would lose; start it with an empty directory and --join", clientURL, b.ClusterID)
	case b.Code != api.Starting || len(b.PeerURLs) == 0:
		return nil, api.Errorf(api.BadRequest, "what answers at %s is not a kvd node that waits to join", clientURL)
	}
	return b.PeerURLs, nil
}
