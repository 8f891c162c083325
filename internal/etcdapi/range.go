package etcdapi

import (
	"bytes"
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// query is a RangeRequest that was understood.
type query struct {
	span
	read kvstore.Read
	// walked is set if the walk itself gives the pairs of the answer in their order, so
	// that it may end at the limit: the order is that of keys, and nothing is left out.
	walked bool
}

// sortBy has what the pairs of an answer can be sorted by.
var sortBy = map[pb.RangeRequest_SortTarget]kvstore.SortBy{
	pb.RangeRequest_KEY:     kvstore.SortByKey,
	pb.RangeRequest_VERSION: kvstore.SortByVersion,
	pb.RangeRequest_CREATE:  kvstore.SortByCreateRevision,
	pb.RangeRequest_MOD:     kvstore.SortByModRevision,
	pb.RangeRequest_VALUE:   kvstore.SortByValue,
}

// queryOf checks a request.
func queryOf(r *pb.RangeRequest) (query, error) {
	if len(r.GetKey()) == 0 {
		return query{}, rpctypes.ErrGRPCEmptyKey
	}
	by, known := sortBy[r.GetSortTarget()]
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.GetSortOrder())]; !ok || !known {
		return query{}, rpctypes.ErrGRPCInvalidSortOption
	}
	q := query{span: spanOf(r.GetKey(), r.GetRangeEnd()), read: kvstore.Read{
		Revision: positive(r.GetRevision()), Limit: positive(r.GetLimit()), SortBy: by,
		Reverse:  r.GetSortOrder() == pb.RangeRequest_DESCEND,
		KeysOnly: r.GetKeysOnly(), CountOnly: r.GetCountOnly(),
		MinModRevision: positive(r.GetMinModRevision()), MaxModRevision: positive(r.GetMaxModRevision()),
		MinCreateRevision: positive(r.GetMinCreateRevision()), MaxCreateRevision: positive(r.GetMaxCreateRevision()),
	}}
	if r.GetMaxModRevision() < 0 || r.GetMaxCreateRevision() < 0 {
		q.read.MinModRevision = math.MaxUint64 // no revision is that old
	}
	if q.single { // there is nothing to order or to cut
		q.read.SortBy, q.read.Reverse, q.read.Limit = kvstore.SortByKey, false, 0
	}
	q.walked = by == kvstore.SortByKey && !q.filters()
	return q, nil
}

// filters reports whether pairs are left out for their revisions.
func (q *query) filters() bool {
	r := &q.read
	return r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0
}

func positive(n int64) uint64 { return uint64(max(n, 0)) }

// Range implements pb.KVServer.
func (s *kvService) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	q, err := queryOf(r)
	if err != nil {
		return nil, err
	}
	if err := s.allow(ctx, q.reading()); err != nil {
		return nil, err
	}
	if err := s.freshen(ctx, r.GetSerializable(), r.GetRevision()); err != nil {
		return nil, err
	}
	// The header names a revision that is at least that of the read: what was visible
	// before it.
	newest := s.store().Revision()
	out, at, err := s.find(ctx, &q)
	if err != nil {
		return nil, err
	}
	out.Header = s.headers.At(max(newest, at))
	return out, s.allow(ctx, q.reading())
}

// laggardPatience is how long a serializable read may wait for this member to learn of
// the revision that it names.
const laggardPatience = time.Second

// freshen makes the reads that follow linearizable. A serializable one does not wait,
// unless it is to be of a revision that this member does not have: a client that moves
// from member to member takes revisions along (transactional memory does), and may be
// faster than the log. If the revision is not there then either, it is a future one.
func (s *Server) freshen(ctx context.Context, serializable bool, revision int64) error {
	if !serializable {
		return s.opts.Replicator.Barrier(ctx, nil)
	}
	if positive(revision) > s.store().Revision() {
		ctx, cancel := context.WithTimeout(ctx, laggardPatience)
		defer cancel()
		_ = s.opts.Replicator.Barrier(ctx, nil) // without a leader, the read gives the reason
	}
	return nil
}

