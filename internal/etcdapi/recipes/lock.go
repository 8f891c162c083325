package recipes

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errExpired is the error of etcd's client library: the lease ended while its client
// waited.
var errExpired = status.Error(codes.Unknown, "mutex: session is expired")

// LockService is v3lockpb.Lock.
type LockService struct {
	v3lockpb.UnsafeLockServer
	Options
}

// Lock implements v3lockpb.LockServer. Asking again with the same lease keeps the place,
// and the lock.
func (s *LockService) Lock(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	lease, err := s.leaseFor(ctx, r.GetLease())
	if err != nil {
		return nil, err
	}
	p := s.placeOf(r.GetName(), lease)
	_, res, err := p.take(ctx, nil, rangeOp(first(p.prefix)))
	if err != nil {
		return nil, err
	}
	holder := res.GetResponses()[1].GetResponseRange().GetKvs()
	if len(holder) == 0 || holder[0].GetCreateRevision() == p.rev {
		return &v3lockpb.LockResponse{Header: res.GetHeader(), Key: []byte(p.key)}, nil
	}
	h, err := p.lockAfterOthers(ctx)
	if err != nil {
		p.leave(ctx)
		return nil, err
	}
	return &v3lockpb.LockResponse{Header: h, Key: []byte(p.key)}, nil
}

// lockAfterOthers waits for the lock, and makes sure that the key has not ended with its
// lease meanwhile.
func (p *place) lockAfterOthers(ctx context.Context) (*pb.ResponseHeader, error) {
	if err := p.await(ctx); err != nil {
		return nil, err
	}
	res, err := p.get(ctx, &pb.RangeRequest{Key: []byte(p.key)})
	if err == nil && len(res.GetKvs()) == 0 {
		err = errExpired
	}
	return res.GetHeader(), err
}

// Unlock implements v3lockpb.LockServer.
func (s *LockService) Unlock(ctx context.Context, r *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	res, err := s.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: r.GetKey()})
	if err != nil {
		return nil, asUnknown(err)
	}
	return &v3lockpb.UnlockResponse{Header: res.GetHeader()}, nil
}
