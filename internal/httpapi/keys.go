package httpapi

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Header values that never change, shared by all answers.
var (
	nosniff     = []string{"nosniff"}
	sandbox     = []string{"sandbox"}
	varyAccept  = []string{"Accept"}
	octetStream = []string{"application/octet-stream"}
)

// checkKey refuses what cannot be a key in any cluster. The replicated limit may be
// lower; the store checks that one when the command is applied.
func checkKey(key string) error {
	if key == "" {
		return badRequest("the key is empty; a key has 1 to %d bytes: /v1/kv/{key} or /{key}, or /v1/kv?prefix= for several", kvstore.MaxKeyBytes)
	}
	if len(key) > kvstore.MaxKeyBytes {
		return api.Errorf(api.TooLarge, "the key has %d bytes, but the limit is %d", len(key), kvstore.MaxKeyBytes)
	}
	return nil
}

// setRevision sets the headers that every answer with data has.
func (x *exchange) setRevision(revision uint64) {
	x.set("Kvd-Revision", strconv.FormatUint(revision, 10))
	x.setCluster()
	x.setTiming()
}

// setCluster sets the header with the cluster's id, once this node knows it.
func (x *exchange) setCluster() {
	if id := x.srv.opts.Health.ClusterID(); id != "" {
		x.set("Kvd-Cluster", id)
	}
}

// freshen waits until this node's state is as fresh as the request asks. A stale read
// of a revision that this node has not reached waits like a linearizable one: it
// would otherwise fail for a revision that exists elsewhere.
func (x *exchange) freshen(revision uint64) error {
	f, err := x.query.Freshness()
	if err != nil {
		return err
	}
	return x.freshenAs(f, revision)
}

// freshenAs is freshen for a freshness that need not be in the query.
func (x *exchange) freshenAs(f param.Freshness, revision uint64) error {
	if f.Stale && revision <= x.srv.opts.Store.Revision() {
		return x.srv.opts.Replicator.CheckStaleness(f.MaxStaleness)
	}
	ctx, cancel, err := x.briefContext()
	if err != nil {
		return err
	}
	defer cancel()
	return x.srv.opts.Replicator.Barrier(ctx, x.timing.noteStage())
}

// getKey answers GET and HEAD of one key.
func (s *Server) getKey(x *exchange) error {
	if x.arg == "" && wantsPage(x) {
		_ = x.visit.Settle(nil) // pages are for everybody
		return toPage(s, x)
	}
	if err := checkKey(x.arg); err != nil {
		return err
	}
	revision, _, err := x.query.Number("revision", 1)
	if err != nil {
		return err
	}
	asJSON, err := wantsMeta(x)
	if err != nil {
		return err
	}
	conds, err := parseReadConditions(x)
	if err != nil {
		return err
	}
	if err := x.visit.ReadsKey(x.arg); err != nil {
		return err
	}
	if err := x.freshen(revision); err != nil {
		return err
	}
	read := reply.Read{Key: []byte(x.arg), Revision: revision, JSON: asJSON, Memory: &x.held.memory, Patience: budget.Patience}
	kv, at, err := read.From(x.r.Context(), s.opts.Store)
	if conds.wait > 0 && (err == nil || errors.Is(err, kvstore.ErrKeyNotFound)) {
		kv, at, err = conds.poll(x, &read, kv, at, err)
	}
	if err != nil && !errors.Is(err, kvstore.ErrKeyNotFound) {
		return err
	}
	if err := x.visit.Again(); err != nil {
		return err
	}
	// A key that does not exist is a result, too: conditions apply to it, and its
	// 404 carries the revision at which it did not exist.
	x.setRevision(at)
	x.Header()["Vary"] = varyAccept
	if status := conds.judge(kv.ModRevision); status != http.StatusOK {
		return x.refuseRead(status, kv.ModRevision)
	}
	if err != nil {
		return api.Errorf(api.KeyNotFound, "key %.200q does not exist at revision %d", x.arg, at)
	}
	ttl := time.Duration(0)
	if asJSON {
		if ttl, err = remaining(x, &kv); err != nil {
			return err
		}
	}
	x.set("Etag", param.ETag(kv.ModRevision))
	x.writePair(&kv, asJSON, ttl)
	return nil
}