// find answers a query, without the header, and returns the revision that it was read at.
func (s *Server) find(ctx context.Context, q *query) (out *pb.RangeResponse, at uint64, err error) {
	s.opts.Metrics.ranges.Add(1)
	switch {
	case q.empty || len(q.start) > kvstore.MaxKeyBytes && q.single:
		return s.findNothing(q)
	case q.single:
		return s.findOne(ctx, q)
	case q.read.CountOnly:
		return s.countRange(ctx, q)
	case q.walked:
		return s.walkRange(ctx, q)
	}
	return s.selectRange(ctx, q)
}

// findNothing answers a range in which no key can be. Its revision is judged all the same.
func (s *Server) findNothing(q *query) (*pb.RangeResponse, uint64, error) {
	_, at, err := s.store().Get(open, q.read.Revision)
	if err != nil && !errors.Is(err, kvstore.ErrKeyNotFound) {
		return nil, 0, err
	}
	return new(pb.RangeResponse), at, nil
}

// findOne answers a single key. A large value needs room as a page does: gRPC holds it until
// its client has read it.
func (s *Server) findOne(ctx context.Context, q *query) (*pb.RangeResponse, uint64, error) {
	claim := claimOf(ctx)
	kv, at, err := s.store().Get(q.start, q.read.Revision)
	for err == nil && !q.read.KeysOnly && !q.read.CountOnly {
		n := growth(int64(len(kv.Value)) + pairBytes)
		if roomFor(claim, n) {
			break
		}
		kv = kvstore.KV{} // a request that waits holds nothing
		if err := claim.Wait(ctx, n); err != nil {
			return nil, 0, err
		}
		kv, at, err = s.store().Get(q.start, q.read.Revision)
	}
	if errors.Is(err, kvstore.ErrKeyNotFound) {
		return new(pb.RangeResponse), at, nil
	}
	if err != nil {
		return nil, 0, err
	}
	out := &pb.RangeResponse{Count: 1}
	if q.read.CountOnly || q.read.Excludes(&kv) {
		return out, at, nil
	}
	if kv.Key = q.start; q.read.KeysOnly {
		kv.Value = nil
	}
	out.Kvs = []*mvccpb.KeyValue{answer.Pair(&kv)}
	return out, at, nil
}

// walk returns the range in the store's form.
func (q *query) walk() kvstore.Range {
	return kvstore.Range{
		Start: q.start, End: q.end, Revision: q.read.Revision,
		Reverse: q.read.Reverse, KeysOnly: q.read.KeysOnly,
	}
}

func (s *Server) countRange(ctx context.Context, q *query) (*pb.RangeResponse, uint64, error) {
	n, at, err := s.store().Count(ctx, q.walk())
	return &pb.RangeResponse{Count: int64(n)}, at, err
}

