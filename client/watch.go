package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"
)

// Event is a change of a key.
type Event struct {
	// Deleted is true if the key was deleted; KV has only Key and ModRevision then.
	Deleted bool
	KV      KV
	// Previous is the pair before the change, if WatchOptions.Previous is set; nil if
	// the key was absent, or that revision is compacted.
	Previous *KV
	// More is true if further events of the same revision follow.
	More bool
}

// WatchOptions configure a watch.
type WatchOptions struct {
	// From is the first revision to watch; 0 means the next one.
	From uint64
	// Previous asks for the pairs before the changes.
	Previous bool
	// PutsOnly and DeletesOnly leave out the other events.
	PutsOnly, DeletesOnly bool
	// Progress, if not nil, is called with a revision up to which every event was
	// yielded, when the watch begins and from time to time while nothing happens.
	Progress func(revision uint64)
}

// Watch yields the changes of a range in the order of their revisions. When the
// connection or the node is lost, it resumes on another one, without a gap and
// without repeating an event. It ends with an error when the context ends or with a
// *CompactedError when the next revision is compacted; events are missing then.
func (c *Client) Watch(ctx context.Context, keys Range, o WatchOptions) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		w := watch{c: c, keys: keys, o: o, next: o.From, yield: yield}
		for attempt := 0; ; attempt++ {
			began := w.yielded
			err := w.stream(ctx)
			if w.ended {
				return
			}
			var refused *Error
			if errors.As(err, &refused) && !refused.temporary() || errors.Is(err, ErrCompacted) || ctx.Err() != nil {
				yield(nil, errors.Join(ctx.Err(), err))
				return
			}
			if w.yielded > began {
				attempt = 0
			}
			if err := c.pause(ctx, attempt, 0, nil); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// watch is the state of a watch between its connections.
type watch struct {
	c     *Client
	keys  Range
	o     WatchOptions
	yield func(*Event, error) bool
	// next is the revision to resume at, 0 before the first progress. Its first
	// partial events were yielded already: a connection may break within a
	// revision, which then comes again from its start.
	next    uint64
	partial int
	yielded uint64
	ended   bool // the consumer has had enough
}

// wireEvent is a line of the stream.
type wireEvent struct {
	wireKV
	Type            string `json:"type"`
	More            bool   `json:"more"`
	Revision        uint64 `json:"revision"`
	CompactRevision uint64 `json:"compact_revision"`
	Detail          string `json:"detail"`
}

// maxSilence is how long a node may send nothing: it sends progress every 15 s.
const maxSilence = 40 * time.Second

// stream watches over one connection.
func (w *watch) stream(ctx context.Context) error { return w.read(ctx, w.request()) }

// read sends the request, and takes what the node sends until the stream ends.
func (w *watch) read(ctx context.Context, r *request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := w.c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	silence := time.AfterFunc(maxSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
	skip := w.partial
	for {
		var e wireEvent
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF // the node stops; another one goes on
		} else if err != nil {
			return reason(ctx, fmt.Errorf("kvd client: read the watch: %w", err))
		}
		silence.Stop() // the consumer may take any time
		if err := w.take(&e, &skip); err != nil || w.ended {
			return err
		}
		silence.Reset(maxSilence)
	}
}

func (w *watch) request() *request {
	r := newRequest(http.MethodGet, "/v1/watch")
	r.stream = true
	w.keys.set(r.query)
	if w.next > 0 {
		r.query.Set("from_revision", strconv.FormatUint(w.next, 10))
	}
	if w.o.Previous {
		r.query.Set("previous", "")
	}
	switch {
	case w.o.PutsOnly && !w.o.DeletesOnly:
		r.query.Set("events", "put")
	case w.o.DeletesOnly && !w.o.PutsOnly:
		r.query.Set("events", "delete")
	}
	return r
}

// take handles a line of the stream. skip is the number of events to pass over.
func (w *watch) take(e *wireEvent, skip *int) error {
	switch e.Type {
	case "progress":
		w.next = max(w.next, e.Revision+1)
		if w.o.Progress != nil {
			w.o.Progress(e.Revision)
		}
		return nil
	case "compacted":
		return &CompactedError{CompactRevision: e.CompactRevision}
	case "permission_denied": // the rights have changed, or the credentials have ended
		return (&Error{Status: http.StatusForbidden, Code: e.Type, Title: http.StatusText(http.StatusForbidden), Detail: e.Detail}).specific()
	case "put", "delete":
		return w.event(e, skip)
	}
	return nil // a later version may send more
}

func (w *watch) event(e *wireEvent, skip *int) error {
	kv, err := e.kv()
	if err != nil {
		return err
	}
	if *skip > 0 && kv.ModRevision == w.next {
		*skip--
		return nil
	}
	previous, err := e.Previous.kv()
	if err != nil {
		return err
	}
	w.next, w.partial = kv.ModRevision, w.partial+1
	if !e.More {
		w.next, w.partial = kv.ModRevision+1, 0
	}
	w.yielded++
	w.ended = !w.yield(&Event{Deleted: e.Type == "delete", KV: *kv, Previous: previous, More: e.More}, nil)
	return nil
}
