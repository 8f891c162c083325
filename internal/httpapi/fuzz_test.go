package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

// decodeOnce is a second implementation of percent-decoding.
func decodeOnce(s string) (string, bool) {
	const hexDigits = "0123456789abcdef"
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]|0x20), strings.IndexByte(hexDigits, s[i+2]|0x20)
		if hi < 0 || lo < 0 {
			return "", false
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	return string(out), true
}

// FuzzRouter sends arbitrary requests. It checks that there is always an answer, never a
// 500, that errors are problem documents, and that an accepted PUT has stored its body
// under the bytes that the path decodes to.
func FuzzRouter(f *testing.F) {
	for _, target := range []string{
		"/v1/kv/a", "/%761/x\"", "//a/../b?timeout=1s&pretty", "/v1/kv?prefix=%ff&limit=2&reverse&delimiter=/", "/v1/kv?count_only",
		"/4", "/v1/members/4/promote", "/readyz/x?exclude=a&exclude=b", "http://h/v1/kv/%00", "*", "/v1/kv/a?if_revision=0&return=previous",
		"/v1/kv/a?append", "/v1/kv/n?incr=-3", "/v1/settings", "/v1/compact?revision=1", "/v1/kv?cursor=AQ", "/?%zz",
	} {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "HEAD"} {
			f.Add(method, target, "If-Match", `"1", W/"2"`, "body")
		}
	}
	f.Add("PUT", "/v1/settings", "Accept", "application/json", `{"max_value_bytes":5}`)
	s, fx := newServer(f)
	f.Fuzz(func(t *testing.T, method, target, header, value, body string) {
		if strings.ContainsAny(method+header, " \r\n:") || strings.ContainsAny(target+value, "\r\n") || len(target)+len(value) > 20_000 {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: x\r\n" + header + ": " + value + "\r\n\r\n")))
		if err != nil {
			return // net/http refuses it before us
		}
		r.Body, r.ContentLength = http.NoBody, int64(len(body))
		if body != "" {
			r.Body = httptest.NewRequest("PUT", "/", strings.NewReader(body)).Body
		}
		fx.restoreSettings(t)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		checkFuzzed(t, fx, r, w, target, body)
	})
}

func checkFuzzed(t *testing.T, fx *fixture, r *http.Request, w *httptest.ResponseRecorder, target, body string) {
	if w.Code == http.StatusInternalServerError {
		t.Fatalf("%s %q: %s, log %+v", r.Method, target, w.Body, fx.logs.All())
	}
	if r.Method != http.MethodHead && w.Code >= 400 && strings.HasPrefix(w.Header().Get("Content-Type"), "application/problem+json") {
		var doc struct{ Detail, Code string }
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Code == "" || doc.Detail == "" {
			t.Fatalf("%s %q: %v in %s", r.Method, target, err, w.Body)
		}
	}
	path, _, _ := strings.Cut(target, "?")
	raw, ok := strings.CutPrefix(path, kvPrefix)
	if !ok && w.Code == http.StatusNoContent {
		raw, ok = strings.CutPrefix(path, "/")
	}
	if !ok || r.Method != http.MethodPut || w.Code >= 300 || target == "/v1/settings" {
		return
	}
	key, ok := decodeOnce(raw)
	if !ok {
		t.Fatalf("%q was accepted", target)
	}
	kv, _, err := fx.node.Get([]byte(key), 0)
	if err != nil || string(kv.Value) != body {
		t.Fatalf("%q: the key %q has %q, %v; want %q", target, key, kv.Value, err, body)
	}
}

// restoreSettings undoes what an earlier input may have changed.
func (f *fixture) restoreSettings(t *testing.T) {
	d := kvstore.DefaultSettings()
	if f.node.Settings() == d {
		return
	}
	if _, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpSettings, Settings: d.Change()}, nil); err != nil {
		t.Fatal(err)
	}
}

