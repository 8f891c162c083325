package etcdapi

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
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
	left, err := s.opts.LeaseTimes.AskLease(ctx, uint64(r.GetID()), false)
	if codeOf(err) == api.LeaseNotFound {
		return &pb.LeaseTimeToLiveResponse{Header: s.headers.Now(), ID: r.GetID(), TTL: -1}, nil
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
	}
	out.Header = s.headers.Now()
	return out, nil
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

// LeaseLeases implements pb.LeaseServer. As in etcd it answers what this member knows. The
// leases are in the order of their ids: who expires first, only the leader knows.
func (s *leaseService) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	out := &pb.LeaseLeasesResponse{Header: s.headers.Now(), Leases: []*pb.LeaseStatus{}}
	claim := claimOf(ctx)
	for last := uint64(0); ; {
		page, err := s.store().Leases(last, leasePage)
		if err != nil {
			return nil, err
		}
		if err := claim.Wait(ctx, growth(int64(len(out.GetLeases())+len(page))*pairBytes)); err != nil {
			return nil, err
		}
		for i := range page {
			out.Leases = append(out.Leases, &pb.LeaseStatus{ID: int64(page[i].ID)})
			last = page[i].ID
		}
		if len(page) < leasePage || last == math.MaxUint64 {
			return out, nil
		}
	}
}

// renewal is a keep-alive that waits for the leader.
type renewal struct {
	answer *pb.LeaseKeepAliveResponse
	err    error
	done   chan struct{} // closed once one of the above is set
}

// LeaseKeepAlive implements pb.LeaseServer.
//
// One stream may carry the keep-alives of many thousand leases. Asking the leader for each
// after the last was answered would take longer than the leases live, so up to
// keepAlivesAhead of them wait at the same time, in a queue in the order of the requests.
func (s *leaseService) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	queue := make(chan *renewal, keepAlivesAhead)
	go func() { // it ends with the stream's context, in which gRPC receives
		defer close(queue)
		if err := s.receiveRenewals(ctx, stream, queue); err != nil {
			cancel(err)
		}
	}()
	for {
		select {
		case n, more := <-queue:
			if !more {
				return endOf(ctx)
			}
			if err := n.send(ctx, stream); err != nil {
				return err
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

// send waits for the answer and sends it.
func (n *renewal) send(ctx context.Context, stream pb.Lease_LeaseKeepAliveServer) error {
	select {
	case <-n.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if n.err != nil {
		return n.err
	}
	return stream.Send(n.answer)
}

// receiveRenewals puts the requests of a stream into the queue until its client has sent
// the last one.
func (s *leaseService) receiveRenewals(ctx context.Context, stream pb.Lease_LeaseKeepAliveServer, queue chan<- *renewal) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n := &renewal{done: make(chan struct{})}
		select {
		case queue <- n:
			go s.renew(ctx, r.GetID(), n)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// renew keeps a lease alive. The header is older than the renewal: a client must not take
// a lease for alive at a revision at which it had ended.
func (s *leaseService) renew(ctx context.Context, id int64, n *renewal) {
	defer close(n.done)
	ctx, cancel := s.withDeadline(ctx)
	defer cancel()
	n.answer = &pb.LeaseKeepAliveResponse{Header: s.headers.Now(), ID: id}
	left, err := s.opts.LeaseTimes.AskLease(ctx, uint64(id), true)
	switch {
	case codeOf(err) == api.LeaseNotFound: // told by a time to live of 0
	case err != nil:
		n.err = err
	case left.TTL == 0:
		n.answer.TTL = maxTTLSeconds
	default:
		n.answer.TTL = wholeSeconds(left.TTL)
	}
}
