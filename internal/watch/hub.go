package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// Source is the store, as far as the hub reads it.
type Source interface {
	// Revision returns the newest revision that readers see, and CompactRevision the
	// oldest one.
	Revision() uint64
	CompactRevision() uint64
	// Get returns a key at a revision.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
	// Changes calls fn with the changes from a revision on, in order, until fn returns
	// false or an error, or readers see no further one. It returns the newest
	// revision that readers saw. A revision that fn did not get changed nothing: a
	// restored store has skipped a billion of them. Events have no previous pair. The
	// error is a *kvstore.CompactedError if the change log does not reach back to the
	// revision.
	Changes(ctx context.Context, from uint64, fn func(kvstore.Change) (more bool, err error)) (newest uint64, err error)
}

// Errors of streams.
var (
	// ErrClosed means that the hub was closed: the node is stopping. What has not been
	// delivered can be watched from another node.
	ErrClosed = errors.New("the node is stopping")
	// ErrTooMany means that there are as many watches as allowed.
	ErrTooMany = errors.New("too many watches")
	// errBroken means that the source does not continue what it said before.
	errBroken = errors.New("the change log is out of order")
)

const (
	// DefaultWindowBytes holds a few seconds of changes under full load: long enough for
	// streams that hang for a moment, and for clients that come from a lost node.
	DefaultWindowBytes = 16 << 20
	// DefaultMaxWatches is the number of watches in a hub by default.
	DefaultMaxWatches = 10_000
)

// diskReaders is how many streams may hold a portion from disk: more would not read
// faster, but each holds a step of events, or one revision if that is larger.
const diskReaders = 4

// firstChange is the lowest revision that a change can have: the empty store is at 1.
const firstChange = 2

// Options configure a Hub. Zero values mean the defaults.
type Options struct {
	// WindowBytes bounds the changes in memory. Their encoded forms may take twice as
	// much in addition.
	WindowBytes int
	MaxWatches  int
}

// Hub connects the goroutine that applies with the streams. The package comment tells
// how. Applied and Reset belong to the goroutine that applies; all other methods may be
// called from any goroutine.
type Hub struct {
	source     Source
	maxWatches int
	// disk has a token for each stream that holds what it has read from disk.
	disk chan struct{}
	done chan struct{} // closed by Close

	// mu protects what follows. Who changes anything holds it for writing: Applied,
	// and streams that come, change or go. Streams that read hold it for reading.
	mu      sync.RWMutex
	visible uint64 // the newest revision that readers see
	window  window
	// used is set by the first watch. Until then nothing is kept, so a node that
	// nobody watches pays nothing.
	used    bool
	index   index
	streams map[*Stream]struct{}
	watches int
	closed  bool
	batch   uint64  // counts the calls of Applied
	found   []*spot // scratch of Applied
	applied Applied

	delivered atomic.Uint64
	behind    atomic.Int64 // streams whose last read was from disk
	reads     atomic.Uint64
}

// New returns a Hub without a source: it has no revision, and no stream can be opened,
// until Attach.
func New(o Options) *Hub {
	if o.WindowBytes == 0 {
		o.WindowBytes = DefaultWindowBytes
	}
	if o.MaxWatches == 0 {
		o.MaxWatches = DefaultMaxWatches
	}
	return &Hub{maxWatches: o.MaxWatches, disk: make(chan struct{}, diskReaders), done: make(chan struct{}), window: window{limit: o.WindowBytes}, streams: make(map[*Stream]struct{})}
}

// Attach gives the hub its source, which must not be applied to meanwhile.
func (h *Hub) Attach(source Source) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.source, h.visible = source, source.Revision()
	h.window.reset(h.visible)
}

