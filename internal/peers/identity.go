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
