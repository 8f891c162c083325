package etcdapi

import (
	"context"
	"errors"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// Txn implements pb.KVServer.
func (s *kvService) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	txn, err := s.txnOf(r)
	if err != nil {
		return nil, err
	}
	res, err := s.evaluate(ctx, r, txn)
	if err != nil {
		return nil, err
	}
	out := txnResponse(r, res)
	out.Header = s.headers.At(res.Revision)
	return out, nil
}

// evaluate carries out a transaction. One that only reads needs no place in the log.
func (s *kvService) evaluate(ctx context.Context, r *pb.TxnRequest, txn *kvstore.Txn) (*kvstore.Result, error) {
	if !txn.ReadOnly() {
		if err := s.checkSize(r); err != nil {
			return nil, err
		}
		if err := s.claimResults(ctx, txn); err != nil {
			return nil, err
		}
		return s.do(ctx, &kvstore.Command{Op: kvstore.OpTxn, Txn: txn})
	}
	cmd := &kvstore.Command{Op: kvstore.OpTxn, Txn: txn}
	if err := s.allowCommand(ctx, cmd); err != nil {
		return nil, err
	}
	serializable, revision := freshness(r)
	if err := s.freshen(ctx, serializable, revision); err != nil {
		return nil, err
	}
	res, err := s.read(ctx, txn)
	if err == nil {
		err = answer.Outcome(&res)
	}
	if err == nil {
		err = s.allowCommand(ctx, cmd)
	}
	return &res, err
}

// read evaluates a transaction that only reads. It claims memory for what it finds.
func (s *kvService) read(ctx context.Context, txn *kvstore.Txn) (kvstore.Result, error) {
	claim, before := claimOf(ctx), claimOf(ctx).Bytes()
	for {
		wanted := int64(0)
		res, err := s.store().ReadTxn(ctx, txn, func(n int64) bool {
			wanted = before + growth(n)
			return roomFor(claim, wanted)
		})
		if !errors.Is(err, kvstore.ErrNoRoom) {
			return res, err
		}
		claim.Lower(before) // what was found so far is dropped
		if err := claim.Wait(ctx, wanted); err != nil {
			return kvstore.Result{}, err
		}
	}
}

// freshness reports whether every operation of the transaction may be stale, and the
// newest revision that one names. With nested transactions, none may be stale: etcd puts
// those into its log.
func freshness(r *pb.TxnRequest) (serializable bool, revision int64) {
	serializable = true
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			serializable = serializable && op.GetRequestRange().GetSerializable()
			revision = max(revision, op.GetRequestRange().GetRevision())
		}
	}
	return serializable, revision
}

// claimResults claims memory for the answer before anything is done: a value for each
// operation that returns one, and the most that a result may have for a range. What is
// stored now is no bound for what will be there when the transaction is applied.
func (s *kvService) claimResults(ctx context.Context, txn *kvstore.Txn) error {
	n := min(resultBytes(txn, s.store().Settings().MaxValueBytes), limits.MaxResultBytes)
	if n == 0 {
		return nil
	}
	c := claimOf(ctx)
	return c.Wait(ctx, c.Bytes()+growth(n))
}

// resultBytes bounds the results of the branch that is carried out.
func resultBytes(t *kvstore.Txn, maxValueBytes int64) int64 {
	return max(branchBytes(t.Then, maxValueBytes), branchBytes(t.Else, maxValueBytes))
}

func branchBytes(branch []kvstore.Command, maxValueBytes int64) (n int64) {
	for i := range branch {
		switch c := &branch[i]; {
		case c.Op == kvstore.OpTxn:
			n += resultBytes(c.Txn, maxValueBytes)
		case c.Op == kvstore.OpList && !c.Read.KeysOnly && !c.Read.CountOnly, c.Op == kvstore.OpDeleteRange && c.ReturnPrevious:
			n += limits.MaxResultBytes
		case c.Op == kvstore.OpGet && !c.Read.KeysOnly && !c.Read.CountOnly, c.ReturnPrevious:
			n += maxValueBytes
		}
	}
	return n
}

// txnOf checks a transaction as etcd does, in its order, and returns it in the store's
// form.
func (s *kvService) txnOf(r *pb.TxnRequest) (*kvstore.Txn, error) {
	if err := checkTxn(r, s.opts.MaxTxnOps); err != nil {
		return nil, err
	}
	txn := buildTxn(r)
	if txn.Check() != nil {
		return nil, rpctypes.ErrGRPCTooManyOps // nested too deep, or too much in total
	}
	// It comes last because it compares every put with every delete.
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		if err := new(claims).branch(branch); err != nil {
			return nil, err
		}
	}
	return txn, nil
}

