package httpapi

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// decodeOnce is percent-decoding, written down a second time.
func decodeOnce(s string) (string, bool) {
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

// FuzzRouter sends any request line and body: there is always an answer,
// never a 500, errors are problem documents, and a PUT that is accepted has
// stored its body under the bytes that the path decodes to.
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
	if _, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpSettings, Settings: &d}); err != nil {
		t.Fatal(err)
	}
}
