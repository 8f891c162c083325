package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// The calls that members make to each other beside raft's messages. They run
// on the peer listener, under the same identity check.
const (
	pathInfo     = "/kvd/info"
	pathAdmit    = "/kvd/admit"
	pathChange   = "/kvd/change"
	pathTransfer = "/kvd/transfer"
	pathStatus   = "/kvd/status"
)

const (
	maxCallBytes = 1 << 20
	callTimeout  = 5 * time.Second
)

// info is what a node says of its cluster to one that starts.
type info struct {
	MemberID  uint64 `json:"member_id"`
	ClusterID uint64 `json:"cluster_id"`
	// Original is the cluster's id before it was recovered; 0 where it never
	// was.
	Original uint64 `json:"original_cluster_id,omitempty"`
	// Committed says that the cluster has begun: something beyond the initial
	// membership is committed.
	Committed bool              `json:"committed"`
	Term      uint64            `json:"term"`
	Members   []raftnode.Member `json:"members"`
	Removed   []uint64          `json:"removed,omitempty"`
}

type admission struct {
	Member    uint64 `json:"member"`
	ClusterID uint64 `json:"cluster_id"`
	Nonce     string `json:"nonce"`
}

// callError is the answer to a call that was refused.
type callError struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// reasons gives the errors that callers decide by a name on the wire.
var reasons = map[string]error{
	"member_exists":    raftnode.ErrMemberExists,
	"member_removed":   raftnode.ErrMemberRemoved,
	"member_not_found": raftnode.ErrMemberNotFound,
	"unsafe_change":    raftnode.ErrUnsafeChange,
	"bad_member":       raftnode.ErrBadMember,
	"not_handed_over":  raftnode.ErrNotHandedOver,
	"not_leader":       raftnode.ErrNotLeader,
	"no_leader":        raftnode.ErrNoLeader,
	"overloaded":       raftnode.ErrOverloaded,
	"stopping":         raftnode.ErrStopping,
	"disk_stall":       raftnode.ErrDiskStall,
	"identity":         errIdentity,
}

func reasonOf(err error) string {
	for reason, is := range reasons {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "unknown"
}

// peerCaller makes the calls.
type peerCaller struct {
	client *http.Client
}

func newPeerCaller(security *peers.Security) *peerCaller {
	return &peerCaller{client: &http.Client{
		Transport: callTransport(security),
		Timeout:   callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a member does not redirect")
		},
	}}
}

// callTransport makes a connection of its own for each call: one that is kept
// may lead to a process that has died, and then nobody knows whether the call
// arrived. A refused dial is certain.
func callTransport(security *peers.Security) *http.Transport {
	t := &http.Transport{DisableKeepAlives: true}
	security.DialWith(t, (&net.Dialer{Timeout: callTimeout}).DialContext)
	return t
}

// call posts in and decodes the answer into out. A refusal comes back as the
// error it was; where the outcome of a call with effects is open, it is
// raftnode.ErrUnknown.
func (p *peerCaller) call(ctx context.Context, url, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := p.client.Do(req)
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" || refusedByServer(err) {
		return fmt.Errorf("%w: %w", raftnode.ErrNoLeader, err) // nothing was sent
	}
	if err != nil {
		return fmt.Errorf("%w: %w", raftnode.ErrUnknown, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxCallBytes))
	if err != nil {
		return fmt.Errorf("%w: read the answer of %s: %w", raftnode.ErrUnknown, url, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(data, out)
	}
	return refusal(url, resp.StatusCode, data)
}

func refusal(url string, status int, data []byte) error {
	var e callError
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: %s answers %d, which no member of kvd does", raftnode.ErrUnknown, url, status)
	}
	if is, ok := reasons[e.Reason]; ok {
		return &remoteError{is: is, detail: e.Detail}
	}
	return fmt.Errorf("%w: %s: %s", raftnode.ErrUnknown, url, e.Detail)
}

// remoteError is a refusal by another member in its own words.
type remoteError struct {
	is     error
	detail string
}

func (e *remoteError) Error() string { return e.detail }
func (e *remoteError) Unwrap() error { return e.is }

