package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore"
)

const (
	// stepChanges bounds the changes that a stream examines in one step, so that it
	// holds the hub's lock, or an iterator of the store, only briefly.
	stepChanges = 256
	// stepBytes is the size of events at which a step ends. Only a stream that encodes
	// holds as much; see Stream.PutBack.
	stepBytes = 32 << 10
	// fewWatches is the number of watches up to which comparing a key with each of them
	// is as fast as an index.
	fewWatches = 4
)

// Spec says what a watch is about.
type Spec struct {
	// Start and End bound the keys: Start <= key < End. A nil End is open.
	Start, End []byte
	// Single selects the key Start alone.
	Single bool
	// From is the first revision whose events are wanted. 0 means the one after the
	// visible revision. A later one is allowed: nothing is delivered before it.
	From uint64
	// NoPuts and NoDeletes leave events out.
	NoPuts, NoDeletes bool
}

// Watch is one watch of a stream.
type Watch struct {
	stream *Stream
	spec   Spec
	// next is the first revision that a lagging watch has not examined, 0 for a live one.
	next uint64
	// found are the events of the change that is being examined.
	found []*Event
}

// Stream delivers the events of its watches. All its methods but Ready belong to one
// goroutine at a time.
type Stream struct {
	hub *Hub
	// pending is the first change since the stream became idle that may concern it; 0 if
	// there is none. The goroutine that applies sets it under the hub's lock for writing,
	// the stream clears it under the lock for reading.
	pending atomic.Uint64
	ready   chan struct{} // capacity 1: there may be something to deliver

	// The rest belongs to the goroutine of the stream.

	// next is the first revision that the live watches have not examined. 0 means idle:
	// they have examined all before pending, or everything visible if that is 0.
	next    uint64
	through uint64 // all up to it was examined for the live watches
	watches []*Watch
	lagging []*Watch
	index   *index   // of watches, nil while they are few
	portion *Portion // nil while idle
	spots   []*spot
	touched []*Watch // with events of the change that is being examined
	onDisk  bool     // the last step read from disk
	turn    bool     // of the lagging watches; see step
	// lost is set under the hub's lock when the revisions that the stream has delivered
	// do not exist any more.
	lost bool
}

// touch notes a change that may concern the stream. The hub's lock is held for writing.
func (s *Stream) touch(revision uint64) {
	if s.pending.Load() == 0 {
		s.pending.Store(revision)
		s.signal()
	}
}

func (s *Stream) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Ready receives when Next may have something to deliver after it was idle.
func (s *Stream) Ready() <-chan struct{} { return s.ready }

// Closed is closed when the hub is, for an owner that waits for something else.
func (s *Stream) Closed() <-chan struct{} { return s.hub.done }

// Delivery is the events of one revision for one watch, in the order of the operations.
type Delivery struct {
	Watch    *Watch
	Revision uint64
	Events   []*Event
}

// Compacted is a watch that has ended, because what it was to get next is compacted.
type Compacted struct {
	Watch           *Watch
	CompactRevision uint64
}

// Portion is what Next returns. It is valid until the next call of Next or Release.
type Portion struct {
	Deliveries []Delivery
	Ended      []Compacted
	// Idle means that there is nothing to deliver until Ready receives.
	Idle bool

	events []*Event // backs Deliveries
	only   *Watch   // the lagging watch that it is for; nil if it is for the live ones
	disk   bool     // it has one of the places of Hub.disk
	window []*change
	bytes  int
}

// portions has the portions that no stream needs at the moment: idle streams have none.
var portions = sync.Pool{New: func() any { return &Portion{window: make([]*change, 0, stepChanges)} }}

// idle is the portion of every stream that has nothing to deliver.
var idle = &Portion{Idle: true}

// Release lets go of the last portion and of everything that its events refer to.
func (s *Stream) Release() {
	b := s.portion
	if b == nil {
		return
	}
	s.portion = nil
	if b.disk {
		b.disk = false
		<-s.hub.disk
	}
	clear(b.Deliveries)
	clear(b.Ended)
	clear(b.events)
	clear(b.window)
	b.only = nil
	b.Deliveries, b.Ended, b.events, b.window, b.bytes = b.Deliveries[:0], b.Ended[:0], b.events[:0], b.window[:0], 0
	portions.Put(b)
}

