package watch

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// MaxForms is the number of forms that a process can have.
const MaxForms = 4

// Form is a way to encode an event, such as JSON with the previous value. What Encode
// appends is kept with the event and used by all streams that ask for the same form.
type Form struct {
	// Slot distinguishes the forms of a process; it is below MaxForms.
	Slot int
	// Previous sets Event.Previous for Encode.
	Previous bool
	Encode   func(dst []byte, e *kvstore.Event) []byte
	// Size returns at least the length of what Encode appends. nil means that it is about
	// as long as the key and the value.
	Size func(e *kvstore.Event) int
}

// Event is an event that streams share. Its Previous is not set; see Stream.Previous.
type Event struct {
	kvstore.Event
	change *change
	forms  [MaxForms]atomic.Pointer[[]byte]
	// previous is nil while it is not known, and noPair if there is none.
	previous atomic.Pointer[kvstore.KV]
}

// noPair stands for a previous pair that does not exist, or is compacted.
var noPair = new(kvstore.KV)

// change is all events of a revision.
type change struct {
	revision uint64
	events   []Event
	// size is what the change costs without forms and previous pairs.
	size int
	// kept is the size of forms and previous pairs that the window has accepted, and
	// gone is set when the change leaves the window. Both belong to the hub's lock:
	// kept is added to by readers, gone is set by the writer.
	kept atomic.Int64
	gone bool
	// own is set if the change was read from disk for one stream.
	own bool
}

const (
	changeOverhead = int(unsafe.Sizeof(change{}) + unsafe.Sizeof((*change)(nil)))
	eventOverhead  = int(unsafe.Sizeof(Event{}))
)

// share makes the changes ready to be shared, with one allocation for all of their
// events.
func share(changes []kvstore.Change) []change {
	n := 0
	for i := range changes {
		n += len(changes[i].Events)
	}
	out, events := make([]change, len(changes)), make([]Event, n)
	for i := range changes {
		c := &out[i]
		c.revision, c.size = changes[i].Revision, changeOverhead
		n := len(changes[i].Events)
		c.events, events = events[:n:n], events[n:]
		for j := range c.events {
			e := &c.events[j]
			e.Event, e.change = changes[i].Events[j], c
			e.Event.Previous = nil
			c.size += eventOverhead + len(e.KV.Key) + len(e.KV.Value)
		}
	}
	return out
}

// Previous returns the pair before the event: nil for a creation, and if that revision
// is compacted. Who asks first reads it from the store.
func (s *Stream) Previous(e *Event) (*kvstore.KV, error) { return s.hub.previous(e) }

func (h *Hub) previous(e *Event) (*kvstore.KV, error) {
	if h.orphaned(e) {
		return nil, nil
	}
	p := e.previous.Load()
	if p == nil {
		var err error
		if p, err = h.readPrevious(e); err != nil {
			return nil, err
		}
		if e.change.own || h.keep(e.change, len(p.Value)) {
			e.previous.Store(p)
		}
	}
	if p == noPair {
		return nil, nil
	}
	return p, nil
}

// orphaned says that the revision before the event is compacted. The window may
// still have the pair from then, but whether a stream gets it must not depend on
// what others have watched.
func (h *Hub) orphaned(e *Event) bool { return e.KV.ModRevision <= h.source.CompactRevision() }

// encoded returns the event in a form if the window has it, or nil.
func (h *Hub) encoded(e *Event, f *Form) *[]byte {
	b := e.forms[f.Slot].Load()
	if b != nil && f.Previous && h.orphaned(e) {
		return nil
	}
	return b
}

func (h *Hub) readPrevious(e *Event) (*kvstore.KV, error) {
	if !e.Deleted && e.KV.CreateRevision == e.KV.ModRevision {
		return noPair, nil
	}
	kv, _, err := h.source.Get(e.KV.Key, e.KV.ModRevision-1)
	var compacted *kvstore.CompactedError
	switch {
	case err == nil:
		return &kv, nil
	case errors.As(err, &compacted), errors.Is(err, kvstore.ErrKeyNotFound):
		return noPair, nil
	}
	return nil, fmt.Errorf("read the previous value: %w", err)
}

// Size returns at least how long the event is in a form. It does not encode it.
func (s *Stream) Size(e *Event, f *Form) (int, error) {
	if b := s.hub.encoded(e, f); b != nil {
		return len(*b), nil
	}
	plain, err := s.plain(e, f)
	return f.size(&plain), err
}

// Append appends the event in a form. What is only this stream's is encoded in place;
// what the window has is encoded once for all streams, and copied.
func (s *Stream) Append(dst []byte, e *Event, f *Form) ([]byte, error) {
	if e.change.own {
		plain, err := s.plain(e, f)
		if err != nil {
			return dst, err
		}
		return f.Encode(dst, &plain), nil
	}
	b, err := s.Encode(e, f)
	return append(dst, b...), err
}

// Encode returns the event in a form. The bytes are shared: they must not be changed.
func (s *Stream) Encode(e *Event, f *Form) ([]byte, error) {
	if b := s.hub.encoded(e, f); b != nil {
		return *b, nil
	}
	plain, err := s.plain(e, f)
	if err != nil {
		return nil, err
	}
	b := f.Encode(make([]byte, 0, f.size(&plain)), &plain)
	if s.hub.keep(e.change, cap(b)) {
		// Several streams may get here at once and each encode the event. That is
		// rare, and cheaper than a lock for each event.
		e.forms[f.Slot].Store(&b)
	}
	return b, nil
}

// plain returns the event as a form wants it.
func (s *Stream) plain(e *Event, f *Form) (plain kvstore.Event, err error) {
	plain = e.Event
	if f.Previous {
		plain.Previous, err = s.hub.previous(e)
	}
	return plain, err
}

// plainBytes is about how long an event is without its key and its value.
const plainBytes = 192

func (f *Form) size(e *kvstore.Event) int {
	if f.Size != nil {
		return f.Size(e)
	}
	return plainBytes + len(e.KV.Key) + len(e.KV.Value)
}
