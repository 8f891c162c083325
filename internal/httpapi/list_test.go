package httpapi

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// listed is a page, or a line of a stream, as a client decodes it.
type listed struct {
	Type           string
	Revision       uint64
	KVs            []pair `json:"kvs"`
	Prefixes       []string
	PrefixesBase64 []string `json:"prefixes_base64"`
	Count          uint64
	Next           string
	pair
	Prefix       *string
	PrefixBase64 *string `json:"prefix_base64"`
}

type pair struct {
	Key       *string
	KeyBase64 *string `json:"key_base64"`
	Value     *string
}

func text(plain, b64 *string) string {
	if plain != nil {
		return *plain
	}
	b, err := base64.StdEncoding.DecodeString(*b64)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// names returns the keys and groups of a page, sorted.
func (l *listed) names() []string {
	var all []string
	for _, kv := range l.KVs {
		all = append(all, text(kv.Key, kv.KeyBase64))
	}
	all = append(all, l.Prefixes...)
	for _, p := range l.PrefixesBase64 {
		all = append(all, text(nil, &p))
	}
	slices.Sort(all)
	return all
}

// pages follows the cursors to the end, and checks the count and revision of each page.
func (f *fixture) pages(query string) (names []string, pages int) {
	f.t.Helper()
	var revision uint64
	for next := ""; ; {
		target := "/v1/kv?" + query
		if next != "" {
			target += "&cursor=" + next
		}
		var l listed
		f.do("GET", target, "").want(200).decode(&l)
		if n := l.names(); uint64(len(n)) != l.Count {
			f.t.Errorf("%s: count %d of %d entries", target, l.Count, len(n))
		}
		if revision != 0 && l.Revision != revision {
			f.t.Errorf("%s: revision went from %d to %d", target, revision, l.Revision)
		}
		revision = l.Revision
		names = append(names, l.names()...)
		pages++
		if next = l.Next; next == "" {
			slices.Sort(names)
			return names, pages
		}
	}
}

// lines reads a stream and returns its entries in order, and its last line.
func (f *fixture) lines(query string) ([]string, listed) {
	f.t.Helper()
	a := f.do("GET", "/v1/kv?"+query, "", "Accept: application/x-ndjson").want(200).wantHeader("Content-Type", ndjsonType)
	var names []string
	sc := bufio.NewScanner(strings.NewReader(a.body))
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		var l listed
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			f.t.Fatalf("%v in %.200q", err, sc.Text())
		}
		switch {
		case l.Type == "end":
			if sc.Scan() || l.Count != uint64(len(names)) {
				f.t.Errorf("%s: the end line %+v after %d entries is wrong or not the last", a.what, l, len(names))
			}
			a.wantHeader("Kvd-Revision", fmt.Sprint(l.Revision))
			return names, l
		case l.Prefix != nil || l.PrefixBase64 != nil:
			names = append(names, text(l.Prefix, l.PrefixBase64))
		default:
			names = append(names, text(l.Key, l.KeyBase64))
		}
	}
	f.t.Fatalf("%s: no end line", a.what)
	return nil, listed{}
}

