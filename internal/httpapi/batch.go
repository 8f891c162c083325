package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

const (
	// maxGroups bounds the groups of all batches on their way through the log,
	// and so their memory, to 32 MiB; those beyond it wait.
	maxGroups = 64
	// answerChunk of answers is sent at once.
	answerChunk = 64 << 10
	// overloadPause is how long a group waits that the node had no room for.
	overloadPause = 20 * time.Millisecond
)

// batch answers a stream of operations, one a line (api: POST /v1/batch).
//
// Two goroutines: batchInput parses lines into groups; the handler's own has
// each group proposed as one, waits until it is applied, and answers its
// lines. One group is in the log at a time, so that nothing after a failed one
// can have been carried out. Reads need no place in the log: a get reads at
// the revision that the write before it led to. Only a group without any
// write has to prove that this node is up to date, once for all its reads.
type batch struct {
	x       *exchange
	in      *batchInput
	conn    *http.ResponseController
	timeout time.Duration // of a group
	out     []byte
}

// batch answers POST /v1/batch.
func (s *Server) batch(x *exchange) error {
	timeout, err := x.query.timeout()
	if err != nil {
		return err
	}
	if pretty, _ := x.query.flag("pretty"); pretty {
		return badRequest("a stream has one line for each answer and cannot be indented; leave \"pretty\" out")
	}
	b := &batch{x: x, in: newBatchInput(x), conn: http.NewResponseController(x.w), timeout: timeout}
	// Where that is not supported, answers may have to wait for the end of the
	// input; HTTP/2 needs nothing.
	_ = b.conn.EnableFullDuplex()
	if x.r.Header.Get("Expect") == "" && b.begin() != nil {
		panic(http.ErrAbortHandler)
	}
	if b.runBoth() != nil {
		panic(http.ErrAbortHandler)
	}
	b.x.setTiming() // as a trailer
	return nil
}

// runBoth runs the two sides of the batch. An error says that the client is
// gone.
func (b *batch) runBoth() error {
	var reader sync.WaitGroup
	reader.Go(b.in.run)
	grace := time.Duration(0)
	defer func() {
		b.in.stop(grace)
		reader.Wait()
		b.x.body = bodyRead
		if !b.in.sawEnd {
			b.x.body = bodyBroken
		}
	}()
	if err := b.run(); err != nil {
		return err
	}
	b.x.limitWriteTime(0) // for what net/http ends the answer with
	if b.x.r.ProtoMajor == 1 {
		grace = drainGrace // HTTP/2 tells the client to stop
	}
	return nil
}

// begin sends the header, so that the client need not wait for it with its
// first line. A client that expects a 100 gets it from the first read, and
// would take the header for the answer.
func (b *batch) begin() error {
	h := b.x.Header()
	h["X-Content-Type-Options"] = nosniff
	b.x.set("Content-Type", ndjsonType)
	b.x.setCluster()
	if b.x.timing != nil {
		b.x.set("Trailer", "Server-Timing")
	}
	b.x.WriteHeader(http.StatusOK)
	return b.flush()
}

// run carries groups out until the last one, or one that ends the batch. An
// error says that the client is gone.
func (b *batch) run() error {
	for {
		g := <-b.in.slot
		if b.x.status == 0 {
			if err := b.begin(); err != nil {
				return err
			}
		}
		over, err := b.execute(g)
		if err != nil {
			return err
		}
		if err := b.flush(); err != nil || over || g.last {
			return err
		}
		select {
		case b.in.free <- g:
		default:
		}
	}
}