// wantsMeta reports whether a request wants the pair as JSON, not the bare value.
func wantsMeta(x *exchange) (bool, error) {
	meta, err := x.query.Flag("meta")
	if err != nil || meta {
		return meta, err
	}
	return param.Prefers(x.r.Header["Accept"], jsonType, octetStream[0]), nil
}

// judgeRead returns the status that the conditions allow a read of a key at a revision,
// 0 if it does not exist. If-Match comes first (RFC 9110, section 13.2.2).
func judgeRead(conds []kvstore.Condition, revision uint64) int {
	for i := range conds {
		if conds[i].Holds(revision) {
			continue
		}
		if conds[i].Kind == kvstore.IfNoneMatch {
			return http.StatusNotModified
		}
		return http.StatusPreconditionFailed
	}
	return http.StatusOK
}

func (x *exchange) refuseRead(status int, revision uint64) error {
	if status == http.StatusPreconditionFailed {
		return reply.FailedCondition(revision)
	}
	if revision > 0 { // otherwise a long poll for the key to exist
		x.set("Etag", param.ETag(revision))
	}
	x.WriteHeader(http.StatusNotModified)
	return nil
}

// writePair answers with the value, or with the pair as JSON and how long its lease lives
// on, unless that is 0.
func (x *exchange) writePair(kv *kvstore.KV, asJSON bool, ttl time.Duration) {
	h := x.Header()
	// A value may be an HTML page with a script. Opened in a browser, it must not run
	// with the rights of this origin.
	h["Content-Security-Policy"] = sandbox
	if !asJSON {
		h["Content-Type"] = octetStream
		h["X-Content-Type-Options"] = nosniff
		x.writeWhole(http.StatusOK, kv.Value)
		return
	}
	p := getBuffer()
	buf := (*p)[:0]
	if len(kv.Value) > budget.Free/8 {
		buf = slices.Grow(buf, int(reply.BytesSize(kv.Value))+len(kv.Key)+1024) // exactly what was claimed
	}
	doc := reply.AppendPairFields(append(buf, '{'), kv, false)
	if ttl > 0 {
		doc = appendTime(doc, "ttl", ttl)
	}
	doc = append(doc, '}', '\n')
	x.writeDocument(jsonType, http.StatusOK, doc)
	putBuffer(p, doc)
}

// do judges a command, carries it out within the request's timeout and sets the headers of its
// answer. An outcome without effect is an error, too.
func (x *exchange) do(cmd *kvstore.Command) (kvstore.Result, error) {
	if err := x.visit.Permit(cmd); err != nil {
		return kvstore.Result{}, err
	}
	ctx, cancel, err := x.briefContext()
	if err != nil {
		return kvstore.Result{}, err
	}
	defer cancel()
	if cmd.ReturnPrevious {
		if err := x.held.claimPrevious(ctx, x.srv.opts.Store.Settings().MaxValueBytes); err != nil {
			return kvstore.Result{}, err
		}
	}
	x.once.sign(cmd, x)
	x.visit.Sign(cmd)
	res, err := x.srv.opts.Replicator.Do(ctx, cmd, x.timing.noteStage())
	if err != nil {
		return res, err
	}
	x.setRevision(res.Revision)
	if res.Replayed {
		x.set("Idempotency-Replayed", "true")
	}
	if cmd.Op == kvstore.OpTxn {
		return res, reply.TxnProblem(&res)
	}
	return res, reply.OutcomeProblem(&res)
}

// returnPrevious reads return=previous.
func returnPrevious(q *param.Query) (bool, error) {
	v, ok := q.Get("return")
	if ok && v != "previous" {
		return false, badRequest("the parameter \"return\" must be previous, not %.40q", v)
	}
	return ok, nil
}

// keyCommand returns a command on the request's key, with everything that commands on
// keys have in common.
func (x *exchange) keyCommand(op kvstore.Op) (*kvstore.Command, error) {
	if err := checkKey(x.arg); err != nil {
		return nil, err
	}
	conds, err := param.KeyConditions(x.r.Header, &x.query)
	if err != nil {
		return nil, err
	}
	previous, err := returnPrevious(&x.query)
	if err != nil {
		return nil, err
	}
	cmd := &kvstore.Command{Op: op, Key: []byte(x.arg), Conditions: conds, ReturnPrevious: previous}
	return cmd, x.query.Bind(cmd)
}