// FuzzDocuments sends arbitrary bodies to each route that takes a JSON document. It checks
// that there is never a 500, and that an accepted body is valid JSON, nested no deeper
// than allowed, in which no object has a field twice.
func FuzzDocuments(f *testing.F) {
	for _, body := range []string{
		`{"peer_urls":["http://127.0.0.1:1"],"id":4}`, `{"peer_urls":["http://127.0.0.1:1"],"PEER_URLS":[]}`, `{"client_urls":["http://x:1"],"peer_urls":["https://x:2"]}`,
		`{"level":"debug","for":"1m"}`, `{"for":1}`, `{"quota_bytes":1073741824}`, `{"quota_bytes":1073741824,"quota_bytes":1}`, `{}`, `{} {}`, `null`, `[]`, `{"a":{"a":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}}`, "{\"\xff\":1}",
	} {
		f.Add(body)
	}
	s, fx := newServer(f)
	f.Fuzz(func(t *testing.T, body string) {
		for _, route := range []string{"POST /v1/members", "PUT /v1/members/2", "PUT /v1/settings", "PUT /v1/operator/log-level"} {
			fx.restoreSettings(t)
			method, target, _ := strings.Cut(route, " ")
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
			if w.Code == http.StatusInternalServerError {
				t.Fatalf("%s %q: %s", route, body, w.Body)
			}
			if w.Code < 300 && (!json.Valid([]byte(body)) || !plainDocument(json.NewDecoder(strings.NewReader(body)), 0)) {
				t.Fatalf("%s accepts %q", route, body)
			}
		}
	})
}

// plainDocument checks the nesting and the names of a document independently of package
// opjson.
func plainDocument(dec *json.Decoder, depth int) bool {
	tok, err := dec.Token()
	if err != nil {
		return false
	}
	open, nested := tok.(json.Delim)
	if !nested {
		return true
	}
	seen := make(map[string]bool)
	for dec.More() {
		if open == '{' {
			name, err := dec.Token()
			if err != nil || seen[strings.ToLower(name.(string))] {
				return false
			}
			seen[strings.ToLower(name.(string))] = true
		}
		if !plainDocument(dec, depth+1) {
			return false
		}
	}
	_, err = dec.Token()
	return err == nil && depth < opjson.MaxDepth
}

// change is an event of a watch, as a client sees it.
type change struct {
	Type     string `json:"type"`
	Key      string `json:"key"`
	Revision uint64 `json:"mod_revision"`
	More     bool   `json:"more"`
	Through  uint64 `json:"revision"`
}

// The history that FuzzWatch resumes in: its last revision, and where it is compacted.
const (
	lastFuzzed      = 12
	compactedFuzzed = 5
)

// fuzzHistory makes a history of changes, several in some revisions, and returns them.
func (f *fixture) fuzzHistory(t testing.TB) (all []change) {
	do := func(cmds ...kvstore.Command) {
		res, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{Then: cmds}}, nil)
		if err != nil || res.Outcome != kvstore.OK {
			t.Fatal(res.Detail, err)
		}
		for i, c := range cmds {
			typ := "put"
			if c.Op == kvstore.OpDelete {
				typ = "delete"
			}
			all = append(all, change{Type: typ, Key: string(c.Key), Revision: res.Revision, More: i+1 < len(cmds)})
		}
	}
	put := func(key string) kvstore.Command {
		return kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte("v")}
	}
	for f.node.Revision() < lastFuzzed {
		switch f.node.Revision() % 4 {
		case 0:
			do(put("a"), put("a/b"), put("b"))
		case 1:
			do(put("a"), put("b"))
		case 2:
			do(kvstore.Command{Op: kvstore.OpDelete, Key: []byte("a")}, kvstore.Command{Op: kvstore.OpDelete, Key: []byte("b")})
		default:
			do(put("a"), put("b"), put("c"))
		}
	}
	if _, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpCompact, Revision: compactedFuzzed}, nil); err != nil {
		t.Fatal(err)
	}
	return all
}

