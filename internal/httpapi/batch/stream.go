package batch

import (
	"bytes"
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

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
)

const (
	// maxGroups bounds the groups of all streams that are in the log at once;
	// those beyond it wait for their turn. A group has up to maxGroupBytes of
	// commands and one more line, so with values of at most 1.5 MiB (the default)
	// they hold about 96 MiB. A larger max_value_bytes raises that in proportion.
	maxGroups = 64
	// answerChunk is how many bytes of answers are collected before they are
	// written.
	answerChunk = 64 << 10
	// Bytes is what a stream needs even if it is idle: the chunks of input and
	// answers, and the answers growing.
	Bytes = inputChunk + 2*answerChunk
	// overloadPause is how long a group waits before it asks again a node that
	// had no room for it.
	overloadPause = 20 * time.Millisecond
)

// Store is what a stream reads of this node's replicated state.
type Store interface {
	// Revision returns the newest revision that is applied here.
	Revision() uint64
	// Get returns a key at a revision.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
	// List calls fn for each item in order, until fn returns false or an error.
	List(ctx context.Context, r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error)
	// Count returns the number of keys in a range.
	Count(ctx context.Context, r kvstore.Range) (n, revision uint64, err error)
	// Settings returns the replicated limits.
	Settings() kvstore.Settings
}

// Replicator has groups of commands applied. Its errors are *api.Error.
type Replicator interface {
	// Encode appends the command in the form that DoGroup takes.
	Encode(dst []byte, cmd *kvstore.Command) []byte
	// DoGroup has commands applied in order with nothing in between. The caller
	// must not reuse the commands after an error.
	DoGroup(ctx context.Context, commands [][]byte, note NoteStage) ([]*kvstore.Result, error)
	// Barrier returns once a read of the Store is linearizable.
	Barrier(ctx context.Context, note NoteStage) error
}

// NoteStage receives how long a stage of the request took; nil means that nobody
// asks.
type NoteStage = func(stage string, took time.Duration)

// Turns lets as many groups of all streams of a node into the log as maxGroups
// allows.
type Turns chan struct{}

// NewTurns returns the Turns of a node.
func NewTurns() Turns { return make(Turns, maxGroups) }

// Stream answers POST /v1/batch: a stream of operations, one per line.
//
// Two goroutines work on it. reader parses lines into groups. The handler's own
// goroutine proposes a group as one, waits until it is applied, and answers its
// lines. They share nothing but the groups, which they pass over channels.
//
//	S1  At most one group of a stream is in the log. So nothing after a failed
//	    group can have been carried out, and the last answer can name the first
//	    line that was not attempted.
//	S2  Lines take effect in order, and are answered in order, each once it is
//	    applied.
//	S3  A get needs no place in the log: it reads at the revision to which the
//	    write before it led, which is in this node's store by then. Only a group
//	    without writes has to prove, once for all its gets, that this node is up
//	    to date.
//	S4  After an error with an unknown outcome no get of the group is answered
//	    with a value: the state at its place is unknown.
//	S5  A stream holds a bounded amount of memory however much is sent, because a
//	    client that does not read its answers is not read from either. Beyond
//	    Bytes, it claims what it holds: a line that is longer than a chunk, each
//	    group until it is answered, and the value that is being answered. A client
//	    whose stream finds no room is made to wait, for as long as a group may take.
//
// Rejected: several groups in the log at once. A node has one uncommitted log entry
// in flight at a time, which a full group fills, so there is little to gain, and S1
// would be lost.
type Stream struct {
	// W has the headers of the answer already, and R a body nobody has read from.
	W http.ResponseWriter
	R *http.Request

	Store      Store
	Replicator Replicator
	Turns      Turns          // shared by all streams of the node
	Memory     *budget.Budget // likewise
	Claim      *budget.Claim  // for Bytes; the handler's goroutine raises it for large answers
	Timeout    time.Duration  // of each group
	Grace      time.Duration  // for the rest of a body that is not wanted anymore
	// Admit judges an operation, and adds to it who wants it. The goroutine that reads
	// calls it and, for what is to be read from the Store, once more the one that answers:
	// the Store may have become newer than the rights by which a line was let in.
	Admit func(*kvstore.Command) error
	Note  NoteStage
	Log   *zap.Logger
	// LimitWrite sets the deadline for writing the next bytes of the answer.
	LimitWrite func(sizeBytes int)
	// Rejected is told about each problem that is answered.
	Rejected func(api.Code)
	// Failed logs a failure of the node itself, if err is not nil, and returns the
	// name of the request in the log.
	Failed func(err error) (requestID string)

	in    *reader
	conn  *http.ResponseController
	begun bool   // the header has been sent
	out   []byte // answers that have not been written yet
}

