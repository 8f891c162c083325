package httpapi

import (
	"errors"
	"net/http"
	"sync"

	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// parsers has parsers to use again.
var parsers = sync.Pool{New: func() any { return new(opjson.Parser) }}

// runTxn answers POST /v1/txn. A transaction that only reads needs no place in the log,
// unless its client wants the answer to be remembered.
func runTxn(s *Server, x *exchange) error {
	fresh, err := x.query.Freshness()
	if err != nil {
		return err
	}
	if err := param.RefuseConditions(x.r.Header, "those of a transaction are in \"if\""); err != nil {
		return err
	}
	settings := s.opts.Store.Settings()
	accepted := opjson.Limits{MaxValueBytes: settings.MaxValueBytes, MaxTxnOps: settings.MaxTxnOps, MaxTxnBytes: settings.MaxTxnBytes}
	body, err := x.readBody(accepted.TextLimit(), "max_txn_bytes")
	if err != nil {
		return err
	}
	parser := parsers.Get().(*opjson.Parser)
	defer parsers.Put(parser)
	cmd, err := parser.ParseTxn(body, accepted)
	if err != nil {
		return err
	}
	if err := x.visit.Permit(cmd); err != nil {
		return err
	}
	res, err := evaluate(s, x, cmd, fresh)
	if err != nil {
		return err
	}
	writeTxn(x, cmd.Txn, &res)
	return nil
}

// claimResults claims memory for the answer, before anything is done: a value for each
// operation that returns one, and the most that a result may have for a list or range.
func claimResults(x *exchange, t *kvstore.Txn, maxValueBytes int64) error {
	const rawAndEncoded = 2
	size := rawAndEncoded * min(resultBytes(t, maxValueBytes), limits.MaxResultBytes)
	if size == 0 {
		return nil
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	return x.held.memory.Wait(ctx, x.held.memory.Bytes()+size)
}

// resultBytes bounds the results of the branch that is carried out.
func resultBytes(t *kvstore.Txn, maxValueBytes int64) (most int64) {
	for _, branch := range [][]kvstore.Command{t.Then, t.Else} {
		n := int64(0)
		for i := range branch {
			switch c := &branch[i]; {
			case c.Op == kvstore.OpTxn:
				n += resultBytes(c.Txn, maxValueBytes)
			case c.Op == kvstore.OpList || c.Op == kvstore.OpDeleteRange && c.ReturnPrevious:
				n += limits.MaxResultBytes
			case c.Op == kvstore.OpGet || c.ReturnPrevious:
				n += maxValueBytes
			}
		}
		most = max(most, n)
	}
	return most
}

// evaluate carries out a transaction.
func evaluate(s *Server, x *exchange, cmd *kvstore.Command, fresh param.Freshness) (kvstore.Result, error) {
	if x.once == nil && cmd.Txn.ReadOnly() {
		return readTxn(s, x, cmd.Txn)
	}
	if fresh.Stale {
		return kvstore.Result{}, badRequest("only a transaction that does nothing but read can be stale; omit \"consistency\"")
	}
	if err := claimResults(x, cmd.Txn, s.opts.Store.Settings().MaxValueBytes); err != nil {
		return kvstore.Result{}, err
	}
	return x.do(cmd)
}

// readTxn claims memory for what it finds.
func readTxn(s *Server, x *exchange, t *kvstore.Txn) (kvstore.Result, error) {
	if err := x.freshen(0); err != nil {
		return kvstore.Result{}, err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return kvstore.Result{}, err
	}
	defer cancel()
	claim, before, wanted := &x.held.memory, x.held.memory.Bytes(), int64(0)
	room := func(n int64) bool {
		wanted = before + growth(n)
		return wanted <= claim.Bytes() || claim.Try(wanted)
	}
	res, err := s.opts.Transactions.ReadTxn(ctx, t, room)
	for errors.Is(err, kvstore.ErrNoRoom) {
		claim.Lower(before) // what was found so far is dropped
		if err = claim.Wait(ctx, wanted); err == nil {
			res, err = s.opts.Transactions.ReadTxn(ctx, t, room)
		}
	}
	if err := x.visit.After(err); err != nil {
		return res, err
	}
	x.setRevision(res.Revision)
	return res, reply.TxnProblem(&res)
}

func writeTxn(x *exchange, t *kvstore.Txn, res *kvstore.Result) {
	p := getBuffer()
	doc := append(reply.AppendTxn((*p)[:0], t, res), '\n')
	x.writeDocument(jsonType, http.StatusOK, doc)
	putBuffer(p, doc)
}