// Random listings of random keys are compared with a sorted slice: pages and streams, in
// both directions, with and without groups.
func TestListingsAgreeWithAModel(t *testing.T) {
	f := newFixture(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	alphabet := []string{"a", "b", "/", "\x00", "\xff", "é"}
	randomKey := func(n int) string {
		var s strings.Builder
		for range n {
			s.WriteString(alphabet[rng.IntN(len(alphabet))])
		}
		return s.String()
	}
	keys := map[string]bool{}
	for range 200 {
		k := randomKey(1 + rng.IntN(5))
		keys[k] = true
		f.put(k, "v"+k)
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	for range 150 {
		prefix, delimiter := randomKey(rng.IntN(3)), ""
		q := url.Values{"prefix": {prefix}}
		in := func(k string) bool { return strings.HasPrefix(k, prefix) }
		if rng.IntN(3) == 0 {
			start, end := randomKey(rng.IntN(3)), randomKey(1+rng.IntN(3))
			if start > end {
				start, end = end, start
			}
			if end == "" {
				continue
			}
			prefix = ""
			q = url.Values{"start": {start}, "end": {end}}
			in = func(k string) bool { return k >= start && k < end }
		}
		if rng.IntN(2) == 0 {
			delimiter = []string{"/", "\xff", "é"}[rng.IntN(3)]
			q.Set("delimiter", delimiter)
		}
		want := grouped(sorted, in, len(prefix), delimiter)
		if rng.IntN(2) == 0 {
			q.Set("reverse", "")
		}
		gotStream, _ := f.lines(q.Encode())
		wantOrder := slices.Clone(want)
		if q.Has("reverse") {
			slices.Reverse(wantOrder)
		}
		if !slices.Equal(gotStream, wantOrder) {
			t.Fatalf("stream %s: got %q, want %q", q.Encode(), gotStream, wantOrder)
		}
		q.Set("limit", fmt.Sprint(1+rng.IntN(20)))
		if got, _ := f.pages(q.Encode()); !slices.Equal(got, want) {
			t.Fatalf("pages %s: got %q, want %q", q.Encode(), got, want)
		}
	}
}

// grouped returns the entries that a listing must have, in byte order.
func grouped(sorted []string, in func(string) bool, after int, delimiter string) []string {
	want := []string{}
	for _, k := range sorted {
		if !in(k) {
			continue
		}
		if i := strings.Index(k[after:], delimiter); delimiter != "" && i >= 0 {
			k = k[:after+i+len(delimiter)]
		}
		if len(want) == 0 || want[len(want)-1] != k {
			want = append(want, k)
		}
	}
	slices.Sort(want)
	if len(want) == 0 {
		return nil
	}
	return want
}

func TestPageForm(t *testing.T) {
	f := newFixture(t)
	f.put("a/1", "x")
	f.put("a/2", "\xff")
	f.put("b", "y")
	f.do("GET", "/v1/kv?prefix=a", "").wantBody(200, `{"revision":4,"kvs":[{"key":"a/1","value":"x","create_revision":2,"mod_revision":2,"version":1,"lease":0},{"key":"a/2","value_base64":"/w==","create_revision":3,"mod_revision":3,"version":1,"lease":0}],"count":2}`+"\n").
		wantHeader("Kvd-Revision", "4").wantHeader("Kvd-Cluster", testClusterID).wantHeader("Vary", "Accept")
	f.do("GET", "/v1/kv?keys_only&start=b", "").wantBody(200, `{"revision":4,"kvs":[{"key":"b","create_revision":4,"mod_revision":4,"version":1,"lease":0}],"count":1}`+"\n")
	f.do("GET", "/v1/kv?delimiter=/&keys_only", "").want(200, `"kvs":[{"key":"b",`, `"prefixes":["a/"],"count":2}`)
	f.do("GET", "/v1/kv?count_only", "").wantBody(200, `{"revision":4,"count":3}`+"\n").wantHeader("Kvd-Revision", "4")
	f.do("GET", "/v1/kv?count_only&prefix=a&revision=2", "").wantBody(200, `{"revision":2,"count":1}`+"\n")
	f.do("GET", "/v1/kv?prefix=none", "").wantBody(200, `{"revision":4,"kvs":[],"count":0}`+"\n")
	f.do("GET", "/v1/kv?prefix=none&delimiter=/", "").want(200, `"kvs":[],"prefixes":[],"count":0`)
	f.do("GET", "/v1/kv?prefix=a&pretty", "").want(200, "{\n  \"revision\": 4,\n")
	f.do("GET", "/v1/kv?start=a/2&end=a/2", "").want(200, `"count":0`)
	a := f.do("HEAD", "/v1/kv?prefix=a", "").wantBody(200, "")
	if a.header.Get("Content-Length") == "" {
		t.Error("HEAD has no Content-Length")
	}
	f.do("HEAD", "/v1/kv?prefix=a", "", "Accept: application/x-ndjson").wantBody(200, "").wantHeader("Content-Type", ndjsonType)
	f.put("g\xff/1", "")
	f.do("GET", "/v1/kv?prefix=g&delimiter=/", "").want(200, `"prefixes":[],"prefixes_base64":["Z/8v"]`)
}

func TestPagesStayAtTheirRevision(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		f.put(fmt.Sprintf("k%d", i), "old")
	}
	var first listed
	f.do("GET", "/v1/kv?prefix=k&limit=2", "").want(200).decode(&first)
	f.put("k3", "new")
	f.put("k1x", "new")
	f.do("GET", "/v1/kv?prefix=k&limit=9&cursor="+first.Next, "").want(200, `"revision":6`, `"key":"k2","value":"old"`, `"key":"k3","value":"old"`, `"count":3`)
	f.do("POST", "/v1/compact?revision=8", "").want(200)
	f.do("GET", "/v1/kv?prefix=k&limit=9&cursor="+first.Next, "").problem(410, api.RevisionCompacted)
}

func TestCursorOfAnotherListing(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		f.put(fmt.Sprintf("k/%d", i), "v")
	}
	var l listed
	f.do("GET", "/v1/kv?prefix=k&limit=2", "").want(200).decode(&l)
	f.do("GET", "/v1/kv?prefix=k&limit=2&keys_only&consistency=stale&cursor="+l.Next, "").want(200, `"count":2`)
	f.do("GET", fmt.Sprintf("/v1/kv?prefix=k&revision=%d&cursor=%s", l.Revision, l.Next), "").want(200, `"count":3`)
	for _, q := range []string{"prefix=", "prefix=k/", "start=k", "prefix=k&reverse", "prefix=k&delimiter=/", "prefix=k&revision=3", "prefix=k&count_only", ""} {
		f.do("GET", "/v1/kv?"+q+"&cursor="+l.Next, "").problem(400, api.BadRequest, "cursor")
	}
	f.do("GET", "/v1/kv?prefix=k&cursor=nonsense", "").problem(400, api.BadRequest, "cursor")
	f.do("GET", "/v1/kv?prefix=k&cursor=", "").problem(400, api.BadRequest, "cursor")
}