// Run carries out the stream. readAll tells whether the whole body has been read. An
// error means that the client is gone.
func (o *Stream) Run() (readAll bool, err error) {
	o.in, o.conn = newReader(o), http.NewResponseController(o.W)
	// HTTP/2 is always full-duplex and reports an error here. So does a
	// connection that cannot be; its answers then come after the input's end.
	_ = o.conn.EnableFullDuplex()
	if o.R.Header.Get("Expect") == "" {
		if err := o.begin(); err != nil {
			return false, err
		}
	}
	err = o.runBoth()
	return o.in.sawEnd, err
}

// runBoth runs both sides of the stream.
func (o *Stream) runBoth() error {
	var reading sync.WaitGroup
	reading.Go(o.in.run)
	grace := time.Duration(0)
	defer func() {
		o.in.stop(grace)
		reading.Wait()
		o.in.release()
	}()
	if err := o.run(); err != nil {
		return err
	}
	o.LimitWrite(0) // for the end of the answer, which net/http writes
	if o.R.ProtoMajor == 1 {
		// A connection that is closed with unread input is reset, and the reset
		// can overtake the last answers. HTTP/2 tells the client to stop instead.
		grace = o.Grace
	}
	return nil
}

// begin sends the header right away, for clients that wait for it before they send
// their first line. Run does not do so for a client that expects "100
// Continue": the first read of the body sends that, and a 200 before it would be
// taken for the final answer.
func (o *Stream) begin() error {
	o.begun = true
	o.W.WriteHeader(http.StatusOK)
	return o.flush()
}

// run carries out groups up to the last one, or one that ends the stream. An error
// means that the client is gone.
func (o *Stream) run() error {
	for {
		g := <-o.in.slot
		if !o.begun {
			if err := o.begin(); err != nil {
				return err
			}
		}
		over, err := o.execute(g)
		if err != nil {
			return err
		}
		if err := o.flush(); err != nil || over || g.last {
			return err
		}
		g.claim.Release()
		select {
		case o.in.free <- g:
		default:
		}
	}
}

// execute carries out a group and answers its lines. over means that the stream
// ends with it.
func (o *Stream) execute(g *group) (over bool, err error) {
	results, at, failed := o.apply(g)
	if failed != nil {
		return true, o.answerFailed(g, reply.Problem(failed))
	}
	// A line that found no space, or no room for its result, ends the stream, because
	// those after it would most likely fail, too, and a bulk load wants to know where it
	// stopped. But the group was carried out as one, so its other lines are answered as
	// they went.
	full := slices.ContainsFunc(results, func(r *kvstore.Result) bool { return r.Outcome == kvstore.NoSpace || r.Outcome == kvstore.Busy })
	for i := range g.ops {
		op := &g.ops[i]
		o.beginAnswer(op.line)
		switch {
		case op.err != nil:
			o.problem(reply.Problem(op.err))
		case op.op == kvstore.OpGet:
			o.answerGet(op, g.bytes[op.from:op.to], at)
		case op.op == kvstore.OpList:
			o.answerList(op.list, at)
		default:
			o.answerWrite(op, results[0])
			if !results[0].Replayed {
				at = results[0].Revision
			}
			results = results[1:]
		}
		if full && i == len(g.ops)-1 && g.end == nil {
			o.out = reply.AppendNumber(o.out, "first_not_attempted", op.line+1)
		}
		if err := o.endAnswer(); err != nil {
			return true, err
		}
	}
	if g.end == nil {
		return full, nil
	}
	return true, o.answerEnd(g.endLine, reply.Problem(g.end))
}

// apply has the group's writes applied. It returns their results, and the revision
// at which a get before the first write is to read.
func (o *Stream) apply(g *group) (results []*kvstore.Result, at uint64, err error) {
	writes := g.writes()
	if len(writes) == 0 && !slices.ContainsFunc(g.ops, groupOp.isRead) {
		return nil, 0, nil
	}
	ctx, cancel := context.WithTimeout(o.R.Context(), o.Timeout)
	defer cancel()
	if len(writes) == 0 {
		err := o.Replicator.Barrier(ctx, o.Note)
		return nil, o.Store.Revision(), err
	}
	if results, err = o.propose(ctx, writes); err != nil {
		return nil, 0, err
	}
	return results, o.before(g, results), nil
}