// PutBack releases the last portion and continues at its delivery i, which comes again
// with everything after it: a stream that has to wait does so without what it has read. A watch
// that ended with the portion gets nothing again, since what was put back is compacted.
//
// What precedes i does not come again. Positions are revisions, and several watches may
// have events of one, so those that got theirs are moved behind it. Without that, the
// first watch would get the revision twice when the second had to wait.
func (s *Stream) PutBack(i int) {
	all, only := s.portion.Deliveries, s.portion.only
	revision, events := all[i].Revision, 0
	for _, d := range all[i:] {
		events += len(d.Events)
	}
	s.hub.delivered.Add(-uint64(events))
	for j := i - 1; j >= 0 && all[j].Revision == revision; j-- {
		all[j].Watch.spec.From = revision + 1
	}
	s.Release()
	if only != nil {
		s.lagAgain(only, revision)
		return
	}
	s.next, s.through = revision, min(s.through, revision-1)
}

// lagAgain moves a watch back to a revision. It may have joined the live ones.
func (s *Stream) lagAgain(w *Watch, revision uint64) {
	if !slices.Contains(s.watches, w) {
		return // it has ended
	}
	if w.next == 0 {
		s.lagging = append(s.lagging, w)
	}
	w.next = revision
}

// Add adds a watch and returns it with the revision that was visible when it was
// registered. Its errors are *kvstore.CompactedError, ErrTooMany and ErrClosed.
func (s *Stream) Add(spec Spec) (*Watch, uint64, error) {
	w := &Watch{stream: s, spec: spec}
	revision, err := s.hub.register(w)
	if err != nil {
		return nil, 0, err
	}
	s.place(w, revision)
	s.watches = append(s.watches, w)
	if s.index != nil {
		s.index.add(w)
	} else if len(s.watches) > fewWatches {
		s.index = new(index)
		for _, w := range s.watches {
			s.index.add(w)
		}
	}
	return w, revision, nil
}

// place decides where a new watch begins.
func (s *Stream) place(w *Watch, revision uint64) {
	switch {
	case len(s.watches) == 0:
		s.next, s.through = min(w.spec.From, revision+1), min(w.spec.From, revision+1)-1
	case w.spec.From <= revision:
		// The others may have examined later revisions already.
		w.next = w.spec.From
		s.lagging = append(s.lagging, w)
		s.signal()
	}
}

// Remove ends a watch.
func (s *Stream) Remove(w *Watch) {
	i := slices.Index(s.watches, w)
	if i < 0 {
		return // it has ended
	}
	s.hub.unregister(w)
	s.watches = slices.Delete(s.watches, i, i+1)
	s.lagging = slices.DeleteFunc(s.lagging, func(l *Watch) bool { return l == w })
	if s.index != nil {
		s.index.remove(w)
	}
}

// Close ends the stream and its watches.
func (s *Stream) Close() {
	s.Release()
	for len(s.watches) > 0 {
		s.Remove(s.watches[len(s.watches)-1])
	}
	s.noteDisk(false)
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.streams, s)
}

// Progress returns a revision through which everything was delivered on all watches. It
// is false while a watch is catching up.
func (s *Stream) Progress() (uint64, bool) { return s.through, len(s.lagging) == 0 }

// Next returns what comes next, in one bounded step: possibly nothing although the stream
// is not idle. It does not wait for changes, but may read from disk, for which it waits
// until few others do: release the portion before you wait for a client. The error is
// ErrClosed if the node is stopping, otherwise that of the store.
func (s *Stream) Next(ctx context.Context) (*Portion, error) {
	s.Release()
	s.portion = portions.Get().(*Portion)
	err := s.step(ctx)
	if err == nil {
		s.hub.delivered.Add(uint64(len(s.portion.events)))
		return s.portion, nil
	}
	s.Release()
	if errors.Is(err, errIdle) {
		return idle, nil
	}
	return nil, err
}

