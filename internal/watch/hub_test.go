package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// randomRun is a random history in one goroutine: changes, snapshots and compactions,
// and clients that read a step now and then, come, go, and come back.
type randomRun struct {
	*history
	clients []*client
	// fault, if not nil, spoils a client's position when it comes back.
	fault func(from uint64) uint64
}

func (r *randomRun) open() (*client, error) {
	s, err := r.hub.OpenStream()
	return &client{stream: s, judges: make(map[*Watch]*judge), pending: make(map[*Watch][]record)}, err
}

func (r *randomRun) act() error {
	switch n := r.rnd.IntN(100); {
	case n < 25:
		r.apply(1 + r.rnd.IntN(4))
	case n < 27:
		r.apply(stepChanges + r.rnd.IntN(2*stepChanges))
	case n < 28:
		r.install(1 + r.rnd.IntN(50))
	case n < 30:
		r.store.compactTo(r.store.Revision() - min(r.store.Revision()-1, uint64(r.rnd.IntN(100))))
	case n < 34:
		c, err := r.open()
		if err != nil {
			return err
		}
		r.clients = append(r.clients, c)
		return c.add(r.store, r.spec(0))
	case len(r.clients) == 0:
	case n < 40:
		return r.addTo(r.clients[r.rnd.IntN(len(r.clients))])
	case n < 42:
		return r.removeFrom(r.clients[r.rnd.IntN(len(r.clients))])
	case n < 46:
		return r.reconnect(r.rnd.IntN(len(r.clients)))
	default:
		_, err := r.clients[r.rnd.IntN(len(r.clients))].next()
		return err
	}
	return nil
}

// addTo adds a watch with a random beginning, sometimes in the future.
func (r *randomRun) addTo(c *client) error {
	visible := r.store.Revision()
	return c.add(r.store, r.spec(min(1+uint64(r.rnd.IntN(int(visible)+3)), visible+3)))
}

func (r *randomRun) removeFrom(c *client) error {
	for w := range c.judges {
		c.stream.Remove(w)
		delete(c.judges, w)
		delete(c.pending, w)
		break
	}
	return nil
}

// reconnect opens a stream that continues where another was.
func (r *randomRun) reconnect(i int) error {
	old := r.clients[i]
	next, err := r.open()
	if err != nil {
		return err
	}
	old.stream.Close()
	r.clients[i] = next
	for w, j := range old.judges {
		if len(old.pending[w]) > 0 {
			continue // it was catching up and its position is not known yet
		}
		spec := j.spec
		if r.fault != nil {
			spec.From = r.fault(spec.From)
		}
		before := len(next.judges)
		if err := next.add(r.store, spec); err != nil {
			return err
		}
		if len(next.judges) > before { // its place was not compacted
			for _, nj := range next.judges {
				if r.fault != nil && nj.spec.From == spec.From {
					nj.spec.From = j.spec.From
				}
			}
		}
	}
	return nil
}

// finish lets all clients read to the end, where nothing may be missing.
func (r *randomRun) finish() error {
	for _, c := range r.clients {
		for idle := false; !idle; {
			var err error
			if idle, err = c.next(); err != nil {
				return err
			}
		}
		if through, ok := c.stream.Progress(); !ok || len(c.stream.watches) > 0 && through != r.store.Revision() {
			return fmt.Errorf("an idle stream is at %d (%v), not %d", through, ok, r.store.Revision())
		}
		c.stream.Close()
	}
	if s := r.hub.Stats(); s.Streams != 0 || s.Watches != 0 || s.Behind != 0 || r.hub.index.ranges != nil || len(r.hub.index.keys) != 0 {
		return fmt.Errorf("streams were left behind: %+v", s)
	}
	return nil
}

func run(seed uint64, steps int, fault func(uint64) uint64) error {
	r := &randomRun{history: newHistory(seed, Options{WindowBytes: 1 << (10 + seed%8)}), fault: fault}
	for range steps {
		if err := r.act(); err != nil {
			return err
		}
	}
	return r.finish()
}

// TestRandomHistories: whatever happens in between, every watch gets what its
// specification says, each event once, in order, whole revisions, with the right
// previous values.
func TestRandomHistories(t *testing.T) {
	base := rand.Uint64()
	for i := range uint64(25) {
		if err := run(base+i, 1200, nil); err != nil {
			t.Fatalf("seed %d: %v", base+i, err)
		}
	}
}

