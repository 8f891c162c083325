package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// callServer answers the calls of other members. It works before the node has
// its place, too: nodes that start together must be able to tell each other
// that nothing has begun.
type callServer struct{ n *Node }

// peerCalls returns the handlers of the calls by their paths.
func (n *Node) peerCalls() map[string]http.Handler {
	s := callServer{n}
	return map[string]http.Handler{
		pathInfo:     serveCall(s.info),
		pathAdmit:    serveCall(s.admit),
		pathChange:   serveCall(s.change),
		pathTransfer: serveCall(s.transfer),
		pathStatus:   serveCall(s.status),
		pathBehind:   serveCall(s.behind),
		pathFounding: serveCall(s.founding),
		pathLeases:   serveCall(s.leases),
		"/":          http.HandlerFunc(s.stray),
		pathBody:     http.HandlerFunc(s.body),
	}
}

// stray answers what is not for this port, most often a client that took the
// one port for the other.
func (s callServer) stray(w http.ResponseWriter, r *http.Request) {
	if a, cluster := s.n.acceptor.Load(), r.Header.Get("X-Etcd-Cluster-Id"); a != nil && cluster != "" {
		a.Heard(cluster) // rafthttp, before this node has a place
	}
	at := strings.Join(s.n.cfg.AdvertiseClient, " or ")
	if at == "" {
		at = "the URL of --listen-client"
	}
	http.Error(w, "this is the peer port of a kvd member, which serves only other members; send client requests to "+at, http.StatusNotFound)
}

// serveCall turns a function into a handler that bounds the body and the time.
func serveCall[In, Out any](f func(context.Context, caller, In) (Out, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "members call each other with POST", http.StatusMethodNotAllowed)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCallBytes)).Decode(&in); err != nil {
			answerCall(w, http.StatusBadRequest, callError{Reason: "bad_member", Detail: err.Error()})
			return
		}
		out, err := f(ctx, caller{tls: r.TLS, r: r}, in)
		switch {
		case errors.Is(err, errIdentity), errors.Is(err, errSender):
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
	_ = json.NewEncoder(w).Encode(v) // it only fails if the caller is gone
}

// info describes this node's cluster, also while it is being founded.
// Anybody on the peer port may ask: a newcomer has nothing to show yet.
func (s callServer) info(context.Context, caller, struct{}) (info, error) {
	self, m := s.n.identity.Load(), s.n.member.Load()
	out := info{MemberID: self.Member, ClusterID: self.Cluster, Rendezvous: self.Rendezvous, Original: self.Original, Charter: self.charter}
	if a := s.n.acceptor.Load(); a != nil {
		out.Fresh, out.Seed = a.Fresh()
	}
	if self.charter == nil && !s.n.cfg.Alone {
		out.Initial = founders(s.n.cfg.Initial)
	}
	if m == nil {
		return out, nil
	}
	pos, ms := m.replica.Position(), m.replica.Membership()
	out.Committed, out.Members = pos.Commit > raftnode.InitialIndex, ms.Members
	for id := range ms.Removed {
		out.Removed = append(out.Removed, id)
	}
	return out, nil
}

// founding carries out a step of another initial member that founds a cluster.
func (s callServer) founding(_ context.Context, c caller, r founding.Request) (founding.Answer, error) {
	if err := s.fromMember(c); err != nil {
		return founding.Answer{}, err
	}
	a := s.n.acceptor.Load()
	if a == nil {
		return founding.Answer{}, founding.ErrNotFounding
	}
	return a.Handle(r)
}

// admit asks the cluster to bind the caller's directory to its member id. It
// answers before this node has caught up: only the replicas decide.
func (s callServer) admit(ctx context.Context, c caller, j joinRequest) (struct{}, error) {
	m := s.n.member.Load()
	if m == nil {
		return struct{}{}, raftnode.ErrNoLeader
	}
	ms := m.replica.Membership()
	if j.ClusterID != ms.ClusterID {
		return struct{}{}, fmt.Errorf("%w: this is cluster %016x, not %016x", roster.ErrBadMember, ms.ClusterID, j.ClusterID)
	}
	if err := s.fromAdmitted(c, ms, j.Member); err != nil {
		return struct{}{}, err
	}
	return struct{}{}, m.replica.Admit(ctx, j.Member, j.Nonce)
}

