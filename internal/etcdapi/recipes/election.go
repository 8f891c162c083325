package recipes

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// The errors of etcd's service and of its client library.
var (
	errNoLeaderKey = status.Error(codes.Unknown, `"leader" field must be provided`)
	errNotLeader   = status.Error(codes.Unknown, "election: not leader")
	errNoLeader    = status.Error(codes.Unknown, "election: no leader")
)

// ElectionService is v3electionpb.Election.
type ElectionService struct {
	v3electionpb.UnsafeElectionServer
	Options
}

// Campaign implements v3electionpb.ElectionServer.
func (s *ElectionService) Campaign(ctx context.Context, r *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	lease, err := s.leaseFor(ctx, r.GetLease())
	if err != nil {
		return nil, err
	}
	p := s.placeOf(r.GetName(), lease)
	h, err := p.stand(ctx, r.GetValue())
	r.Value = nil // it is stored, and the wait may be long
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx); err != nil {
		p.leave(ctx)
		return nil, err
	}
	return &v3electionpb.CampaignResponse{Header: h, Leader: &v3electionpb.LeaderKey{
		Name: r.GetName(), Key: []byte(p.key), Rev: p.rev, Lease: lease,
	}}, nil
}

// stand takes the place, and sees to it that its key has the value.
func (p *place) stand(ctx context.Context, value []byte) (*pb.ResponseHeader, error) {
	before, res, err := p.take(ctx, value)
	if err != nil {
		return nil, err
	}
	if before != nil && !bytes.Equal(before.GetValue(), value) {
		if _, err := p.change(ctx, putOp(p.key, value, p.lease)); err != nil {
			p.leave(ctx)
			return nil, err
		}
	}
	return res.GetHeader(), nil
}

// change does something to the key of the place, if it is still the same.
func (p *place) change(ctx context.Context, op *pb.RequestOp) (*pb.TxnResponse, error) {
	res, err := p.txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{created(p.key, p.rev)}, Success: []*pb.RequestOp{op}})
	if err == nil && !res.GetSucceeded() {
		err = errNotLeader
	}
	return res, err
}

// placeOfLeader returns the place that a leader has told.
func (s *ElectionService) placeOfLeader(l *v3electionpb.LeaderKey) (*place, error) {
	if l == nil {
		return nil, errNoLeaderKey
	}
	p := s.placeOf(l.GetName(), l.GetLease())
	p.key, p.rev = string(l.GetKey()), l.GetRev()
	return p, nil
}

// Proclaim implements v3electionpb.ElectionServer.
func (s *ElectionService) Proclaim(ctx context.Context, r *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	p, err := s.placeOfLeader(r.GetLeader())
	if err != nil {
		return nil, err
	}
	res, err := p.change(ctx, putOp(p.key, r.GetValue(), p.lease))
	if err != nil {
		return nil, err
	}
	return &v3electionpb.ProclaimResponse{Header: res.GetHeader()}, nil
}

// Resign implements v3electionpb.ElectionServer. Who is not the leader anymore has
// resigned.
func (s *ElectionService) Resign(ctx context.Context, r *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	p, err := s.placeOfLeader(r.GetLeader())
	if err != nil {
		return nil, err
	}
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(p.key)}}}
	res, err := p.change(ctx, op)
	if err != nil && !errors.Is(err, errNotLeader) {
		return nil, err
	}
	return &v3electionpb.ResignResponse{Header: res.GetHeader()}, nil
}

// Leader implements v3electionpb.ElectionServer.
func (s *ElectionService) Leader(ctx context.Context, r *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	res, err := s.get(ctx, first(string(r.GetName())+"/"))
	switch {
	case err != nil:
		return nil, err
	case len(res.GetKvs()) == 0:
		return nil, errNoLeader
	}
	return &v3electionpb.LeaderResponse{Header: res.GetHeader(), Kv: res.GetKvs()[0]}, nil
}

// Observe implements v3electionpb.ElectionServer. It sends what the leader says now, and
// each of its proclamations; once it is gone, the next leader is found.
func (s *ElectionService) Observe(r *v3electionpb.LeaderRequest, stream v3electionpb.Election_ObserveServer) error {
	ctx, prefix := stream.Context(), string(r.GetName())+"/"
	for {
		res, err := s.get(ctx, first(prefix))
		if err != nil {
			return err
		}
		if len(res.GetKvs()) == 0 {
			err = s.awaitAny(ctx, prefix, res.GetHeader())
		} else {
			err = s.observe(stream, res)
		}
		if err != nil && !errors.As(err, new(*kvstore.CompactedError)) {
			return err
		}
	}
}

// awaitAny waits until somebody has put a key under the prefix.
func (s *ElectionService) awaitAny(ctx context.Context, prefix string, h *pb.ResponseHeader) error {
	r := under(prefix)
	spec := watch.Spec{Start: r.GetKey(), End: r.GetRangeEnd(), From: uint64(h.GetRevision()), NoDeletes: true}
	return s.follow(ctx, spec, func(*watch.Event) (bool, error) { return false, nil })
}

// observe sends what a leader says until it is gone.
func (s *ElectionService) observe(stream v3electionpb.Election_ObserveServer, found *pb.RangeResponse) error {
	leader, h := found.GetKvs()[0], found.GetHeader()
	if err := stream.Send(&v3electionpb.LeaderResponse{Header: h, Kv: leader}); err != nil {
		return err
	}
	spec := watch.Spec{Start: leader.GetKey(), Single: true, From: uint64(h.GetRevision()) + 1}
	return s.follow(stream.Context(), spec, func(e *watch.Event) (bool, error) {
		if e.Deleted {
			return false, nil
		}
		at := proto.Clone(h).(*pb.ResponseHeader)
		at.Revision = int64(e.KV.ModRevision)
		return true, stream.Send(&v3electionpb.LeaderResponse{Header: at, Kv: pairOf(&e.KV)})
	})
}

// pairOf copies a pair of an event, whose memory is valid only until the next one.
func pairOf(kv *kvstore.KV) *mvccpb.KeyValue {
	own := kv.Clone()
	return &mvccpb.KeyValue{
		Key: own.Key, Value: own.Value, CreateRevision: int64(own.CreateRevision), ModRevision: int64(own.ModRevision),
		Version: int64(own.Version), Lease: int64(own.Lease),
	}
}
