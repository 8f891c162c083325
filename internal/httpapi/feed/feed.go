package feed

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/pace"
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	// DefaultProgress is the longest time without a line: a client can tell a quiet
	// stream from a broken one, and proxies do not close it.
	DefaultProgress = 15 * time.Second
	// chunk is how many bytes are collected before they are written, which is what a
	// request may hold without a claim.
	chunk = budget.Free
	// piece is about how much of a revision is claimed and sent at once if it exceeds a
	// chunk: after each piece, the whole revision is read again.
	piece = 1 << 20
	// framing is more than what a line has around an event.
	framing = 64
	// numbers is more than the names and numbers of a pair take.
	numbers = 256
	// maxPooled is the size of the largest buffer that is used again.
	maxPooled = 2 * chunk
)

// Errors of Feed.Run, besides those of the store. After either, the stream has broken off.
var (
	// ErrGone means that the client has left, or does not read.
	ErrGone = errors.New("the client is gone")
	// ErrNoMemory means that there was no memory for a large event in time.
	ErrNoMemory = errors.New("no memory for an event")
	// errNoRoom means that what was collected has to be sent first, or memory claimed.
	errNoRoom = errors.New("no room")
)

// forms are the ways in which events are encoded, once for all streams. The closing
// brace is missing, because what comes before it depends on the stream.
var (
	plainForm    = &watch.Form{Slot: 0, Encode: appendEvent, Size: eventSize}
	previousForm = &watch.Form{Slot: 1, Previous: true, Encode: appendEventWithPrevious, Size: eventSizeWithPrevious}
)

// buffers has the buffers of streams that are not writing.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Feed is the stream of one client: it sends what a watch delivers until the client
// leaves, the node stops, or the place of the watch is compacted.
//
// It collects what fits of a portion, puts the rest back, and writes: a client that does
// not read keeps at most a chunk in memory, or a piece of a revision if that is larger, which
// is then claimed before it is encoded. A claim that has to wait does so with nothing but the
// position: the events are put back and read again. When there is nothing to deliver it holds
// no buffer at all, and waits for the watch or for the time of the next progress.
//
//	F1  All events of a revision but the last have "more", and only the last has an id:
//	    a client that resumes after the last id never sees half a transaction.
//	F2  Progress through N is sent only after all events up to N.
//	F3  A stream that ends without a last progress, "compacted", or "permission_denied",
//	    broke off.
//	F4  No event of a revision after a change of rights is sent before Judge was asked.
type Feed struct {
	W      http.ResponseWriter
	Stream *watch.Stream
	// From is the first revision that the client asked for.
	From uint64
	// Events selects Server-Sent Events instead of lines.
	Events bool
	// Previous sends the previous pairs.
	Previous bool
	// Progress is the longest time between two lines; 0 means DefaultProgress.
	Progress time.Duration
	// Memory is claimed for what is larger than a chunk. A claim waits for at most Patience.
	Memory   budget.SharedClaim
	Patience time.Duration
	// Changed returns a channel that is closed with the next change of what the client may
	// do; nil means that nothing changes it. Judge returns why the client may not have the
	// events anymore, and Expires is when it has to be asked in any case, zero for never.
	Changed func() <-chan struct{}
	Judge   func() error
	Expires time.Time
	// LimitWrite sets the deadline for writing the next size bytes.
	LimitWrite func(size int)

	conn  *http.ResponseController
	out   []byte
	timer *time.Timer
	due   bool // the timer has fired since the last line
	// changed and expired tell that Judge has to be asked.
	changed <-chan struct{}
	expired chan struct{}
	// sent is how many events of the revision at, which is not complete, were collected.
	at   uint64
	sent int
	// wanted is what has to be claimed before the next event is read again, or 0.
	wanted int64
}

// Run sends events. A nil error is an end that the client can see in the last line.
func (f *Feed) Run(ctx context.Context) error {
	f.conn = http.NewResponseController(f.W)
	if f.Progress == 0 {
		f.Progress = DefaultProgress
	}
	f.timer = time.NewTimer(f.Progress)
	defer f.timer.Stop()
	defer f.Memory.Release()
	if f.Changed != nil {
		f.changed = f.Changed()
		if !f.Expires.IsZero() {
			expired := make(chan struct{})
			f.expired = expired
			defer time.AfterFunc(time.Until(f.Expires), func() { close(expired) }).Stop()
		}
		if err := f.Judge(); err != nil {
			return f.deny(err)
		}
	}
	f.progress(f.From - 1)
	if err := f.flush(); err != nil {
		return err
	}
	for {
		over, err := f.turn(ctx)
		if over || err != nil {
			return err
		}
	}
}