// before returns the revision that the store had before the group: the one that its
// first write found. What is only replayed was written long ago.
func (o *Stream) before(g *group, results []*kvstore.Result) uint64 {
	for i := range g.ops {
		op := &g.ops[i]
		if op.reads() || op.err != nil {
			continue
		}
		if r := results[0]; !r.Replayed {
			if reply.Changed(op.op, op.txn, r) {
				return r.Revision - 1
			}
			return r.Revision
		}
		results = results[1:]
	}
	return o.Store.Revision()
}

func (o groupOp) isRead() bool { return o.reads() && o.err == nil }

// propose has writes applied as one group. It waits for a turn among all streams,
// and as long as the node has no room: unlike the requests of many clients, those
// of one stream cannot pile up, so refusing them would only cost a round trip.
func (o *Stream) propose(ctx context.Context, writes [][]byte) ([]*kvstore.Result, error) {
	select {
	case o.Turns <- struct{}{}:
		defer func() { <-o.Turns }()
	case <-ctx.Done():
		return nil, api.Errorf(api.Overloaded, "too many batches are waiting on this node; nothing from this line on was done; try again later")
	}
	for {
		results, err := o.Replicator.DoGroup(ctx, writes, o.Note)
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

// answerFailed answers a group that was not carried out, or whose outcome is
// unknown.
func (o *Stream) answerFailed(g *group, p *api.Error) error {
	unknown := p.Code == api.Timeout || reply.Status(p.Code) == http.StatusInternalServerError
	if unknown && reply.Status(p.Code) == http.StatusInternalServerError {
		o.Failed(p)
	}
	notRead := api.Errorf(api.ReadTimeout, "the key was not read, because the outcome of the lines around it is unknown")
	for i := range g.ops {
		op := &g.ops[i]
		if op.err == nil && !unknown {
			return o.answerEnd(op.line, p)
		}
		o.beginAnswer(op.line)
		switch {
		case op.err != nil:
			o.problem(reply.Problem(op.err))
		case op.reads():
			o.problem(notRead)
		default:
			o.problem(p)
		}
		if i == len(g.ops)-1 {
			o.out = reply.AppendNumber(o.out, "first_not_attempted", op.line+1)
		}
		if err := o.endAnswer(); err != nil {
			return err
		}
	}
	return nil
}

// answerEnd is the last answer of a stream that ends at a line, which was not
// attempted.
func (o *Stream) answerEnd(line uint64, p *api.Error) error {
	o.beginAnswer(line)
	o.problem(p)
	o.out = reply.AppendNumber(o.out, "first_not_attempted", line)
	return o.endAnswer()
}

func (o *Stream) answerGet(op *groupOp, key []byte, at uint64) {
	revision := at
	if op.revision != 0 {
		revision = op.revision
	}
	var err error
	var kv kvstore.KV
	if revision > at { // it may exist by now, but it did not at this line (S2)
		err = &kvstore.FutureRevisionError{Revision: at}
	} else if err = o.Admit(&kvstore.Command{Op: kvstore.OpGet, Key: key}); err == nil {
		read := reply.Read{Key: key, Revision: revision, JSON: true, Memory: o.Claim, Kept: Bytes, Patience: o.Timeout}
		kv, _, err = read.From(o.R.Context(), o.Store)
	}
	switch {
	case err == nil:
		o.out = append(o.out, `200,`...)
		o.out = reply.AppendPairFields(o.out, &kv, false)
		o.out = reply.AppendNumber(o.out, "revision", revision)
	case errors.Is(err, kvstore.ErrKeyNotFound):
		p := api.Errorf(api.KeyNotFound, "the key does not exist at revision %d", revision)
		p.Fields = map[string]any{"revision": revision}
		o.problem(p)
	default:
		o.problem(reply.Problem(err))
	}
}

// maxListBytes is where the result of a list ends, whatever its limit.
const maxListBytes = 4 << 20

// answerList answers a list, at its place in the stream unless it names a revision.
func (o *Stream) answerList(l *listOp, at uint64) {
	if l.rng.Revision == 0 {
		l.rng.Revision = at
	}
	if l.rng.Revision > at {
		o.problem(reply.Problem(&kvstore.FutureRevisionError{Revision: at}))
		return
	}
	if err := o.Admit(&kvstore.Command{Op: kvstore.OpList, Key: l.rng.Start, End: l.rng.End}); err != nil {
		o.problem(reply.Problem(err))
		return
	}
	ctx, cancel := context.WithTimeout(o.R.Context(), o.Timeout)
	defer cancel()
	res, err := l.run(ctx, o.Store, o.Claim, o.Timeout)
	if err != nil {
		o.problem(reply.Problem(err))
		return
	}
	o.out = append(o.out, `200,`...)
	o.out = reply.AppendListed(o.out, &l.read, res)
}

func (l *listOp) run(ctx context.Context, store Store, claim *budget.Claim, timeout time.Duration) (*kvstore.Result, error) {
	res := &kvstore.Result{Revision: l.rng.Revision}
	var err error
	if l.read.CountOnly {
		res.Count, _, err = store.Count(ctx, l.rng)
		return res, err
	}
	const rawAndEncoded = 2
	if err := claim.WaitFor(ctx, Bytes+rawAndEncoded*(maxListBytes+store.Settings().MaxValueBytes), timeout); err != nil {
		return nil, err
	}
	size := 0
	_, err = store.List(ctx, l.rng, func(it kvstore.Item) (bool, error) {
		if uint64(len(res.Pairs)) == l.read.Limit || size >= maxListBytes {
			res.More = true
			return false, nil
		}
		kv := it.KV
		kv.Key, kv.Value = bytes.Clone(kv.Key), bytes.Clone(kv.Value) // valid only during the call
		size += len(kv.Key) + len(kv.Value)
		res.Pairs = append(res.Pairs, kv)
		return true, nil
	})
	return res, err
}

func (o *Stream) answerWrite(op *groupOp, res *kvstore.Result) {
	if res.Outcome != kvstore.OK {
		err := reply.OutcomeProblem(res)
		if op.op == kvstore.OpTxn {
			err = reply.TxnProblem(res)
		}
		o.problem(reply.Problem(err))
		o.noteReplay(res)
		return
	}
	status := `200`
	if res.Created {
		status = `201`
	}
	o.out = append(o.out, status...)
	o.noteReplay(res)
	if op.op == kvstore.OpTxn {
		o.out = append(o.out, ',')
		o.out = reply.AppendTxnFields(o.out, op.txn, res)
		return
	}
	o.out = reply.AppendChange(o.out, op.op, op.previous, res)
}

// noteReplay marks the answer to a repeat.
func (o *Stream) noteReplay(res *kvstore.Result) {
	if res.Replayed {
		o.out = append(o.out, `,"replayed":true`...)
	}
}

// beginAnswer begins the answer to a line, up to its status.
func (o *Stream) beginAnswer(line uint64) {
	o.out = append(o.out, `{"n":`...)
	o.out = strconv.AppendUint(o.out, line, 10)
	o.out = append(o.out, `,"status":`...)
}

// problem appends the fields of a problem document.
func (o *Stream) problem(p *api.Error) {
	fields := maps.Clone(p.Fields)
	if fields == nil {
		fields = make(map[string]any, 2)
	}
	o.Rejected(p.Code)
	status := reply.Status(p.Code)
	if status == http.StatusInternalServerError {
		fields["request_id"] = o.Failed(nil)
	}
	o.out = strconv.AppendInt(o.out, int64(status), 10)
	o.out = append(o.out, `,"code":`...)
	o.out = reply.AppendString(o.out, []byte(p.Code))
	o.out = append(o.out, `,"detail":`...)
	o.out = reply.AppendString(o.out, []byte(strings.ToValidUTF8(p.Detail, "\uFFFD")))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value, err := json.Marshal(fields[name])
		if err != nil {
			continue // api.Error allows only plain data, which always encodes
		}
		o.out = append(append(o.out, `,"`...), name...)
		o.out = append(append(o.out, `":`...), value...)
	}
}

// endAnswer ends the line, and writes the answers so far if there are many.
func (o *Stream) endAnswer() error {
	o.out = append(o.out, '}', '\n')
	if len(o.out) < answerChunk {
		return nil
	}
	return o.write()
}

// write writes the answers. A client that accepts nothing for writeGrace is
// disconnected.
func (o *Stream) write() error {
	o.LimitWrite(len(o.out))
	_, err := o.W.Write(o.out)
	o.out = o.out[:0]
	if cap(o.out) > 4*answerChunk { // one answer had a very large value
		o.out = nil
	}
	o.Claim.Lower(Bytes)
	return err
}

// flush sends everything to the socket and removes the deadline: HTTP/2 would break
// the stream at it even if there is nothing left to send.
func (o *Stream) flush() error {
	o.LimitWrite(len(o.out))
	if len(o.out) > 0 {
		if err := o.write(); err != nil {
			return err
		}
	}
	err := o.conn.Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = o.conn.SetWriteDeadline(time.Time{})
	return nil
}
