package etcdapi

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/memberurl"
)

// clusterService is etcdserverpb.Cluster.
type clusterService struct {
	pb.UnsafeClusterServer
	*Server
}

// header is that of the answers of this service, which have no revision.
func (s *clusterService) header() *pb.ResponseHeader { return s.headers.At(0) }

// members returns the membership in etcd's form.
func (s *clusterService) members() ([]*pb.Member, error) {
	all, err := s.opts.Members.Roster()
	if err != nil {
		return nil, err
	}
	out := make([]*pb.Member, len(all))
	for i := range all {
		out[i] = memberOf(&all[i])
	}
	return out, nil
}

// memberOf returns a member in etcd's form. Its client URLs are those of this face: clients
// of etcd connect to whatever they find there.
func memberOf(m *api.Member) *pb.Member {
	return &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.EtcdURLs, IsLearner: m.Learner}
}

// MemberList implements pb.ClusterServer.
func (s *clusterService) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.GetLinearizable() {
		if err := s.opts.Replicator.Barrier(ctx, nil); err != nil {
			return nil, err
		}
	}
	members, err := s.members()
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: s.header(), Members: members}, nil
}

// MemberAdd implements pb.ClusterServer. A member that is not a learner for good begins as
// one, and is promoted by the leader once it has caught up.
func (s *clusterService) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := peerURLs(r.GetPeerURLs())
	if err != nil {
		return nil, err
	}
	added, err := s.opts.Members.AddMember(ctx, api.NewMember{PeerURLs: urls, Learner: r.GetIsLearner(), MaxLearners: s.opts.MaxLearners})
	if err != nil {
		return nil, s.refused(err, true)
	}
	members, err := s.members()
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: s.header(), Member: memberOf(&added.Member), Members: members}, nil
}

// MemberRemove implements pb.ClusterServer.
func (s *clusterService) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := s.opts.Members.RemoveMember(ctx, r.GetID()); err != nil {
		return nil, s.refused(err, false)
	}
	members, err := s.members()
	return &pb.MemberRemoveResponse{Header: s.header(), Members: members}, err
}

// MemberUpdate implements pb.ClusterServer.
func (s *clusterService) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	urls, err := peerURLs(r.GetPeerURLs())
	if err != nil {
		return nil, err
	}
	if _, err := s.opts.Members.UpdateMember(ctx, r.GetID(), urls, nil); err != nil {
		return nil, s.refused(err, true)
	}
	members, err := s.members()
	return &pb.MemberUpdateResponse{Header: s.header(), Members: members}, err
}

// MemberPromote implements pb.ClusterServer.
func (s *clusterService) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if _, err := s.opts.Members.PromoteMember(ctx, r.GetID()); err != nil {
		return nil, promotionRefused(err)
	}
	members, err := s.members()
	return &pb.MemberPromoteResponse{Header: s.header(), Members: members}, err
}

// promotionRefused tells why a learner stays one.
func promotionRefused(err error) error {
	switch codeOf(err) {
	case api.MemberExists:
		return rpctypes.ErrGRPCMemberNotLearner
	case api.UnsafeChange:
		return rpctypes.ErrGRPCLearnerNotReady
	case api.BadRequest:
		return rpctypes.ErrGRPCMemberNotFound
	}
	return err
}

// peerURLs checks the URLs of a member.
func peerURLs(urls []string) ([]string, error) {
	out, err := memberurl.Normalize(urls)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	return out, nil
}

// refused tells why the membership stays as it is. What the leader calls unsafe is told by
// whether all members have started: etcd knows two reasons.
func (s *clusterService) refused(err error, urls bool) error {
	switch code := codeOf(err); {
	case code == api.BadRequest && urls:
		return rpctypes.ErrGRPCMemberBadURLs
	case code == api.BadRequest: // an id that no member can have
		return rpctypes.ErrGRPCMemberNotFound
	case code == api.MemberExists && urls:
		return rpctypes.ErrGRPCPeerURLExist
	case code == api.UnsafeChange && limitOf(err) == api.MaxLearners:
		return rpctypes.ErrGRPCTooManyLearners
	case code == api.UnsafeChange:
		return s.unsafeReason()
	}
	return err
}

func (s *clusterService) unsafeReason() error {
	all, err := s.opts.Members.Roster()
	if err != nil {
		return err
	}
	voters := 0
	for i := range all {
		if all[i].Name == "" {
			return rpctypes.ErrGRPCMemberNotEnoughStarted
		}
		if !all[i].Learner {
			voters++
		}
	}
	if voters == 1 { // removing it leaves nobody
		return rpctypes.ErrGRPCMemberNotEnoughStarted
	}
	return rpctypes.ErrGRPCUnhealthy
}

// limitOf returns which limit a refusal is about, or "".
func limitOf(err error) string {
	var e *api.Error
	if !errors.As(err, &e) {
		return ""
	}
	limit, _ := e.Fields[api.LimitField].(string)
	return limit
}

// codeOf returns the code of a refusal, or "".
func codeOf(err error) api.Code {
	var refusal *api.Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return ""
}
