package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/accounts"
	"github.com/kvd-io/kvd/internal/httpapi/dialect"
)

// The route and the key of each raw path.
func TestRouterOnEscapedPaths(t *testing.T) {
	router := newRouter(&Options{RootMembers: true, Dialects: []string{dialect.Raftexample}})
	for _, c := range []struct{ target, pattern, arg string }{
		{"/v1/kv/a", kvPattern, "a"},
		{"/v1/kv/", kvPattern, ""},
		{"/v1/kv", "/v1/kv", ""},
		{"/v1/kv/a%2Fb", kvPattern, "a/b"},
		{"/v1/kv/a/b", kvPattern, "a/b"},
		{"/v1/kv//", kvPattern, "/"},
		{"/v1/kv/a//b", kvPattern, "a//b"},
		{"/v1/kv/a/../b", kvPattern, "a/../b"},
		{"/v1/kv/..", kvPattern, ".."},
		{"/v1/kv/.", kvPattern, "."},
		{"/v1/kv/%2e%2e/x", kvPattern, "../x"},
		{"/v1/kv/%00", kvPattern, "\x00"},
		{"/v1/kv/%FF%fe", kvPattern, "\xff\xfe"},
		{"/v1/kv/a+b", kvPattern, "a+b"},
		{"/v1/kv/%2541", kvPattern, "%41"},
		{"/v1/kv/a?timeout=1s", kvPattern, "a"},
		{"/v1/kv/a%3Fb", kvPattern, "a?b"},
		{"/v1/kv/a#b", kvPattern, "a#b"},
		{"/v1/kv/\"<>\xff", kvPattern, "\"<>\xff"},
		{"/v1/kv/members", kvPattern, "members"},
		{"/%761/x", shortPattern, "v1/x"},
		{"/%761/x\"", shortPattern, `v1/x"`}, // URL.EscapedPath would say /v1/x%22
		{"/v1%2Fkv/x", shortPattern, "v1/kv/x"},
		{"/my-key", shortPattern, "my-key"},
		{"//", shortPattern, "/"},
		{"//a/b", shortPattern, "/a/b"},
		{"/../v1/kv/a", shortPattern, "../v1/kv/a"},
		{"/", shortPattern, ""},
		{"http://host:1/v1/kv/a%2Fb", kvPattern, "a/b"},
		{"http://host:1", shortPattern, ""},
		{"/v100/x", shortPattern, "v100/x"},
		{"/v/x", shortPattern, "v/x"},
		{"/v01", shortPattern, "v01"},
		{"/V1/kv/a", shortPattern, "V1/kv/a"},
		{"/vx", shortPattern, "vx"},
		{"/uix", shortPattern, "uix"},
		{"/%6detrics", shortPattern, "metrics"},
		{"/v1/members", "/v1/members", ""},
		{"/v1/members/4", "/v1/members/{id}", "4"},
		{"/v1/members/%34", "/v1/members/{id}", "4"},
		{"/v1/members/4/promote", "/v1/members/{id}/promote", "4"},
		{"/v1/members/4%2Fpromote", "/v1/members/{id}", "4/promote"},
		{"/readyz", "/readyz", ""},
		{"/readyz/leader", "/readyz/{check}", "leader"},
		{"/v1/members/", "", ""},
		{"/v1/members//promote", "", ""},
		{"/v1/members/4/5", "", ""},
		{"/v1", "", ""},
		{"/v1/", "", ""},
		{"/v1//kv/a", "", ""},
		{"/v1/./kv/a", "", ""},
		{"/v0", "", ""},
		{"/v99/x", "", ""},
		{"/ui", "/ui", ""},
		{"/ui/", "/ui/", ""},
		{"/ui/app.js", "/ui/{file}", "app.js"},
		{"/ui/a/b", "", ""},
		{"/debug/pprof/", "", ""},
		{"/.well-known/x", "", ""},
		{"/metrics/x", "", ""},
	} {
		rt, arg, err := router.find(parseTarget(t, http.MethodGet, c.target))
		if c.pattern == "" {
			if rt != nil || err == nil {
				t.Errorf("%s: found %v", c.target, rt)
			}
			continue
		}
		if rt == nil || rt.pattern != c.pattern || arg != c.arg {
			t.Errorf("%s: got %+v with %q (%v), want %s with %q", c.target, rt, arg, err, c.pattern, c.arg)
		}
	}
}

