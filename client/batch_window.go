package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"
)

// Bounds of the operations of a batch that have no result yet.
const (
	maxWindowBytes = 8 << 20 // beyond one operation, which may be larger
	maxWindowOps   = 16 << 10
)

// window has the operations of a batch that were taken and have no result: what has to be
// sent again when a connection is lost. Three goroutines meet here: the one that takes
// operations, the reader of a request's body, and the one that reads answers.
type window struct {
	mu struct {
		sync.Mutex
		lines []line // those of the operations from first on
		first int
		bytes int
		ended bool  // no operation follows
		err   error // why not, if not because that was all
		gone  bool  // the context or the loop has ended
	}
	changed *sync.Cond // of anything in mu
}

// line is an operation as it is sent. A repeat has the same text, by which the cluster
// recognizes it.
type line struct {
	kind, key string // the key is empty if the operation only reads
	text      []byte // with the end of the line
}

func newWindow(ctx context.Context) *window {
	w := new(window)
	w.changed = sync.NewCond(&w.mu)
	context.AfterFunc(ctx, w.close)
	return w
}

// close ends the window: nobody wants results anymore.
func (w *window) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.gone = true
	w.changed.Broadcast()
}

// fill takes operations until there are no more, or nobody wants them.
func (w *window) fill(ops iter.Seq[Op], newKey func() string) {
	var failed error
	for op := range ops {
		var l line
		if l, failed = encode(op, newKey); failed != nil || !w.push(l) {
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.ended, w.mu.err = true, failed
	w.changed.Broadcast()
}

func encode(op Op, newKey func() string) (line, error) {
	l := line{kind: op.kind}
	doc := map[string]any{op.kind: op.fields}
	if op.kind != "get" && op.kind != "list" {
		l.key = newKey()
		doc["idempotency_key"] = l.key
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return l, fmt.Errorf("kvd client: encode an operation of a batch: %w", err)
	}
	l.text = append(text, '\n')
	return l, nil
}

// push waits for room.
func (w *window) push(l line) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.mu.gone && len(w.mu.lines) > 0 && (len(w.mu.lines) >= maxWindowOps || w.mu.bytes+len(l.text) > maxWindowBytes) {
		w.changed.Wait()
	}
	if w.mu.gone {
		return false
	}
	w.mu.lines = append(w.mu.lines, l)
	w.mu.bytes += len(l.text)
	w.changed.Broadcast()
	return true
}

// await waits until there is operation n. It returns false if there will be none, with
// the reason unless that were all.
func (w *window) await(ctx context.Context, n int) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.mu.gone:
			return false, ctx.Err()
		case n < w.mu.first+len(w.mu.lines):
			return true, nil
		case w.mu.ended:
			return false, w.mu.err
		}
		w.changed.Wait()
	}
}

// head returns the oldest operation without a result.
func (w *window) head() line {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.lines[0]
}

// pop removes the oldest operation.
func (w *window) pop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.bytes -= len(w.mu.lines[0].text)
	w.mu.lines[0] = line{}
	w.mu.lines = w.mu.lines[1:]
	w.mu.first++
	w.changed.Broadcast()
}

// windowReader is the body of one request: the operations from next on.
type windowReader struct {
	w *window
	// The rest is guarded by w.mu.
	next   int
	rest   []byte // of the operation before next
	closed bool
	last   bool // the operation before next is the last one to send
	// owed is since when the node owes the oldest answer, and awaited since when
	// somebody waits for it; zero while nobody does.
	owed, awaited time.Time
}

// Read implements io.Reader. It waits for operations, and returns io.EOF after the last.
func (r *windowReader) Read(p []byte) (n int, err error) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for n < len(p) && r.fillLocked() {
			m := copy(p[n:], r.rest)
			n, r.rest = n+m, r.rest[m:]
		}
		switch {
		case r.closed || w.mu.gone:
			return 0, io.ErrClosedPipe
		case n > 0:
			return n, nil
		case w.mu.ended || r.last:
			return 0, io.EOF
		}
		w.changed.Wait()
	}
}

// fillLocked makes sure that there is something of an operation to send, if possible.
func (r *windowReader) fillLocked() bool {
	if len(r.rest) > 0 {
		return true
	}
	if r.last || r.next >= r.w.mu.first+len(r.w.mu.lines) {
		return false
	}
	if r.next == r.w.mu.first {
		r.owed = time.Now()
	}
	r.rest = r.w.mu.lines[r.next-r.w.mu.first].text
	r.next++
	return true
}

// finish ends the body after the operation that is being sent.
func (r *windowReader) finish() {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.last = true
	r.w.changed.Broadcast()
}

// sent returns the end of the operations that were sent.
func (r *windowReader) sent() int {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.next
}

// waiting tells whether somebody waits for an answer from now on.
func (r *windowReader) waiting(yes bool) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.awaited = (time.Time{}); yes {
		r.awaited = time.Now()
	}
}

// owedFor returns for how long somebody has been waiting for an answer that the node
// owes.
func (r *windowReader) owedFor() time.Duration {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.awaited.IsZero() || r.next == r.w.mu.first {
		return 0
	}
	if r.awaited.After(r.owed) {
		return time.Since(r.awaited)
	}
	return time.Since(r.owed)
}

// Close implements io.Closer. A Read that waits returns.
func (r *windowReader) Close() error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.closed = true
	r.w.changed.Broadcast()
	return nil
}
