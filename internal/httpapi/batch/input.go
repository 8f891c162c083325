package batch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The bounds of a stream in memory. It has at most three groups (one in the log,
// one that waits for it, one that is being filled) and one line of input.
const (
	maxGroupsOfStream = 3
	// maxGroupLines and maxGroupBytes (of encoded commands) are where a group is
	// full. raftnode packs maxGroupBytes into one log entry.
	maxGroupLines = limits.MaxGroupCommands
	maxGroupBytes = limits.MaxBatchBytes
	// maxGroupHeld is where a group is full whose answers are large.
	maxGroupHeld = 16 << 20
	// inputChunk is how many bytes are read at once.
	inputChunk = 64 << 10
	// streamIdle is how long a stream may go without a byte of input.
	streamIdle = time.Minute
)

// groupOp is one line of a group.
type groupOp struct {
	line     uint64
	op       kvstore.Op
	previous bool
	revision uint64       // of a get: where to read; 0 means at its place in the stream
	from, to int          // of its command, or of a get's key, in group.bytes
	list     *listOp      // of a list
	txn      *kvstore.Txn // of a transaction, as detach leaves it
	err      error        // why it was refused already
}

// listOp is a list, which reads the store without a command.
type listOp struct {
	rng  kvstore.Range
	read kvstore.Read
}

// reads reports whether the line only reads. A transaction never counts as reading: it
// has its place in the log.
func (o *groupOp) reads() bool { return o.op == kvstore.OpGet || o.op == kvstore.OpList }

// group is a run of consecutive lines that are carried out together. Its owner is
// the goroutine that took it from a channel last.
type group struct {
	ops   []groupOp
	bytes []byte // commands and keys, back to back
	// held is what the group and its answers take in memory, at most, and claim
	// covers it. No more is added to a group that is closed.
	held   int64
	claim  budget.Claim
	closed bool
	// last is set if no group follows. end is then why the stream ended, and
	// endLine where; end is nil if the whole input was read.
	last    bool
	end     error
	endLine uint64

	commands [][]byte // slices of bytes, made once the group is complete
}

func (g *group) full() bool {
	return g.closed || len(g.ops) >= maxGroupLines || len(g.bytes) >= maxGroupBytes || g.held >= maxGroupHeld
}

func (g *group) reset() {
	clear(g.ops) // drops the errors
	g.ops, g.bytes, g.held, g.closed = g.ops[:0], g.bytes[:0], 0, false
	if cap(g.bytes) > 4*maxGroupBytes { // one line had a very large value
		g.bytes = nil
	}
}

// writes collects the commands of the group.
func (g *group) writes() [][]byte {
	g.commands = g.commands[:0]
	for i := range g.ops {
		if o := &g.ops[i]; !o.reads() && o.err == nil {
			g.commands = append(g.commands, g.bytes[o.from:o.to:o.to])
		}
	}
	return g.commands
}

// reader reads the lines of a stream into groups, in a goroutine of its own,
// which owns all fields but those that say otherwise.
//
// It puts a group into slot as soon as the input that has arrived is parsed, so that
// the handler can take it whenever it is idle. If more input arrives first, the
// reader takes the group back and adds to it. So a single line is never delayed,
// and under load groups grow up to what arrives during one round trip through the
// log, without a timer.
//
//	R1  Only the reader sends to slot, so a group that it has taken out always
//	    fits back in.
//	R2  The last group has last set, whatever ended the input: the handler never
//	    waits for a group that does not come. If the handler ends first, stop
//	    closes quit, and the reader never waits for it.
//	R3  A line that breaks off is not carried out.
//	R4  Input and deadlines belong to the reader until stop. From then on
//	    mu.discard is set, and a read that was about to extend its deadline does
//	    not.
type reader struct {
	body       io.Reader
	conn       *http.ResponseController
	log        *zap.Logger
	store      Store
	replicator Replicator
	admit      func(*kvstore.Command) error
	memory     *budget.Budget
	patience   time.Duration   // for memory
	gone       context.Context // ends when the client has gone
	slot       chan *group     // to the handler; capacity 1 (R1)
	free       chan *group     // from the handler: groups to use again
	quit       chan struct{}   // closed by stop

	buf      []byte // buf[start:] is input that has not been parsed
	start    int
	searched int // buf[start:searched] has no line end
	line     uint64
	group    *group
	made     []*group     // all groups; release reads it after the goroutine has ended
	claim    budget.Claim // for buf beyond its first chunk
	parser   opjson.Parser
	sawEnd   bool // the whole body was read; the handler reads it after the goroutine has ended

	// mu is held by stop, which the handler calls, and by the goroutine that reads.
	mu struct {
		sync.Mutex
		discard bool // the stream is over; set by stop
	}
}

func newReader(o *Stream) *reader {
	return &reader{
		body: o.R.Body, conn: http.NewResponseController(o.W), log: o.Log, store: o.Store, replicator: o.Replicator, admit: o.Admit,
		memory: o.Memory, patience: o.Timeout, gone: o.R.Context(), claim: o.Memory.Claim(),
		slot: make(chan *group, 1), free: make(chan *group, maxGroupsOfStream), quit: make(chan struct{}),
	}
}

// run reads until the input ends, a line cannot be parsed, or stop is called.
func (in *reader) run() {
	end := in.fill()
	g := in.current()
	g.last, g.end, g.endLine = true, end, in.line
	in.hand(g)
	if !in.sawEnd {
		in.drain()
	}
}

// fill reads lines into groups and returns why it ended, nil at the end of input.
func (in *reader) fill() (end error) {
	defer func() {
		if v := recover(); v != nil {
			in.log.Error("panic while reading a batch", zap.Error(fmt.Errorf("panic: %v", v)), zap.ByteString("stack", debug.Stack()))
			end = api.Errorf(api.Internal, "the node failed to read the line; its log has the cause")
		}
	}()
	for {
		if end := in.takeLines(); end != nil {
			return end
		}
		if in.group != nil && !in.hand(in.group) {
			return nil
		}
		err := in.read()
		switch {
		case err == io.EOF:
			in.sawEnd = true
			return in.takeRest()
		case err != nil:
			in.line++
			return err
		}
	}
}

// takeLines parses all complete lines that have been read.
func (in *reader) takeLines() error {
	accepted := in.limits()
	limit := int(accepted.TextLimit())
	for {
		n := bytes.IndexByte(in.buf[in.searched:], '\n')
		if n < 0 {
			in.searched = len(in.buf)
			if len(in.buf)-in.start > limit {
				in.line++
				return longLine(limit)
			}
			return nil
		}
		line := in.buf[in.start : in.searched+n]
		in.start = in.searched + n + 1
		in.searched = in.start
		in.line++
		if len(line) > limit {
			return longLine(limit)
		}
		if err := in.take(line, accepted); err != nil {
			return err
		}
		if in.group != nil && in.group.full() && !in.hand(in.group) {
			return nil
		}
	}
}

// takeRest parses the last line, which may lack a newline.
func (in *reader) takeRest() error {
	in.line++
	if in.start == len(in.buf) {
		return nil
	}
	line := in.buf[in.start:]
	in.start = len(in.buf)
	return in.take(line, in.limits())
}

// limits returns what the settings allow of a line now.
func (in *reader) limits() opjson.Limits {
	s := in.store.Settings()
	return opjson.Limits{MaxValueBytes: s.MaxValueBytes, MaxTxnOps: s.MaxTxnOps, MaxTxnBytes: s.MaxTxnBytes}
}

func longLine(limit int) error {
	return api.Errorf(api.TooLarge, "the line exceeds the limit of %d bytes, which follows from max_value_bytes and max_txn_bytes in the settings; if most bytes of the value need escapes, send it as \"value_base64\"", limit)
}

// take adds the operation of a line to the group, and nothing for a blank line. An
// error ends the stream: only of a line that is JSON is it certain where it ends.
func (in *reader) take(line []byte, accepted opjson.Limits) error {
	if line = bytes.TrimSuffix(line, []byte{'\r'}); len(line) == 0 {
		return nil
	}
	c, err := in.parser.Parse(line, accepted)
	if errors.Is(err, opjson.ErrSyntax) {
		return err
	}
	if err == nil {
		err = in.admit(c)
	}
	size := 2 * int64(len(line)) // its command, in a buffer that grows
	if err == nil {
		size += answerBytes(c, accepted)
	}
	g, full := in.room(size)
	if full != nil {
		return full
	}
	if err != nil {
		g.ops = append(g.ops, groupOp{line: in.line, err: err})
		return nil
	}
	o := groupOp{line: in.line, op: c.Op, previous: c.ReturnPrevious, from: len(g.bytes), txn: c.Txn}
	switch c.Op {
	case kvstore.OpGet:
		if c.Read != nil {
			o.revision = c.Read.Revision
		}
		g.bytes = append(g.bytes, c.Key...)
	case kvstore.OpList:
		o.list = newListOp(c)
	default:
		if c.Idempotency != nil {
			c.Idempotency.Fingerprint = fingerprint(line)
		}
		g.bytes = in.replicator.Encode(g.bytes, c)
		detach(c.Txn)
	}
	o.to = len(g.bytes)
	g.ops = append(g.ops, o)
	return nil
}

// answerBytes returns what the result of a command may take at most in memory, beyond a
// few words. What a get or a list outside of a transaction finds is claimed when it is
// answered.
func answerBytes(c *kvstore.Command, accepted opjson.Limits) (n int64) {
	if c.ReturnPrevious {
		n += accepted.MaxValueBytes
	}
	if c.Txn == nil {
		return n
	}
	return n + max(branchBytes(c.Txn.Then, accepted), branchBytes(c.Txn.Else, accepted))
}

func branchBytes(branch []kvstore.Command, accepted opjson.Limits) (n int64) {
	for i := range branch {
		n += answerBytes(&branch[i], accepted)
		switch branch[i].Op {
		case kvstore.OpGet:
			n += accepted.MaxValueBytes
		case kvstore.OpList:
			n += maxListBytes
		}
	}
	return n
}

// room returns the group to add a line to, with memory claimed for it. If there is none
// at once, the lines before are carried out first, which frees what they hold.
func (in *reader) room(size int64) (*group, error) {
	g := in.current()
	if len(g.ops) > 0 && !g.claim.Try(budget.Steps(g.held+size)) {
		g.closed = true
		if !in.hand(g) {
			return nil, errStreamOver
		}
		g = in.current()
	}
	if err := g.claim.WaitFor(in.gone, budget.Steps(g.held+size), in.patience); err != nil {
		return nil, err
	}
	g.held += size
	return g, nil
}

// release returns the memory of all groups and of the input.
func (in *reader) release() {
	for _, g := range in.made {
		g.claim.Release()
	}
	in.claim.Release()
}

// fingerprint hashes the text of an operation with an idempotency key. A repeat of
// the operation has the same text.
func fingerprint(line []byte) (sum [16]byte) {
	whole := sha256.Sum256(line)
	copy(sum[:], whole[:])
	return sum
}

// detach leaves of a transaction what its answer needs, which then does not depend on
// the parser or the line anymore.
func detach(t *kvstore.Txn) {
	if t == nil {
		return
	}
	t.If = nil
	for _, branch := range [][]kvstore.Command{t.Then, t.Else} {
		for i := range branch {
			c := &branch[i]
			c.Key, c.End, c.Value, c.Conditions = bytes.Clone(c.Key), nil, nil, nil
			if c.Read != nil {
				read := *c.Read
				c.Read = &read
			}
			detach(c.Txn)
		}
	}
}

func newListOp(c *kvstore.Command) *listOp {
	return &listOp{
		rng: kvstore.Range{
			Start: bytes.Clone(c.Key), End: bytes.Clone(c.End), Revision: c.Read.Revision,
			Reverse: c.Read.Reverse, KeysOnly: c.Read.KeysOnly,
		},
		read: *c.Read,
	}
}

// current returns the group to add to: the one in the slot if the handler has not
// taken it and it has room, else a new one.
func (in *reader) current() *group {
	if in.group != nil {
		return in.group
	}
	select {
	case g := <-in.slot:
		if !g.full() {
			in.group = g
			return g
		}
		in.slot <- g // does not wait (R1)
	default:
	}
	select {
	case in.group = <-in.free:
		in.group.reset()
	default:
		in.group = &group{claim: in.memory.Claim()}
		in.made = append(in.made, in.group)
	}
	return in.group
}

// hand puts the group into the slot, and waits while a full one is in there. It
// returns false if nobody will take it.
func (in *reader) hand(g *group) bool {
	in.group = nil
	select {
	case in.slot <- g:
		return true
	case <-in.quit:
		return false
	}
}

// read makes room for more input and reads some.
func (in *reader) read() error {
	rest := len(in.buf) - in.start
	if in.start > 0 {
		copy(in.buf, in.buf[in.start:])
		in.buf, in.searched, in.start = in.buf[:rest], in.searched-in.start, 0
	}
	if cap(in.buf)-rest < inputChunk/2 || cap(in.buf) > 4*inputChunk && rest < inputChunk {
		if err := in.regrow(rest); err != nil {
			return err
		}
	}
	if !in.await() {
		return errStreamOver
	}
	n, err := in.body.Read(in.buf[rest:cap(in.buf)])
	in.buf = in.buf[:rest+n]
	in.arrived()
	switch {
	case n > 0 && err == io.EOF, err == nil:
		// The next call returns io.EOF again.
		return nil
	case err == io.EOF:
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return api.Errorf(api.BadRequest, "received no data for %v; the batch ends here", streamIdle)
	}
	return api.Errorf(api.BadRequest, "reading the body failed; the batch ends here")
}

// regrow replaces the buffer by one with room for as much again as is not parsed.
func (in *reader) regrow(rest int) error {
	size := max(inputChunk, 2*rest)
	if size > inputChunk {
		if err := in.claim.WaitFor(in.gone, int64(size+cap(in.buf)), in.patience); err != nil {
			return err
		}
	}
	in.buf = append(make([]byte, 0, size), in.buf...)
	if in.claim.Lower(int64(size)); size == inputChunk {
		in.claim.Release()
	}
	return nil
}

// errStreamOver ends the reading of a stream that was stopped. Nobody sees it.
var errStreamOver = errors.New("the stream is over")

// await sets the deadline of the next read. It returns false if the stream is over.
func (in *reader) await() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.discard {
		return false
	}
	// A body without a connection, in tests, has no deadline to set.
	_ = in.conn.SetReadDeadline(time.Now().Add(streamIdle))
	return true
}

// arrived removes the deadline. While the reader waits for the handler, the client
// is not idle but made to wait, and HTTP/2 breaks the body at the deadline even if
// nobody is reading.
func (in *reader) arrived() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.mu.discard {
		_ = in.conn.SetReadDeadline(time.Time{})
	}
}

// stop ends the reading. For the time of grace, what the client still sends is
// read and dropped, so that it does not lose the last answers to a reset.
func (in *reader) stop(grace time.Duration) {
	close(in.quit)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.discard = true
	_ = in.conn.SetReadDeadline(time.Now().Add(grace))
}

// drain reads and drops input until the deadline that stop sets.
func (in *reader) drain() {
	<-in.quit
	_, _ = io.Copy(io.Discard, in.body)
}
