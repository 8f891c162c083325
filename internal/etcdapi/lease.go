package etcdapi

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

const (
	// maxTTLSeconds is etcd's limit, and kvstore.MaxTTLMillis in seconds.
	maxTTLSeconds = 9_000_000_000
	// leasePage is how many leases, or keys of a lease, are read at once.
	leasePage = 1000
	// keepAlivesAhead is how many keep-alives of a stream may wait for the leader. Their
	// answers come in the order of the requests.
	keepAlivesAhead = 256
)

// leaseService is etcdserverpb.Lease.
type leaseService struct {
	pb.UnsafeLeaseServer
	*Server
}

// LeaseGrant implements pb.LeaseServer. A time to live below the minimum of the node,
// which may be none at all, is raised to it.
func (s *leaseService) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.GetTTL() > maxTTLSeconds {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	ttl := max(max(r.GetTTL(), 0)*time.Second.Milliseconds(), 1) // a product of what is far below 0 may be anything
	res, err := s.do(ctx, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: uint64(r.GetID()), TTLMillis: ttl})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: s.headers.At(res.Revision), ID: int64(res.Lease.ID), TTL: wholeSeconds(millis(res.Lease.TTLMillis))}, nil
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// wholeSeconds rounds up: a client must not believe that its lease ends sooner.
func wholeSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// LeaseRevoke implements pb.LeaseServer.
func (s *leaseService) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	res, err := s.do(ctx, &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: uint64(r.GetID())})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: s.headers.At(res.Revision)}, nil
}

// LeaseTimeToLive implements pb.LeaseServer. The leader knows the time; the keys are read
// here, after everything that was committed before the request.
func (s *leaseService) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	left, err := s.opts.LeaseTimes.AskLease(ctx, uint64(r.GetID()), false)
	if codeOf(err) == api.LeaseNotFound {
		return s.noLease(r), nil
	}
	if err != nil {
		return nil, err
	}
	out := &pb.LeaseTimeToLiveResponse{ID: r.GetID(), TTL: int64(left.Remaining / time.Second), GrantedTTL: wholeSeconds(left.TTL)}
	if left.TTL == 0 { // made by a client of another face, without an end
		out.TTL, out.GrantedTTL = maxTTLSeconds, maxTTLSeconds
	}
	if r.GetKeys() {
		if err := s.opts.Replicator.Barrier(ctx, nil); err != nil {
			return nil, err
		}
		if out.Keys, err = s.keysOf(ctx, uint64(r.GetID())); err != nil {
			return nil, err
		}
		if err := s.allowReading(ctx, out.GetKeys()); err != nil {
			return nil, err
		}
		// It may have ended since the leader answered: the time would be that of a lease
		// with keys, and the keys those of none.
		if _, err := s.store().Lease(uint64(r.GetID())); errors.Is(err, kvstore.ErrLeaseNotFound) {
			return s.noLease(r), nil
		}
	}
	out.Header = s.headers.Now()
	return out, nil
}

// noLease is the answer about a lease that does not exist.
func (s *leaseService) noLease(r *pb.LeaseTimeToLiveRequest) *pb.LeaseTimeToLiveResponse {
	return &pb.LeaseTimeToLiveResponse{Header: s.headers.Now(), ID: r.GetID(), TTL: -1}
}

// keysOf returns the keys of a lease. It claims memory for them as it goes on: there are
// at most kvstore.MaxLeaseKeys.
func (s *leaseService) keysOf(ctx context.Context, id uint64) (all [][]byte, err error) {
	claim, size := claimOf(ctx), int64(0)
	for from, more := []byte(nil), true; more; {
		var keys [][]byte
		if keys, more, err = s.store().LeaseKeys(id, from, leasePage); err != nil {
			return nil, err
		}
		for _, key := range keys {
			size += int64(len(key)) + pairBytes
		}
		if err := claim.Wait(ctx, growth(size)); err != nil {
			return nil, err
		}
		all = append(all, keys...)
		if len(keys) > 0 {
			from = after(keys[len(keys)-1])
		}
	}
	return all, nil
}

// allowReading judges the reading of keys.
func (j *judge) allowReading(ctx context.Context, keys [][]byte) error {
	for _, key := range keys {
		if err := j.allow(ctx, rights.Need{Access: rights.Read, Range: rights.Single(key)}); err != nil {
			return err
		}
	}
	return nil
}

// LeaseLeases implements pb.LeaseServer. As in etcd it answers what this member knows, and
// only to those who may read everything that is bound to any lease. The leader has the
// leases in the order in which they end, others in that of their ids.
func (s *leaseService) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	header, ids, claim := s.headers.Now(), []uint64(nil), claimOf(ctx)
	for last, more := uint64(0), true; more; {
		page, err := s.store().Leases(last, leasePage)
		if err != nil {
			return nil, err
		}
		if err := claim.Wait(ctx, growth(int64(len(ids)+len(page))*pairBytes)); err != nil {
			return nil, err
		}
		for i := range page {
			last = page[i].ID
			if err := s.allowLease(ctx, last, rights.Read); err != nil {
				return nil, err
			}
			ids = append(ids, last)
		}
		more = len(page) == leasePage && last != math.MaxUint64
	}
	s.opts.LeaseTimes.SortLeases(ids)
	out := &pb.LeaseLeasesResponse{Header: header, Leases: make([]*pb.LeaseStatus, len(ids))}
	for i, id := range ids {
		out.Leases[i] = &pb.LeaseStatus{ID: int64(id)}
	}
	return out, nil
}

// LeaseKeepAlive implements pb.LeaseServer.
//
// One stream may carry the keep-alives of many thousand leases. Asking the leader for each
// after the last was answered would take longer than the leases live, so up to
// keepAlivesAhead of them are under way, and are answered in the order of the requests.
func (s *leaseService) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	k := newKeepAlives(s)
	go func() { // it ends with the stream's context, in which gRPC receives
		defer k.end()
		if err := k.receive(ctx, stream); err != nil {
			cancel(err)
		}
	}()
	for {
		select {
		case <-k.ready:
			if more, err := k.send(stream); err != nil || !more {
				return cmp.Or(err, endOf(ctx))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// endOf returns why a stream ended: nil if its client has sent all that it wanted to.
func endOf(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}