// turn sends what one step of the stream brings, and waits if that is nothing.
func (f *Feed) turn(ctx context.Context) (over bool, err error) {
	b, err := f.next(ctx)
	switch {
	case errors.Is(err, watch.ErrClosed):
		f.say()
		return true, f.flush()
	case err != nil && ctx.Err() != nil:
		return f.ended(ctx)
	case err != nil:
		return true, err
	}
	// The rights change before later events are there, so this comes after those (F4).
	if err := f.judge(); err != nil {
		f.Stream.Release()
		return true, f.deny(err)
	}
	if b.Idle {
		return f.wait(ctx)
	}
	if over, err = f.collect(b); err != nil {
		return true, err
	}
	f.notice()
	if err := f.flush(); err != nil || over {
		return true, err
	}
	return f.ended(ctx)
}

// judge asks whether the client may still have the events, if that may have changed.
func (f *Feed) judge() error {
	select {
	case <-f.changed:
		f.changed = f.Changed()
	case <-f.expired:
		f.expired = nil
	default:
		return nil
	}
	return f.Judge()
}

// deny is the last line of a stream whose client may not have the events anymore. Like
// compacted, it has no id.
func (f *Feed) deny(reason error) error {
	f.begin(0, false)
	f.out = append(f.out, `{"type":"permission_denied","detail":`...)
	f.out = reply.AppendString(f.out, []byte(reply.Problem(reason).Detail))
	f.end()
	return f.flush()
}

// next takes a step of the stream, once there is the memory that was missing.
func (f *Feed) next(ctx context.Context) (*watch.Portion, error) {
	if err := f.claim(ctx); err != nil {
		return nil, err
	}
	return f.Stream.Next(ctx)
}

// ended ends the stream if the context has. A client that named a timeout gets a last
// progress.
func (f *Feed) ended(ctx context.Context) (over bool, err error) {
	switch err := ctx.Err(); {
	case err == nil:
		return false, nil
	case errors.Is(err, context.DeadlineExceeded):
		f.say()
		return true, f.flush()
	}
	return true, ErrGone
}

// wait waits until there may be something to deliver, or progress is due.
func (f *Feed) wait(ctx context.Context) (over bool, err error) {
	f.notice()
	if err := f.flush(); err != nil {
		return true, err
	}
	select {
	case <-f.Stream.Ready():
		return false, nil
	case <-f.changed:
		return false, nil
	case <-f.expired:
		return false, nil
	case <-f.timer.C:
		f.due = true
		return false, nil
	case <-ctx.Done():
		return f.ended(ctx)
	}
}

// notice sends progress if it is due: also while the stream reads through a history that
// has nothing for the client.
func (f *Feed) notice() {
	if !f.due {
		select {
		case <-f.timer.C:
			f.due = true
		default:
			return
		}
	}
	f.say()
}

// say sends how far the stream is.
func (f *Feed) say() {
	if through, ok := f.Stream.Progress(); ok {
		f.progress(through)
	}
}

// claim waits for the memory that was missing. Nothing but the position is held meanwhile.
func (f *Feed) claim(ctx context.Context) error {
	if f.wanted == 0 {
		return nil
	}
	n := f.wanted
	f.wanted = 0
	if f.Memory.Try(n) {
		return nil
	}
	// The claim waits beside the stream, and keeps its place in the queue while the stream
	// says how far it is.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	claimed := make(chan error, 1)
	go func() { claimed <- f.Memory.WaitFor(ctx, n, f.Patience) }()
	err := f.attend(claimed)
	if err == nil {
		return nil
	}
	cancel()
	if <-claimed == nil {
		f.Memory.Release()
	}
	return err
}

// attend sends progress while a claim waits. If it returns an error, the end of the claim
// can still be received.
func (f *Feed) attend(claimed chan error) error {
	for {
		select {
		case err := <-claimed:
			if err != nil {
				claimed <- err
				return fmt.Errorf("%w: %w", ErrNoMemory, err)
			}
			return nil
		case <-f.Stream.Closed():
			return watch.ErrClosed
		case <-f.timer.C:
			f.say()
			if err := f.send(); err != nil {
				return err
			}
		}
	}
}

// collect collects what there is room for and lets go of the portion before the client is
// waited for.
func (f *Feed) collect(b *watch.Portion) (over bool, err error) {
	defer f.Stream.Release()
	i := 0
	for err == nil && i < len(b.Deliveries) {
		if err = f.deliver(&b.Deliveries[i]); err == nil {
			i++
		}
	}
	if err != nil && !errors.Is(err, errNoRoom) {
		return true, err
	}
	for _, e := range b.Ended {
		f.compacted(e.CompactRevision) // what was left is compacted as well
		over = true
	}
	if err != nil && !over {
		f.Stream.PutBack(i)
	}
	return over, nil
}

// deliver collects the events of a revision, from the first that was not yet. The error
// errNoRoom means that some are left.
func (f *Feed) deliver(d *watch.Delivery) error {
	if f.at != d.Revision {
		f.at, f.sent = d.Revision, 0
	}
	for f.sent < len(d.Events) {
		n, size, err := f.fit(d.Events[f.sent:])
		if err != nil {
			return err
		}
		if err := f.makeRoom(size); err != nil {
			return err
		}
		for range n {
			if err := f.event(d, f.sent); err != nil {
				return err
			}
			f.sent++
		}
	}
	return nil
}