// walkRange answers a range by walking over it, up to the limit.
//
// The answer also has the number of all keys in the range, which a client that asks for
// the pages of a listing pays for once (countCache).
func (s *Server) walkRange(ctx context.Context, q *query) (out *pb.RangeResponse, at uint64, err error) {
	for {
		p := page{limit: q.read.Limit, claim: claimOf(ctx)}
		at, err = s.store().List(ctx, q.walk(), p.add)
		if err == nil && p.wanted > 0 {
			err = p.wait(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return nil, 0, err
		}
		out = &pb.RangeResponse{Kvs: p.pairs, Count: int64(len(p.pairs)), More: p.more}
		if !p.more {
			return out, at, nil
		}
		out.Count, err = s.countPage(ctx, q, at, p.pairs)
		if errors.As(err, new(*kvstore.CompactedError)) && q.read.Revision == 0 {
			continue // the client did not ask for this revision; a newer one does as well
		}
		return out, at, err
	}
}

// countPage returns the number of keys in a range of which one page was read.
func (s *Server) countPage(ctx context.Context, q *query, at uint64, page []*mvccpb.KeyValue) (int64, error) {
	rest := kvstore.Range{Start: q.start, End: q.end, Revision: at}
	if q.read.Reverse {
		rest.End = page[len(page)-1].GetKey()
	} else {
		rest.Start = after(page[len(page)-1].GetKey())
	}
	n := uint64(len(page))
	if known, ok := s.counts.get(at, q.start, q.end); ok {
		if !q.read.Reverse {
			s.counts.put(at, rest.Start, q.end, known-n)
		}
		return int64(known), nil
	}
	left, _, err := s.store().Count(ctx, rest)
	if err != nil {
		return 0, err
	}
	s.counts.put(at, q.start, q.end, n+left)
	if !q.read.Reverse {
		s.counts.put(at, rest.Start, q.end, left)
	}
	return int64(n + left), nil
}

// after returns the first key after the given one.
func after(key []byte) []byte { return append(bytes.Clone(key), 0) }

// selectRange answers a range that has to be sorted or filtered, so that all of it is
// looked at.
func (s *Server) selectRange(ctx context.Context, q *query) (*pb.RangeResponse, uint64, error) {
	claim := claimOf(ctx)
	for {
		wanted := int64(0)
		res, err := s.store().Select(ctx, q.start, q.end, q.read, func(n int64) bool {
			wanted = growth(n)
			return roomFor(claim, wanted)
		})
		if err == nil {
			return &pb.RangeResponse{Kvs: answer.Pairs(res.Pairs), Count: int64(res.Count), More: res.More}, res.Revision, nil
		}
		if !errors.Is(err, kvstore.ErrNoRoom) {
			return nil, 0, err
		}
		claim.Release() // a request that waits holds nothing
		if err := claim.Wait(ctx, wanted); err != nil {
			return nil, 0, err
		}
	}
}

// page collects the pairs of an answer.
//
// It claims memory as it grows, but never waits for it while the store's iterator is
// open: without room, the page is begun again once it has claimed more.
type page struct {
	limit  uint64 // 0 means none
	most   int64  // bytes at which a chunk of a stream ends; 0 for a whole answer
	full   bool   // it ended there
	claim  *budget.Claim
	pairs  []*mvccpb.KeyValue
	more   bool
	bytes  int64
	wanted int64 // what there was no room for
	chunk  []byte
	blocks []mvccpb.KeyValue
}

// pairBytes is what a pair takes beside its key and value.
const pairBytes = 160

func (p *page) add(it kvstore.Item) (bool, error) {
	if p.limit > 0 && uint64(len(p.pairs)) == p.limit {
		p.more = true
		return false, nil
	}
	if p.full = p.most > 0 && p.bytes >= p.most; p.full {
		return false, nil
	}
	p.bytes += int64(len(it.KV.Key)+len(it.KV.Value)) + pairBytes
	if n := growth(p.bytes); !roomFor(p.claim, n) {
		p.wanted = n
		return false, nil
	}
	kv := it.KV
	kv.Key, kv.Value = p.keep(kv.Key), p.keep(kv.Value)
	if len(p.blocks) == 0 {
		p.blocks = make([]mvccpb.KeyValue, min(max(len(p.pairs), 4), 256))
	}
	pair := &p.blocks[0]
	p.blocks = p.blocks[1:]
	answer.SetPair(pair, &kv)
	p.pairs = append(p.pairs, pair)
	return true, nil
}

// chunkBytes is how much memory for keys and values is allocated at once. What is larger
// than an eighth of it gets its own.
const chunkBytes = 32 << 10

// keep copies bytes that are valid during a call only.
func (p *page) keep(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if len(b) > chunkBytes/8 {
		return bytes.Clone(b)
	}
	if len(b) > cap(p.chunk)-len(p.chunk) {
		p.chunk = make([]byte, 0, min(max(1024, 2*cap(p.chunk)), chunkBytes))
		if len(b) > cap(p.chunk) {
			return bytes.Clone(b)
		}
	}
	from := len(p.chunk)
	p.chunk = append(p.chunk, b...)
	return p.chunk[from:len(p.chunk):len(p.chunk)]
}

// wait claims what there was no room for. A request that waits holds nothing.
func (p *page) wait(ctx context.Context) error {
	p.claim.Release()
	return p.claim.Wait(ctx, p.wanted)
}

// growth is what an answer of a size takes, encoded and not, in steps, because claims
// cost something.
func growth(size int64) int64 { return budget.Steps(2 * size) }

// roomFor claims a total of n bytes if it can have them at once.
func roomFor(c *budget.Claim, n int64) bool { return n <= c.Bytes() || c.Try(n) }