// step lets the live watches and the lagging ones take turns: a watch that has the whole
// history to catch up on must not hold up the others.
func (s *Stream) step(ctx context.Context) error {
	if s.turn = !s.turn; s.turn && len(s.lagging) > 0 {
		return s.catchUp(ctx)
	}
	err := s.advance(ctx)
	if errors.Is(err, errIdle) && len(s.lagging) > 0 {
		return s.catchUp(ctx)
	}
	return err
}

// errIdle means that there is nothing to examine.
var errIdle = errors.New("idle")

// advance examines a step of changes for the live watches.
func (s *Stream) advance(ctx context.Context) error {
	from, onDisk, err := s.look()
	switch {
	case err != nil:
		return err
	case onDisk:
		s.next = from
		var compacted *kvstore.CompactedError
		s.next, err = s.readDisk(ctx, from, math.MaxUint64, nil)
		s.through = max(s.through, s.next-1)
		if errors.As(err, &compacted) {
			s.endAll(max(compacted.CompactRevision, s.next))
			return nil
		}
		return err
	}
	next := s.examine(from, nil)
	s.through = next - 1
	if whole := from + uint64(len(s.portion.window)); next < whole || s.next != 0 {
		s.next = next // the step ended early, or did not reach the visible revision
	}
	return nil
}

// look copies the next changes from the window. If that does not reach back far enough,
// onDisk is true. If the step reaches the visible revision, the stream counts as idle
// from here on: whatever is applied later is left in pending, even before the step has
// been examined.
func (s *Stream) look() (from uint64, onDisk bool, err error) {
	h := s.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := s.usable(); err != nil {
		return 0, false, err
	}
	from = s.next
	if from == 0 {
		from = s.pending.Load()
	}
	switch {
	case from == 0 || from > h.visible:
		s.next, s.through = 0, h.visible
		s.pending.Store(0)
		return 0, false, errIdle
	case from <= h.window.floor:
		return from, true, nil
	}
	s.portion.window = h.window.read(from, h.visible, s.portion.window)
	s.next = from
	if from+uint64(len(s.portion.window)) > h.visible {
		s.next = 0
		s.pending.Store(0)
	}
	return from, false, nil
}

// catchUp examines a step of changes for the first lagging watch, and moves it behind
// the others in the queue, or to the live ones if it has reached their position.
func (s *Stream) catchUp(ctx context.Context) error {
	w := s.lagging[0]
	to, onDisk, err := s.lookBack(w)
	if err != nil {
		return err
	}
	s.lagging = append(s.lagging[1:], w)
	s.portion.only = w
	var next uint64
	if onDisk {
		next, err = s.readDisk(ctx, w.next, to, w)
	} else {
		next = s.examine(w.next, w)
	}
	var compacted *kvstore.CompactedError
	if errors.As(err, &compacted) {
		s.end(w, compacted.CompactRevision)
		return nil
	}
	w.next = min(next, to)
	if w.next == to {
		s.lagging = s.lagging[:len(s.lagging)-1]
		w.next = 0
		s.through = max(s.through, to-1) // there was nothing for the others before it
	}
	return err
}

// lookBack is look for a lagging watch. It returns the position of the live watches,
// which is where the watch joins them.
func (s *Stream) lookBack(w *Watch) (to uint64, onDisk bool, err error) {
	h := s.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := s.usable(); err != nil {
		return 0, false, err
	}
	if to = s.next; to == 0 {
		to = s.pending.Load()
	}
	if to == 0 {
		to = h.visible + 1
	}
	if w.next < to && w.next <= h.window.floor {
		return to, true, nil
	}
	s.portion.window = h.window.read(w.next, to-1, s.portion.window)
	return to, false, nil
}

// usable returns why the stream cannot deliver anything, under the hub's lock.
func (s *Stream) usable() error {
	switch {
	case s.lost:
		return errBroken
	case s.hub.closed:
		return ErrClosed
	}
	return nil
}

// examine takes what concerns the watches from the changes of a step, and returns the
// first revision that it did not get to. only, if not nil, is the one watch to look at.
func (s *Stream) examine(from uint64, only *Watch) (next uint64) {
	s.noteDisk(false)
	for i, c := range s.portion.window {
		if s.portion.bytes >= stepBytes {
			return from + uint64(i)
		}
		s.take(c, only)
	}
	return from + uint64(len(s.portion.window))
}