// FuzzWatch begins and resumes watches with arbitrary queries and ids, in a history of which
// a part is compacted. A second reader of the query says where a watch begins and what it
// shows: neither less nor more, in order, and refused exactly where that is compacted or in
// the future. Each id in a stream of events is a place behind a whole revision.
func FuzzWatch(f *testing.F) {
	for _, query := range []string{
		"prefix=", "key=a", "prefix=a&events=put", "start=a&end=b&events=delete,put", "prefix=&from_revision=4", "prefix=%61&from_revision=6&previous", "prefix=&consistency=stale&from_revision=5",
		"start=b&from_revision=13", "prefix=&from_revision=%2B7", "key=a&key=b", "prefix=&from_revision=14", "key=a;b", "start=&end=%00", "prefix=&previous=0&events=",
	} {
		for _, id := range []string{"", "4", "5", "9007199254740991"} {
			f.Add(query, id, id == "5")
		}
	}
	for _, id := range []string{"0", "3", "11", "12", "13", "+6", "006", "0x6", " 6", "6.0", "18446744073709551615"} {
		f.Add("prefix=", id, true)
	}
	s, fx := newServer(f)
	all := fx.fuzzHistory(f)
	f.Fuzz(func(t *testing.T, query, id string, events bool) {
		if len(query)+len(id) > kvstore.MaxKeyBytes {
			return
		}
		fx.node.barriers = nil
		w := httptest.NewRecorder()
		synctest.Test(t, func(t *testing.T) { // the stream ends when its time is up
			r := httptest.NewRequest(http.MethodGet, "/v1/watch", nil)
			r.Host, r.URL.RawQuery = "x", query+"&timeout=1s"
			if id != "" {
				r.Header.Set("Last-Event-ID", id)
			}
			if events {
				r.Header.Set("Accept", eventStreamType)
			}
			s.ServeHTTP(w, r)
		})
		from, ok := fuzzedFrom(query, id)
		switch {
		case w.Code == http.StatusInternalServerError:
			t.Fatalf("%q, id %q: %s", query, id, w.Body)
		case ok && from < compactedFuzzed && w.Code != http.StatusGone && w.Code != http.StatusBadRequest,
			ok && from > lastFuzzed+1 && w.Code != http.StatusBadRequest, !ok && w.Code != http.StatusBadRequest, w.Code == http.StatusGone && from >= compactedFuzzed:
			t.Fatalf("%q, id %q: from %d, %v: answered with %d", query, id, from, ok, w.Code)
		case w.Code != http.StatusOK:
			return
		}
		want := slices.DeleteFunc(slices.Clone(all), func(c change) bool { return c.Revision < from || !fuzzedWants(query, &c) })
		for i := range want { // more is about what the watch shows
			want[i].More = i+1 < len(want) && want[i+1].Revision == want[i].Revision
		}
		if got := readFuzzed(t, w, events, from); !slices.Equal(got, want) {
			t.Fatalf("%q, id %q, from %d:\n got %v\nwant %v", query, id, from, got, want)
		}
	})
}

// fuzzedParam returns a parameter that is given once.
func fuzzedParam(query, name string) (value string, given bool) {
	for pair := range strings.SplitSeq(query, "&") {
		n, v, _ := strings.Cut(strings.ReplaceAll(pair, "+", " "), "=")
		if n, ok := decodeOnce(n); ok && n == name && pair != "" {
			v, _ := decodeOnce(v)
			return v, true
		}
	}
	return "", false
}

// fuzzedFrom returns the first revision that a client asks for.
func fuzzedFrom(query, id string) (from uint64, ok bool) {
	text, given := fuzzedParam(query, "from_revision")
	switch {
	case id != "":
		text = id
	case !given:
		return lastFuzzed + 1, true
	}
	n, ok := new(big.Int).SetString(text, 10)
	if !ok || strings.ContainsAny(text, "+-") || n.Cmp(big.NewInt(1<<53-1)) > 0 {
		return 0, false
	}
	if id != "" {
		n.Add(n, big.NewInt(1))
	}
	return n.Uint64(), n.Sign() > 0
}

// fuzzedWants says by the contract whether a watch shows a change.
func fuzzedWants(query string, c *change) bool {
	if kinds, given := fuzzedParam(query, "events"); given && !slices.Contains(strings.Split(kinds, ","), c.Type) {
		return false
	}
	if key, single := fuzzedParam(query, "key"); single {
		return c.Key == key
	}
	if prefix, given := fuzzedParam(query, "prefix"); given {
		return strings.HasPrefix(c.Key, prefix)
	}
	start, _ := fuzzedParam(query, "start")
	end, bounded := fuzzedParam(query, "end")
	return c.Key >= start && (!bounded || c.Key < end)
}

