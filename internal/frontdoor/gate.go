package frontdoor

import (
	"net/http"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
)

// gate is the handler of the listeners for clients. It answers from the first
// moment on, and lets requests through to the node between open and shut. What
// it answers itself comes from an httpapi.Server in standby (I4).
type gate struct {
	// opts lack the store until open; owned by the goroutine that owns the
	// Door.
	opts httpapi.Options
	// current answers requests. Requests load it, the owner of the Door
	// replaces it; a request keeps the handler that it began with.
	current atomic.Pointer[httpapi.Server]
	// last is set once every answer is the last of its connection.
	last atomic.Bool
}

// newGate returns a gate that answers "starting". The answer has the node's peer URLs:
// an operator who adds a node that waits for that may know only its client URLs.
func newGate(opts httpapi.Options, peerURLs []string) *gate {
	g := &gate{opts: opts}
	g.current.Store(httpapi.NewStandby(opts, &api.Error{
		Code:   api.Starting,
		Detail: "the node is starting and has not caught up with its cluster yet; try again soon or use another node",
		Fields: map[string]any{"peer_urls": peerURLs},
	}))
	return g
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.last.Load() {
		w.Header()["Connection"] = closeConnection // net/http turns it into a GOAWAY for HTTP/2
	}
	g.current.Load().ServeHTTP(w, r)
}

// closeConnection is shared by all answers: nobody writes to it.
var closeConnection = []string{"close"}

// lastAnswers makes every answer from now on the last of its connection, which
// sends clients elsewhere without cutting off a request.
func (g *gate) lastAnswers() {
	g.last.Store(true)
	g.current.Load().SendAway()
}

// State is the replicated state that requests read.
type State interface {
	httpapi.Store
	httpapi.Transactions
	httpapi.Leases
	httpapi.Locks
}

// open passes requests on to the node.
func (g *gate) open(store State) {
	g.opts.Store, g.opts.Transactions, g.opts.Leases, g.opts.Locks = store, store, store, store
	g.current.Store(httpapi.New(g.opts))
}

// shut refuses requests from now on.
func (g *gate) shut() {
	g.current.Store(httpapi.NewStandby(g.opts, &api.Error{
		Code: api.Stopping, Detail: "the node has stopped; use another node",
	}))
}
