package httpapi

import (
	"context"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
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

// enterSnapshot takes one of the places for backups, which Leave gives back.
func enterSnapshot(places *budget.Places) error {
	if places.Try() {
		return nil
	}
	return api.Errorf(api.Overloaded, "this node is sending %d snapshots, the limit; nothing was done; try again later or use another member", places.Size())
}