// readValue reads the body as a value, up to the replicated limit.
func (x *exchange) readValue() ([]byte, error) {
	return x.readBody(x.srv.opts.Store.Settings().MaxValueBytes, "max_value_bytes")
}

// put carries out the put that the request asks for.
func (x *exchange) put() (*kvstore.Command, kvstore.Result, error) {
	cmd, err := x.keyCommand(kvstore.OpPut)
	if err != nil {
		return nil, kvstore.Result{}, err
	}
	if cmd.Value, err = x.readValue(); err != nil {
		return nil, kvstore.Result{}, err
	}
	res, err := x.do(cmd)
	return cmd, res, err
}

// putKey answers PUT /v1/kv/{key}.
func (s *Server) putKey(x *exchange) error {
	cmd, res, err := x.put()
	if err != nil {
		return err
	}
	x.writeChanged(cmd, &res)
	return nil
}

// changeKey answers POST /v1/kv/{key}: append or incr.
func (s *Server) changeKey(x *exchange) error {
	cmd, err := x.keyCommand(kvstore.OpAppend)
	if err != nil {
		return err
	}
	appends, err := x.query.Flag("append")
	if err != nil {
		return err
	}
	delta, incr := x.query.Get("incr")
	switch {
	case appends == incr:
		return badRequest("POST of a key requires either ?append, with the bytes to append in the body, or ?incr=N; use PUT to store a value")
	case appends:
		cmd.Value, err = x.readValue()
	default:
		err = readIncr(x, cmd, delta)
	}
	if err != nil {
		return err
	}
	res, err := x.do(cmd)
	if err != nil {
		return err
	}
	x.writeChanged(cmd, &res)
	return nil
}

// readIncr turns the command into one that adds delta. A body is refused: its sender
// must have meant something by it.
func readIncr(x *exchange, cmd *kvstore.Command, delta string) error {
	n, err := strconv.ParseInt(delta, 10, 64)
	if err != nil {
		return badRequest("the parameter \"incr\" must be a decimal 64-bit integer (for example, 5 or -5), not %.40q", delta)
	}
	cmd.Op, cmd.Delta = kvstore.OpIncr, n
	body, err := x.readBody(maxDocument, "")
	if err == nil && len(body) > 0 {
		return badRequest("incr takes no body; give the number to add as its value (for example, ?incr=5)")
	}
	return err
}

// writeChanged answers a put, append or incr.
func (x *exchange) writeChanged(cmd *kvstore.Command, res *kvstore.Result) {
	status := http.StatusOK
	if res.Created {
		status = http.StatusCreated
	}
	p := getBuffer()
	doc := append((*p)[:0], '{')
	doc = reply.AppendBytes(doc, "key", cmd.Key)
	doc = append(reply.AppendChange(doc, cmd.Op, cmd.ReturnPrevious, res), '}', '\n')
	x.set("Etag", param.ETag(res.KV.ModRevision))
	x.writeDocument(jsonType, status, doc)
	putBuffer(p, doc)
}

// deleteKey answers DELETE /v1/kv/{key}.
func (s *Server) deleteKey(x *exchange) error {
	cmd, err := x.keyCommand(kvstore.OpDelete)
	if err != nil {
		return err
	}
	res, err := x.do(cmd)
	if err != nil {
		return err
	}
	x.writeDeleted(cmd, &res)
	return nil
}

func (x *exchange) writeDeleted(cmd *kvstore.Command, res *kvstore.Result) {
	p := getBuffer()
	doc := append((*p)[:0], `{"deleted":`...)
	doc = strconv.AppendUint(doc, res.Deleted, 10)
	doc = reply.AppendNumber(doc, "revision", res.Revision)
	if cmd.ReturnPrevious {
		doc = reply.AppendPrevious(doc, res.Previous)
	}
	doc = append(doc, '}', '\n')
	x.writeDocument(jsonType, http.StatusOK, doc)
	putBuffer(p, doc)
}
