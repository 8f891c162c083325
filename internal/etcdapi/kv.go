package etcdapi

import (
	"bytes"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// kvService is etcdserverpb.KV.
type kvService struct {
	pb.UnsafeKVServer // a method that a later version adds must not compile unnoticed
	*Server
}

// open is the end of a range that has none, as clients write it.
var open = []byte{0}

// span is a range of keys as a request gives it.
type span struct {
	start, end []byte // a nil end is open
	single     bool   // start alone
	empty      bool   // no key can be in it
}

// spanOf bounds what is kept of it: the cache of counts does, and comparisons of ranges.
func spanOf(key, end []byte) span {
	switch {
	case len(end) == 0:
		return span{start: key, single: true}
	case bytes.Equal(end, open):
		return span{start: kvstore.Bound(key)}
	}
	return span{start: kvstore.Bound(key), end: kvstore.Bound(end), empty: bytes.Compare(end, key) <= 0}
}

// checkKey refuses what etcd refuses about a key, and keys that no cluster of kvd takes.
func checkKey(key []byte) error {
	switch {
	case len(key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case len(key) > kvstore.MaxKeyBytes:
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

// checkSize refuses a request whose entry in etcd's log would be too large.
func (s *Server) checkSize(m proto.Message) error {
	if proto.Size(m) > s.opts.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

// do carries out a command. An outcome without effect is an error, too.
func (s *Server) do(ctx context.Context, cmd *kvstore.Command) (*kvstore.Result, error) {
	res, err := s.propose(ctx, cmd)
	if err == nil {
		err = answer.Outcome(&res)
	}
	if err != nil {
		return nil, err
	}
	return &res, nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case r.GetIgnoreValue() && len(r.GetValue()) > 0:
		return rpctypes.ErrGRPCValueProvided
	case r.GetIgnoreLease() && r.GetLease() != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return checkKey(r.GetKey())
}

func putCommand(r *pb.PutRequest) kvstore.Command {
	return kvstore.Command{
		Op: kvstore.OpPut, Key: r.GetKey(), Value: r.GetValue(), Lease: uint64(r.GetLease()),
		KeepValue: r.GetIgnoreValue(), KeepLease: r.GetIgnoreLease(), ReturnPrevious: r.GetPrevKv(),
	}
}

// Put implements pb.KVServer.
func (s *kvService) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	if err := s.checkSize(r); err != nil {
		return nil, err
	}
	cmd := putCommand(r)
	if err := s.claimPrevious(ctx, r.GetPrevKv()); err != nil {
		return nil, err
	}
	res, err := s.do(ctx, &cmd)
	if err != nil {
		return nil, err
	}
	return putResponse(s.headers.At(res.Revision), res, r.GetKey()), nil
}

// claimPrevious claims memory for the pair before a write, if the answer has it: the
// largest, before it is known whether there is any.
func (s *Server) claimPrevious(ctx context.Context, wanted bool) error {
	if !wanted {
		return nil
	}
	c := claimOf(ctx)
	return c.Wait(ctx, c.Bytes()+s.store().Settings().MaxValueBytes)
}

func putResponse(h *pb.ResponseHeader, res *kvstore.Result, key []byte) *pb.PutResponse {
	out := &pb.PutResponse{Header: h}
	if res.Previous != nil {
		res.Previous.Key = key
		out.PrevKv = answer.Pair(res.Previous)
	}
	return out
}

func deleteCommand(r *pb.DeleteRangeRequest) kvstore.Command {
	at := spanOf(r.GetKey(), r.GetRangeEnd())
	cmd := kvstore.Command{Op: kvstore.OpDeleteRange, Key: at.start, End: at.end, ReturnPrevious: r.GetPrevKv()}
	if at.single {
		cmd.Op, cmd.End = kvstore.OpDelete, nil
	}
	if at.empty {
		cmd.End = cmd.Key
	}
	return cmd
}

// DeleteRange implements pb.KVServer.
func (s *kvService) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkKey(r.GetKey()); err != nil {
		return nil, err
	}
	cmd := deleteCommand(r)
	if err := s.claimPrevious(ctx, r.GetPrevKv()); err != nil {
		return nil, err
	}
	res, err := s.do(ctx, &cmd)
	if err != nil {
		return nil, err
	}
	return deleteResponse(s.headers.At(res.Revision), res, r.GetKey()), nil
}

func deleteResponse(h *pb.ResponseHeader, res *kvstore.Result, key []byte) *pb.DeleteRangeResponse {
	out := &pb.DeleteRangeResponse{Header: h, Deleted: int64(res.Deleted), PrevKvs: answer.Pairs(res.Pairs)}
	if res.Previous != nil {
		res.Previous.Key = key
		out.PrevKvs = answer.Pairs([]kvstore.KV{*res.Previous})
	}
	return out
}

// Compact implements pb.KVServer. A store of etcd begins uncompacted, and one of kvd at
// revision 1, which nobody can tell apart but by compacting to it: the first such
// compaction of etcd works, and here all of them do until there was a real one.
func (s *kvService) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if r.GetRevision() < 0 {
		return nil, rpctypes.ErrGRPCCompacted
	}
	if r.GetRevision() <= 1 && s.store().CompactRevision() <= 1 {
		if err := s.opts.Replicator.Barrier(ctx, nil); err != nil {
			return nil, err
		}
		if s.store().CompactRevision() <= 1 { // there was none elsewhere, either
			return &pb.CompactionResponse{Header: s.headers.Now()}, nil
		}
	}
	res, err := s.do(ctx, &kvstore.Command{Op: kvstore.OpCompact, Revision: uint64(r.GetRevision())})
	if err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: s.headers.At(res.Revision)}, nil
}
