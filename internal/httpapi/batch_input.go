package httpapi

import (
	"bytes"
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
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The bounds of a batch in memory. At most three groups exist at once (one on
// its way through the log, one that waits for it, one being filled), and one
// line of input.
const (
	// maxGroupLines and maxGroupBytes (of encoded commands) end a group. The
	// latter is what raftnode packs into one log entry.
	maxGroupLines = 4096
	maxGroupBytes = 512 << 10
	// inputChunk is read at once.
	inputChunk = 64 << 10
	// lineOverhead is what a line may have beside its value: the key as base64
	// or escaped, and the names.
	lineOverhead = 32 << 10
	// batchIdle is how long a batch may stay without a byte of input.
	batchIdle = time.Minute
)

// groupOp is one line of a group.
type groupOp struct {
	line     uint64
	kind     opjson.Kind
	previous bool
	revision uint64 // get: the one to read at, 0 for the one of its place
	from, to int    // its command, or its key, in the group's bytes
	err      error  // refused already
}

// group is consecutive lines that are carried out together.
type group struct {
	ops   []groupOp
	bytes []byte // commands and keys, one after the other
	// last is set where no group follows; end is then why the batch ended, and
	// endLine where; nil where the whole input was read.
	last    bool
	end     error
	endLine uint64

	commands [][]byte // slices of bytes, made when the group is complete
}

func (g *group) full() bool { return len(g.ops) >= maxGroupLines || len(g.bytes) >= maxGroupBytes }

func (g *group) reset() {
	clear(g.ops) // drops the errors
	g.ops, g.bytes = g.ops[:0], g.bytes[:0]
	if cap(g.bytes) > 4*maxGroupBytes { // it had a very large value
		g.bytes = nil
	}
}

// writes collects the commands of the group.
func (g *group) writes() [][]byte {
	g.commands = g.commands[:0]
	for i := range g.ops {
		if o := &g.ops[i]; o.kind != opjson.Get && o.err == nil {
			g.commands = append(g.commands, g.bytes[o.from:o.to:o.to])
		}
	}
	return g.commands
}

// batchInput reads a batch's lines into groups, in a goroutine of its own.
//
// A group lies in slot from the moment on that it has a line, so that whoever
// carries groups out can take it whenever it is idle; until then the reader
// takes it back to add what has arrived meanwhile. So groups grow with the
// load, and a line that comes alone goes at once.
type batchInput struct {
	body       io.Reader
	conn       *http.ResponseController
	log        *zap.Logger
	store      Store
	replicator Replicator
	slot       chan *group // capacity 1; only the reader sends
	free       chan *group // groups to use again
	quit       chan struct{}

	buf      []byte // input that was not taken apart yet: buf[start:]
	start    int
	searched int // no end of a line before it
	line     uint64
	group    *group
	parser   opjson.Parser
	sawEnd   bool // the whole body was read

	mu struct {
		sync.Mutex
		discard bool // nothing is wanted any more
	}
}

func newBatchInput(x *exchange) *batchInput {
	return &batchInput{
		body: x.r.Body, conn: http.NewResponseController(x.w), log: x.srv.log, store: x.srv.opts.Store, replicator: x.srv.opts.Replicator,
		slot: make(chan *group, 1), free: make(chan *group, 2), quit: make(chan struct{}),
	}
}

// run reads until the input ends, a line cannot be parsed, or stop is called.
// The last group says which.
func (in *batchInput) run() {
	end := in.fill()
	g := in.current()
	g.last, g.end, g.endLine = true, end, in.line
	in.hand(g)
	if !in.sawEnd {
		in.drain()
	}
}

// fill reads lines into groups and returns why it ended.
func (in *batchInput) fill() (end error) {
	defer func() {
		if v := recover(); v != nil {
			in.log.Error("reading a batch panicked", zap.Error(fmt.Errorf("panic: %v", v)), zap.ByteString("stack", debug.Stack()))
			end = api.Errorf(api.Internal, "reading the line panicked; the node's log has it")
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

// takeLines parses all whole lines that have been read.
func (in *batchInput) takeLines() error {
	settings := in.store.Settings()
	limit := lineLimit(&settings)
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
		if err := in.take(line, settings.MaxValueBytes); err != nil {
			return err
		}
		if in.group != nil && in.group.full() && !in.hand(in.group) {
			return nil
		}
	}
}

// takeRest parses a last line without a newline.
func (in *batchInput) takeRest() error {
	in.line++
	if in.start == len(in.buf) {
		return nil
	}
	line := in.buf[in.start:]
	in.start = len(in.buf)
	return in.take(line, in.store.Settings().MaxValueBytes)
}

// lineLimit is the longest line: room for a value as base64, or as text in
// which each byte is escaped with one other.
func lineLimit(s *kvstore.Settings) int { return int(2*s.MaxValueBytes) + lineOverhead }

func longLine(limit int) error {
	return api.Errorf(api.TooLarge, "the line is over the limit of %d bytes, which follows from max_value_bytes of the settings; a value of which most bytes need escapes is shorter as \"value_base64\"", limit)
}

// take adds a line's operation to the group; a blank line is none. An error
// ends the batch.
func (in *batchInput) take(line []byte, maxValueBytes int64) error {
	if line = bytes.TrimSuffix(line, []byte{'\r'}); len(line) == 0 {
		return nil
	}
	op, err := in.parser.Parse(line, maxValueBytes)
	if errors.Is(err, opjson.ErrSyntax) {
		return err
	}
	g := in.current()
	o := groupOp{line: in.line, kind: op.Kind, previous: op.ReturnPrevious, revision: op.Revision, from: len(g.bytes), err: err}
	switch {
	case err != nil:
	case op.Kind == opjson.Get:
		g.bytes = append(g.bytes, op.Key...)
	default:
		c := in.parser.Command(&op)
		g.bytes = in.replicator.Encode(g.bytes, &c)
	}
	o.to = len(g.bytes)
	g.ops = append(g.ops, o)
	return nil
}

// current is the group to add to: the one in the slot, where nobody took it
// and it has room.
func (in *batchInput) current() *group {
	if in.group != nil {
		return in.group
	}
	select {
	case g := <-in.slot:
		if !g.full() {
			in.group = g
			return g
		}
		in.slot <- g
	default:
	}
	select {
	case in.group = <-in.free:
		in.group.reset()
	default:
		in.group = new(group)
	}
	return in.group
}

// hand puts the group into the slot; it waits where a full one lies there.
// False means that nobody will take it.
func (in *batchInput) hand(g *group) bool {
	in.group = nil
	select {
	case in.slot <- g:
		return true
	case <-in.quit:
		return false
	}
}

// read gets more input, and makes room for it first.
func (in *batchInput) read() error {
	rest := len(in.buf) - in.start
	if in.start > 0 {
		copy(in.buf, in.buf[in.start:])
		in.buf, in.searched, in.start = in.buf[:rest], in.searched-in.start, 0
	}
	if cap(in.buf)-rest < inputChunk/2 || cap(in.buf) > 4*inputChunk && rest < inputChunk {
		in.buf = append(make([]byte, 0, max(inputChunk, 2*rest)), in.buf...)
	}
	if !in.await() {
		return errBatchOver
	}
	n, err := in.body.Read(in.buf[rest:cap(in.buf)])
	in.buf = in.buf[:rest+n]
	in.arrived()
	switch {
	case n > 0 && err == io.EOF, err == nil:
		// An end is told again by the next call.
		return nil
	case err == io.EOF:
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return badRequest("no line came for %v; the batch ends here", batchIdle)
	}
	return badRequest("the body could not be read to its end; the batch ends here")
}

// errBatchOver ends the reading of a batch that was stopped. Nobody sees it.
var errBatchOver = errors.New("the batch is over")

// await gives the next read its deadline; false means that nothing is wanted
// any more.
func (in *batchInput) await() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.discard {
		return false
	}
	// Bodies without a connection have no deadline to set.
	_ = in.conn.SetReadDeadline(time.Now().Add(batchIdle))
	return true
}

// arrived takes the deadline away: a client that is made to wait is not idle,
// and HTTP/2 breaks the body at the deadline also while nobody reads.
func (in *batchInput) arrived() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.mu.discard {
		_ = in.conn.SetReadDeadline(time.Time{})
	}
}

// stop ends the reading. What the client still sends is dropped for a while,
// since it would lose the last answers if the connection were reset.
func (in *batchInput) stop(grace time.Duration) {
	close(in.quit)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.discard = true
	_ = in.conn.SetReadDeadline(time.Now().Add(grace))
}

// drain reads what nobody wants until stop's deadline.
func (in *batchInput) drain() {
	<-in.quit
	_, _ = io.Copy(io.Discard, in.body)
}