// readDisk is examine for changes from the disk, up to before the revision to.
func (s *Stream) readDisk(ctx context.Context, from, to uint64, only *Watch) (next uint64, err error) {
	s.noteDisk(true)
	select {
	case s.hub.disk <- struct{}{}:
		s.portion.disk = true
	case <-s.hub.done:
		return from, ErrClosed
	case <-ctx.Done():
		return from, ctx.Err()
	}
	s.hub.reads.Add(1)
	next = from
	left := stepChanges
	newest, err := s.hub.source.Changes(ctx, from, func(c kvstore.Change) (bool, error) {
		if c.Revision < next {
			return false, fmt.Errorf("%w: revision %d after %d", errBroken, c.Revision, next-1)
		}
		if left--; c.Revision >= to {
			left, next = 0, to
			return false, nil
		}
		next = c.Revision + 1
		// The events are this stream's own: others are at other places.
		own := share([]kvstore.Change{c})
		own[0].gone, own[0].own = true, true
		s.take(&own[0], only)
		if s.portion.bytes >= stepBytes {
			left = 0
		}
		return left > 0, nil
	})
	if err == nil && left > 0 { // it has read to the end
		next = max(next, newest+1)
	}
	return next, err
}

// noteDisk keeps the count of streams that read from disk.
func (s *Stream) noteDisk(onDisk bool) {
	if s.onDisk == onDisk {
		return
	}
	s.onDisk = onDisk
	if onDisk {
		s.hub.behind.Add(1)
	} else {
		s.hub.behind.Add(-1)
	}
}

// take adds the deliveries of one change.
func (s *Stream) take(c *change, only *Watch) {
	for i := range c.events {
		e := &c.events[i]
		switch {
		case only != nil:
			s.offer(only, e)
		case s.index == nil:
			for _, w := range s.watches {
				s.offerLive(w, e)
			}
		default:
			s.spots = s.index.visit(e.KV.Key, s.spots[:0])
			for _, p := range s.spots {
				for _, w := range p.watches {
					s.offerLive(w, e)
				}
			}
		}
	}
	b := s.portion
	for _, w := range s.touched {
		start := len(b.events)
		b.events = append(b.events, w.found...)
		b.Deliveries = append(b.Deliveries, Delivery{Watch: w, Revision: c.revision, Events: b.events[start:len(b.events):len(b.events)]})
		clear(w.found)
		if w.found = w.found[:0]; cap(w.found) > stepChanges {
			w.found = nil
		}
	}
	s.touched = s.touched[:0]
}

// offerLive gives an event to a watch that shares the position of the stream.
func (s *Stream) offerLive(w *Watch, e *Event) {
	if w.next == 0 {
		s.offer(w, e)
	}
}

// offer gives an event to a watch, if the watch wants it.
func (s *Stream) offer(w *Watch, e *Event) {
	if !w.wants(e) {
		return
	}
	if len(w.found) == 0 {
		s.touched = append(s.touched, w)
	}
	w.found = append(w.found, e)
	s.portion.bytes += len(e.KV.Key) + len(e.KV.Value) + eventOverhead
}

func (w *Watch) wants(e *Event) bool {
	p := &w.spec
	switch {
	case e.Deleted && p.NoDeletes || !e.Deleted && p.NoPuts || e.KV.ModRevision < p.From:
		return false
	case p.Single:
		return bytes.Equal(e.KV.Key, p.Start)
	}
	return bytes.Compare(e.KV.Key, p.Start) >= 0 && before(e.KV.Key, p.End)
}

// end removes a watch whose place is compacted.
func (s *Stream) end(w *Watch, compactRevision uint64) {
	s.portion.Ended = append(s.portion.Ended, Compacted{w, compactRevision})
	s.Remove(w)
}

// endAll ends the live watches whose place is compacted. Those that begin later stay: one
// from "now on" may have been added to a stream that is far behind.
func (s *Stream) endAll(compactRevision uint64) {
	for _, w := range slices.Clone(s.watches) {
		if w.next == 0 && w.spec.From < compactRevision {
			s.end(w, compactRevision)
		}
	}
	s.next, s.through = compactRevision, compactRevision-1
}