// TestRandomHistoriesSeeFaults: the judge goes red if clients come back at the wrong
// place.
func TestRandomHistoriesSeeFaults(t *testing.T) {
	for name, fault := range map[string]func(uint64) uint64{
		"one too late":  func(from uint64) uint64 { return from + 1 },
		"one too early": func(from uint64) uint64 { return max(from, 2) - 1 },
	} {
		seen := false
		for seed := uint64(0); seed < 20 && !seen; seed++ {
			seen = run(seed, 1500, fault) != nil
		}
		if !seen {
			t.Errorf("%s: no history showed it", name)
		}
	}
}

// TestJudge: what a stream must not do is noticed.
func TestJudge(t *testing.T) {
	h := newHistory(1, Options{})
	h.hub.Applied([]kvstore.Change{
		h.store.commit([]string{"a", "b"}, h.remove), h.store.commit([]string{"a"}, func() bool { return false }), h.store.commit([]string{"c"}, h.remove),
	}, h.store.show)
	right := func() []record {
		previous := h.store.changes[0].Events[0].KV
		second := slices.Clone(h.store.changes[1].Events)
		second[0].Previous = &previous
		return []record{{revision: 2, events: slices.Clone(h.store.changes[0].Events)}, {revision: 3, events: second}}
	}
	for name, c := range map[string]struct {
		spoil   func(r []record) []record
		through uint64
		red     bool
	}{
		"right":            {func(r []record) []record { return r }, 3, false},
		"missing":          {func(r []record) []record { return r[1:] }, 3, true},
		"missing at last":  {func(r []record) []record { return r }, 4, true},
		"twice":            {func(r []record) []record { return append(r, r[1]) }, 3, true},
		"order":            {func(r []record) []record { return []record{r[1], r[0]} }, 3, true},
		"split":            {func(r []record) []record { r[0].events = r[0].events[:1]; return r }, 3, true},
		"no previous":      {func(r []record) []record { r[1].events[0].Previous = nil; return r }, 3, true},
		"wrong previous":   {func(r []record) []record { r[1].events[0].Previous.Version++; return r }, 3, true},
		"early progress":   {func(r []record) []record { return r[:1] }, 3, true},
		"unseen progress":  {func(r []record) []record { return r }, 5, true},
		"operations order": {func(r []record) []record { slices.Reverse(r[0].events); return r }, 3, true},
	} {
		j := &judge{spec: Spec{From: 2}, store: h.store}
		if err := j.check(c.spoil(right()), c.through); (err != nil) != c.red {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEventsAreVisible: who gets an event can read its revision (W2), and who registers
// between two batches gets exactly the second one (W3), under real concurrency.
func TestEventsAreVisible(t *testing.T) {
	h := newHistory(rand.Uint64(), Options{WindowBytes: 8 << 10})
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := watchSome(h.hub, h.store); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3000 {
		h.apply(1 + h.rnd.IntN(3))
	}
	h.hub.Close()
	close(stop)
	clients.Wait()
}

// watchSome watches everything for some revisions.
func watchSome(hub *Hub, store *fakeStore) error {
	s, err := hub.OpenStream()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	defer s.Close()
	_, revision, err := s.Add(Spec{})
	for next := revision + 1; err == nil && next < revision+20; {
		var b *Portion
		if b, err = s.Next(context.Background()); err != nil {
			break
		}
		for _, d := range b.Deliveries {
			if d.Revision != next {
				return fmt.Errorf("revision %d instead of %d", d.Revision, next)
			}
			if visible := store.Revision(); visible < next {
				return fmt.Errorf("revision %d was delivered, but %d is visible", next, visible)
			}
			next++
		}
		if b.Idle {
			<-s.Ready()
		}
	}
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// TestRegisterWhileApplying: the batch that makes a revision visible has the lock that a
// registration needs.
func TestRegisterWhileApplying(t *testing.T) {
	h := newHistory(1, Options{})
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	added := make(chan uint64)
	batch := h.commit(1)
	h.hub.Applied(batch, func() {
		go func() {
			_, revision, _ := s.Add(Spec{})
			added <- revision
		}()
		select {
		case <-added:
			t.Error("a watch was registered while a batch was becoming visible")
		default:
		}
		h.store.show()
	})
	if got := <-added; got != batch[0].Revision {
		t.Errorf("registered at %d, want %d", got, batch[0].Revision)
	}
}

// TestClose: streams end, and no new ones begin.
func TestClose(t *testing.T) {
	h := newHistory(1, Options{})
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Next(context.Background()); err != nil || !b.Idle {
		t.Fatal(b, err)
	}
	h.apply(3)
	h.hub.Close()
	<-s.Ready()
	if _, err := s.Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next: %v", err)
	}
	if through, ok := s.Progress(); through != 1 || !ok {
		t.Errorf("progress %d, %v: what was not delivered must not count", through, ok)
	}
	s.Close()
	if _, err := h.hub.OpenStream(); !errors.Is(err, ErrClosed) {
		t.Errorf("OpenStream: %v", err)
	}
}

// TestTooMany: watches are counted, and places are given back.
func TestTooMany(t *testing.T) {
	h := newHistory(1, Options{MaxWatches: 2})
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, _, err := s.Add(Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Add(Spec{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("a third watch: %v", err)
	}
	s.Remove(w)
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Error(err)
	}
}

// TestOlderState: no stream continues over a state that is older than what it said.
func TestOlderState(t *testing.T) {
	h := newHistory(1, Options{})
	h.apply(5)
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	h.hub.Reset(func() { h.store.visible = 3 })
	if _, err := s.Next(context.Background()); !errors.Is(err, errBroken) {
		t.Errorf("Next: %v", err)
	}
}

// TestCompactedPrevious: once the revision before an event is compacted, nobody
// gets the previous pair, not even from the window of those who had it before.
func TestCompactedPrevious(t *testing.T) {
	h := newHistory(1, Options{})
	form := &Form{Slot: 0, Previous: true, Encode: func(dst []byte, e *kvstore.Event) []byte { return fmt.Append(dst, e.Previous != nil) }}
	watched := func() (previous bool, encoded string) {
		t.Helper()
		s, err := h.hub.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, _, err := s.Add(Spec{From: 3}); err != nil {
			t.Fatal(err)
		}
		b, err := s.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		e := b.Deliveries[0].Events[0]
		kv, err1 := s.Previous(e)
		text, err2 := s.Encode(e, form)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return kv != nil, string(text)
	}
	keep, err := h.hub.OpenStream() // the window is filled only while somebody watches
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	if _, _, err := keep.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := h.store.commit([]string{"k"}, func() bool { return false })
		h.hub.Applied([]kvstore.Change{c}, h.store.show)
	}
	if previous, encoded := watched(); !previous || encoded != "true" {
		t.Fatalf("previous pair %t, encoded %s", previous, encoded)
	}
	h.store.mu.Lock()
	h.store.compact = 3
	h.store.mu.Unlock()
	if previous, encoded := watched(); previous || encoded != "false" {
		t.Errorf("after the compaction: previous pair %t, encoded %s", previous, encoded)
	}
}

// TestWindowIsBounded: neither large changes nor encoded forms exceed the limit (W5).
func TestWindowIsBounded(t *testing.T) {
	const limit = 64 << 10
	h := newHistory(1, Options{WindowBytes: limit})
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	var forms [MaxForms]Form
	for i := range forms {
		forms[i] = Form{Slot: i, Previous: i%2 == 1, Encode: func(dst []byte, e *kvstore.Event) []byte { return append(dst, make([]byte, 3000)...) }}
	}
	for i := range 500 {
		h.apply(1 + i%7)
		if i%100 == 99 { // one that does not fit
			c := h.store.commit([]string{"large"}, h.remove)
			c.Events[0].KV.Value = make([]byte, 2*limit)
			h.hub.Applied([]kvstore.Change{c}, h.store.show)
		}
		b, err := s.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range b.Deliveries {
			for _, e := range d.Events {
				for j := range forms {
					if got, err := s.Encode(e, &forms[j]); err != nil || len(got) != 3000 {
						t.Fatal(len(got), err)
					}
				}
			}
		}
		if got := h.hub.Stats().WindowBytes; got > (1+keptPerByte)*limit {
			t.Fatalf("the window holds %d bytes, the limit is %d and twice as much for forms", got, limit)
		}
	}
	h.hub.Reset(func() {})
	if got := h.hub.Stats().WindowBytes; got != 0 {
		t.Errorf("an empty window counts %d bytes", got)
	}
}

// TestFewHoldWhatTheyRead: a stream reads from disk only while few others hold what they
// have read (W7), and who gives up waiting for that has lost nothing.
func TestFewHoldWhatTheyRead(t *testing.T) {
	h := newHistory(1, Options{})
	h.apply(5) // before the first watch: not in the window
	var streams []*Stream
	for range diskReaders + 1 {
		s, err := h.hub.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, _, err := s.Add(Spec{From: 2}); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	last := streams[diskReaders]
	for _, s := range streams[:diskReaders] {
		if b, err := s.Next(context.Background()); err != nil || len(b.Deliveries) == 0 {
			t.Fatal(b, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := last.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one more has read: %v", err)
	}
	streams[0].PutBack(0)
	for _, s := range []*Stream{last, streams[1], streams[0]} {
		b, err := s.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if s != streams[1] && (len(b.Deliveries) != 5 || b.Deliveries[0].Revision != 2) {
			t.Errorf("got %+v", b.Deliveries)
		}
		s.Release()
	}
}

// TestFormsAreShared: an event is encoded once for all streams.
func TestFormsAreShared(t *testing.T) {
	h := newHistory(1, Options{})
	encoded := 0
	form := &Form{Encode: func(dst []byte, e *kvstore.Event) []byte { encoded++; return append(dst, e.KV.Key...) }}
	var streams []*Stream
	for range 3 {
		s, err := h.hub.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, _, err := s.Add(Spec{}); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	h.hub.Applied([]kvstore.Change{h.store.commit([]string{"a"}, h.remove)}, h.store.show)
	for _, s := range streams {
		b, err := s.Next(context.Background())
		if err != nil || len(b.Deliveries) != 1 {
			t.Fatal(b, err)
		}
		if got, err := s.Encode(b.Deliveries[0].Events[0], form); err != nil || string(got) != "a" {
			t.Error(string(got), err)
		}
	}
	if encoded != 1 {
		t.Errorf("encoded %d times", encoded)
	}
}

// TestIndex compares the index with trying every range.
func TestIndex(t *testing.T) {
	h := newHistory(rand.Uint64(), Options{})
	var x index
	var all []*Watch
	for range 5000 {
		if h.rnd.IntN(3) > 0 || len(all) == 0 {
			w := &Watch{spec: h.spec(0)}
			x.add(w)
			all = append(all, w)
		} else {
			i := h.rnd.IntN(len(all))
			x.remove(all[i])
			all = slices.Delete(all, i, i+1)
		}
		key := []byte(h.keys()[0])
		found := make(map[*Watch]int)
		for _, s := range x.visit(key, nil) {
			for _, w := range s.watches {
				found[w]++
			}
		}
		for _, w := range all {
			e := kvstore.Event{KV: kvstore.KV{Key: key}}
			plain := w.spec
			plain.NoPuts, plain.NoDeletes = false, false
			want := 0
			if plain.wants(&e) {
				want = 1
			}
			if found[w] != want {
				t.Fatalf("key %q, watch %q to %q: found %d times, want %d", key, w.spec.Start, w.spec.End, found[w], want)
			}
		}
	}
}

// TestDeliveredCountsOnce: what is put back is counted when it is delivered for good.
func TestDeliveredCountsOnce(t *testing.T) {
	h := newHistory(rand.Uint64(), Options{})
	s, err := h.hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Add(Spec{}); err != nil {
		t.Fatal(err)
	}
	var changes []kvstore.Change
	for range 5 {
		changes = append(changes, h.store.commit([]string{"a", "b"}, func() bool { return false }))
	}
	h.hub.Applied(changes, h.store.show)
	for _, back := range []int{3, 0, 1} { // of 5, 2, and 2 revisions
		p, err := s.Next(t.Context())
		if err != nil || back >= len(p.Deliveries) {
			t.Fatalf("%+v, %v", p, err)
		}
		s.PutBack(back)
	}
	if n := h.hub.Stats().Delivered; n != 8 {
		t.Errorf("%d events count as delivered, want 8", n)
	}
	for {
		p, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if p.Idle {
			break
		}
	}
	if n := h.hub.Stats().Delivered; n != 10 {
		t.Errorf("%d events count as delivered, want 10", n)
	}
}
