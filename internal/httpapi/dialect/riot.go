package dialect

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// riot returns the routes of riot: keys, and what its nodes say of themselves.
func riot() []Route {
	key := []string{"key"}
	return []Route{
		{Pattern: "/riot", Method: http.MethodGet, Keys: true, Params: []string{"key", "qs"}, Answer: riotGet, Refuse: riotRefuse},
		{Pattern: "/riot", Method: http.MethodPost, Keys: true, Params: key, Body: true, Mutates: true, Answer: riotSet, Refuse: riotRefuse},
		{Pattern: "/riot", Method: http.MethodDelete, Keys: true, Params: key, Mutates: true, Answer: riotDelete, Refuse: riotRefuse},
		{Pattern: "/admin/status", Method: http.MethodGet, Answer: admin(riotStatus), Refuse: adminRefuse},
		{Pattern: "/admin/peer", Method: http.MethodGet, Answer: admin(riotPeers), Refuse: adminRefuse},
		{Pattern: "/admin/leader", Method: http.MethodGet, Answer: admin(riotLeader), Refuse: adminRefuse},
	}
}

// The codes in riot's documents.
const (
	riotOperation  = 40001
	riotNetwork    = 40002
	riotInvalidKey = 40003
	riotNotFound   = 40004
	riotInvalid    = 40005
	riotInternal   = 50000
)

// riotError is the document of an error.
type riotError struct {
	ErrCode int    `json:"errCode"`
	Msg     string `json:"msg"`
}

var notFound = riotError{riotNotFound, "not found"}

func riotKey(c *Call) string {
	key, _ := c.Param("key") // an empty key is refused like a missing one
	return key
}

// riotGet reads through the leader unless qs=0 says that this node will do: riot's
// "query strategy". Its default was 0; here it is what all reads of kvd are (D2).
func riotGet(c *Call) error {
	qs, given := c.Param("qs")
	if given && qs != "0" && qs != "1" {
		return api.Errorf(api.BadRequest, "the parameter \"qs\" is 1 for a consistent read or 0 for a read of this node's own state, not %.40q", qs)
	}
	found, err := c.Keys.Get(riotKey(c), qs == "0")
	if err != nil || found {
		return err
	}
	return c.respondJSON(http.StatusNotFound, notFound)
}

func riotSet(c *Call) error {
	if err := c.Keys.Put(riotKey(c)); err != nil {
		return err
	}
	c.Respond(http.StatusOK, "", nil)
	return nil
}

func riotDelete(c *Call) error {
	found, err := c.Keys.Delete(riotKey(c))
	switch {
	case err != nil:
		return err
	case !found:
		return c.respondJSON(http.StatusNotFound, notFound)
	}
	c.Respond(http.StatusOK, "", nil)
	return nil
}

// riotRefuse returns the document for an error on a key.
func riotRefuse(status int, p *api.Error) any { return riotError{riotCode(status, p), p.Detail} }

func riotCode(status int, p *api.Error) int {
	switch {
	case status >= http.StatusInternalServerError && p.Code == api.Internal:
		return riotInternal
	case status >= http.StatusInternalServerError || p.Code == api.Overloaded:
		return riotNetwork // riot's word for "did not get through in time"
	case status == http.StatusNotFound:
		return riotNotFound
	case strings.HasPrefix(p.Detail, "the key "):
		return riotInvalidKey
	case p.Code == api.BadRequest || p.Code == api.MethodNotAllowed || p.Code == api.TooLarge:
		return riotInvalid
	}
	return riotOperation
}

// adminAnswer is the document of the routes under /admin.
type adminAnswer struct {
	Results any     `json:"results"`
	Error   int     `json:"error"`
	Time    float64 `json:"time"` // seconds that the node took
}

// The codes in the field "error".
const (
	adminOK       = 0
	adminNoLeader = 3
	adminUnknown  = 4
)

// admin returns a route's function that answers with what ask returns.
func admin(ask func(context.Context, Cluster) (any, error)) func(*Call) error {
	return func(c *Call) error {
		begun := time.Now()
		ctx, cancel, err := c.Begin()
		if err != nil {
			return err
		}
		defer cancel()
		results, err := ask(ctx, c.Cluster)
		if err != nil {
			return err
		}
		return c.respondJSON(http.StatusOK, adminAnswer{results, adminOK, time.Since(begun).Seconds()})
	}
}

// adminRefuse returns the document for an error of a route under /admin. riot left out
// why, and answered with status 200.
func adminRefuse(_ int, p *api.Error) any {
	code := adminUnknown
	if p.Code == api.NoLeader {
		code = adminNoLeader
	}
	return adminAnswer{Results: p.Detail, Error: code}
}

// riotStatus returns the role with a capital letter, as hashicorp/raft has it.
func riotStatus(ctx context.Context, c Cluster) (any, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	role := voterRole(st.Role)
	return strings.ToUpper(role[:1]) + role[1:], nil
}

// riotPeers returns the addresses of all members on the network of members.
func riotPeers(ctx context.Context, c Cluster) (any, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	addresses := []string{}
	for _, m := range members {
		for _, u := range m.PeerURLs {
			addresses = append(addresses, address(u))
		}
	}
	return addresses, nil
}

// riotLeader returns the leader's address on the network of members.
func riotLeader(ctx context.Context, c Cluster) (any, error) {
	leader, err := c.Leader()
	if err != nil {
		return nil, err
	}
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.ID == leader.ID {
			return address(first(m.PeerURLs)), nil
		}
	}
	return nil, api.Errorf(api.NoLeader, "the leader has just been removed")
}

// address returns host and port of a peer URL.
func address(peerURL string) string {
	_, hostPort, _ := strings.Cut(peerURL, "://")
	return hostPort
}