// execute carries a group out and answers its lines. over says that the batch
// ends with it.
func (b *batch) execute(g *group) (over bool, err error) {
	results, at, failed := b.apply(g)
	if failed != nil {
		return true, b.answerFailed(g, asProblem(failed))
	}
	noSpace := slices.ContainsFunc(results, func(r *kvstore.Result) bool { return r.Outcome == kvstore.NoSpace })
	for i := range g.ops {
		o := &g.ops[i]
		b.beginAnswer(o.line)
		switch {
		case o.err != nil:
			b.problem(asProblem(o.err))
		case o.kind == opjson.Get:
			b.answerGet(o, g.bytes[o.from:o.to], at)
		default:
			b.answerWrite(o, results[0])
			at, results = results[0].Revision, results[1:]
		}
		if noSpace && i == len(g.ops)-1 && g.end == nil {
			b.out = appendNumber(b.out, "first_not_attempted", o.line+1)
		}
		if err := b.endAnswer(); err != nil {
			return true, err
		}
	}
	if g.end == nil {
		return noSpace, nil
	}
	return true, b.answerEnd(g.endLine, asProblem(g.end))
}

// apply has the group's writes applied and returns their results, and the
// revision that its first get is to read at.
func (b *batch) apply(g *group) (results []*kvstore.Result, at uint64, err error) {
	writes := g.writes()
	if len(writes) == 0 && !slices.ContainsFunc(g.ops, groupOp.isGet) {
		return nil, 0, nil
	}
	ctx, cancel := context.WithTimeout(b.x.r.Context(), b.timeout)
	defer cancel()
	if len(writes) == 0 {
		err := b.x.srv.opts.Replicator.Barrier(ctx, b.x.timing.noteStage())
		return nil, b.x.srv.opts.Store.Revision(), err
	}
	if results, err = b.propose(ctx, writes); err != nil {
		return nil, 0, err
	}
	at = results[0].Revision
	if changed(results[0]) {
		at--
	}
	return results, at, nil
}

func (o groupOp) isGet() bool { return o.kind == opjson.Get && o.err == nil }

// changed reports whether a command on one key raised the revision.
func changed(r *kvstore.Result) bool {
	return r.Outcome == kvstore.OK && r.KV.ModRevision == r.Revision
}