// readFuzzed reads a stream, which begins and ends with progress.
func readFuzzed(t *testing.T, w *httptest.ResponseRecorder, events bool, from uint64) (out []change) {
	id, through := "", uint64(0)
	first := true
	for line := range strings.Lines(w.Body.String()) {
		line = strings.TrimSuffix(line, "\n")
		if events {
			if rest, ok := strings.CutPrefix(line, "id: "); ok {
				id = rest
				continue
			}
			if line == "" {
				id = ""
				continue
			}
			line = strings.TrimPrefix(line, "data: ")
		}
		var c change
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatalf("%v in %q", err, w.Body)
		}
		if events && (id != "") != !c.More || id != "" && id != strconv.FormatUint(max(c.Revision, c.Through), 10) {
			t.Fatalf("%+v has the id %q", c, id)
		}
		if first && (c.Type != "progress" || c.Through != from-1) {
			t.Fatalf("the first line is %q, from %d", line, from)
		}
		if first, through = false, c.Through; c.Type != "progress" {
			out = append(out, c)
		}
	}
	if through != lastFuzzed {
		t.Fatalf("the stream ends with %q", w.Body)
	}
	return out
}

// batchAnswer is what is compared of an answer to a line.
type batchAnswer struct {
	N        int    `json:"n"`
	Status   int    `json:"status"`
	Revision uint64 `json:"revision"`
}

// FuzzBatch sends arbitrary bytes as a stream of operations, in pieces of any size. Each line
// is answered once, in order, as a node with the same past answers it alone, up to the first
// line that is not JSON; and none with 500.
func FuzzBatch(f *testing.F) {
	lines := `{"put":{"key":"a","value":"1"}}` + "\n\r\n" + `{"append":{"key":"a","value":"2","return":"previous"}}` + "\r\n" + `{"get":{"key":"a"}}` + "\n" +
		`{"incr":{"key":"n","delta":-3}}` + "\n" + `{"put":{"key":"a","value":"3","if_revision":2}}` + "\n" + `{"delete":{"prefix":""}}` + "\n"
	f.Add([]byte(lines), uint8(0))
	f.Add([]byte(lines+`{"list":{"prefix":"","limit":1}}`+"\n"+`{"idempotency_key":"k","put":{"key":"b","value":"1"}}`+"\n"+`{"idempotency_key":"k","put":{"key":"b","value":"2"}}`), uint8(7))
	f.Add([]byte(lines+`{"txn":{"if":[{"key":"a","exists":true}],"then":[{"delete":{"key":"a"}},{"get":{"key":"a"}}],"else":[{"put":{"key":"a","value":"x"}}]}}`+"\n"+lines), uint8(255))
	f.Add([]byte(lines+"{\n"+lines), uint8(30))
	f.Add([]byte(`{"put":{"key":"a","value":"1"},"get":{"key":"a"}}`+"\n{}\n[]\n\"put\"\nnull\n"+`{"put":{"key":"\ud800","value":""}}`+"\n"+lines), uint8(3))
	whole, fx := newServer(f)
	single, _ := newServer(f)
	f.Fuzz(func(t *testing.T, body []byte, piece uint8) {
		if len(body) > 20_000 {
			return
		}
		got := fuzzedBatch(t, whole, &inPieces{body, int(piece) + 1})
		n := 0
		for line := range bytes.SplitSeq(body, []byte{'\n'}) {
			n++
			if len(bytes.TrimSuffix(line, []byte{'\r'})) == 0 {
				continue
			}
			alone := fuzzedBatch(t, single, bytes.NewReader(line))
			if len(alone) != 1 || len(got) == 0 || got[0].N != n || got[0].Status != alone[0].Status || got[0].Revision != alone[0].Revision || got[0].Status == http.StatusInternalServerError {
				t.Fatalf("%q: line %d, %q: answered %+v, and alone %+v; log %+v", body, n, line, got, alone, fx.logs.All())
			}
			if got = got[1:]; !json.Valid(line) {
				break
			}
			if len(got) == 0 && !utf8.Valid(line) {
				break
			}
		}
		if len(got) > 0 {
			t.Fatalf("%q: %+v answers no line", body, got)
		}
	})
}

// inPieces returns at most so many bytes at once.
type inPieces struct {
	rest  []byte
	piece int
}

func (p *inPieces) Read(b []byte) (n int, err error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n = copy(b, p.rest[:min(p.piece, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}

// fuzzedBatch returns the answers to a stream.
func fuzzedBatch(t *testing.T, s *Server, body io.Reader) (answers []batchAnswer) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/v1/batch", body))
	if w.Code != http.StatusOK {
		t.Fatalf("the stream is answered %d: %s", w.Code, w.Body)
	}
	for line := range strings.Lines(w.Body.String()) {
		var a batchAnswer
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		answers = append(answers, a)
	}
	return answers
}
