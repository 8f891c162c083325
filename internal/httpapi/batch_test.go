package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// batchOf sends lines in one body and returns the answers.
func (f *fixture) batchOf(lines ...string) []string {
	f.t.Helper()
	a := f.do("POST", "/v1/batch", strings.Join(lines, "\n")+"\n").want(200).wantHeader("Content-Type", ndjsonType)
	return strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")
}

// wantAnswers checks the status of each answer and the parts that it must contain, given
// as "status part|part".
func wantAnswers(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d answers, want %d: %q", len(got), len(want), got)
	}
	for i, w := range want {
		status, parts, _ := strings.Cut(w, " ")
		begin := fmt.Sprintf(`{"n":%d,"status":%s,`, i+1, status)
		if n, s, ok := strings.Cut(status, ":"); ok {
			begin = fmt.Sprintf(`{"n":%s,"status":%s,`, n, s)
		}
		if !strings.HasPrefix(got[i], begin) {
			t.Errorf("answer %d is %s, want %s", i+1, got[i], begin)
		}
		for part := range strings.SplitSeq(parts, "|") {
			if !strings.Contains(got[i], part) {
				t.Errorf("answer %d lacks %s: %s", i+1, part, got[i])
			}
		}
	}
}

// Operations take effect in the order of their lines: a get sees the lines before it, but
// not those after it in the same group.
func TestBatchOrder(t *testing.T) {
	f := newFixture(t)
	f.put("a", "old") // revision 2
	wantAnswers(t, f.batchOf(
		`{"get":{"key":"a"}}`,
		`{"put":{"key":"a","value":"1","return":"previous"}}`,
		`{"get":{"key":"a"}}`,
		`{"append":{"key":"a","value":"2"}}`,
		`{"get":{"key":"a"}}`,
		``,
		`{"incr":{"key":"a","delta":30}}`,
		`{"delete":{"key":"a"}}`,
		`{"get":{"key":"a"}}`,
		`{"get":{"key":"a","revision":4}}`,
		`{"get":{"key":"a","revision":7}}`,
		`{"put":{"key":"b","value_base64":"/w=="}}`,
		`{"get":{"key":"b"}}`,
	),
		`200 "value":"old"|"revision":2`,
		`200 "revision":3|"previous":{"key":"a","value":"old"|"version":2`,
		`200 "value":"1"|"mod_revision":3`,
		`200 "revision":4`,
		`200 "value":"12"`,
		`7:200 "value":"42"|"revision":5`,
		`8:200 "deleted":1|"revision":6`,
		`9:404 "code":"key_not_found"|"revision":6`,
		`10:200 "value":"12"`,
		`11:400 "code":"future_revision"`,
		`12:201 "create_revision":7|"version":1`,
		`13:200 "value_base64":"/w=="`,
	)
}

// Lists and deletes of ranges have their place in the stream as well.
func TestBatchOfRanges(t *testing.T) {
	f := newFixture(t)
	f.put("a/1", "x") // revision 2
	wantAnswers(t, f.batchOf(
		`{"list":{"prefix":"a/"}}`,
		`{"put":{"key":"a/2","value":"y"}}`,
		`{"list":{"prefix":"a/","keys_only":true,"reverse":true}}`,
		`{"list":{"prefix":"a/","limit":1}}`,
		`{"list":{"start":"a/","count_only":true}}`,
		`{"delete":{"prefix":"a/"}}`,
		`{"list":{"prefix":"a/"}}`,
		`{"list":{"prefix":"a/","revision":3}}`,
		`{"list":{"prefix":"a/","revision":5}}`,
		`{"delete":{"start":"a","end":"b"}}`,
		`{"delete":{"prefix":""}}`,
	),
		`200 "revision":2,"kvs":[{"key":"a/1","value":"x"|"count":1}`,
		`201 "revision":3`,
		`200 "revision":3,"kvs":[{"key":"a/2","create_revision":3|{"key":"a/1","create|"count":2}`,
		`200 "key":"a/1"|"count":1,"more":true}`,
		`200 "revision":3,"count":2}`,
		`200 "deleted":2,"revision":4}`,
		`200 "revision":4,"kvs":[],"count":0}`,
		`200 "revision":3|"count":2}`,
		`400 future_revision`,
		`200 "deleted":0,"revision":4}`,
		`400 specify what to delete`,
	)
}