func TestListParameters(t *testing.T) {
	f := newFixture(t)
	for q, part := range map[string]string{
		"limit=0": "limit", "limit=10001": "10000", "limit=-1": "limit", "limit=x": "limit",
		"prefix=a&start=b": "not both", "prefix=a&end=b": "not both", "end=": "empty", "start=b&end=a": "before",
		"delimiter=": "1 to 256", "delimiter=" + strings.Repeat("x", 257): "1 to 256",
		"count_only&delimiter=/": "delimiter", "reverse=up": "switch", "wait=3s": "unknown",
	} {
		f.do("GET", "/v1/kv?"+q, "").problem(400, api.BadRequest, part)
	}
	f.do("GET", "/v1/kv?prefix="+strings.Repeat("p", 4097), "").problem(413, api.TooLarge)
	f.do("GET", "/v1/kv?limit=20000", "", "Accept: application/x-ndjson").want(200, `"type":"end"`)
	f.do("GET", "/v1/kv?pretty", "", "Accept: application/x-ndjson").problem(400, api.BadRequest, "pretty")
	f.put("a b", "1")
	f.put("a+b", "2")
	f.do("GET", "/v1/kv?prefix=a+b", "").want(200, `"key":"a b"`, `"count":1`)
	f.do("GET", "/v1/kv?prefix=a%2Bb", "").want(200, `"key":"a+b"`, `"count":1`)
}

