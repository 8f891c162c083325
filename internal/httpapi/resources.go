package httpapi

import (
	"context"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// maxSnapshots is how many backups are sent at once. Each keeps the state that it began
// with on disk until its client has read it.
const maxSnapshots = 4

// holdings is what a request holds of the node. The goroutine of the request owns it.
type holdings struct {
	places *budget.Places
	placed bool         // it has a place
	memory budget.Claim // for its body and its answer
}

// enter takes a place for the request, unless it has one or needs none.
func (h *holdings) enter(x *exchange) error {
	if h.placed || x.route.exempt {
		return nil
	}
	if !h.places.Try() {
		if err := x.startTimeout(); err != nil {
			return err
		}
		if h.places.Wait(x.r.Context(), x.deadline) != nil {
			return api.Errorf(api.Overloaded, "the node is handling %d requests, as many as --max-inflight allows; nothing was done; try again later", h.places.Size())
		}
	}
	h.placed = true
	return nil
}

// leave gives the place back. It is called before an answer is written: how long that
// takes is up to the client, and what the answer holds is in the budget.
func (h *holdings) leave() {
	if h.placed {
		h.placed = false
		h.places.Leave()
	}
}

// end gives everything back.
func (h *holdings) end() {
	h.leave()
	h.memory.Release()
}

// claimPrevious claims memory for the previous value that the answer to a write will
// have. It does so before the write, which must be answered once it has been done.
func (h *holdings) claimPrevious(ctx context.Context, maxValueBytes int64) error {
	const rawAndEncoded = 2
	return h.memory.Wait(ctx, h.memory.Bytes()+rawAndEncoded*maxValueBytes)
}

// read reads a key and claims memory for its value and for the answer with it, on top of
// base bytes that the request keeps. Only what is read shows how much that is. If there
// is no room at once, the value is dropped before the request waits, so that waiting
// requests hold nothing, and is read again.
func (x *exchange) read(ctx context.Context, key []byte, revision uint64, asJSON bool, base int64) (kvstore.KV, uint64, error) {
	for {
		kv, at, err := x.srv.opts.Store.Get(key, revision)
		if err != nil {
			return kv, at, err
		}
		size := base + int64(len(kv.Value))
		if asJSON && size > budget.Free/8 { // escapes make a byte at most six
			size += reply.BytesSize(kv.Value)
		}
		if x.held.memory.Try(size) {
			return kv, at, nil
		}
		kv.Value = nil
		if err := x.held.memory.Wait(ctx, size); err != nil {
			return kv, at, err
		}
	}
}

// enterSnapshot takes one of the places for backups, which Leave gives back.
func enterSnapshot(places *budget.Places) error {
	if places.Try() {
		return nil
	}
	return api.Errorf(api.Overloaded, "this node is sending %d snapshots, the limit; nothing was done; try again later or use another member", places.Size())
}
