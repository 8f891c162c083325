package answer

import (
	"strconv"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Identity is who answers.
type Identity interface {
	// ID is the id of this member.
	ID() uint64
	// ClusterID is 16 hexadecimal digits, or empty while it is unknown.
	ClusterID() string
	// Term is raft's current term as this member knows it.
	Term() uint64
}

// Headers makes the headers of answers. It is safe for concurrent use.
type Headers struct {
	who Identity
	// revision returns the newest revision that readers of this node see.
	revision func() uint64
	// cluster keeps the id of the cluster once it is known: it never changes, and
	// parsing it for each answer would cost more than the rest of the header.
	cluster atomic.Uint64
}

// NewHeaders returns Headers of a member.
func NewHeaders(who Identity, revision func() uint64) *Headers {
	return &Headers{who: who, revision: revision}
}

// At returns the header of an answer that was computed at a revision.
func (h *Headers) At(revision uint64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: h.clusterID(), MemberId: h.who.ID(), Revision: int64(revision), RaftTerm: h.who.Term()}
}

// Now returns the header of an answer that belongs to no revision in particular.
func (h *Headers) Now() *pb.ResponseHeader { return h.At(h.revision()) }

// Revision returns the newest revision that readers of this node see.
func (h *Headers) Revision() uint64 { return h.revision() }

func (h *Headers) clusterID() uint64 {
	if id := h.cluster.Load(); id != 0 {
		return id
	}
	id, _ := strconv.ParseUint(h.who.ClusterID(), 16, 64) // empty until it is known
	h.cluster.Store(id)
	return id
}

// Inner returns the header of an answer inside that of a transaction, which has the
// revision alone.
func Inner(revision uint64) *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: int64(revision)}
}