// No failure that concerns a single operation affects the others.
func TestBatchGoesOnAfterAFailedOperation(t *testing.T) {
	f := newFixture(t)
	f.put("word", "x")
	wantAnswers(t, f.batchOf(
		`{"put":{"key":"a","value":"1","if_revision":9}}`,
		`{"incr":{"key":"word","delta":1}}`,
		`{"put":{"key":"a","value":"1","ttl":"soon"}}`,
		`{"nonsense":{}}`,
		`{"put":{"key":"`+strings.Repeat("k", 5000)+`","value":"1"}}`,
		`{"get":{"key":"absent"}}`,
		`{"delete":{"key":"absent"}}`,
		`{"put":{"key":"a","value":"1"}}`,
	),
		`412 "revision":0`, `412 "revision":2`, `400 ttl: expected`, `400 nonsense`, `413 too_large`, `404 key_not_found`, `200 "deleted":0`, `201 "revision":3,`)
}

func TestBatchStopsAtAnUnparsableLine(t *testing.T) {
	f := newFixture(t)
	got := f.batchOf(`{"put":{"key":"a","value":"1"}}`, `{"put":{"key":"b","value":`, `{"put":{"key":"c","value":"1"}}`)
	wantAnswers(t, got, `201 "revision":2,`, `400 "code":"bad_request"|"first_not_attempted":2}`)
	if n, _, _ := f.node.Count(t.Context(), kvstore.Range{}); n != 1 {
		t.Errorf("%d keys, want only the one before the bad line", n)
	}
}

func TestBatchStopsAtALongLine(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/settings", `{"max_value_bytes":1000}`).want(200)
	const limit = 2*(4<<20) + 64<<10 // max_txn_bytes counts, too
	long := `{"put":{"key":"b","value":"` + strings.Repeat("v", limit) + `"}}`
	for _, tail := range []string{"", "\n", "\n{}\n"} {
		a := f.do("POST", "/v1/batch", `{"put":{"key":"a`+strconv.Itoa(len(tail))+`","value":"1"}}`+"\n"+long+tail)
		got := strings.Split(strings.TrimSpace(a.body), "\n")
		wantAnswers(t, got, `201 `, `413 "code":"too_large"|"first_not_attempted":2}`)
	}
	// One that is not over the limit but whose value is fails alone.
	got := f.batchOf(`{"put":{"key":"b","value":"`+strings.Repeat("v", 1001)+`"}}`, `{"get":{"key":"a0"}}`)
	wantAnswers(t, got, `413 too_large`, `200 "value":"1"`)
}

func TestBatchIsRefusedAsAWhole(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/batch?pretty", "").problem(400, api.BadRequest)
	f.do("POST", "/v1/batch?timeout=0", "").problem(400, api.BadRequest)
	f.do("POST", "/v1/batch?consistency=stale", "").problem(400, api.BadRequest)
	f.do("POST", "/v1/batch", "", "Idempotency-Key: k").problem(400, api.BadRequest)
	f.do("GET", "/v1/batch", "").problem(405, api.MethodNotAllowed)
	f.do("POST", "/v1/batch", "").wantBody(200, "")
}

// talk is a stream whose lines are sent one at a time.
type talk struct {
	t     *testing.T
	lines *io.PipeWriter
	in    *bufio.Scanner
}

func (f *fixture) talk(client *http.Client) *talk {
	f.t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", f.http.URL+"/v1/batch", r)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = w.Close(); _ = resp.Body.Close() })
	return &talk{f.t, w, bufio.NewScanner(resp.Body)}
}

// say sends a line and returns its answer. The body stays open.
func (k *talk) say(line string) string {
	k.t.Helper()
	if _, err := io.WriteString(k.lines, line+"\n"); err != nil {
		k.t.Fatal(err)
	}
	k.in.Scan()
	return k.in.Text()
}

// end closes the body and returns the rest of the answers.
func (k *talk) end() (rest []string) {
	_ = k.lines.Close()
	for k.in.Scan() {
		rest = append(rest, k.in.Text())
	}
	return rest
}

func (f *fixture) overHTTP2() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Each answer arrives before the next line is sent, in both versions of HTTP.
func TestBatchIsInteractive(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(version, func(t *testing.T) {
			f := newFixture(t)
			client := f.http.Client()
			if version == "HTTP/2" {
				client = f.overHTTP2()
			}
			k := f.talk(client)
			wantAnswers(t, []string{
				k.say(`{"put":{"key":"a","value":"1"}}`), k.say(`{"get":{"key":"a"}}`), k.say(`{"get":{}}`), k.say(`{"incr":{"key":"a","delta":1}}`), k.say(`what`),
			}, `201 "revision":2,`, `200 "value":"1"`, `400 `, `200 "value":"2"`, `400 "first_not_attempted":5}`)
			if rest := k.end(); len(rest) > 0 {
				t.Errorf("after the last answer came %q", rest)
			}
		})
	}
}