// fit returns how many events make a piece, at least one, and at most how long that is.
func (f *Feed) fit(events []*watch.Event) (n, size int, err error) {
	for _, e := range events {
		more, err := f.Stream.Size(e, f.form())
		if err != nil {
			return 0, 0, err
		}
		if more += framing; n > 0 && size+more > piece {
			break
		}
		n, size = n+1, size+more
	}
	return n, size, nil
}

func (f *Feed) form() *watch.Form {
	if f.Previous {
		return previousForm
	}
	return plainForm
}

// makeRoom provides for size more bytes. If there is no memory for them, they are wanted,
// and not even what is known of them is kept.
func (f *Feed) makeRoom(size int) error {
	switch {
	case len(f.out)+size <= chunk:
		return nil
	case len(f.out) > 0:
		return errNoRoom
	case !f.Memory.Try(int64(size)):
		f.wanted = int64(size)
		return errNoRoom
	}
	f.out = make([]byte, 0, size)
	return nil
}

// event collects an event.
func (f *Feed) event(d *watch.Delivery, i int) (err error) {
	last := i == len(d.Events)-1
	f.begin(d.Revision, last)
	if f.out, err = f.Stream.Append(f.out, d.Events[i], f.form()); err != nil {
		return err
	}
	if !last {
		f.out = append(f.out, `,"more":true`...)
	}
	f.end()
	return nil
}

// begin begins a line. The revision becomes the id by which a client resumes, if the line
// ends it.
func (f *Feed) begin(revision uint64, id bool) {
	if f.out == nil {
		f.out = *buffers.Get().(*[]byte)
	}
	if !f.Events {
		return
	}
	if id {
		f.out = append(f.out, "id: "...)
		f.out = append(strconv.AppendUint(f.out, revision, 10), '\n')
	}
	f.out = append(f.out, "data: "...)
}

func (f *Feed) end() {
	f.out = append(f.out, '}', '\n')
	if f.Events {
		f.out = append(f.out, '\n')
	}
}

// progress says that everything up to a revision was sent (F2).
func (f *Feed) progress(through uint64) {
	f.begin(through, true)
	f.out = append(f.out, `{"type":"progress"`...)
	f.out = reply.AppendNumber(f.out, "revision", through)
	f.end()
}

// compacted is the last line of a stream whose place is compacted. It has no id: a client
// that resumes where it was would be refused, and that is what it should learn.
func (f *Feed) compacted(revision uint64) {
	f.begin(0, false)
	f.out = append(f.out, `{"type":"compacted"`...)
	f.out = reply.AppendNumber(f.out, "compact_revision", revision)
	f.end()
}

// flush sends what was collected, and gives back what was claimed for it.
func (f *Feed) flush() error {
	defer f.Memory.Release()
	return f.send()
}

// send sends what was collected all the way to the socket, and gives the buffer back.
func (f *Feed) send() error {
	if len(f.out) == 0 {
		return nil
	}
	err := f.write()
	if err == nil {
		if err = f.conn.Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	if cap(f.out) <= maxPooled {
		b := f.out[:0]
		buffers.Put(&b)
	}
	f.out, f.due = nil, false
	f.timer.Reset(f.Progress)
	// HTTP/2 would break the stream at the deadline even if nothing is left to send.
	_ = f.conn.SetWriteDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// write writes what was collected. What was claimed is not held for as long as a chunk: a
// client that accepts nothing gives way to others that want the memory.
func (f *Feed) write() error {
	if len(f.out) > chunk {
		return pace.Write(f.conn, f.W, f.out)
	}
	f.LimitWrite(len(f.out))
	_, err := f.W.Write(f.out)
	return err
}

// appendEvent is the text of an event without its closing brace.
func appendEvent(dst []byte, e *kvstore.Event) []byte {
	if e.Deleted {
		dst = append(dst, `{"type":"delete",`...)
		dst = reply.AppendBytes(dst, "key", e.KV.Key)
		return reply.AppendNumber(dst, "mod_revision", e.KV.ModRevision)
	}
	dst = append(dst, `{"type":"put",`...)
	return reply.AppendPairFields(dst, &e.KV, false)
}

func appendEventWithPrevious(dst []byte, e *kvstore.Event) []byte {
	return reply.AppendPrevious(appendEvent(dst, e), e.Previous)
}

// eventSize is at least the length of appendEvent.
func eventSize(e *kvstore.Event) int { return pairSize(&e.KV) }

func eventSizeWithPrevious(e *kvstore.Event) int {
	if e.Previous == nil {
		return eventSize(e)
	}
	return eventSize(e) + pairSize(e.Previous)
}

// pairSize is at least the length of a pair in JSON. Only what is long is looked at: in
// JSON, a byte becomes at most six.
func pairSize(kv *kvstore.KV) int {
	if n := 6 * (len(kv.Key) + len(kv.Value)); n <= chunk/8 {
		return numbers + n
	}
	return numbers + int(reply.BytesSize(kv.Key)+reply.BytesSize(kv.Value))
}