func TestDefaultLimit(t *testing.T) {
	f := newFixture(t)
	for i := range defaultLimit + 1 {
		f.put(fmt.Sprintf("k%05d", i), "")
	}
	if names, pages := f.pages("prefix=k"); len(names) != defaultLimit+1 || pages != 2 {
		t.Errorf("%d keys on %d pages", len(names), pages)
	}
	if names, end := f.lines("prefix=k"); len(names) != defaultLimit+1 || end.Next != "" {
		t.Errorf("%d keys in the stream, next %q", len(names), end.Next)
	}
	names, end := f.lines("prefix=k&limit=3")
	if len(names) != 3 || end.Next == "" {
		t.Fatalf("%d keys in the stream, next %q", len(names), end.Next)
	}
	if names, _ = f.lines("prefix=k&limit=2&cursor=" + end.Next); !slices.Equal(names, []string{"k00003", "k00004"}) {
		t.Errorf("the stream continues with %q", names)
	}
}

// Large values end a page before its limit.
func TestPageIsBoundedInBytes(t *testing.T) {
	f := newFixture(t)
	value := strings.Repeat("v", mib)
	for i := range 12 {
		f.put(fmt.Sprintf("big%02d", i), value)
	}
	names, pages := f.pages("prefix=big")
	if len(names) != 12 || pages != 4 { // with the names of the fields, three fit
		t.Errorf("%d keys on %d pages", len(names), pages)
	}
	if names, _ := f.lines("prefix=big"); len(names) != 12 {
		t.Errorf("%d keys in the stream", len(names))
	}
}

// A stream that fails midway must not look complete.
func TestBrokenStreamIsCut(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Store = &breakingStore{Store: o.Store, after: 50} })
	for i := range 100 {
		f.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 4096))
	}
	req, _ := http.NewRequest("GET", f.http.URL+"/v1/kv?prefix=k", nil)
	req.Header.Set("Accept", ndjsonType)
	resp, err := f.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got bytes.Buffer
	if _, err = got.ReadFrom(resp.Body); err == nil {
		t.Errorf("the stream looks complete after %d bytes", got.Len())
	}
	if strings.Contains(got.String(), `"type":"end"`) || got.Len() == 0 {
		t.Errorf("got %d bytes, perhaps with an end line", got.Len())
	}
	f.do("GET", "/v1/kv?prefix=k", "").problem(500, api.Internal, "request_id")
}

// breakingStore fails after some items, as a disk would.
type breakingStore struct {
	Store
	after  int64
	listed atomic.Int64
}

func (s *breakingStore) List(ctx context.Context, r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error) {
	return s.Store.List(ctx, r, func(it kvstore.Item) (bool, error) {
		if s.listed.Add(1) > s.after {
			return false, fmt.Errorf("input/output error")
		}
		return fn(it)
	})
}

func TestDeleteRange(t *testing.T) {
	f := newFixture(t)
	for _, k := range []string{"a/1", "a/2", "b", "c", "d"} {
		f.put(k, "v")
	}
	for _, q := range []string{"", "?prefix=", "?start=", "?prefix=a&start=b", "?start=c&end=b", "?end=", "?start=a&end=", "?limit=3", "?keys_only"} {
		f.do("DELETE", "/v1/kv"+q, "").problem(400, api.BadRequest)
	}
	f.do("DELETE", "/v1/kv?prefix=a", "", `If-Match: "2"`).problem(400, api.BadRequest, "single key")
	if n, _, err := f.node.Count(t.Context(), kvstore.Range{}); n != 5 || err != nil {
		t.Fatalf("%d keys are left of 5, %v", n, err)
	}
	f.do("DELETE", "/v1/kv?prefix=a/", "").wantBody(200, `{"deleted":2,"revision":7}`+"\n").wantHeader("Kvd-Revision", "7")
	f.do("DELETE", "/v1/kv?prefix=a/", "").wantBody(200, `{"deleted":0,"revision":7}`+"\n")
	f.do("DELETE", "/v1/kv?start=b&end=c", "").wantBody(200, `{"deleted":1,"revision":8}`+"\n")
	f.do("DELETE", "/v1/kv?end=d", "").wantBody(200, `{"deleted":1,"revision":9}`+"\n")
	f.do("DELETE", "/v1/kv?start=%00", "").wantBody(200, `{"deleted":1,"revision":10}`+"\n")
}

