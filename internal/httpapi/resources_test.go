package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// withMemory gives a Server n bytes for requests.
func withMemory(b *budget.Budget) func(*Options) { return func(o *Options) { o.Memory = b } }

// A request whose body has not arrived has no place: a client that stops sending would
// otherwise keep it from others.
func TestBodiesArriveWithoutAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		for _, rt := range s.router.all {
			for _, m := range rt.methods {
				if !m.body || rt.exempt {
					continue
				}
				path := strings.NewReplacer("{key}", "k?incr=1", "{id}", "3", "{name}", "l?ttl=1s").Replace(rt.pattern)
				if m.name == http.MethodPut || rt.pattern == shortPattern {
					path = strings.NewReplacer("{key}", "3", "{id}", "3").Replace(rt.pattern)
				}
				body, end := io.Pipe()
				r := httptest.NewRequest(m.name, path, body)
				r.ContentLength = 20
				answered := make(chan int)
				go func() {
					w := httptest.NewRecorder()
					s.ServeHTTP(w, r)
					answered <- w.Code
				}()
				synctest.Wait()
				select {
				case code := <-answered:
					t.Errorf("%s %s: %d before its body", m.name, path, code)
					continue
				default:
				}
				if n := s.InFlight(); n != 0 {
					t.Errorf("%s %s: %d places are taken", m.name, path, n)
				}
				_ = end.CloseWithError(io.ErrUnexpectedEOF)
				if code := <-answered; code != 400 && code != 404 {
					t.Errorf("%s %s: %d", m.name, path, code)
				}
			}
		}
	})
}

// A request that has a body which its handler does not want still needs a place.
func TestUnwantedBodyNeedsAPlace(t *testing.T) {
	s, _ := newServer(t)
	s.places = budget.NewPlaces(0)
	s.places.MaxWaiting = 0
	for _, target := range []string{"GET /k", "DELETE /v1/kv/k", "GET /v1/members", "PUT /v1/kv/k"} {
		method, path, _ := strings.Cut(target, " ")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader("body")))
		if w.Code != 429 {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
}

// unread is the writer of a client that does not read until it is told to.
type unread struct {
	*httptest.ResponseRecorder
	read chan struct{}
}

func (w *unread) Write(p []byte) (int, error) {
	<-w.read
	return w.ResponseRecorder.Write(p)
}

// An answer that nobody reads has no place, its memory is claimed until it has been
// written, and no iterator is open.
func TestUnreadAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(64 * mib)
		store := new(countingStore)
		s, f := newServer(t, withMemory(b), func(o *Options) { store.Store, o.Store = o.Store, store })
		f.t = t
		for i := range 8 {
			f.put(fmt.Sprintf("k%d", i), strings.Repeat("\x01", mib/2)) // three MiB in JSON
		}
		for _, c := range []struct {
			target, accept string
			least, most    int64
		}{
			{"/k1", "*/*", mib / 2, mib / 2},
			{"/k1", jsonType, 3 * mib, 4 * mib},
			{"/k1?meta&pretty", "*/*", 6 * mib, 24 * mib},
			{"/v1/kv?prefix=k", "*/*", 3 * mib, 7 * mib},
			{"/v1/kv?prefix=k&keys_only", "*/*", 0, 0},
			{"/v1/kv?prefix=k", ndjsonType, 3 * mib, 7 * mib},
			{"/v1/kv?prefix=k&keys_only", ndjsonType, streamBytes, streamBytes},
		} {
			w := &unread{httptest.NewRecorder(), make(chan struct{})}
			r := httptest.NewRequest("GET", c.target, nil)
			r.Header.Set("Accept", c.accept)
			done := make(chan struct{})
			go func() { defer close(done); s.ServeHTTP(w, r) }()
			synctest.Wait()
			if got := taken(t, b); got < c.least || got > c.most {
				t.Errorf("%s, %s: %d bytes are claimed", c.target, c.accept, got)
			}
			if s.InFlight() != 0 || store.open.Load() != 0 {
				t.Errorf("%s, %s: %d places, %d iterators", c.target, c.accept, s.InFlight(), store.open.Load())
			}
			close(w.read)
			<-done
			if got := taken(t, b); got != 0 || w.Code != 200 || w.Body.Len() == 0 {
				t.Errorf("%s, %s: %d bytes are still claimed; %d with %d bytes", c.target, c.accept, got, w.Code, w.Body.Len())
			}
		}
	})
}

