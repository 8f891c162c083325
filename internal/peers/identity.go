package peers

import (
	"net/http"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"github.com/kvd-io/kvd/internal/limits"
)

// The headers in which a member says who it is. rafthttp names them; a POST,
// a stream, a snapshot and a monitor all carry them.
const (
	headerCluster = "X-Etcd-Cluster-ID"
	headerFrom    = "X-Server-From"
)

// identity is what a member states about itself in every request to another
// one: stamp writes it on the way out, claimedBy reads it on the way in. No
// other place knows how it travels.
//
// It is a claim. With TLS, guard.checkCertificate binds the member to a
// certificate; without, whoever reaches the peer port is believed.
type identity struct {
	member  uint64
	cluster uint64
}

func (id identity) stamp(h http.Header) {
	h.Set(headerCluster, types.ID(id.cluster).String())
	h.Set(headerFrom, types.ID(id.member).String())
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
	return identity{member: uint64(from), cluster: uint64(cluster)}, nil
}