// any tries the URLs of one member in turn, while the call surely had no
// effect.
func (p *peerCaller) any(ctx context.Context, urls []string, path string, in, out any) error {
	err := fmt.Errorf("%w: the member has no URL", raftnode.ErrNoLeader)
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

func (p *peerCaller) change(ctx context.Context, urls []string, c raftnode.Change) (raftnode.Member, error) {
	var out raftnode.Member
	err := p.any(ctx, urls, pathChange, c, &out)
	return out, err
}

func (p *peerCaller) transfer(ctx context.Context, urls []string, to uint64) error {
	return p.any(ctx, urls, pathTransfer, to, new(struct{}))
}

func (p *peerCaller) status(ctx context.Context, urls []string) (api.Status, error) {
	var out api.Status
	err := p.any(ctx, urls, pathStatus, struct{}{}, &out)
	return out, err
}

func (p *peerCaller) admit(ctx context.Context, url string, a admission) error {
	return p.call(ctx, url, pathAdmit, a, new(struct{}))
}

// handlers serves the calls.
func (n *Node) handlers() map[string]http.Handler {
	return map[string]http.Handler{
		pathInfo: serveCall(func(context.Context, caller, struct{}) (info, error) { return n.info(), nil }),
		pathAdmit: serveCall(func(ctx context.Context, c caller, a admission) (struct{}, error) {
			return struct{}{}, n.admit(ctx, c, a)
		}),
		pathChange: serveCall(n.takeChange),
		pathTransfer: serveCall(func(ctx context.Context, c caller, to uint64) (struct{}, error) {
			r, err := n.running()
			if err != nil {
				return struct{}{}, raftnode.ErrNotLeader
			}
			if err := n.fromMember(c); err != nil {
				return struct{}{}, err
			}
			return struct{}{}, r.TransferLeadership(ctx, to)
		}),
		pathStatus: serveCall(func(ctx context.Context, c caller, _ struct{}) (api.Status, error) {
			if err := n.fromMember(c); err != nil {
				return api.Status{}, err
			}
			return n.Status(ctx)
		}),
	}
}

func (n *Node) takeChange(ctx context.Context, c caller, change raftnode.Change) (raftnode.Member, error) {
	r, err := n.running()
	if err != nil {
		return raftnode.Member{}, raftnode.ErrNotLeader
	}
	if err := n.fromChanger(c, change); err != nil {
		return raftnode.Member{}, err
	}
	return n.proposeChange(ctx, r, change)
}

// serveCall turns a function into a handler with limits on the body and time.
func serveCall[In, Out any](f func(context.Context, caller, In) (Out, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "members call with POST", http.StatusMethodNotAllowed)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCallBytes)).Decode(&in); err != nil {
			answerCall(w, http.StatusBadRequest, callError{Reason: "bad_member", Detail: err.Error()})
			return
		}
		out, err := f(ctx, r.TLS, in)
		switch {
		case errors.Is(err, errIdentity):
			answerCall(w, http.StatusUnauthorized, callError{Reason: reasonOf(err), Detail: err.Error()})
		case err != nil:
			answerCall(w, http.StatusConflict, callError{Reason: reasonOf(err), Detail: err.Error()})
		default:
			answerCall(w, http.StatusOK, out)
		}
	})
}

func answerCall(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone if this fails
}

// info describes this node's cluster, also while it bootstraps.
func (n *Node) info() info {
	r := n.raft.Load()
	if r == nil {
		return info{MemberID: n.id, ClusterID: n.clusterID, Original: n.original.Load()}
	}
	pos, ms := r.Position(), r.Membership()
	out := info{
		MemberID:  n.id,
		ClusterID: ms.ClusterID,
		Original:  n.original.Load(),
		Committed: pos.Commit > raftnode.InitialIndex,
		Term:      pos.Term,
		Members:   ms.Members,
	}
	for id := range ms.Removed {
		out.Removed = append(out.Removed, id)
	}
	return out
}

func (n *Node) admit(ctx context.Context, c caller, a admission) error {
	r := n.raft.Load()
	switch {
	case r == nil:
		return raftnode.ErrNoLeader
	case a.ClusterID != r.Membership().ClusterID:
		return fmt.Errorf("%w: this is cluster %016x, not %016x", raftnode.ErrBadMember, r.Membership().ClusterID, a.ClusterID)
	}
	if err := n.fromAdmitted(c, r.Membership(), a.Member); err != nil {
		return err
	}
	return r.Admit(ctx, a.Member, a.Nonce)
}
