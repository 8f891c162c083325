package peers

import (
	"net/http"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"github.com/kvd-io/kvd/internal/limits"
)

// The headers that state the identity of a sender. The names are rafthttp's.
const (
	headerCluster = "X-Etcd-Cluster-ID"
	headerFrom    = "X-Server-From"
	// headerBoot is kvd's own.
	headerBoot = "X-Kvd-Boot"
	// headerRefused names the reason of a refusal that the sender acts on.
	headerRefused = "X-Kvd-Refused"
)

const maxBootBytes = 64

// identity is what a member states about itself in each request to another
// member, be it a message, a stream, a snapshot, or a monitor. stamp writes it on
// the way out, claimedBy reads it on the way in, and guard.checkClaim judges it. No
// other code knows how it travels.
//
// The calls beside raft state it, too (Stamp), and Identify judges it.
//
// It is only a claim. With TLS, guard.checkCertificate compares it with the
// certificate of the sender. Without TLS, anyone who reaches the peer port is
// believed.
type identity struct {
	member  uint64
	cluster uint64
	// boot is drawn at random for each process. It tells apart two processes that
	// act as the same member, on copies of the same data directory.
	boot string
}

// stamp writes the identity into the headers of a request.
func (id identity) stamp(h http.Header) {
	h.Set(headerCluster, types.ID(id.cluster).String())
	h.Set(headerFrom, types.ID(id.member).String())
	h.Set(headerBoot, id.boot)
}

// Stamp states the identity of a member in the headers of a request to another that
// does not go through a Transport. boot is that of the process, as in Config.
func Stamp(h http.Header, member, cluster uint64, boot string) {
	identity{member: member, cluster: cluster, boot: boot}.stamp(h)
}

// Anonymous reports whether a request states no identity, like those of a node that
// has no place in a cluster yet.
func Anonymous(h http.Header) bool { return h.Get(headerFrom) == "" }

// identifier is the key of the function by which Identify judges a request.
type identifier struct{}

// Identify returns the member that sent a request to one of the extra handlers of a
// Transport, by the rules that hold for raft's own requests, or why it is not believed.
// Refusals are counted.
func Identify(r *http.Request) (member uint64, err error) {
	identify, ok := r.Context().Value(identifier{}).(func(*http.Request) (uint64, error))
	if !ok {
		return 0, refusef(refusedUnknown, "this node does not know its cluster yet")
	}
	return identify(r)
}

// judge is what Identify calls.
func (g *guard) judge(r *http.Request) (member uint64, err error) {
	claim, refused := claimedBy(r.Header)
	if refused == nil {
		refused = g.checkClaim(r, claim)
	}
	if refused == nil && !g.t.processes.hear(claim) {
		refused = g.clone(claim)
	}
	if refused != nil {
		return 0, g.t.refuse(refused)
	}
	return claim.member, nil
}

// claimedBy returns the identity that a request states.
func claimedBy(h http.Header) (identity, *refusalError) {
	cluster, err := types.IDFromString(h.Get(headerCluster))
	if err != nil {
		return identity{}, refusef(refusedRequest, "%s is missing or not an id", headerCluster)
	}
	from, err := types.IDFromString(h.Get(headerFrom))
	if err != nil || !limits.ValidMemberID(uint64(from)) {
		return identity{}, refusef(refusedRequest, "%s is missing or not a member id", headerFrom)
	}
	boot := h.Get(headerBoot)
	if len(boot) > maxBootBytes {
		return identity{}, refusef(refusedRequest, "%s exceeds %d bytes", headerBoot, maxBootBytes)
	}
	return identity{member: uint64(from), cluster: uint64(cluster), boot: boot}, nil
}
