package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// The calls that members make to each other beside raft's messages. They
// arrive on the peer listener, under the same check of identities.
const (
	pathInfo     = "/kvd/info"
	pathAdmit    = "/kvd/admit"
	pathChange   = "/kvd/change"
	pathTransfer = "/kvd/transfer"
	pathStatus   = "/kvd/status"
	pathBehind   = "/kvd/behind"
	pathFounding = "/kvd/founding"
	pathBody     = "/kvd/body"
	pathLeases   = "/kvd/leases"
)

const (
	maxCallBytes = 1 << 20
	callTimeout  = 5 * time.Second
)

// info is what a node tells a starting one about its cluster.
type info struct {
	MemberID uint64 `json:"member_id"`
	// ClusterID is 0 until the node has a cluster.
	ClusterID  uint64 `json:"cluster_id,omitempty"`
	Rendezvous uint64 `json:"rendezvous_id"`
	// Original is the cluster's id before it was recovered; 0 if it never was.
	Original uint64 `json:"original_cluster_id,omitempty"`
	// Fresh means that the node may found a cluster.
	Fresh bool `json:"fresh,omitempty"`
	// Seed names the state that a fresh node was restored with; empty if it was not.
	Seed string `json:"seed,omitempty"`
	// Charter is that of the node's cluster, if the node helped to found it.
	Charter *datadir.Charter `json:"charter,omitempty"`
	// Initial are the initial members in the node's settings.
	Initial []datadir.Founder `json:"initial,omitempty"`
	// Committed means that the node knows something beyond the initial membership
	// to be committed.
	Committed bool            `json:"committed"`
	Members   []roster.Member `json:"members"`
	Removed   []uint64        `json:"removed,omitempty"`
}

// joinRequest asks a cluster to bind a member to a data directory.
type joinRequest struct {
	Member    uint64 `json:"member"`
	ClusterID uint64 `json:"cluster_id"`
	Nonce     string `json:"nonce"`
}

// handover asks the leader to hand leadership over.
type handover struct {
	To uint64           `json:"to"`
	By roster.Requester `json:"by,omitzero"`
}

// callError is the answer to a call that was refused.
type callError struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// reasons names, on the wire, the errors that callers act on. Members of different
// versions talk to each other: a name is never reused for another meaning, and one
// that the caller does not know counts as an unknown outcome.
var reasons = map[string]error{
	"member_exists":    roster.ErrMemberExists,
	"member_removed":   roster.ErrMemberRemoved,
	"member_not_found": roster.ErrMemberNotFound,
	"repeated":         roster.ErrRepeated,
	"other_request":    roster.ErrOtherRequest,
	"unsafe_change":    roster.ErrUnsafeChange,
	"bad_member":       roster.ErrBadMember,
	"learners":         roster.ErrTooManyLearners,
	"not_handed_over":  raftnode.ErrNotHandedOver,
	"not_leader":       raftnode.ErrNotLeader,
	"no_leader":        raftnode.ErrNoLeader,
	"overloaded":       raftnode.ErrOverloaded,
	"stopping":         raftnode.ErrStopping,
	"disk_stall":       raftnode.ErrDiskStall,
	"identity":         errIdentity,
	"sender":           errSender,
	"not_founding":     founding.ErrNotFounding,
}

func reasonOf(err error) string {
	for reason, is := range reasons {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "unknown"
}

// peerCaller makes the calls. It is safe for concurrent use.
type peerCaller struct {
	client *http.Client
	// standing keeps connections open, for calls that may be repeated.
	standing *http.Client
	// stamp states the identity of this node in a call; nil until it has its place
	// in a cluster.
	stamp atomic.Pointer[func(http.Header)]
}

// identify makes the following calls state the identity that stamp writes.
func (p *peerCaller) identify(stamp func(http.Header)) { p.stamp.Store(&stamp) }

// do makes a request with the given client.
func (p *peerCaller) do(client *http.Client, req *http.Request) (*http.Response, error) {
	if stamp := p.stamp.Load(); stamp != nil {
		(*stamp)(req.Header)
	}
	return client.Do(req)
}

func newPeerCaller(security peers.Security) *peerCaller {
	client := &http.Client{
		Transport: callTransport(security),
		Timeout:   callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("members do not redirect")
		},
	}
	return &peerCaller{client: client, standing: standingClient(client)}
}