func (s callServer) change(ctx context.Context, c caller, change roster.Change) (roster.Member, error) {
	m, err := s.n.serving()
	if err != nil {
		return roster.Member{}, raftnode.ErrNotLeader
	}
	if err := s.fromChanger(c, change); err != nil {
		return roster.Member{}, err
	}
	return m.proposeChange(ctx, change)
}

func (s callServer) transfer(ctx context.Context, c caller, h handover) (struct{}, error) {
	m, err := s.n.serving()
	if err != nil {
		return struct{}{}, raftnode.ErrNotLeader
	}
	if err := s.identified(c); err != nil {
		return struct{}{}, err
	}
	return struct{}{}, m.handOver(ctx, h.To, h.By)
}

func (s callServer) status(ctx context.Context, c caller, _ struct{}) (api.Status, error) {
	if _, err := s.n.placed(); err != nil { // nobody can be identified yet
		return api.Status{}, err
	}
	if err := s.identified(c); err != nil {
		return api.Status{}, err
	}
	return s.n.Status(ctx)
}

func (s callServer) behind(ctx context.Context, c caller, _ struct{}) (map[uint64]uint64, error) {
	m, err := s.n.serving()
	if err != nil {
		return nil, raftnode.ErrNotLeader
	}
	if err := s.identified(c); err != nil {
		return nil, err
	}
	return behindAt(ctx, m)
}

// The calls are authorized here. A member states its identity in each of them, as
// in raft's own requests, and what only members may do asks for it. A node that is
// still looking for its place has none to show: it may ask for the members of a
// cluster (info), for its admission, to be added, and found a cluster with others.
// With TLS, everybody who gets this far has a certificate from the members'
// authority.

// identified admits a member of this cluster, in its own name: one that was removed,
// a member of another cluster, a second process of a member, or, with TLS, the owner
// of another member's certificate is refused.
func (s callServer) identified(c caller) error {
	if _, err := peers.Identify(c.r); err != nil {
		return fmt.Errorf("%w: %w", errSender, err)
	}
	return nil
}

// fromMember admits a caller whose certificate names a member.
func (s callServer) fromMember(c caller) error {
	if s.n.peering.tls == nil {
		return nil
	}
	return named(c, "a member", s.memberURLs())
}

// fromChanger admits members, which pass on changes that they were asked for,
// and newcomers that ask to be added themselves.
func (s callServer) fromChanger(c caller, change roster.Change) error {
	if !change.Adds() || !peers.Anonymous(c.r.Header) {
		return s.identified(c)
	}
	if s.n.peering.tls == nil {
		return nil
	}
	for _, u := range change.Member.PeerURLs {
		if err := named(c, "the member to be added", []string{u}); err != nil {
			return err
		}
	}
	return nil
}

// fromAdmitted admits the member that the directory is to be bound to. If the
// member was removed, the replicas' own answer says so.
func (s callServer) fromAdmitted(c caller, ms *roster.Membership, id uint64) error {
	m, ok := ms.Member(id)
	switch {
	case s.n.peering.tls == nil || ms.Removed[id]:
		return nil
	case !ok:
		return fmt.Errorf("%w: this node does not know member %d", roster.ErrMemberNotFound, id)
	}
	return named(c, fmt.Sprintf("member %d", id), m.PeerURLs)
}

// memberURLs returns the peer URLs of all members: of the initial ones until
// there is a membership.
func (s callServer) memberURLs() (urls []string) {
	if m := s.n.member.Load(); m != nil {
		for _, rm := range m.replica.Membership().Members {
			urls = append(urls, rm.PeerURLs...)
		}
	}
	if len(urls) == 0 {
		for _, p := range s.n.cfg.Initial {
			urls = append(urls, p.URL)
		}
	}
	return urls
}
