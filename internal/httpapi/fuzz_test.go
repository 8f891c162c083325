package httpapi

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