// callTransport returns a transport that makes a connection for each call (N5):
// one that is kept open may lead to a process that has died, and then nobody
// knows whether the call arrived. A refused dial is certain.
func callTransport(security peers.Security) *http.Transport {
	t := &http.Transport{DisableKeepAlives: true}
	security.DialWith(t, (&net.Dialer{Timeout: callTimeout}).DialContext)
	return t
}

// call posts in and decodes the answer into out. A refusal comes back as the
// error that it was at the other member. If the outcome of a call is open, the
// error is raftnode.ErrUnknown.
func (p *peerCaller) call(ctx context.Context, url, path string, in, out any) error {
	return p.callWith(ctx, p.client, url, path, in, out)
}

func (p *peerCaller) callWith(ctx context.Context, client *http.Client, url, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.do(client, req)
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" || refusedByServer(err) {
		return &failedCall{raftnode.ErrNoLeader, fmt.Errorf("cannot connect: %w", err)} // nothing was sent
	}
	if err != nil {
		return &failedCall{raftnode.ErrUnknown, fmt.Errorf("no answer: %w", err)}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxCallBytes))
	if err != nil {
		return fmt.Errorf("%w: read the answer from %s: %w", raftnode.ErrUnknown, url, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(data, out)
	}
	return refusal(url, resp.StatusCode, data)
}

// failedCall is a call that got no answer. It is, for a change, ErrNoLeader or
// ErrUnknown, but the caller is told what happened: a refused connection says
// nothing about leaders.
type failedCall struct{ is, err error }

func (e *failedCall) Error() string   { return e.err.Error() }
func (e *failedCall) Unwrap() []error { return []error{e.is, e.err} }

func refusal(url string, status int, data []byte) error {
	var e callError
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: %s answered with status %d and a body that no kvd member sends", raftnode.ErrUnknown, url, status)
	}
	if is, ok := reasons[e.Reason]; ok {
		return &remoteError{is: is, detail: e.Detail}
	}
	return fmt.Errorf("%w: %s: %s", raftnode.ErrUnknown, url, e.Detail)
}

// remoteError is a refusal by another member, in that member's words.
type remoteError struct {
	is     error
	detail string
}

func (e *remoteError) Error() string { return e.detail }
func (e *remoteError) Unwrap() error { return e.is }

// any tries the URLs of one member in turn, as long as the call certainly had
// no effect.
func (p *peerCaller) any(ctx context.Context, urls []string, path string, in, out any) error {
	err := fmt.Errorf("%w: the member has no peer URL", raftnode.ErrNoLeader)
	for _, u := range urls {
		if err = p.call(ctx, u, path, in, out); err == nil || !errors.Is(err, raftnode.ErrNoLeader) {
			return err
		}
	}
	return err
}

func (p *peerCaller) info(ctx context.Context, url string) (info, error) {
	var out info
	err := p.call(ctx, url, pathInfo, struct{}{}, &out)
	return out, err
}

func (p *peerCaller) change(ctx context.Context, urls []string, c roster.Change) (roster.Member, error) {
	var out roster.Member
	err := p.any(ctx, urls, pathChange, c, &out)
	return out, err
}

func (p *peerCaller) transfer(ctx context.Context, urls []string, h handover) error {
	return p.any(ctx, urls, pathTransfer, h, new(struct{}))
}

func (p *peerCaller) status(ctx context.Context, urls []string) (api.Status, error) {
	var out api.Status
	err := p.any(ctx, urls, pathStatus, struct{}{}, &out)
	return out, err
}

// behindTimeout bounds how long a silent leader delays the list of members.
const behindTimeout = time.Second

// behind returns what the leader knows of who lags, together with what this node knows.
// Without an answer it is only that.
func (p *peerCaller) behind(ctx context.Context, leader []string, own map[uint64]uint64) map[uint64]uint64 {
	ctx, cancel := context.WithTimeout(ctx, behindTimeout)
	defer cancel()
	all := make(map[uint64]uint64)
	if p.any(ctx, leader, pathBehind, struct{}{}, &all) != nil {
		return own
	}
	maps.Copy(all, own)
	return all
}

func (p *peerCaller) founding(ctx context.Context, url string, r founding.Request) (founding.Answer, error) {
	var out founding.Answer
	err := p.call(ctx, url, pathFounding, r, &out)
	return out, err
}

func (p *peerCaller) admit(ctx context.Context, url string, a joinRequest) error {
	return p.call(ctx, url, pathAdmit, a, new(struct{}))
}
