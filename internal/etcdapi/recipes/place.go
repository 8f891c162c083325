package recipes

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/watch"
)

// Watches opens streams of events.
type Watches interface {
	OpenStream() (*watch.Stream, error)
}

// Rights judges what a caller may watch.
type Rights interface {
	Allow(ctx context.Context, needs ...rights.Need) error
	// Changed returns a channel that is closed with the next change of the rights.
	Changed() <-chan struct{}
}

// Options say what the services are made of.
type Options struct {
	KV      pb.KVServer
	Leases  pb.LeaseServer
	Watches Watches
	// Rights judges the waits; KV and Leases judge what they do.
	Rights Rights
	// Bound gives a call to KV or Leases its deadline.
	Bound func(context.Context) (context.Context, context.CancelFunc)
}

const (
	// ownTTL is how long the lease lives that a client without one gets, in seconds.
	ownTTL = 60
	// leaveTime is how long giving up a place may take after its client is gone.
	leaveTime = 5 * time.Second
)

// place is a key in the queue of a name.
type place struct {
	*Options
	prefix, key string
	lease       int64
	rev         int64 // its create revision
}

// placeOf returns the place of a lease, without asking whether it exists.
func (o *Options) placeOf(name []byte, lease int64) *place {
	prefix := string(name) + "/"
	return &place{Options: o, prefix: prefix, key: fmt.Sprintf("%s%x", prefix, lease), lease: lease}
}

// leaseFor returns the lease, or a new one for 0.
func (o *Options) leaseFor(ctx context.Context, lease int64) (int64, error) {
	if lease != 0 {
		return lease, nil
	}
	ctx, cancel := o.Bound(ctx)
	defer cancel()
	granted, err := o.Leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ownTTL})
	return granted.GetID(), asUnknown(err)
}

func (o *Options) txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx, cancel := o.Bound(ctx)
	defer cancel()
	res, err := o.KV.Txn(ctx, r)
	return res, asUnknown(err)
}

// asUnknown gives a refusal the code that it has in etcd, where these services are clients
// of the others, and the text of an error is all that they pass on. Unavailable stays what
// it is: clients try another member.
func asUnknown(err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange, codes.PermissionDenied, codes.Unauthenticated:
		return status.Error(codes.Unknown, s.Message())
	}
	return err
}

func (o *Options) get(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := o.Bound(ctx)
	defer cancel()
	res, err := o.KV.Range(ctx, r)
	return res, asUnknown(err)
}

// created compares the create revision of a key, which is 0 while there is none.
func created(key string, revision int64) *pb.Compare {
	return &pb.Compare{
		Key: []byte(key), Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision},
	}
}

func putOp(key string, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, Lease: lease}}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

// under selects the keys with a prefix, which ends with a slash.
func under(prefix string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(prefix), RangeEnd: kvstore.Prefix(prefix).End()}
}

// first selects the key with the lowest create revision.
func first(prefix string) *pb.RangeRequest {
	r := under(prefix)
	r.SortTarget, r.SortOrder, r.Limit = pb.RangeRequest_CREATE, pb.RangeRequest_ASCEND, 1
	return r
}

// take puts the key, unless it exists, and returns the key as it was, or nil, and the
// results of the operations that follow.
func (p *place) take(ctx context.Context, value []byte, and ...*pb.RequestOp) (before *mvccpb.KeyValue, res *pb.TxnResponse, err error) {
	res, err = p.txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{created(p.key, 0)},
		Success: append([]*pb.RequestOp{putOp(p.key, value, p.lease)}, and...),
		Failure: append([]*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: []byte(p.key)})}, and...),
	})
	if err != nil {
		return nil, nil, err
	}
	if p.rev = res.GetHeader().GetRevision(); !res.GetSucceeded() {
		before = res.GetResponses()[0].GetResponseRange().GetKvs()[0]
		p.rev = before.GetCreateRevision()
	}
	return before, res, nil
}

// await waits until no key that was created before this one is left.
func (p *place) await(ctx context.Context) error {
	for {
		r := under(p.prefix)
		r.SortTarget, r.SortOrder, r.Limit, r.MaxCreateRevision = pb.RangeRequest_CREATE, pb.RangeRequest_DESCEND, 1, p.rev-1
		r.KeysOnly = true
		res, err := p.get(ctx, r)
		if err != nil || len(res.GetKvs()) == 0 {
			return err
		}
		spec := watch.Spec{Start: res.GetKvs()[0].GetKey(), Single: true, From: uint64(res.GetHeader().GetRevision()), NoPuts: true}
		err = p.follow(ctx, spec, func(*watch.Event) (bool, error) { return false, nil })
		if err != nil && !errors.As(err, new(*kvstore.CompactedError)) { // then it has to be read again
			return err
		}
	}
}

// leave deletes the key, also after the client is gone.
func (p *place) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	// If it cannot be deleted, the lease will.
	_, _ = p.KV.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(p.key)})
}

// follow calls fn with the events of a watch, in order, until it returns false or an
// error.
func (o *Options) follow(ctx context.Context, spec watch.Spec, fn func(*watch.Event) (more bool, err error)) error {
	stream, err := o.Watches.OpenStream()
	if err != nil {
		return err
	}
	defer stream.Close()
	need := rights.Need{Access: rights.Read, Range: rights.Range{Start: spec.Start, End: spec.End, One: spec.Single}}
	changed := o.Rights.Changed()
	if err := o.Rights.Allow(ctx, need); err != nil {
		return err
	}
	if _, _, err := stream.Add(spec); err != nil {
		return err
	}
	for {
		portion, err := stream.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case <-changed: // before anything is told that was written after it
			changed = o.Rights.Changed()
			if err := o.Rights.Allow(ctx, need); err != nil {
				return err
			}
		default:
		}
		if len(portion.Ended) > 0 {
			return &kvstore.CompactedError{CompactRevision: portion.Ended[0].CompactRevision}
		}
		for _, d := range portion.Deliveries {
			for _, e := range d.Events {
				if more, err := fn(e); err != nil || !more {
					return err
				}
			}
		}
		if !portion.Idle {
			continue
		}
		select {
		case <-stream.Ready():
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
