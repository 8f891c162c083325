package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/http1"
	"github.com/kvd-io/kvd/internal/httpapi/feed"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// watcher is a client that reads the lines of a watch.
type watcher struct {
	t      *testing.T
	body   io.Closer
	lines  *bufio.Scanner
	header http.Header
}

// watch opens a watch, which has to be accepted.
func (f *fixture) watch(query string, headers ...string) *watcher {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	f.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.http.URL+"/v1/watch?"+query, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := f.http.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		readAnswer(f.t, "watch?"+query, resp).want(200)
		f.t.FailNow()
	}
	w := &watcher{t: f.t, body: resp.Body, lines: bufio.NewScanner(resp.Body), header: resp.Header}
	w.lines.Buffer(nil, 64<<20)
	return w
}

// line returns the next line, or "" at the end of the stream.
func (w *watcher) line() string {
	w.t.Helper()
	if w.lines.Scan() {
		return w.lines.Text()
	}
	if err := w.lines.Err(); err != nil {
		w.t.Fatalf("the stream broke off: %v", err)
	}
	return ""
}

// want checks the next lines.
func (w *watcher) want(lines ...string) *watcher {
	w.t.Helper()
	for _, want := range lines {
		if got := w.line(); got != want {
			w.t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
	return w
}

// write writes keys in one revision, and returns it.
func (f *fixture) write(pairs ...string) uint64 {
	f.t.Helper()
	var ops []kvstore.Command
	for i := 0; i < len(pairs); i += 2 {
		ops = append(ops, kvstore.Command{Op: kvstore.OpPut, Key: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return f.apply(&kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{Then: ops}})
}

func (f *fixture) apply(cmd *kvstore.Command) uint64 {
	f.t.Helper()
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	res, err := f.node.applyLocked(cmd)
	if err != nil || res.Outcome != kvstore.OK {
		f.t.Fatal(res.Detail, err)
	}
	return res.Revision
}

func (f *fixture) remove(key string) uint64 {
	f.t.Helper()
	return f.apply(&kvstore.Command{Op: kvstore.OpDelete, Key: []byte(key)})
}

func TestWatchLines(t *testing.T) {
	f := newFixture(t)
	f.write("a", "0")
	w := f.watch("prefix=a").want(`{"type":"progress","revision":2}`)
	if got := w.header; got.Get("Content-Type") != ndjsonType || got.Get("Kvd-Revision") != "2" || got.Get("Kvd-Cluster") != testClusterID || got.Get("Content-Length") != "" {
		t.Errorf("header %v", got)
	}
	f.write("b", "elsewhere")
	f.write("a", "1", "b", "x", "a/\xff", "2\n\"")
	f.remove("a")
	w.want(
		`{"type":"put","key":"a","value":"1","create_revision":2,"mod_revision":4,"version":2,"lease":0,"more":true}`,
		`{"type":"put","key_base64":"YS//","value":"2\n\"","create_revision":4,"mod_revision":4,"version":1,"lease":0}`,
		`{"type":"delete","key":"a","mod_revision":5}`,
	)
	f.do("HEAD", "/v1/watch?key=a", "").want(200).wantHeader("Content-Type", ndjsonType)
}

func TestWatchServerSentEvents(t *testing.T) {
	f := newFixture(t)
	w := f.watch("prefix=a&previous", "Accept: text/event-stream").want("id: 1", `data: {"type":"progress","revision":1}`, "")
	if got := w.header; got.Get("Content-Type") != eventStreamType || got.Get("Cache-Control") != "no-store" || got.Get("X-Accel-Buffering") != "no" {
		t.Errorf("header %v", got)
	}
	f.write("a1", "x", "a2", "y")
	f.write("a1", "z")
	w.want(
		`data: {"type":"put","key":"a1","value":"x","create_revision":2,"mod_revision":2,"version":1,"lease":0,"previous":null,"more":true}`, "",
		"id: 2", `data: {"type":"put","key":"a2","value":"y","create_revision":2,"mod_revision":2,"version":1,"lease":0,"previous":null}`, "",
		"id: 3", `data: {"type":"put","key":"a1","value":"z","create_revision":2,"mod_revision":3,"version":2,"lease":0,"previous":{"key":"a1","value":"x","create_revision":2,"mod_revision":2,"version":1,"lease":0}}`, "",
	)
}

// TestWatchBegins: where a watch begins, by from_revision and Last-Event-ID.
func TestWatchBegins(t *testing.T) {
	f := newFixture(t)
	for i := range 9 {
		f.write("k", fmt.Sprint(i)) // revisions 2 to 10
	}
	for _, c := range []struct {
		query, id string
		progress  int // what the first line says
	}{
		{"key=k", "", 10}, {"key=k&from_revision=1", "", 0}, {"key=k&from_revision=2", "", 1}, {"key=k&from_revision=7", "", 6},
		{"key=k&from_revision=11", "", 10}, {"key=k", "4", 4}, {"key=k&from_revision=2", "9", 9}, {"key=k", "10", 10},
	} {
		w := f.watch(c.query, "Last-Event-ID: "+c.id).want(fmt.Sprintf(`{"type":"progress","revision":%d}`, c.progress))
		for rev := max(c.progress, 1) + 1; rev <= 10; rev++ {
			if line := w.line(); !strings.Contains(line, fmt.Sprintf(`"mod_revision":%d,`, rev)) {
				t.Fatalf("%v: got %s, want revision %d", c, line, rev)
			}
		}
		_ = w.body.Close()
	}
	f.do("GET", "/v1/watch?key=k&from_revision=12", "").problem(400, api.FutureRevision, "revision 10")
	f.do("GET", "/v1/watch?key=k", "", "Last-Event-ID: 11").problem(400, api.FutureRevision)
	f.apply(&kvstore.Command{Op: kvstore.OpCompact, Revision: 6})
	f.do("GET", "/v1/watch?key=k&from_revision=5", "").problem(410, api.RevisionCompacted, `"compact_revision":6`)
	f.watch("key=k&from_revision=6&previous").want(`{"type":"progress","revision":5}`,
		`{"type":"put","key":"k","value":"4","create_revision":2,"mod_revision":6,"version":5,"lease":0,"previous":null}`)
}

func TestWatchFilters(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.WatchProgress = 10 * time.Millisecond })
	puts, deletes := f.watch("key=a&events=put"), f.watch("key=a&events=delete")
	both := f.watch("start=a&end=b&events=delete,put")
	f.write("a", "1")
	f.remove("a")
	last := f.write("a", "2")
	for _, c := range []struct {
		w    *watcher
		want string
	}{{puts, "put put"}, {deletes, "delete"}, {both, "put delete put"}} {
		var got []string
		for {
			var e struct {
				Type     string
				Revision uint64
			}
			if err := json.Unmarshal([]byte(c.w.line()), &e); err != nil {
				t.Fatal(err)
			}
			if e.Type != "progress" {
				got = append(got, e.Type)
			} else if e.Revision == last { // moves on although the events were filtered
				break
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
	}
}

// TestWatchQueries: what a watch cannot understand is refused.
func TestWatchQueries(t *testing.T) {
	f := newFixture(t)
	for query, part := range map[string]string{
		"": "either", "key=a&prefix=b": "either", "prefix=a&start=b": "not both", "key=": "empty", "start=b&end=a": "before",
		"key=a&events=": "put and delete", "key=a&events=put,x": "put and delete", "key=a&from_revision=0": "from_revision",
		"key=a&previous=2": "switch", "key=a&prev": "unknown", "key=a&pretty": "indented", "key=a&consistency=x": "consistency",
		"key=a&timeout=0": "timeout",
	} {
		f.do("GET", "/v1/watch?"+query, "").problem(400, api.BadRequest, part)
	}
	f.do("GET", "/v1/watch?key=a", "", "Last-Event-ID: x").problem(400, api.BadRequest, "Last-Event-ID")
	f.do("GET", "/v1/watch?key="+strings.Repeat("k", 5000), "").problem(413, api.TooLarge)
	f.do("POST", "/v1/watch?key=a", "").problem(405, api.MethodNotAllowed)
}

// TestWatchFreshness: a watch from now on proves that it begins behind every write, one
// that resumes needs no leader.
func TestWatchFreshness(t *testing.T) {
	f := newFixture(t)
	f.write("a", "1")
	f.node.readErr = api.Errorf(api.NoLeader, "nobody leads")
	f.do("GET", "/v1/watch?key=a", "").problem(503, api.NoLeader)
	f.do("GET", "/v1/watch?key=a&from_revision=4", "").problem(503, api.NoLeader)
	f.watch("key=a&from_revision=2")
	f.watch("key=a&from_revision=3")
	f.node.readErr = nil
	f.watch("key=a&consistency=stale&max_staleness=3s")
	if got := f.node.barriers[len(f.node.barriers)-1]; !got.Stale || got.MaxStaleness != 3*time.Second {
		t.Errorf("asked for %+v", got)
	}
}

// TestWatchEnds: the streams of a node that stops end with a last progress, and their
// clients miss nothing elsewhere.
func TestWatchEnds(t *testing.T) {
	f := newFixture(t)
	w := f.watch("key=a").want(`{"type":"progress","revision":1}`)
	f.write("b", "1")
	f.write("a", "1")
	w.want(`{"type":"put","key":"a","value":"1","create_revision":3,"mod_revision":3,"version":1,"lease":0}`)
	f.node.hub.Close()
	w.want(`{"type":"progress","revision":3}`, "")
	f.do("GET", "/v1/watch?key=a", "").problem(503, api.Stopping)
}

// TestWatchTimeout: a stream with a timeout ends like one of a node that stops. A client
// that leaves is not counted as an error.
func TestWatchTimeout(t *testing.T) {
	f := newFixture(t)
	f.watch("key=a&timeout=20ms").want(`{"type":"progress","revision":1}`, `{"type":"progress","revision":1}`, "")
	w := f.watch("key=a")
	_ = w.body.Close()
	for f.node.hub.Stats().Watches > 0 {
		f.do("GET", "/livez", "")
	}
	if n := f.logs.Len(); n > 0 {
		t.Errorf("logged %v", f.logs.All())
	}
}

// TestWatchCompacted: a reader whose place is compacted away learns it.
func TestWatchCompacted(t *testing.T) {
	f := newFixture(t)
	w := f.watch("key=big").want(`{"type":"progress","revision":1}`)
	value := strings.Repeat("v", 1<<20)
	for range 40 { // more than sockets and window hold
		f.write("big", value)
	}
	f.apply(&kvstore.Command{Op: kvstore.OpCompact, Revision: 41})
	last := ""
	for line := w.line(); line != ""; line = w.line() {
		last = line
	}
	if last != `{"type":"compacted","compact_revision":41}` {
		t.Errorf("the last line is %.100s", last)
	}
}

// TestWatchLimit: too many watches are refused, and places are given back.
func TestWatchLimit(t *testing.T) {
	f := newFixture(t)
	var open []*watcher
	for range 50 {
		open = append(open, f.watch("key=a"))
	}
	f.do("GET", "/v1/watch?key=a", "").problem(429, api.Overloaded, "50")
	_ = open[0].body.Close()
	for f.node.hub.Stats().Watches == 50 {
		f.do("GET", "/livez", "") // until the node has noticed
	}
	f.watch("key=a")
	if n := f.server.InFlight(); n != 0 {
		t.Errorf("watches take %d places of requests", n)
	}
}

// TestWatchFollowsDisk: a slow reader gets everything, from the disk.
func TestWatchFollowsDisk(t *testing.T) {
	f := newFixture(t)
	w := f.watch("prefix=k&previous")
	value := strings.Repeat("v", 100_000)
	const writes = 200
	for i := range writes {
		f.write(fmt.Sprint("k", i%3), value)
	}
	w.line()
	for i := range writes {
		var e struct {
			ModRevision int `json:"mod_revision"`
			Previous    *struct {
				ModRevision int `json:"mod_revision"`
			}
		}
		if err := json.Unmarshal([]byte(w.line()), &e); err != nil {
			t.Fatal(err)
		}
		if e.ModRevision != i+2 || i >= 3 && (e.Previous == nil || e.Previous.ModRevision != i-1) {
			t.Fatalf("event %d: %+v, previous %+v", i, e, e.Previous)
		}
	}
	if s := f.node.hub.Stats(); s.DiskReads == 0 {
		t.Error("the reader was not slow enough to be behind")
	}
	// What large events held is given back after they were sent.
	f.write("k", "small")
	w.line()
	if small, large := f.server.opts.Memory.Taken(); small+large != 0 {
		t.Errorf("%d and %d bytes are still claimed", small, large)
	}
}

// TestLongPoll: a read waits until its key has changed.
func TestLongPoll(t *testing.T) {
	f := newFixture(t)
	poll := func(target string, headers ...string) <-chan *answer {
		got := make(chan *answer, 1)
		before := f.node.hub.Stats().Watches
		go func() { got <- f.do("GET", target, "", headers...) }()
		for f.node.hub.Stats().Watches == before { // until it waits
			f.do("GET", "/livez", "")
		}
		return got
	}
	appears := poll("/v1/kv/a?wait=30s&if_revision=0&timeout=1ms")
	if n := f.server.InFlight(); n != 0 {
		t.Errorf("a request that waits takes %d places", n)
	}
	f.write("b", "elsewhere")
	f.write("a", "1")
	(<-appears).wantBody(200, "1").wantHeader("Etag", `"3"`)
	changes := poll("/a?wait=30s", `If-None-Match: "3"`)
	f.write("a", "2")
	(<-changes).wantBody(200, "2").wantHeader("Etag", `"4"`)
	disappears := poll("/v1/kv/a?wait=30s&meta", `If-None-Match: *`)
	f.write("a", "3") // it still exists
	f.remove("a")
	(<-disappears).problem(404, api.KeyNotFound)
	f.do("GET", "/v1/kv/a?wait=1ms&if_revision=0", "").wantBody(304, "").wantHeader("Etag", "")
	f.write("a", "4")
	f.do("GET", "/v1/kv/a?wait=1ms", "", `If-None-Match: "7"`).wantBody(304, "").wantHeader("Etag", `"7"`)
	f.do("HEAD", "/v1/kv/a?wait=30s", "", `If-None-Match: "6"`).want(200).wantHeader("Etag", `"7"`)
	f.do("GET", "/v1/kv/a?wait=30s&if_revision=6", "").wantBody(200, "4")
	f.do("GET", "/v1/kv/a?wait=1ms&if_revision=7", "", `If-Match: "6"`).problem(412, api.PreconditionFailed)
	stops := poll("/v1/kv/a?wait=30s&if_revision=7")
	f.node.hub.Close()
	(<-stops).wantBody(304, "")
}

func TestLongPollQueries(t *testing.T) {
	f := newFixture(t)
	for query, part := range map[string]string{
		"wait=1s": "requires If-None-Match", "wait=0&if_revision=0": "greater than 0", "wait=11m&if_revision=0": "at most 10m",
		"if_revision=0": "requires", "wait=1s&if_revision=0&revision=1": "past revision", "wait=x&if_revision=0": "duration",
	} {
		f.do("GET", "/v1/kv/a?"+query, "").problem(400, api.BadRequest, part)
	}
}

// TestWatchOverHTTP1: a watch behind the reader of small requests is the same as behind
// net/http alone, with an end that can be seen.
func TestWatchOverHTTP1(t *testing.T) {
	f := newFixture(t)
	front := http1.New(NewServer(f.server, nil), Small, Streams)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- front.Serve(l) }()
	defer func() { _ = front.Close(); <-done }()
	f.http.URL = "http://" + l.Addr().String()
	f.do("GET", "/v1/watch?key=a&from_revision=9", "").problem(400, api.FutureRevision)
	w := f.watch("prefix=a&from_revision=2").want(`{"type":"progress","revision":1}`)
	gone := f.watch("prefix=b")
	f.write("a", strings.Repeat("v", 100_000))
	if line := w.line(); len(line) < 100_000 {
		t.Errorf("got %.100s", line)
	}
	_ = gone.body.Close()
	for f.node.hub.Stats().Watches > 1 { // until the node has noticed
		f.do("GET", "/livez", "")
	}
	f.node.hub.Close()
	w.want(`{"type":"progress","revision":2}`, "")
}

// TestWatchLasts: a quiet stream outlives every deadline of its connection, and says
// every 15 seconds how far it is.
func TestWatchLasts(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
		_, _ = io.WriteString(conn, "GET /v1/watch?key=a HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w := &watcher{t: t, lines: bufio.NewScanner(resp.Body)}
		for i := range 100 {
			w.want(fmt.Sprintf(`{"type":"progress","revision":%d}`, i+1))
			if got, want := time.Since(start), time.Duration(i)*feed.DefaultProgress; got != want {
				t.Fatalf("progress %d came after %v, want %v", i, got, want)
			}
			f.write("elsewhere", "x")
		}
		f.write("a", "1")
		if line := w.line(); !strings.Contains(line, `"key":"a"`) {
			t.Errorf("got %s", line)
		}
	})
}

// TestWatchOfAStalledClient: a client that accepts no byte for a minute is disconnected,
// and leaves nothing behind. One that holds memory for a large event has less time.
func TestWatchOfAStalledClient(t *testing.T) {
	for name, c := range map[string]struct{ valueBytes, seconds int }{"small": {1000, 60}, "large": {100_000, 10}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fixture, conn net.Conn) {
				_, _ = io.WriteString(conn, "GET /v1/watch?key=a HTTP/1.1\r\nHost: x\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
					t.Fatal(line, err)
				}
				start, grace := time.Now(), time.Duration(c.seconds)*time.Second
				f.write("a", strings.Repeat("v", c.valueBytes))
				<-conn.(clientEnd).cut
				if took := time.Since(start); took < grace || took > grace+2*time.Second {
					t.Errorf("cut after %v, want %v", took, grace)
				}
				synctest.Wait()
				if n := f.node.hub.Stats().Streams; n != 0 {
					t.Errorf("%d streams are left", n)
				}
				if small, large := f.server.opts.Memory.Taken(); small+large != 0 {
					t.Errorf("%d bytes are still claimed", small+large)
				}
			})
		})
	}
}
