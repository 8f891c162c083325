package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// fakeStore is a Source that keeps every change. It is the truth that the tests compare
// with.
type fakeStore struct {
	mu       sync.Mutex
	changes  []kvstore.Change // changes[i] is revision i+2; the empty store is at 1
	visible  uint64
	compact  uint64
	versions map[string][]kvstore.Event
}

func newFakeStore() *fakeStore {
	return &fakeStore{visible: 1, compact: 1, versions: make(map[string][]kvstore.Event)}
}

func (f *fakeStore) Revision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.visible
}

func (f *fakeStore) CompactRevision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.compact
}

func (f *fakeStore) Get(key []byte, revision uint64) (kvstore.KV, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision < f.compact {
		return kvstore.KV{}, 0, &kvstore.CompactedError{CompactRevision: f.compact}
	}
	if e := f.at(key, revision); e != nil && !e.Deleted {
		return e.KV, revision, nil
	}
	return kvstore.KV{}, revision, kvstore.ErrKeyNotFound
}

// at returns the last event of a key up to a revision, or nil.
func (f *fakeStore) at(key []byte, revision uint64) *kvstore.Event {
	versions := f.versions[string(key)]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].KV.ModRevision <= revision {
			return &versions[i]
		}
	}
	return nil
}

func (f *fakeStore) Changes(_ context.Context, from uint64, fn func(kvstore.Change) (bool, error)) (uint64, error) {
	f.mu.Lock()
	newest := f.visible
	if from < f.compact {
		defer f.mu.Unlock()
		return 0, &kvstore.CompactedError{CompactRevision: f.compact}
	}
	var pinned []kvstore.Change // what an iterator would keep
	if from <= newest {
		pinned = f.changes[from-2 : newest-1]
	}
	f.mu.Unlock()
	for _, c := range pinned {
		if len(c.Events) == 0 {
			continue // skipped
		}
		if more, err := fn(c); err != nil || !more {
			return newest, err
		}
	}
	return newest, nil
}

// commit appends a revision with an event for each key: a delete if the key exists and
// remove says so. It does not make the revision visible.
func (f *fakeStore) commit(keys []string, remove func() bool) kvstore.Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := kvstore.Change{Revision: uint64(len(f.changes) + 2)}
	for _, k := range keys {
		old := f.at([]byte(k), c.Revision)
		kv := kvstore.KV{Key: []byte(k), ModRevision: c.Revision, CreateRevision: c.Revision, Version: 1}
		e := kvstore.Event{KV: kv}
		switch {
		case old != nil && !old.Deleted && remove():
			e = kvstore.Event{KV: kvstore.KV{Key: kv.Key, ModRevision: c.Revision}, Deleted: true}
		case old != nil && !old.Deleted:
			e.KV.CreateRevision, e.KV.Version = old.KV.CreateRevision, old.KV.Version+1
		}
		if !e.Deleted {
			e.KV.Value = fmt.Appendf(nil, "%s@%d", k, c.Revision)
		}
		f.versions[k] = append(f.versions[k], e)
		c.Events = append(c.Events, e)
	}
	f.changes = append(f.changes, c)
	return c
}

// show makes everything that was committed visible.
func (f *fakeStore) show() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.visible = uint64(len(f.changes) + 1)
}

func (f *fakeStore) compactTo(revision uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compact = max(f.compact, revision)
}

// history writes random changes into a store and its hub.
type history struct {
	rnd   *rand.Rand
	store *fakeStore
	hub   *Hub
}

func newHistory(seed uint64, o Options) *history {
	h := &history{rnd: rand.New(rand.NewPCG(seed, 0)), store: newFakeStore(), hub: New(o)}
	h.hub.Attach(h.store)
	return h
}