// propose waits for its turn among all batches, and while the node has no room.
func (b *batch) propose(ctx context.Context, writes [][]byte) ([]*kvstore.Result, error) {
	select {
	case b.x.srv.groups <- struct{}{}:
		defer func() { <-b.x.srv.groups }()
	case <-ctx.Done():
		return nil, api.Errorf(api.Overloaded, "too many batches wait on this node; nothing from this line on was done, try again")
	}
	for {
		results, err := b.x.srv.opts.Replicator.DoGroup(ctx, writes, b.x.timing.noteStage())
		var p *api.Error
		if !errors.As(err, &p) || p.Code != api.Overloaded {
			return results, err
		}
		select {
		case <-time.After(overloadPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// answerFailed answers a group of which nothing, or nobody knows what, was
// done.
func (b *batch) answerFailed(g *group, p *api.Error) error {
	unknown := p.Code == api.Timeout || statusOf(p.Code) == http.StatusInternalServerError
	if unknown && statusOf(p.Code) == http.StatusInternalServerError {
		b.x.srv.log.Error("a batch failed", b.x.logFields(p)...)
	}
	notRead := api.Errorf(api.ReadTimeout, "not read, since what became of the lines around it is unknown")
	for i := range g.ops {
		o := &g.ops[i]
		if o.err == nil && !unknown {
			return b.answerEnd(o.line, p)
		}
		b.beginAnswer(o.line)
		switch {
		case o.err != nil:
			b.problem(asProblem(o.err))
		case o.kind == opjson.Get:
			b.problem(notRead)
		default:
			b.problem(p)
		}
		if i == len(g.ops)-1 {
			b.out = appendNumber(b.out, "first_not_attempted", o.line+1)
		}
		if err := b.endAnswer(); err != nil {
			return err
		}
	}
	return nil
}

// answerEnd is the last answer of a batch that ends at a line, which was not
// attempted.
func (b *batch) answerEnd(line uint64, p *api.Error) error {
	b.beginAnswer(line)
	b.problem(p)
	b.out = appendNumber(b.out, "first_not_attempted", line)
	return b.endAnswer()
}

func (b *batch) answerGet(o *groupOp, key []byte, at uint64) {
	revision := at
	if o.revision != 0 {
		revision = o.revision
	}
	var err error
	var kv kvstore.KV
	if revision > at { // there by now, perhaps, but not at this line
		err = &kvstore.FutureRevisionError{Revision: at}
	} else {
		kv, _, err = b.x.srv.opts.Store.Get(key, revision)
	}
	switch {
	case err == nil:
		b.out = append(b.out, `200,`...)
		b.out = appendPairFields(b.out, &kv, false)
		b.out = appendNumber(b.out, "revision", revision)
	case errors.Is(err, kvstore.ErrKeyNotFound):
		p := api.Errorf(api.KeyNotFound, "the key does not exist at revision %d", revision)
		p.Fields = map[string]any{"revision": revision}
		b.problem(p)
	default:
		b.problem(asProblem(err))
	}
}

func (b *batch) answerWrite(o *groupOp, res *kvstore.Result) {
	if res.Outcome != kvstore.OK {
		b.problem(asProblem(outcomeProblem(res)))
		return
	}
	status := `200`
	if res.Created {
		status = `201`
	}
	b.out = append(b.out, status...)
	if o.kind == opjson.Delete {
		b.out = appendNumber(b.out, "deleted", res.Deleted)
	}
	if o.kind == opjson.Incr {
		b.out = append(b.out, ',')
		b.out = appendBytes(b.out, "value", res.KV.Value)
	}
	b.out = appendNumber(b.out, "revision", res.Revision)
	if o.kind != opjson.Delete {
		b.out = appendNumber(b.out, "create_revision", res.KV.CreateRevision)
		b.out = appendNumber(b.out, "mod_revision", res.KV.ModRevision)
		b.out = appendNumber(b.out, "version", res.KV.Version)
	}
	if o.previous {
		b.out = appendPreviousPair(b.out, res.Previous)
	}
}

// beginAnswer begins the answer to a line, up to its status.
func (b *batch) beginAnswer(line uint64) {
	b.out = append(b.out, `{"n":`...)
	b.out = strconv.AppendUint(b.out, line, 10)
	b.out = append(b.out, `,"status":`...)
}

// problem puts the fields of a problem document.
func (b *batch) problem(p *api.Error) {
	fields := maps.Clone(p.Fields)
	if fields == nil {
		fields = make(map[string]any, 2)
	}
	if o := b.x.srv.opts.Observer; o != nil {
		o.Rejected(p.Code)
	}
	status := statusOf(p.Code)
	if status == http.StatusInternalServerError {
		fields["request_id"] = b.x.requestID()
	}
	b.out = strconv.AppendInt(b.out, int64(status), 10)
	b.out = append(b.out, `,"code":`...)
	b.out = appendString(b.out, []byte(p.Code))
	b.out = append(b.out, `,"detail":`...)
	b.out = appendString(b.out, []byte(strings.ToValidUTF8(p.Detail, "\uFFFD")))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value, err := json.Marshal(fields[name])
		if err != nil {
			continue // fields are plain data, which always encodes
		}
		b.out = append(append(b.out, `,"`...), name...)
		b.out = append(append(b.out, `":`...), value...)
	}
}

// endAnswer ends the line, and sends what has come together where it is much.
func (b *batch) endAnswer() error {
	b.out = append(b.out, '}', '\n')
	if len(b.out) < answerChunk {
		return nil
	}
	return b.write()
}

// write sends the answers on. A client that accepts nothing for writeGrace is
// cut off.
func (b *batch) write() error {
	b.x.limitWriteTime(len(b.out))
	_, err := b.x.Write(b.out)
	b.out = b.out[:0]
	if cap(b.out) > 4*answerChunk { // it had a very large value
		b.out = nil
	}
	return err
}

// flush sends everything to the socket. The deadline goes with it: HTTP/2 would
// break the stream at it also where nothing is to be sent.
func (b *batch) flush() error {
	b.x.limitWriteTime(len(b.out))
	if len(b.out) > 0 {
		if err := b.write(); err != nil {
			return err
		}
	}
	err := b.conn.Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = b.conn.SetWriteDeadline(time.Time{})
	return nil
}
