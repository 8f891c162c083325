package feed

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	mib     = 1 << 20
	changes = 6
)

// disk is a store with large values, of which it makes a new copy for each reader.
type disk struct {
	mu   sync.Mutex
	read []weak.Pointer[byte] // the values that readers got
}

func (d *disk) Revision() uint64        { return changes + 1 }
func (d *disk) CompactRevision() uint64 { return 1 }
func (d *disk) Get([]byte, uint64) (kvstore.KV, uint64, error) {
	return kvstore.KV{}, 0, kvstore.ErrKeyNotFound
}
func (d *disk) change(revision uint64, value []byte) kvstore.Change {
	kv := kvstore.KV{Key: []byte("big"), Value: value, CreateRevision: 2, ModRevision: revision, Version: revision - 1}
	return kvstore.Change{Revision: revision, Events: []kvstore.Event{{KV: kv}}}
}

func (d *disk) Changes(_ context.Context, from uint64, fn func(kvstore.Change) (bool, error)) (uint64, error) {
	for r := from; r <= d.Revision(); r++ {
		value := bytes.Repeat([]byte{1}, mib/4)
		d.mu.Lock()
		d.read = append(d.read, weak.Make(&value[0]))
		d.mu.Unlock()
		if more, err := fn(d.change(r, value)); err != nil || !more {
			return d.Revision(), err
		}
	}
	return d.Revision(), nil
}

// held returns how many of the values that were read are still in memory.
func (d *disk) held() (n int) {
	runtime.GC()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.read {
		if p.Value() != nil {
			n++
		}
	}
	return n
}

// client is the connection of one that reads what is smaller than a chunk at once, and the
// rest only when reads is closed.
type client struct {
	gone  context.Context
	reads chan struct{}
	mu    sync.Mutex
	got   []byte
}

func (c *client) Header() http.Header { return http.Header{} }
func (c *client) WriteHeader(int)     {}
func (c *client) Write(b []byte) (int, error) {
	if len(b) > chunk {
		select {
		case <-c.reads:
		case <-c.gone.Done():
			return 0, errors.New("connection closed")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, b...)
	return len(b), nil
}

// start runs a feed of everything for a client.
func start(t *testing.T, hub *watch.Hub, memory budget.SharedClaim, c *client) <-chan error {
	s, err := hub.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Add(watch.Spec{From: 2}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	f := &Feed{W: c, Stream: s, From: 2, Memory: memory, Patience: time.Minute, LimitWrite: func(int) {}}
	go func() {
		defer s.Close()
		ended <- f.Run(c.gone)
	}()
	return ended
}

// Clients that do not read hold no value that was read for them, and what they hold of
// answers is claimed; others find room for their requests. Once they read, they get all.
func TestStalledClientsHoldTheirPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, memory := new(disk), budget.New(4*mib)
		hub := watch.New(watch.Options{})
		hub.Attach(store)
		share := memory.Share()
		ctx, cancel := context.WithCancel(t.Context())
		c := &client{gone: ctx, reads: make(chan struct{})}
		var clients []*client
		var ends []<-chan error
		for range 20 {
			c := &client{gone: ctx, reads: c.reads}
			clients, ends = append(clients, c), append(ends, start(t, hub, share.Claim(), c))
		}
		synctest.Wait()
		if n := store.held(); n > 0 {
			t.Errorf("clients that do not read hold %d values", n)
		}
		if _, large := memory.Taken(); large == 0 || large > memory.Limit()*3/8 {
			t.Errorf("%d bytes are claimed", large)
		}
		put := memory.Claim()
		if !put.Try(mib) {
			t.Error("there is no room for a put")
		}
		put.Release()
		close(c.reads)
		synctest.Wait()
		for _, c := range clients {
			c.mu.Lock()
			if n := bytes.Count(c.got, []byte(`"type":"put"`)); n != changes {
				t.Errorf("a client got %d events, want %d", n, changes)
			}
			c.mu.Unlock()
		}
		if small, large := memory.Taken(); small+large != 0 {
			t.Errorf("%d bytes are still claimed", small+large)
		}
		cancel()
		for _, end := range ends {
			if err := <-end; !errors.Is(err, ErrGone) {
				t.Error(err)
			}
		}
	})
}

// A revision that exceeds a piece is sent in several, without a gap, a repeat or a second
// id (F1).
func TestLargeRevisionInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, memory := new(disk), budget.New(4*mib)
		hub := watch.New(watch.Options{})
		hub.Attach(store)
		ctx, cancel := context.WithCancel(t.Context())
		c := &client{gone: ctx, reads: make(chan struct{})}
		close(c.reads)
		s, err := hub.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Add(watch.Spec{}); err != nil {
			t.Fatal(err)
		}
		share := memory.Share()
		f := &Feed{W: c, Stream: s, From: changes + 2, Memory: share.Claim(), Patience: time.Minute, LimitWrite: func(int) {}}
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		synctest.Wait()
		whole := kvstore.Change{Revision: changes + 2}
		for range 7 {
			whole.Events = append(whole.Events, store.change(whole.Revision, bytes.Repeat([]byte{1}, mib/8)).Events...)
		}
		hub.Applied([]kvstore.Change{whole}, func() {})
		synctest.Wait()
		c.mu.Lock()
		events, more := bytes.Count(c.got, []byte(`"type":"put"`)), bytes.Count(c.got, []byte(`"more":true`))
		c.mu.Unlock()
		if events != 7 || more != 6 {
			t.Errorf("%d events, %d of them with more", events, more)
		}
		cancel()
		if err := <-ended; !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		s.Close()
	})
}

// A stream that waits for memory still says how far it is, and ends with the hub.
func TestProgressWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, memory := new(disk), budget.New(4*mib)
		hub := watch.New(watch.Options{})
		hub.Attach(store)
		share := memory.Share()
		all := share.Claim()
		for n := int64(4 * mib); n > 0 && !all.Try(n); n /= 2 {
		}
		c := &client{gone: t.Context(), reads: make(chan struct{})}
		end := start(t, hub, share.Claim(), c)
		time.Sleep(3*DefaultProgress + time.Second) // virtual, and less than the patience of the claim
		c.mu.Lock()
		lines, events := bytes.Count(c.got, []byte(`"type":"progress"`)), bytes.Count(c.got, []byte(`"type":"put"`))
		c.mu.Unlock()
		if lines != 1+3 || events != 0 {
			t.Errorf("%d lines of progress and %d events", lines, events)
		}
		hub.Close()
		synctest.Wait()
		select {
		case err := <-end:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the stream does not end with the hub")
		}
		all.Release()
		if small, large := memory.Taken(); small+large != 0 {
			t.Errorf("%d bytes are still claimed", small+large)
		}
	})
}