// A stream ends when the node cannot continue, and says at which line.
func TestBatchStopsWithTheNode(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want []string
	}{
		{"no leader", retry(api.NoLeader), []string{`2:400 bad_request`, `3:503 "code":"no_leader"|"first_not_attempted":3}`}},
		{"stopping", retry(api.Stopping), []string{`2:400 bad_request`, `3:503 "code":"stopping"|"first_not_attempted":3}`}},
		{"unknown", api.Errorf(api.Timeout, "it may still take effect"), []string{`2:400 bad_request`, `3:504 "code":"timeout"`, `4:503 read_timeout`, `5:504 timeout|"first_not_attempted":6}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			k := f.talk(f.http.Client())
			k.say(`{"put":{"key":"a","value":"1"}}`)
			f.node.mu.Lock()
			f.node.onGroup = func(context.Context, [][]byte) error { return c.err }
			f.node.mu.Unlock()
			got := []string{k.say(`{}` + "\n" + `{"put":{"key":"b","value":"1"}}` + "\n" + `{"get":{"key":"a"}}` + "\n" + `{"delete":{"key":"a"}}`)}
			wantAnswers(t, append(got, k.end()...), c.want...)
			if f.node.Revision() != 2 {
				t.Errorf("revision %d", f.node.Revision())
			}
		})
	}
}

func retry(code api.Code) *api.Error {
	e := api.Errorf(code, "nothing was changed")
	e.RetryAfter = time.Second
	return e
}

// A group of reads needs one proof of freshness. The stream ends if that fails.
func TestBatchOfGets(t *testing.T) {
	f := newFixture(t)
	f.put("a", "1")
	wantAnswers(t, f.batchOf(`{"get":{"key":"a"}}`, `{"get":{"key":"b"}}`), `200 "value":"1"`, `404 `)
	f.node.readErr = retry(api.ReadTimeout)
	wantAnswers(t, f.batchOf(`{"get":{"key":"a"}}`, `{"get":{"key":"b"}}`), `503 "code":"read_timeout"|"first_not_attempted":1}`)
}

// A put beyond the quota is answered 503, which ends the stream. Lines of the same group are
// answered with their own results.
func TestBatchOverTheQuota(t *testing.T) {
	f := newFixture(t)
	f.put("a", strings.Repeat("v", 900_000))
	f.do("PUT", "/v1/settings", `{"quota_bytes":1048576}`).want(200)
	wantAnswers(t, f.batchOf(`{"put":{"key":"b","value":"`+strings.Repeat("v", 500_000)+`"}}`, `{"delete":{"key":"a"}}`),
		`503 "code":"no_space"`, `200 "deleted":1|"first_not_attempted":3}`)
}

// So is a line that finds no room for its result.
func TestBatchWithoutRoomForResults(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/settings", `{"idempotency_bytes":1048576}`).want(200)
	f.put("a", strings.Repeat("v", 600_000))
	for i := range 2 { // the record of each has the value before
		f.do("POST", "/v1/kv/a?append&return=previous", "x", fmt.Sprintf("Idempotency-Key: k%d", i)).want(200)
	}
	wantAnswers(t, f.batchOf(`{"put":{"key":"b","value":""},"idempotency_key":"new"}`, `{"put":{"key":"c","value":""}}`),
		`429 "code":"overloaded"`, `201 |"first_not_attempted":3}`)
}

// A stream waits for a node that has no room, within the timeout.
func TestBatchWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(t)
		refused := 0
		f.node.onGroup = func(context.Context, [][]byte) error {
			if refused++; refused <= 3 {
				return retry(api.Overloaded)
			}
			return nil
		}
		w := httptest.NewRecorder()
		put := `{"put":{"key":"a","value":"1"}}` + "\n"
		s.ServeHTTP(w, httptest.NewRequest("POST", "/v1/batch", strings.NewReader(put)))
		wantAnswers(t, strings.Split(strings.TrimSpace(w.Body.String()), "\n"), `201 "revision":2,`)
		refused = -1 << 30
		f.node.onGroup = func(context.Context, [][]byte) error { return retry(api.Overloaded) }
		w = httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("POST", "/v1/batch", strings.NewReader(put)))
		wantAnswers(t, strings.Split(strings.TrimSpace(w.Body.String()), "\n"), `429 "code":"overloaded"|"first_not_attempted":1}`)
	})
}

// putsBody is an endless body of puts. It counts the bytes read, and times out as a
// connection does.
type putsBody struct {
	line     string
	read     atomic.Int64
	silent   bool
	deadline chan time.Time
}

func (e *putsBody) Close() error { return nil }

func (e *putsBody) Read(p []byte) (int, error) {
	if e.silent {
		return 0, e.timeout()
	}
	select {
	case at := <-e.deadline: // where one is set that has passed, nothing more comes
		if !at.IsZero() && !at.After(time.Now()) {
			return 0, os.ErrDeadlineExceeded
		}
	default:
	}
	n := 0
	for n+len(e.line) <= len(p) {
		n += copy(p[n:], e.line)
	}
	e.read.Add(int64(n))
	return n, nil
}

// timeout waits until the latest deadline passes.
func (e *putsBody) timeout() error {
	var passed <-chan time.Time
	for {
		select {
		case at := <-e.deadline:
			if passed = nil; !at.IsZero() {
				passed = time.After(time.Until(at))
			}
		case <-passed:
			return os.ErrDeadlineExceeded
		}
	}
}

// stuck is a client that reads nothing until it is released.
type stuck struct {
	discard
	body *putsBody
	from int64         // written before it gets stuck
	free chan struct{} // closed: the client is gone
	n    int64
}

var errGone = errors.New("gone")

func (s *stuck) Write(p []byte) (int, error) {
	if s.n += int64(len(p)); s.n > s.from {
		<-s.free
		return 0, errGone
	}
	return len(p), nil
}

func (s *stuck) SetReadDeadline(at time.Time) error {
	select {
	case <-s.body.deadline:
	default:
	}
	s.body.deadline <- at
	return nil
}

// A client that reads no answers is not read from either: the memory of a stream is bounded
// however much is sent (S5).
func TestBatchOfASlowReaderIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(t)
		body := &putsBody{line: `{"put":{"key":"k","value":"` + strings.Repeat("v", 100) + `"}}` + "\n", deadline: make(chan time.Time, 1)}
		w := &stuck{discard{http.Header{}}, body, 1 << 20, make(chan struct{}), 0}
		r := httptest.NewRequest("POST", "/v1/batch", nil)
		r.Body = body
		ended := make(chan any)
		go func() {
			defer func() { ended <- recover() }()
			s.ServeHTTP(w, r)
		}()
		synctest.Wait() // everything waits for the client
		applied := int64(f.node.Revision()-1) * int64(len(body.line))
		if held := body.read.Load() - applied; held > 3*(limits.MaxBatchBytes*2)+128<<10 || applied == 0 {
			t.Errorf("%d bytes were applied and %d more were read from a client that reads nothing", applied, held)
		}
		close(w.free)
		if v := <-ended; v != http.ErrAbortHandler {
			t.Errorf("ended with %v", v)
		}
	})
}

// A stream ends after a minute without input, and says so.
func TestBatchOfASilentClientEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		body := &putsBody{silent: true, deadline: make(chan time.Time, 1)}
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/v1/batch", nil)
		r.Body = body
		began := time.Now()
		s.ServeHTTP(&recorded{rec, body}, r)
		wantAnswers(t, strings.Split(strings.TrimSpace(rec.Body.String()), "\n"), `400 received no data|"first_not_attempted":1}`)
		if took := time.Since(began); took < time.Minute || took > time.Minute+2*drainGrace {
			t.Errorf("it ended after %v", took)
		}
	})
}

type recorded struct {
	*httptest.ResponseRecorder
	body *putsBody
}

func (r *recorded) SetReadDeadline(at time.Time) error {
	return (&stuck{body: r.body}).SetReadDeadline(at)
}

// A line that breaks off is not carried out (R3).
func TestBatchThatBreaksOff(t *testing.T) {
	s, f := newServer(t)
	body := `{"put":{"key":"a","value":"1"}}` + "\n" + `{"put":{"key":"b","value":"1"}}`
	r := httptest.NewRequest("POST", "/v1/batch", nil)
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF)))
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	wantAnswers(t, strings.Split(strings.TrimSpace(w.Body.String()), "\n"), `201 "revision":2,`, `400 "first_not_attempted":2}`)
	if _, _, err := f.node.Get([]byte("b"), 0); !errors.Is(err, kvstore.ErrKeyNotFound) {
		t.Errorf("half a line was carried out: %v", err)
	}
}

// Each of many lines in one request is answered, in order.
func TestBatchOfManyLines(t *testing.T) {
	f := newFixture(t)
	const lines = 3*limits.MaxGroupCommands + 7
	var body strings.Builder
	for i := range lines {
		fmt.Fprintf(&body, `{"incr":{"key":"k%d","delta":1}}`+"\n", i%5)
	}
	a := f.do("POST", "/v1/batch", body.String()).want(200)
	n := 0
	for line := range strings.Lines(a.body) {
		n++
		if want := fmt.Sprintf(`"value":"%d","revision":%d,`, (n-1)/5+1, n+1); !strings.Contains(line, want) || !strings.HasPrefix(line, fmt.Sprintf(`{"n":%d,`, n)) {
			t.Fatalf("answer %d is %s, want %s", n, line, want)
		}
	}
	if n != lines {
		t.Errorf("%d answers to %d lines", n, lines)
	}
}

func BenchmarkBatch(b *testing.B) {
	s := frontAlone(b)
	line := `{"put":{"key":"bench/key-00000001","value":"` + strings.Repeat("v", 256) + `"}}` + "\n"
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	r := httptest.NewRequest("POST", "/v1/batch", nil)
	r.Body = io.NopCloser(io.LimitReader(&putsBody{line: line, deadline: make(chan time.Time)}, int64(b.N)*int64(len(line))))
	s.ServeHTTP(&discard{h: http.Header{}}, r)
}

// Streams whose clients do not read share the memory for requests, and have no places.
func TestBatchesShareTheMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 20
		b := budget.New(8 * mib)
		s, f := newServer(t, withMemory(b))
		line := `{"put":{"key":"k","value":"` + strings.Repeat("v", 30_000) + `"}}` + "\n"
		ended, free := make(chan any), make(chan struct{})
		var bodies []*putsBody
		for range streams {
			body := &putsBody{line: line, deadline: make(chan time.Time, 1)}
			bodies = append(bodies, body)
			r := httptest.NewRequest("POST", "/v1/batch", nil)
			r.Body = body
			go func() {
				defer func() { ended <- recover() }()
				s.ServeHTTP(&stuck{discard{http.Header{}}, body, 0, free, 0}, r)
			}()
		}
		time.Sleep(2 * budget.Patience) // until those that found no room are refused
		held := -int64(f.node.Revision()-1) * int64(len(line))
		for _, body := range bodies {
			held += body.read.Load()
		}
		if got := taken(t, b); got == 0 || got > b.Limit() || held > b.Limit() || s.InFlight() != 0 {
			t.Errorf("%d bytes are claimed of %d, %d are held; %d places are taken", got, b.Limit(), held, s.InFlight())
		}
		close(free)
		for range streams {
			if v := <-ended; v != nil && v != http.ErrAbortHandler {
				t.Errorf("ended with %v", v)
			}
		}
		if got := taken(t, b); got != 0 {
			t.Errorf("%d bytes are still claimed", got)
		}
	})
}

// A stream that finds no room at its start is refused, one in the middle waits, and a
// group with large results is carried out in parts.
func TestBatchesWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(8 * mib)
		s, f := newServer(t, withMemory(b))
		f.t = t
		f.put("big", strings.Repeat("v", mib))
		groups := 0
		f.node.onGroup = func(_ context.Context, commands [][]byte) error { groups++; return nil }
		run := func(body string) []string {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest("POST", "/v1/batch", strings.NewReader(body)))
			return strings.Split(strings.TrimSpace(w.Body.String()), "\n")
		}
		const appends = `{"append":{"key":"big","value":"","return":"previous"}}` + "\n"
		if got := run(strings.Repeat(appends, 20)); len(got) != 20 || groups < 4 {
			t.Errorf("%d answers in %d groups", len(got), groups)
		}
		other := b.Claim()
		other.Try(6 * mib)
		if got := run(appends); !strings.Contains(got[0], `"status":429`) {
			t.Errorf("at the start: %.100q", got)
		}
		other.Lower(5 * mib)
		begin := time.Now()
		wantAnswers(t, run(`{"get":{"key":"none"}}`+"\n"+`{"get":{"key":"big"}}`+"\n"), `404 `, `429 "code":"overloaded"`)
		if took := time.Since(begin); took != param.DefaultTimeout {
			t.Errorf("the get waited for %v", took)
		}
		time.AfterFunc(time.Second, func() { other.Release() })
		if got := run(`{"get":{"key":"big"}}` + "\n"); len(got) != 1 || len(got[0]) < mib {
			t.Errorf("a get that waited: %.100q", got)
		}
		if got := taken(t, b); got != 0 {
			t.Errorf("%d bytes are still claimed", got)
		}
	})
}
