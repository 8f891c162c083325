package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// History yields what is known of the past of a range, the oldest first: the pairs as of
// the oldest revision that can be read, and then each change up to the one that is newest
// when History begins. With Key it is the history of one key.
//
// If the cluster compacts what has not been read yet, the history ends with
// ErrCompacted.
func (c *Client) History(ctx context.Context, keys Range) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		h := history{c: c, keys: keys, yield: yield}
		if err := h.run(ctx); err != nil && !h.ended {
			yield(nil, err)
		}
	}
}

// history is the state of one History.
type history struct {
	c     *Client
	keys  Range
	yield func(*Event, error) bool
	ended bool // the consumer has had enough
}

func (h *history) run(ctx context.Context) error {
	var newest uint64
	if _, err := h.c.page(ctx, h.keys, "", []ReadOption{Limit(1), KeysOnly(), ReportRevision(&newest)}); err != nil {
		return err
	}
	oldest, err := h.oldest(ctx)
	if err != nil {
		return err
	}
	for kv, err := range h.c.List(ctx, h.keys, AtRevision(oldest)) {
		if err != nil {
			return err
		}
		if h.ended = !h.yield(&Event{KV: *kv}, nil); h.ended {
			return nil
		}
	}
	return h.changes(ctx, oldest+1, newest)
}

// oldest returns the oldest revision that can be read: the store refuses those before,
// and names it.
func (h *history) oldest(ctx context.Context) (uint64, error) {
	_, err := h.c.page(ctx, h.keys, "", []ReadOption{Limit(1), KeysOnly(), AtRevision(1)})
	var compacted *CompactedError
	if errors.As(err, &compacted) {
		return compacted.CompactRevision, nil
	}
	return 1, err
}

const (
	// firstTimeout is how long the first watch of a history lasts at most, and
	// maxTimeout the longest one.
	firstTimeout = 100 * time.Millisecond
	maxTimeout   = 10 * time.Second
)

// changes yields the changes of the revisions from first to last. They are read with
// watches that end by themselves, since only at its end a watch says that nothing was left
// out. The first ones are too short for a long history, and each goes on where the one
// before ended.
func (h *history) changes(ctx context.Context, first, last uint64) error {
	w := watch{c: h.c, keys: h.keys, next: first}
	w.yield = func(e *Event, err error) bool {
		if e.KV.ModRevision > last {
			return false
		}
		h.ended = !h.yield(e, err)
		return !h.ended
	}
	for timeout := firstTimeout; w.next <= last && !w.ended; timeout = min(2*timeout, maxTimeout) {
		r := w.request()
		r.query.Set("timeout", timeout.String())
		err := w.read(ctx, r)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && ctx.Err() == nil: // its time was up
		case err != nil:
			return err
		}
	}
	return nil
}