// parseTarget parses a request as net/http does.
func parseTarget(t *testing.T, method, target string) *http.Request {
	t.Helper()
	return httptest.NewRequest(method, target, nil)
}

// Every route answers every method: those that it does not have with 405 and Allow, or, for
// a PUT of a path that looks like a key, with 400.
func TestEveryRouteAndMethod(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Metrics = http.NotFoundHandler() })
	all := []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"}
	for _, rt := range routeTable(true, false) {
		target := strings.NewReplacer("{key}", "k", "{id}", "4", "{check}", "leader", "{file}", "app.js").Replace(rt.pattern)
		for _, method := range all {
			a := f.do(method, target, "")
			switch {
			case rt.method(method) != nil:
				if a.status == http.StatusMethodNotAllowed {
					t.Errorf("%s: 405", a.what)
				}
			case method == "PUT" && firstSegment(target) != "v1":
				a.problem(400, api.BadRequest, "/v1/kv"+target)
			default:
				if a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != rt.allowed() {
					t.Errorf("%s: %d with Allow %q", a.what, a.status, a.header.Get("Allow"))
				}
			}
		}
	}
}

func TestAllowOfTheShortForm(t *testing.T) {
	f := newFixture(t)
	f.do("PATCH", "/k", "").problem(405, api.MethodNotAllowed).wantHeader("Allow", "PUT, GET, POST, DELETE")
	f = newFixture(t, func(o *Options) { o.RootMembers = false })
	for _, m := range []string{"POST", "DELETE"} {
		f.do(m, "/4", "http://127.0.0.1:1").problem(405, api.MethodNotAllowed).wantHeader("Allow", "PUT, GET")
	}
	if len(f.cluster.calls) != 0 {
		t.Errorf("calls %v, want none", f.cluster.calls)
	}
}

func TestReservedPathsAreNoKeys(t *testing.T) {
	f := newFixture(t)
	for _, p := range []string{"/v0", "/v1", "/v2/keys/x", "/v99/a", "/ui", "/ui/x", "/metrics", "/metrics/x", "/health", "/healthz", "/livez", "/readyz", "/version", "/openapi.yaml", "/debug/x", "/.well-known/x", "/v1/nothing"} {
		f.do("PUT", p, "x").problem(400, api.BadRequest, "/v1/kv"+p)
		f.do("GET", "/v1/kv"+p, "").problem(404, api.KeyNotFound)
	}
	if rev := f.node.Revision(); rev != 1 {
		t.Errorf("the store is at revision %d; something was stored", rev)
	}
	for _, p := range []string{"/ui/", "/v1", "/v1/nothing", "/debug/pprof/"} {
		f.do("GET", p, "").problem(404, api.NotFound)
	}
}

// Each of the 256 bytes is a different key, percent-encoded in either case, over a real
// socket.
func TestKeysOfEveryByteEncoded(t *testing.T) {
	f := newFixture(t)
	for _, prefix := range []string{"/v1/kv/", "/"} {
		for b := range 256 {
			key := fmt.Sprintf("k%c%%%02X", 'a'+len(prefix), b)
			f.raw(fmt.Sprintf("PUT %s%s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d", prefix, key, b))
		}
		for b := range 256 {
			key := "k" + string(rune('a'+len(prefix))) + string([]byte{byte(b)})
			kv, _, err := f.node.Get([]byte(key), 0)
			if err != nil || string(kv.Value) != fmt.Sprintf("%03d", b) {
				t.Fatalf("key %q: %q, %v", key, kv.Value, err)
			}
			f.raw(fmt.Sprintf("GET %sk%c%%%02x HTTP/1.1\r\nHost: x\r\n\r\n", prefix, 'a'+len(prefix), b)).wantBody(200, fmt.Sprintf("%03d", b))
		}
	}
	if rev := f.node.Revision(); rev != 1+2*256 {
		t.Errorf("the store is at revision %d; some keys were the same", rev)
	}
}