// Applied takes the changes of a batch, in order. show makes them visible to readers.
// The hub keeps the bytes of the changes, which must not be modified.
func (h *Hub) Applied(changes []kvstore.Change, show func()) {
	if len(changes) == 0 {
		show()
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	show()
	h.visible = changes[len(changes)-1].Revision
	h.applied.add(changes)
	if !h.used {
		h.window.reset(h.visible)
		return
	}
	h.batch++
	shared := share(changes)
	for i := range shared {
		h.touch(&shared[i])
		h.window.add(&shared[i])
	}
}

// touch signals the streams that a change concerns.
func (h *Hub) touch(c *change) {
	for i := range c.events {
		h.found = h.index.visit(c.events[i].KV.Key, h.found[:0])
		for _, s := range h.found {
			if s.batch == h.batch {
				continue // its streams were signaled in this batch
			}
			s.batch = h.batch
			for _, w := range s.watches {
				w.stream.touch(c.revision)
			}
		}
	}
}

// Reset replaces everything: show makes another state visible, usually a newer one that
// was received as a snapshot. Streams read what they have missed from the change log of
// that state.
func (h *Hub) Reset(show func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.visible
	show()
	if h.source == nil {
		return
	}
	h.visible = h.source.Revision()
	h.window.reset(h.visible)
	for s := range h.streams {
		// A state that is older than what was delivered is another history: nothing
		// that the stream could say next would follow.
		s.lost = s.lost || h.visible < before
		s.touch(before + 1)
	}
}

// Close ends all streams: their next call of Next returns ErrClosed.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		close(h.done)
	}
	h.closed = true
	for s := range h.streams {
		s.signal()
	}
}

// Revision returns the newest revision that readers see, as the streams know it.
func (h *Hub) Revision() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.visible
}

// OpenStream returns a stream without watches. Its owner closes it.
func (h *Hub) OpenStream() (*Stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.source == nil {
		return nil, ErrClosed
	}
	s := &Stream{hub: h, ready: make(chan struct{}, 1)}
	h.streams[s] = struct{}{}
	return s, nil
}

// register adds a watch to a stream and returns the visible revision. A watch from
// revision+1 gets exactly what is applied from now on (W3).
func (h *Hub) register(w *Watch) (revision uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return 0, ErrClosed
	case h.watches >= h.maxWatches:
		return 0, fmt.Errorf("%w: this node has %d", ErrTooMany, h.watches)
	}
	if w.spec.From == 0 {
		w.spec.From = h.visible + 1
	}
	if compact := h.source.CompactRevision(); w.spec.From < compact {
		return 0, &kvstore.CompactedError{CompactRevision: compact}
	}
	w.spec.From = max(w.spec.From, firstChange)
	h.used = true
	h.watches++
	h.index.add(w)
	return h.visible, nil
}

func (h *Hub) unregister(w *Watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches--
	h.index.remove(w)
}

// Stats are figures about a hub.
type Stats struct {
	Streams, Watches int
	// Behind is the number of streams whose last read was from the change log on disk.
	Behind int
	// WindowBytes is what the window holds, and WindowFloor the revision before its first.
	WindowBytes int
	WindowFloor uint64
	// Delivered counts events, once for each watch that got one. DiskReads counts the
	// steps in which streams read the change log on disk.
	Delivered, DiskReads uint64
	Applied              Applied
}

// Applied counts what the changes that this node has applied did.
type Applied struct {
	Puts, Deletes uint64
	Compound      uint64 // revisions that changed more than one key
}

func (a *Applied) add(changes []kvstore.Change) {
	for i := range changes {
		events := changes[i].Events
		for j := range events {
			if events[j].Deleted {
				a.Deletes++
			} else {
				a.Puts++
			}
		}
		if len(events) > 1 {
			a.Compound++
		}
	}
}

// Stats returns the figures.
func (h *Hub) Stats() Stats {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return Stats{
		Streams: len(h.streams), Watches: h.watches, Behind: int(h.behind.Load()),
		WindowBytes: h.window.size + int(h.window.kept.Load()), WindowFloor: h.window.floor,
		Delivered: h.delivered.Load(), DiskReads: h.reads.Load(), Applied: h.applied,
	}
}