// taken returns what is claimed of a budget.
func taken(t *testing.T, b *budget.Budget) int64 {
	t.Helper()
	small, large := b.Taken()
	return small + large
}

// countingStore counts the lists that are open, and tells when one has ended.
type countingStore struct {
	Store
	open  atomic.Int64
	after func()
}

func (s *countingStore) List(ctx context.Context, r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error) {
	s.open.Add(1)
	if s.after != nil {
		defer s.after()
	}
	defer s.open.Add(-1)
	return s.Store.List(ctx, r, fn)
}

// Requests that need memory are refused while others hold it all, and small ones pass.
func TestRequestsWithoutMemory(t *testing.T) {
	b := budget.New(8 * mib)
	f := newFixture(t, withMemory(b))
	big := strings.Repeat("v", mib)
	f.put("big", big)
	f.put("small", "v")
	other := b.Claim()
	if !other.Try(6 * mib) {
		t.Fatal("the budget is not free")
	}
	answers := make(chan *answer)
	all := []struct{ method, target, body, accept string }{
		{"GET", "/big", "", "*/*"},
		{"GET", "/big?meta", "", "*/*"},
		{"GET", "/v1/kv", "", "*/*"},
		{"GET", "/v1/kv", "", ndjsonType},
		{"PUT", "/big", big, "*/*"},
		{"POST", "/v1/kv/big?append", big, "*/*"},
		{"PUT", "/v1/kv/small?return=previous", "v", "*/*"},
		{"DELETE", "/v1/kv/big?return=previous", "", "*/*"},
	}
	for _, c := range all { // each waits for a while
		go func() {
			var a *answer
			defer func() { answers <- a }() // also if there was none
			a = f.do(c.method, c.target, c.body, "Accept: "+c.accept)
		}()
	}
	for range all {
		a := <-answers
		if a == nil {
			t.Fatal("a request was not answered")
		}
		a.problem(429, api.Overloaded, "--request-memory", "8388608", "nothing was done").wantHeader("Retry-After", "1")
	}
	f.do("GET", "/small", "").wantBody(200, "v")
	f.do("PUT", "/small", strings.Repeat("w", budget.Small)).want(204)
	f.do("GET", "/small", "").want(200)
	f.do("GET", "/v1/kv?keys_only", "").want(200, `"count":2`)
	other.Release()
	f.do("GET", "/big", "").wantBody(200, big)
	f.do("PUT", "/big", big).want(204)
	f.do("PUT", "/v1/kv/big?return=previous", "v").want(200, big)
	if got := taken(t, b); got != 0 {
		t.Errorf("%d bytes are still claimed", got)
	}
}

// A page for which there is too little memory ends early, and the listing goes on.
func TestPagesEndWithTheMemory(t *testing.T) {
	b := budget.New(8 * mib)
	f := newFixture(t, withMemory(b))
	for i := range 20 {
		f.put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 100_000))
	}
	if names, pages := f.pages("prefix=k"); len(names) != 20 || pages != 1 {
		t.Fatalf("%d keys on %d pages", len(names), pages)
	}
	other := b.Claim()
	other.Try(5 * mib)
	for _, q := range []string{"prefix=k", "prefix=k&reverse"} {
		if names, pages := f.pages(q); len(names) != 20 || pages < 4 || pages > 7 {
			t.Errorf("%s: %d keys on %d pages", q, len(names), pages)
		}
		if names, _ := f.lines(q); len(names) != 20 {
			t.Errorf("%s: %d keys in the stream", q, len(names))
		}
	}
	other.Release()
	if got := taken(t, b); got != 0 {
		t.Errorf("%d bytes are still claimed", got)
	}
}

