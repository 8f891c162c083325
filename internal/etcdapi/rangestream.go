package etcdapi

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// streamChunk is the size at which a chunk of a streamed range ends.
	streamChunk = 512 << 10
	// streamPatience is how long a stream waits for memory: its client is made to wait
	// instead of being refused.
	streamPatience = 10 * time.Second
)

// RangeStream implements pb.KVServer. It reads and sends the pairs in chunks, as they are
// at the revision of the first one. The last chunk has the header and the count.
//
// Each chunk is read by a walk of its own. An iterator that stayed open while a client
// does not read would keep whatever is overwritten meanwhile. So a stream that takes
// longer than history is kept ends with an error.
func (s *kvService) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	q, err := streamedQuery(r)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	if err := s.allow(ctx, q.reading()); err != nil {
		return err
	}
	if err := s.freshen(ctx, r.GetSerializable(), r.GetRevision()); err != nil {
		return err
	}
	newest := s.store().Revision()
	// Pairs that are not in the order of keys can be sorted only together.
	if q.single || q.empty || q.read.CountOnly || !q.walked {
		out, at, err := s.find(ctx, &q)
		if err == nil {
			err = s.allow(ctx, q.reading())
		}
		if err != nil {
			return err
		}
		out.Header = s.headers.At(max(newest, at))
		return stream.Send(&pb.RangeStreamResponse{RangeResponse: out})
	}
	o := &rangeStream{Server: s.Server, stream: stream, q: &q, newest: newest}
	for more := true; more; {
		if more, err = o.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// streamedQuery checks a request. Clients fall back to Range where a stream is not
// implemented, as in etcd for orders that are asked for by name. A target without an
// order is accepted there, and each chunk is sorted by itself; here, all of it is.
func streamedQuery(r *pb.RangeRequest) (query, error) {
	q, err := queryOf(r)
	if err != nil {
		return q, err
	}
	byKey := r.GetSortTarget() == pb.RangeRequest_KEY
	switch {
	case r.GetSortOrder() != pb.RangeRequest_NONE && !(byKey && r.GetSortOrder() == pb.RangeRequest_ASCEND):
		return q, status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	case q.filters():
		return q, status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return q, nil
}

// rangeStream is a range on its way to a client. The goroutine of the call owns it.
type rangeStream struct {
	*Server
	stream pb.KV_RangeStreamServer
	q      *query // of the rest
	newest uint64 // what was visible when the stream began
	sent   uint64
}

// next reads and sends a chunk, and reports whether there is another one.
func (o *rangeStream) next(ctx context.Context) (more bool, err error) {
	claim := o.opts.Memory.Claim()
	defer claim.Release()
	p := page{most: streamChunk, claim: &claim}
	if o.q.read.Limit > 0 {
		p.limit = o.q.read.Limit - o.sent
	}
	at, err := o.store().List(ctx, o.q.walk(), p.add)
	if err == nil {
		err = o.allow(ctx, o.q.reading())
	}
	if err != nil {
		return false, err
	}
	if p.wanted > 0 {
		claim.Release() // a stream that waits holds nothing
		return true, claim.WaitFor(ctx, p.wanted, streamPatience)
	}
	o.q.read.Revision = at
	o.sent += uint64(len(p.pairs))
	if len(p.pairs) > 0 {
		o.q.start = after(p.pairs[len(p.pairs)-1].GetKey())
	}
	out := &pb.RangeResponse{Kvs: p.pairs}
	if !p.full {
		if err := o.finish(ctx, out, p.more, at); err != nil {
			return false, err
		}
	}
	return p.full, o.stream.Send(&pb.RangeStreamResponse{RangeResponse: out})
}

// finish adds what the last chunk has beside its pairs.
func (o *rangeStream) finish(ctx context.Context, out *pb.RangeResponse, more bool, at uint64) error {
	out.Header, out.More, out.Count = o.headers.At(max(o.newest, at)), more, int64(o.sent)
	if !more {
		return nil
	}
	left, _, err := o.store().Count(ctx, o.q.walk())
	out.Count += int64(left)
	return err
}