// keys returns distinct random keys out of a few.
func (h *history) keys() []string {
	var keys []string
	for range 1 + h.rnd.IntN(3) {
		k := string("abc"[h.rnd.IntN(3)]) + string("/\x00z"[h.rnd.IntN(3)]) + string("12"[h.rnd.IntN(2)])
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

func (h *history) remove() bool { return h.rnd.IntN(3) == 0 }

func (h *history) commit(n int) []kvstore.Change {
	var batch []kvstore.Change
	for range n {
		batch = append(batch, h.store.commit(h.keys(), h.remove))
	}
	return batch
}

// apply commits and applies a batch.
func (h *history) apply(n int) { h.hub.Applied(h.commit(n), h.store.show) }

// install makes changes visible that the hub has not seen, as a snapshot does. It may
// come from a store that was restored, and has skipped revisions.
func (h *history) install(n int) {
	h.commit(n)
	if h.rnd.IntN(3) == 0 {
		for range h.rnd.IntN(1000) {
			h.store.commit(nil, nil)
		}
		h.commit(h.rnd.IntN(3))
	}
	h.hub.Reset(h.store.show)
}

// spec returns a random watch.
func (h *history) spec(from uint64) Spec {
	s := Spec{From: from, NoPuts: h.rnd.IntN(8) == 0, NoDeletes: h.rnd.IntN(8) == 0}
	switch h.rnd.IntN(4) {
	case 0:
		s.Single, s.Start = true, []byte(h.keys()[0])
	case 1:
		s.Start = []byte{"abc"[h.rnd.IntN(3)]}
		s.End = kvstore.Prefix(s.Start).End()
	case 2:
		s.Start, s.End = []byte(h.keys()[0]), []byte(h.keys()[0])
		if bytes.Compare(s.Start, s.End) >= 0 {
			s.End = nil
		}
	}
	return s
}

// wants is Watch.wants, written down a second time.
func (s *Spec) wants(e *kvstore.Event) bool {
	if e.Deleted && s.NoDeletes || !e.Deleted && s.NoPuts {
		return false
	}
	if s.Single {
		return string(e.KV.Key) == string(s.Start)
	}
	return string(e.KV.Key) >= string(s.Start) && (s.End == nil || string(e.KV.Key) < string(s.End))
}

// record is what a watch got in one revision.
type record struct {
	revision uint64
	events   []kvstore.Event // with Previous
}

// judge checks what a client got over all its watches of one specification, which began
// where the one before had ended.
type judge struct {
	spec    Spec // From is the first revision that is to come
	store   *fakeStore
	through uint64 // what progress was told
}

// check checks the next records, and that nothing up to through is missing (W1, W4).
func (j *judge) check(records []record, through uint64) error {
	if through < j.through {
		return fmt.Errorf("progress went from %d back to %d", j.through, through)
	}
	j.through = through
	if visible := j.store.Revision(); through > visible {
		return fmt.Errorf("progress %d is beyond the visible revision %d", through, visible)
	}
	for ; j.spec.From <= through; j.spec.From++ {
		want := j.want(j.spec.From)
		if len(want) == 0 {
			continue
		}
		if len(records) == 0 || records[0].revision != j.spec.From {
			return fmt.Errorf("revision %d is missing", j.spec.From)
		}
		if err := j.compare(&records[0], want); err != nil {
			return err
		}
		records = records[1:]
	}
	if len(records) > 0 {
		return fmt.Errorf("revision %d was delivered again, or early, or for nothing; next is %d, through %d", records[0].revision, j.spec.From, through)
	}
	return nil
}

func (j *judge) want(revision uint64) (want []kvstore.Event) {
	if revision < 2 {
		return nil
	}
	for _, e := range j.store.changes[revision-2].Events {
		if j.spec.wants(&e) {
			want = append(want, e)
		}
	}
	return want
}

func (j *judge) compare(r *record, want []kvstore.Event) error {
	if len(r.events) != len(want) {
		return fmt.Errorf("revision %d has %d events, want %d", r.revision, len(r.events), len(want))
	}
	for i := range want {
		got := &r.events[i]
		if got.Deleted != want[i].Deleted || !equalKV(&got.KV, &want[i].KV) {
			return fmt.Errorf("revision %d, event %d: %+v, want %+v", r.revision, i, got, want[i])
		}
		previous := j.store.at(got.KV.Key, r.revision-1)
		exists := previous != nil && !previous.Deleted
		switch {
		case got.Previous == nil && exists && r.revision-1 >= j.store.CompactRevision():
			return fmt.Errorf("revision %d, event %d has no previous pair", r.revision, i)
		case got.Previous != nil && (!exists || !equalKV(got.Previous, &previous.KV)):
			return fmt.Errorf("revision %d, event %d: previous %+v, want %+v", r.revision, i, got.Previous, previous)
		}
	}
	return nil
}

func equalKV(a, b *kvstore.KV) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && a.ModRevision == b.ModRevision &&
		a.CreateRevision == b.CreateRevision && a.Version == b.Version && a.Lease == b.Lease
}

// client reads a stream with some watches, each with its judge.
type client struct {
	stream  *Stream
	judges  map[*Watch]*judge
	pending map[*Watch][]record // not judged yet
	steps   int
}

// add adds a watch. A watch that cannot begin is no fault if its place is compacted.
func (c *client) add(store *fakeStore, spec Spec) error {
	w, revision, err := c.stream.Add(spec)
	var compacted *kvstore.CompactedError
	if errors.As(err, &compacted) {
		if spec.From != 0 && spec.From < compacted.CompactRevision {
			return nil
		}
		return fmt.Errorf("from %d: %w", spec.From, err)
	}
	if err != nil {
		return err
	}
	if spec.From == 0 {
		spec.From = revision + 1
	}
	c.judges[w] = &judge{spec: spec, store: store}
	return nil
}

// next takes one step and judges what it can.
func (c *client) next() (idle bool, err error) {
	b, err := c.stream.Next(context.Background())
	if err != nil {
		return false, err
	}
	defer c.stream.Release()
	last := make(map[*Watch]uint64)
	for i, d := range b.Deliveries {
		if i > 0 && c.putBack(b, i) {
			return false, c.judge()
		}
		if d.Revision <= last[d.Watch] {
			return false, fmt.Errorf("revision %d was split, or came after %d", d.Revision, last[d.Watch])
		}
		last[d.Watch] = d.Revision
		r := record{revision: d.Revision}
		for _, e := range d.Events {
			plain := e.Event
			if plain.Previous, err = c.stream.Previous(e); err != nil {
				return false, err
			}
			r.events = append(r.events, plain)
		}
		c.pending[d.Watch] = append(c.pending[d.Watch], r)
	}
	for _, e := range b.Ended {
		if c.judges[e.Watch].spec.From >= e.CompactRevision {
			return false, fmt.Errorf("a watch at %d ended by a compaction to %d", c.judges[e.Watch].spec.From, e.CompactRevision)
		}
		delete(c.judges, e.Watch)
		delete(c.pending, e.Watch)
	}
	return b.Idle, c.judge()
}

// putBack puts back what is left of a portion now and then.
func (c *client) putBack(b *Portion, i int) bool {
	c.steps++
	if c.steps%3 > 0 {
		return false
	}
	for _, e := range b.Ended {
		delete(c.judges, e.Watch)
		delete(c.pending, e.Watch)
	}
	c.stream.PutBack(i)
	return true
}

// judge judges all watches, once none of them lags. What some have got beyond the progress,
// because the rest of a portion was put back, is judged later.
func (c *client) judge() error {
	through, ok := c.stream.Progress()
	if !ok {
		return nil
	}
	for w, j := range c.judges {
		told := max(through, j.through)
		records := c.pending[w]
		n := 0
		for n < len(records) && records[n].revision <= told {
			n++
		}
		if err := j.check(records[:n], told); err != nil {
			return err
		}
		if c.pending[w] = records[n:]; n == len(records) {
			delete(c.pending, w)
		}
	}
	return nil
}