// checkTxn checks the fields of a transaction and of those in it. left is how many
// operations a level may have; deeper levels get what this one leaves over.
func checkTxn(r *pb.TxnRequest, left int) error {
	n := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if n > left {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if err := checkKey(c.GetKey()); err != nil {
			return err
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, left-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, left int) error {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		_, err := queryOf(u.RequestRange)
		return err
	case *pb.RequestOp_RequestPut:
		return checkPut(u.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkKey(u.RequestDeleteRange.GetKey())
	case *pb.RequestOp_RequestTxn:
		return checkTxn(u.RequestTxn, left)
	}
	return rpctypes.ErrGRPCKeyNotFound // an operation without content
}

// buildTxn returns a transaction that was checked in the store's form.
func buildTxn(r *pb.TxnRequest) *kvstore.Txn {
	t := &kvstore.Txn{Then: buildBranch(r.GetSuccess()), Else: buildBranch(r.GetFailure())}
	for _, c := range r.GetCompare() {
		t.If = append(t.If, buildCompare(c))
	}
	return t
}

func buildBranch(ops []*pb.RequestOp) []kvstore.Command {
	out := make([]kvstore.Command, len(ops))
	for i, op := range ops {
		switch u := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			out[i] = buildRange(u.RequestRange)
		case *pb.RequestOp_RequestPut:
			out[i] = putCommand(u.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			out[i] = deleteCommand(u.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			out[i] = kvstore.Command{Op: kvstore.OpTxn, Txn: buildTxn(u.RequestTxn)}
		}
	}
	return out
}

func buildRange(r *pb.RangeRequest) kvstore.Command {
	q, _ := queryOf(r) // it was checked
	cmd := kvstore.Command{Op: kvstore.OpList, Key: q.start, End: q.end, Read: &q.read}
	if q.single {
		cmd.Op, cmd.End = kvstore.OpGet, nil
	}
	if q.empty {
		cmd.End = cmd.Key
	}
	return cmd
}

// relations has how operands compare.
var relations = map[pb.Compare_CompareResult]kvstore.Relation{
	pb.Compare_EQUAL: kvstore.Equal, pb.Compare_NOT_EQUAL: kvstore.NotEqual,
	pb.Compare_GREATER: kvstore.Greater, pb.Compare_LESS: kvstore.Less,
}

// buildCompare returns a comparison. An operand that is absent, or that belongs to another
// target, is 0 or empty.
func buildCompare(c *pb.Compare) kvstore.Compare {
	at := spanOf(c.GetKey(), c.GetRangeEnd())
	out := kvstore.Compare{Key: at.start, End: at.end, Range: !at.single, Relation: relations[c.GetResult()]}
	if at.empty {
		out.End = out.Key
	}
	var number int64
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		out.Target, number = kvstore.CompareVersion, c.GetVersion()
	case pb.Compare_CREATE:
		out.Target, number = kvstore.CompareCreateRevision, c.GetCreateRevision()
	case pb.Compare_MOD:
		out.Target, number = kvstore.CompareModRevision, c.GetModRevision()
	case pb.Compare_LEASE:
		out.Target, number = kvstore.CompareLease, c.GetLease()
	case pb.Compare_VALUE:
		out.Target, out.Value = kvstore.CompareValue, c.GetValue()
	}
	out.Number = uint64(number)
	switch {
	case out.Relation == 0: // one that etcd does not know holds there
		return outcomeOf(out, true)
	case out.Target == 0: // likewise, and is equal to every operand
		return outcomeOf(out, out.Relation == kvstore.Equal)
	case number < 0:
		// Everything stored is at least 0.
		return outcomeOf(out, out.Relation == kvstore.Greater || out.Relation == kvstore.NotEqual)
	}
	return out
}

// outcomeOf returns a comparison of the same keys whose outcome is known.
func outcomeOf(c kvstore.Compare, holds bool) kvstore.Compare {
	c.Target, c.Number, c.Value, c.Relation = kvstore.CompareVersion, math.MaxUint64, nil, kvstore.Equal
	if holds {
		c.Relation = kvstore.NotEqual
	}
	return c
}

// txnResponse returns the results of a transaction in etcd's form. Only the outermost one
// gets the ids and the term in its header, which its caller sets.
func txnResponse(r *pb.TxnRequest, res *kvstore.Result) *pb.TxnResponse {
	ops := r.GetFailure()
	if res.Succeeded {
		ops = r.GetSuccess()
	}
	out := &pb.TxnResponse{Header: new(pb.ResponseHeader), Succeeded: res.Succeeded, Responses: make([]*pb.ResponseOp, len(ops))}
	for i, op := range ops {
		out.Responses[i] = opResponse(op, &res.Results[i])
	}
	return out
}

func opResponse(op *pb.RequestOp, res *kvstore.Result) *pb.ResponseOp {
	h := answer.Inner(res.Revision)
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{
			Header: h, Kvs: answer.Pairs(res.Pairs), Count: int64(res.Count), More: res.More,
		}}}
	case *pb.RequestOp_RequestPut:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: putResponse(h, res, u.RequestPut.GetKey())}}
	case *pb.RequestOp_RequestDeleteRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{
			ResponseDeleteRange: deleteResponse(h, res, u.RequestDeleteRange.GetKey()),
		}}
	default:
		nested := op.GetRequestTxn()
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: txnResponse(nested, res)}}
	}
}