// Bytes that net/http accepts unescaped arrive unchanged.
func TestKeysOfEveryByteRaw(t *testing.T) {
	f := newFixture(t)
	for b := range 256 {
		if b <= ' ' || b == 0x7f || b == '?' || b == '%' {
			continue
		}
		key := "raw" + string([]byte{byte(b)}) + "/x"
		f.raw("PUT /" + key + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv").want(204)
		if _, _, err := f.node.Get([]byte(key), 0); err != nil {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

func TestPathsAreNeverCleanedOrRedirected(t *testing.T) {
	f := newFixture(t)
	keys := []string{"a//b", "a/b", "a/./b", "a/../b", "b", ".", "..", "/", "//", "a/", "a", "../../etc/passwd", "%2e%2e", "a%2F%2Fc"}
	for i, k := range keys {
		f.raw(fmt.Sprintf("PUT /v1/kv/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d", k, i)).want(map[bool]int{true: 200, false: 201}[k == "%2e%2e"])
	}
	for i, k := range keys {
		if k != ".." { // %2e%2e is the same key, written later
			f.raw("GET /v1/kv/"+k+" HTTP/1.1\r\nHost: x\r\n\r\n").wantBody(200, fmt.Sprintf("%02d", i))
		}
	}
}

func TestAbsoluteFormAndOddTargets(t *testing.T) {
	f := newFixture(t)
	f.put("a/b", "v")
	f.raw("GET http://elsewhere/v1/kv/a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n").wantBody(200, "v")
	f.raw("GET http://elsewhere HTTP/1.1\r\nHost: x\r\n\r\n").problem(400, api.BadRequest, "key is empty")
	f.raw("GET * HTTP/1.1\r\nHost: x\r\n\r\n").problem(400, api.BadRequest, "not a path")
	f.raw("GET http:opaque HTTP/1.1\r\nHost: x\r\n\r\n").problem(400, api.BadRequest, "not a path")
	for _, bad := range []string{"/%", "/%zz", "/v1/kv/%4"} {
		if a := f.raw("GET " + bad + " HTTP/1.1\r\nHost: x\r\n\r\n"); a.status != 400 {
			t.Errorf("%s: %d", bad, a.status)
		}
	}
}

func TestPatternsAreUnique(t *testing.T) {
	var seen []string
	for _, rt := range routeTable(true, false) {
		if slices.Contains(seen, rt.pattern) {
			t.Errorf("%s occurs twice", rt.pattern)
		}
		seen = append(seen, rt.pattern)
	}
}

// A change that cannot heed a condition is refused with one, on every route: its client
// relies on the change being made only if the condition holds.
func TestConditionsAreHeededOrRefused(t *testing.T) {
	f := newFixture(t)
	heeded := map[string]bool{kvPattern: true, "PUT " + shortPattern: true, "/v1/settings": true}
	for _, r := range accounts.Routes() {
		heeded[r.Pattern] = true // TestConcurrentEditsOfAccounts
	}
	refused := 0
	for _, rt := range routeTable(true, false) {
		for _, m := range rt.methods {
			if !m.mutates || heeded[rt.pattern] || heeded[m.name+" "+rt.pattern] {
				continue
			}
			refused++
			target := strings.NewReplacer("{id}", "4", "{name}", "l", "{key}", "4").Replace(rt.pattern)
			if target == "/v1/kv" {
				target += "?prefix=a"
			}
			for _, header := range []string{`If-Match: "1"`, "If-None-Match: *"} {
				f.do(m.name, target, "", header).problem(400, api.BadRequest, "conditions apply to a single key")
			}
		}
	}
	if refused < 15 {
		t.Errorf("only %d methods were asked", refused)
	}
}
