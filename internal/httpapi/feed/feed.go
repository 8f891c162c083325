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
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	// DefaultProgress is the longest time without a line: a client can tell a quiet
	// stream from a broken one, and proxies do not close it.
	DefaultProgress = 15 * time.Second
	// chunk is how many bytes are collected before they are written, which is what a
	// request may hold without a claim.
	chunk = budget.Free
	// maxPooled is the size of the largest buffer that is used again.
	maxPooled = 2 * chunk
)

// Errors of Feed.Run, besides those of the store. After either, the stream has broken off.
var (
	// ErrGone means that the client has left, or does not read.
	ErrGone = errors.New("the client is gone")
	// ErrNoMemory means that there was no memory for a large event in time.
	ErrNoMemory = errors.New("no memory for an event")
)

// forms are the ways in which events are encoded, once for all streams. The closing
// brace is missing, because what comes before it depends on the stream.
var (
	plainForm    = &watch.Form{Slot: 0, Encode: appendEvent}
	previousForm = &watch.Form{Slot: 1, Previous: true, Encode: appendEventWithPrevious}
)

// buffers has the buffers of streams that are not writing.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Feed is the stream of one client: it sends what a watch delivers until the client
// leaves, the node stops, or the place of the watch is compacted.
//
// It collects what a portion delivers, lets go of the portion, and writes: a client that does
// not read keeps at most a chunk in memory, or one event if that is larger, which is then
// claimed from the memory for requests. When there is nothing to deliver it holds no buffer at all, and waits for the
// watch or for the time of the next progress.
//
//	F1  All events of a revision but the last have "more", and only the last has an id:
//	    a client that resumes after the last id never sees half a transaction.
//	F2  Progress through N is sent only after all events up to N.
//	F3  A stream that ends without a last progress, or "compacted", broke off.
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
	// Claim waits for memory for an event that is larger than a chunk; Release gives it
	// back.
	Claim   func(ctx context.Context, n int64) error
	Release func()
	// LimitWrite sets the deadline for writing the next size bytes.
	LimitWrite func(size int)

	conn  *http.ResponseController
	out   []byte
	timer *time.Timer
	due   bool // the timer has fired since the last line
	// claimed is set while a large event is collected.
	claimed bool
}

// Run sends events. A nil error is an end that the client can see in the last line.
func (f *Feed) Run(ctx context.Context) error {
	f.conn = http.NewResponseController(f.W)
	if f.Progress == 0 {
		f.Progress = DefaultProgress
	}
	f.timer = time.NewTimer(f.Progress)
	defer f.timer.Stop()
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
	b, err := f.Stream.Next(ctx)
	switch {
	case errors.Is(err, watch.ErrClosed):
		f.say()
		return true, f.flush()
	case err != nil && ctx.Err() != nil:
		return f.ended(ctx)
	case err != nil:
		return true, err
	case b.Idle:
		return f.wait(ctx)
	}
	for i := range b.Deliveries {
		if err := f.deliver(ctx, &b.Deliveries[i]); err != nil {
			return true, err
		}
	}
	for _, e := range b.Ended {
		f.compacted(e.CompactRevision)
		over = true
	}
	f.Stream.Release() // before the client is waited for
	f.notice()
	if err := f.flush(); err != nil || over {
		return true, err
	}
	return f.ended(ctx)
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

// deliver collects the events of a revision.
func (f *Feed) deliver(ctx context.Context, d *watch.Delivery) error {
	form := plainForm
	if f.Previous {
		form = previousForm
	}
	for i, e := range d.Events {
		b, err := f.Stream.Encode(e, form)
		if err != nil {
			return err
		}
		if err := f.makeRoom(ctx, len(b)); err != nil {
			return err
		}
		last := i == len(d.Events)-1
		f.begin(d.Revision, last)
		f.out = append(f.out, b...)
		if !last {
			f.out = append(f.out, `,"more":true`...)
		}
		f.end()
	}
	return nil
}

// makeRoom sends what was collected if the next event does not fit in with it, and claims
// memory for an event that is larger than a chunk.
func (f *Feed) makeRoom(ctx context.Context, size int) error {
	if len(f.out) > 0 && len(f.out)+size > chunk {
		if err := f.flush(); err != nil {
			return err
		}
	}
	if size <= chunk {
		return nil
	}
	f.claimed = true
	if err := f.Claim(ctx, int64(size)); err != nil {
		return fmt.Errorf("%w: %w", ErrNoMemory, err)
	}
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

// flush sends what was collected all the way to the socket, and gives the buffer back.
func (f *Feed) flush() error {
	if len(f.out) == 0 {
		return nil
	}
	f.LimitWrite(len(f.out))
	_, err := f.W.Write(f.out)
	if err == nil {
		if err = f.conn.Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	if cap(f.out) <= maxPooled {
		b := f.out[:0]
		buffers.Put(&b)
	}
	if f.claimed {
		f.Release()
	}
	f.out, f.due, f.claimed = nil, false, false
	f.timer.Reset(f.Progress)
	// HTTP/2 would break the stream at the deadline even if nothing is left to send.
	_ = f.conn.SetWriteDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
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