// A stream has every entry once, in order, whatever their sizes, although each chunk is
// a listing of its own.
func TestStreamsOfChunks(t *testing.T) {
	b := budget.New(16 * mib)
	other := b.Claim()
	store := &countingStore{after: func() { other.Release() }}
	f := newFixture(t, withMemory(b), func(o *Options) { store.Store, o.Store = o.Store, store })
	var want []string
	for i, size := range []int{10, 10, 3 * streamChunk, streamChunk, 10, streamChunk / 2, streamChunk / 2, mib, 0, mib, mib, streamChunk - 80, 3 * streamChunk, 10, 7} {
		want = append(want, fmt.Sprintf("k%02d", i))
		f.put(want[i], strings.Repeat("\x01v", size/2))
	}
	// With 10 MiB held, the largest entries find no room until the listing that came
	// upon them has ended.
	for _, held := range []int64{0, 10 * mib} {
		for _, limit := range []string{"", "&limit=16", "&limit=100"} {
			other.Try(held)
			if names, end := f.lines("prefix=k" + limit); !slices.Equal(names, want) || end.Next != "" {
				t.Errorf("%d bytes held: %q, next %q", held, names, end.Next)
			}
			other.Try(held)
			names, end := f.lines("prefix=k&reverse" + limit)
			if slices.Reverse(names); !slices.Equal(names, want) || end.Next != "" {
				t.Errorf("%d bytes held, reverse: %q, next %q", held, names, end.Next)
			}
		}
		other.Try(held)
		names, end := f.lines("prefix=k&limit=9")
		rest, _ := f.lines("prefix=k&cursor=" + end.Next)
		if !slices.Equal(append(names, rest...), want) {
			t.Errorf("%d bytes held: %q and then %q", held, names, rest)
		}
	}
}

// Only a few backups are sent at once.
func TestSnapshotsAtOnce(t *testing.T) {
	f := newFixture(t)
	begun, end := make(chan struct{}), make(chan error)
	f.health.snapshot = func(w io.Writer) error {
		_, err := w.Write([]byte("snapshot"))
		begun <- struct{}{}
		return errors.Join(err, <-end)
	}
	answers := make(chan *answer)
	for range maxSnapshots {
		go func() { answers <- f.do("GET", "/v1/snapshot", "") }()
		<-begun
	}
	f.do("GET", "/v1/snapshot", "").problem(429, api.Overloaded, "4 snapshots").wantHeader("Retry-After", "1")
	if n := f.server.InFlight(); n != 0 {
		t.Errorf("%d places are taken", n)
	}
	for range maxSnapshots {
		end <- nil
		(<-answers).wantBody(200, "snapshot")
	}
	go func() { <-begun; end <- nil }()
	f.do("GET", "/v1/snapshot", "").want(200)
}

// A client that reads just enough not to be idle must not keep its snapshot for days.
func TestSnapshotsNeedARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(t)
		w := &slowReader{ResponseRecorder: httptest.NewRecorder()}
		f.health.snapshot = func(to io.Writer) error {
			for {
				if _, err := to.Write(make([]byte, 32<<10)); err != nil {
					return err
				}
			}
		}
		begin := time.Now()
		func() {
			defer func() { _ = recover() }() // the connection is cut
			s.ServeHTTP(w, httptest.NewRequest("GET", "/v1/snapshot", nil))
		}()
		if took := time.Since(begin); took < writeGrace || took > writeGrace+writeGrace/8 {
			t.Errorf("it took %v", took)
		}
		w.pause = time.Second / 2
		begin, w.Body = time.Now(), nil
		f.health.snapshot = func(to io.Writer) error {
			for range 600 {
				if _, err := to.Write(make([]byte, 32<<10)); err != nil {
					return err
				}
			}
			return nil
		}
		s.ServeHTTP(w, httptest.NewRequest("GET", "/v1/snapshot", nil))
		if took := time.Since(begin); took != 300*time.Second {
			t.Errorf("at 64 KiB per second, it took %v", took)
		}
	})
}

// slowReader takes a while to accept each write, and heeds deadlines.
type slowReader struct {
	*httptest.ResponseRecorder
	pause    time.Duration // 0 means writeGrace / 10
	deadline time.Time
}

func (w *slowReader) SetWriteDeadline(t time.Time) error { w.deadline = t; return nil }

func (w *slowReader) Write(p []byte) (int, error) {
	if time.Sleep(cmp.Or(w.pause, writeGrace/10)); time.Now().After(w.deadline) {
		return 0, os.ErrDeadlineExceeded
	}
	return len(p), nil
}