// crowdedStore has more keys than a range delete may remove, and tells what listing
// them cost.
type crowdedStore struct {
	Store
	listed, lists int
	revision      uint64 // that lists return
	after         int    // how many keys there are; 0 means too many
}

func (s *crowdedStore) List(_ context.Context, _ kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error) {
	s.lists++
	for s.listed = 0; s.listed < cmp.Or(s.after, 2*kvstore.MaxRangeDelete); {
		s.listed++
		if more, err := fn(kvstore.Item{}); err != nil || !more {
			return s.revision, err
		}
	}
	return s.revision, nil
}

// TestLargeRangeDeleteIsNotProposed: what every replica would refuse never gets into
// the log, but only a fresh state is a reason to refuse.
func TestLargeRangeDeleteIsNotProposed(t *testing.T) {
	f := newFixture(t)
	store := &crowdedStore{Store: f.node}
	f.server.opts.Store = store
	f.node.onDo = func(context.Context) { t.Error("the range delete was proposed") }
	f.do("DELETE", "/v1/kv?prefix=a", "").problem(413, api.TooLarge, "100000 keys", "in parts")
	want := func(lists, barriers int) {
		t.Helper()
		if store.listed != kvstore.MaxRangeDelete+1 || store.lists != lists || len(f.node.barriers) != barriers || len(f.server.counting) != 0 {
			t.Errorf("%d keys in the last of %d lists, %d barriers, %d tokens", store.listed, store.lists, len(f.node.barriers), len(f.server.counting))
		}
	}
	want(2, 1)
	store.revision = f.node.Revision() // which the barrier does not change
	f.do("DELETE", "/v1/kv?prefix=a", "").problem(413, api.TooLarge)
	want(3, 2)
	f.server.counting <- struct{}{} // another one counts
	f.do("DELETE", "/v1/kv?prefix=a&timeout=1ms", "").problem(503, api.ReadTimeout)
	<-f.server.counting
	store.after = fewKeys - 1
	f.node.onDo = nil
	f.server.counting <- struct{}{}
	f.do("DELETE", "/v1/kv?prefix=a", "").want(200)
}

// endlessStore lists until the context ends, and reports that it did.
type endlessStore struct {
	Store
	ended chan error
}

func (s *endlessStore) List(ctx context.Context, _ kvstore.Range, _ func(kvstore.Item) (bool, error)) (uint64, error) {
	<-ctx.Done()
	s.ended <- ctx.Err()
	return 0, ctx.Err()
}

func (s *endlessStore) Count(ctx context.Context, r kvstore.Range) (uint64, uint64, error) {
	_, err := s.List(ctx, r, nil)
	return 0, 0, err
}

// TestListsEndWithTheirRequest: at the timeout, and when the client leaves.
func TestListsEndWithTheirRequest(t *testing.T) {
	f := newFixture(t)
	store := &endlessStore{Store: f.node, ended: make(chan error, 1)}
	f.server.opts.Store = store
	for _, q := range []string{"?count_only", "?limit=1", "?keys_only"} {
		f.do("GET", "/v1/kv"+q+"&timeout=1ms", "").problem(503, api.ReadTimeout)
		<-store.ended
	}
	for _, accept := range []string{jsonType, ndjsonType} {
		ctx, leave := context.WithCancel(t.Context())
		req := httptest.NewRequest("GET", "/v1/kv", nil).WithContext(ctx)
		req.Header.Set("Accept", accept)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.server.ServeHTTP(httptest.NewRecorder(), req)
		}()
		leave()
		if err := <-store.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", accept, err)
		}
		<-done
	}
}
