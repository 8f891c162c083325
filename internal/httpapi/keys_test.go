package httpapi

import (
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestShortFormRoundTrip(t *testing.T) {
	f := newFixture(t)
	f.do("GET", "/my-key", "").problem(404, api.KeyNotFound).wantHeader("Kvd-Revision", "1")
	f.do("PUT", "/my-key", "hello").wantBody(204, "").wantHeader("Kvd-Revision", "2").wantHeader("Kvd-Cluster", testClusterID)
	f.do("GET", "/my-key", "").wantBody(200, "hello").
		wantHeader("Content-Type", "application/octet-stream").
		wantHeader("X-Content-Type-Options", "nosniff").
		wantHeader("Content-Security-Policy", "sandbox").
		wantHeader("Vary", "Accept").
		wantHeader("Etag", `"2"`).
		wantHeader("Kvd-Revision", "2").
		wantHeader("Kvd-Cluster", testClusterID)
	f.do("GET", "/v1/kv/my-key", "").wantBody(200, "hello")
	f.do("HEAD", "/my-key", "").wantBody(200, "").wantHeader("Content-Length", "5").wantHeader("Etag", `"2"`)
	f.do("HEAD", "/none", "").wantBody(404, "")
}

func TestPutAnswers(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/kv/a", "1").wantBody(201, `{"key":"a","revision":2,"create_revision":2,"mod_revision":2,"version":1}`+"\n").
		wantHeader("Content-Type", "application/json").wantHeader("Etag", `"2"`)
	f.do("PUT", "/v1/kv/a?return=previous", "\xff").wantBody(200,
		`{"key":"a","revision":3,"create_revision":2,"mod_revision":3,"version":2,"previous":{"key":"a","value":"1","create_revision":2,"mod_revision":2,"version":1,"lease":0}}`+"\n")
	f.do("PUT", "/v1/kv/b?return=previous", "").want(201, `"previous":null}`)
	f.do("GET", "/v1/kv/a?meta", "").wantBody(200, `{"key":"a","value_base64":"/w==","create_revision":2,"mod_revision":3,"version":2,"lease":0}`+"\n")
	f.do("GET", "/v1/kv/a", "", "Accept: application/json").want(200, `"value_base64":"/w=="`).wantHeader("Vary", "Accept").wantHeader("Content-Security-Policy", "sandbox")
	f.do("GET", "/v1/kv/a?meta&pretty", "").want(200, "{\n  \"key\": \"a\",\n")
	f.do("PUT", "/v1/kv/%FF", "1").want(201, `"key_base64":"/w=="`)
	f.do("GET", "/v1/kv/b", "").wantBody(200, "").wantHeader("Content-Length", "0")
	a := f.do("HEAD", "/v1/kv/a?meta", "").wantBody(200, "")
	if a.header.Get("Content-Length") == "" {
		t.Error("HEAD of the JSON form has no Content-Length")
	}
}

func TestGetAtARevision(t *testing.T) {
	f := newFixture(t)
	f.put("a", "one") // 2
	f.put("a", "two") // 3
	f.do("GET", "/v1/kv/a?revision=2", "").wantBody(200, "one").wantHeader("Etag", `"2"`)
	f.do("GET", "/v1/kv/a?revision=1", "").problem(404, api.KeyNotFound)
	f.do("GET", "/v1/kv/a?revision=9", "").problem(400, api.FutureRevision)
	f.do("GET", "/v1/kv/a?revision=0", "").problem(400, api.BadRequest, "revision")
	f.do("POST", "/v1/compact?revision=3", "").wantBody(200, `{"revision":3,"compact_revision":3}`+"\n")
	f.do("GET", "/v1/kv/a?revision=2", "").problem(410, api.RevisionCompacted, `"compact_revision":3`)
	f.do("GET", "/v1/kv?prefix=&revision=2", "").problem(410, api.RevisionCompacted, `"compact_revision":3`)
	f.do("POST", "/v1/compact?revision=10", "").problem(400, api.FutureRevision)
	f.do("POST", "/v1/compact", "").problem(400, api.BadRequest, "revision")
}

func TestDelete(t *testing.T) {
	f := newFixture(t)
	f.put("a", "1")
	f.do("DELETE", "/v1/kv/a?return=previous", "").wantBody(200, `{"deleted":1,"revision":3,"previous":{"key":"a","value":"1","create_revision":2,"mod_revision":2,"version":1,"lease":0}}`+"\n")
	f.do("DELETE", "/v1/kv/a", "").wantBody(200, `{"deleted":0,"revision":3}`+"\n").wantHeader("Kvd-Revision", "3")
}

func TestAppendAndIncr(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/kv/a?append", "x").want(201, `"version":1`)
	f.do("POST", "/v1/kv/a?append=true", "y").want(200, `"version":2`)
	f.do("GET", "/v1/kv/a", "").wantBody(200, "xy")
	f.do("POST", "/v1/kv/n?incr=5", "").want(201, `"value":"5"`)
	f.do("POST", "/v1/kv/n?incr=-7", "").want(200, `"value":"-2"`)
	f.do("GET", "/v1/kv/n", "").wantBody(200, "-2")
	f.do("POST", "/v1/kv/a?incr=1", "").problem(412, api.PreconditionFailed, `"revision":3`)
	f.do("POST", "/v1/kv/max?incr=9223372036854775807", "").want(201)
	f.do("POST", "/v1/kv/max?incr=1", "").problem(412, api.PreconditionFailed, `"revision":6`)
	for _, q := range []string{"", "?append&incr=1", "?append=false", "?append=maybe", "?incr", "?incr=", "?incr=1.5", "?incr=+5", "?incr=9223372036854775808"} {
		f.do("POST", "/v1/kv/n"+q, "").problem(400, api.BadRequest)
	}
	f.do("POST", "/v1/kv/n?incr=1", "body").problem(400, api.BadRequest, "no body")
	f.do("GET", "/v1/kv/n", "").wantBody(200, "-2")
}

func TestWriteConditions(t *testing.T) {
	for _, c := range []struct {
		name    string
		present bool // the key exists, at revision 2
		query   string
		headers []string
		ok      bool
	}{
		{"match", true, "", []string{`If-Match: "2"`}, true},
		{"match in a list", true, "", []string{`If-Match: "1", "2"`}, true},
		{"match in a second line", true, "", []string{`If-Match: "1"`, `If-Match: "2"`}, true},
		{"match any", true, "", []string{`If-Match: *`}, true},
		{"match other", true, "", []string{`If-Match: "3"`}, false},
		{"match weak", true, "", []string{`If-Match: W/"2"`}, false},
		{"match foreign tag", true, "", []string{`If-Match: "abc"`}, false},
		{"match nothing", true, "", []string{`If-Match: ,`}, false},
		{"match absent", false, "", []string{`If-Match: "2"`}, false},
		{"match any absent", false, "", []string{`If-Match: *`}, false},
		{"none match", true, "", []string{`If-None-Match: "3"`}, true},
		{"none match hit", true, "", []string{`If-None-Match: "3", "2"`}, false},
		{"none match weak hit", true, "", []string{`If-None-Match: W/"2"`}, false},
		{"none match foreign", true, "", []string{`If-None-Match: "abc"`}, true},
		{"create only", false, "", []string{`If-None-Match: *`}, true},
		{"create only, exists", true, "", []string{`If-None-Match: *`}, false},
		{"if_revision", true, "if_revision=2", nil, true},
		{"if_revision other", true, "if_revision=3", nil, false},
		{"if_revision 0", false, "if_revision=0", nil, true},
		{"if_revision 0, exists", true, "if_revision=0", nil, false},
		{"all hold", true, "if_revision=2", []string{`If-Match: "2"`, `If-None-Match: "7"`}, true},
		{"one does not", true, "if_revision=2", []string{`If-Match: "2"`, `If-None-Match: "2"`}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			now := `"revision":0`
			if c.present {
				f.put("k", "5")
				now = `"revision":2`
			}
			before := f.node.Revision()
			for _, r := range []struct{ method, target, query string }{
				{"PUT", "/v1/kv/k?", ""}, {"PUT", "/k?", ""}, {"POST", "/v1/kv/k?", "append&"},
				{"POST", "/v1/kv/k?", "incr=1&"}, {"DELETE", "/v1/kv/k?", ""},
			} {
				if c.ok && f.node.Revision() != before {
					break // each further one would meet another revision
				}
				a := f.do(r.method, r.target+r.query+c.query, "", c.headers...)
				if c.ok && a.status >= 300 {
					t.Errorf("%s: %d %s", a.what, a.status, a.body)
				}
				if !c.ok {
					a.problem(412, api.PreconditionFailed, now)
				}
			}
			if !c.ok && f.node.Revision() != before {
				t.Error("something was changed")
			}
		})
	}
}

func TestReadConditions(t *testing.T) {
	f := newFixture(t)
	f.put("k", "v")
	for _, c := range []struct {
		key, header string
		status      int
	}{
		{"k", `If-None-Match: "2"`, 304},
		{"k", `If-None-Match: W/"2"`, 304},
		{"k", `If-None-Match: "1", "2"`, 304},
		{"k", `If-None-Match: *`, 304},
		{"k", `If-None-Match: "1"`, 200},
		{"k", `If-Match: "2"`, 200},
		{"k", `If-Match: *`, 200},
		{"k", `If-Match: "1"`, 412},
		{"k", `If-Match: W/"2"`, 412},
		{"none", `If-None-Match: *`, 404},
		{"none", `If-None-Match: "2"`, 404},
		{"none", `If-Match: *`, 412},
		{"k", `If-Match: 2`, 400},
		{"k", `If-None-Match: "2`, 400},
	} {
		for _, m := range []string{"GET", "HEAD"} {
			a := f.do(m, "/v1/kv/"+c.key, "", c.header).want(c.status)
			if c.status == 304 {
				a.wantBody(304, "").wantHeader("Etag", `"2"`).wantHeader("Kvd-Revision", "2").wantHeader("Vary", "Accept")
			}
		}
	}
	// If-Match is judged first.
	f.do("GET", "/k", "", `If-Match: "1"`, `If-None-Match: "2"`).problem(412, api.PreconditionFailed, `"revision":2`)
}

func TestKeyLimits(t *testing.T) {
	f := newFixture(t)
	long := strings.Repeat("k", kvstore.MaxKeyBytes)
	f.do("PUT", "/v1/kv/"+long, "v").want(201)
	f.do("PUT", "/"+long, "v").want(204)
	f.do("PUT", "/v1/kv/"+strings.Repeat("%ff", kvstore.MaxKeyBytes), "v").want(201)
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		f.do(m, "/v1/kv/"+long+"k", "").problem(413, api.TooLarge, "4097")
		f.do(m, "/v1/kv/", "").problem(400, api.BadRequest, "key is empty")
	}
	f.do("POST", "/v1/kv/?append", "").problem(400, api.BadRequest, "key is empty")
	for _, m := range []string{"GET", "PUT", "POST", "DELETE"} {
		f.do(m, "/", "").problem(400, api.BadRequest, "key is empty")
	}
	f.do("PUT", "/v1/settings", `{"max_key_bytes":3}`).want(200, `"max_key_bytes":3`)
	f.do("PUT", "/v1/kv/four", "v").problem(413, api.TooLarge)
	f.do("PUT", "/v1/kv/two", "v").want(201)
}

func TestParametersAreStrict(t *testing.T) {
	f := newFixture(t)
	f.put("k", "v")
	for _, c := range []struct{ method, target, part string }{
		{"GET", "/v1/kv/k?nonsense=1", `\"nonsense\"`},
		{"GET", "/k?q", `\"q\"`},
		{"PUT", "/k?value=1", `\"value\"`},
		{"GET", "/v1/kv/k?revision=1&revision=1", "more than once"},
		{"GET", "/v1/kv/k?pretty=perhaps", "switch"},
		{"GET", "/v1/kv/k?timeout=abc", "duration"},
		{"GET", "/v1/kv/k?timeout=", "duration"},
		{"GET", "/v1/kv/k?timeout=-1s", "duration"},
		{"GET", "/v1/kv/k?timeout=0", "1ms"},
		{"GET", "/v1/kv/k?timeout=11m", "10m"},
		{"PUT", "/v1/kv/k?timeout=abc", "duration"},
		{"GET", "/v1/kv/k?consistency=eventual", "linearizable or stale"},
		{"GET", "/v1/kv/k?max_staleness=1s", "consistency=stale"},
		{"GET", "/v1/kv/k?consistency=stale&max_staleness=0", "greater than 0"},
		{"GET", "/v1/kv/k?revision=x", "revision"},
		{"GET", "/v1/kv/k?revision=9007199254740992", "revision"},
		{"GET", "/v1/kv/k?%zz", "invalid percent-escape"},
		{"GET", "/v1/kv/k?pretty=%zz", "invalid percent-escape"},
		{"PUT", "/v1/kv/k?return=next", "previous"},
		{"PUT", "/k?return=previous", "unknown parameter"},
		{"PUT", "/v1/kv/k?if_revision=-1", "if_revision"},
		{"GET", "/v1/status?verbose", "unknown parameter"},
	} {
		f.do(c.method, c.target, "").problem(400, api.BadRequest, c.part)
	}
	if rev := f.node.Revision(); rev != 2 {
		t.Errorf("something was written: revision %d", rev)
	}
	for _, ok := range []string{"?timeout=1", "?timeout=0.5", "?timeout=500ms", "?timeout=1m30s", "?", "?&&", "?meta=0", "?pretty=false", "?%74imeout=1", "?consistency=linearizable"} {
		f.do("GET", "/v1/kv/k"+ok, "").wantBody(200, "v")
	}
}

// A key can be bound to a lease of its own, or to one that exists.
func TestLeasesOfKeys(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/kv/a?ttl=30s", "x").want(201, `"lease":1,"ttl":"30s"`)
	f.do("GET", "/v1/kv/a?meta", "").want(200, `"lease":1`)
	f.do("PUT", "/v1/kv/b?lease=1", "x").problem(404, api.LeaseNotFound) // belongs to the key a alone
	if res, err := f.node.Do(t.Context(), &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: 1<<63 - 1, TTLMillis: 1000}, nil); err != nil || res.Outcome != kvstore.OK {
		t.Fatal(res, err)
	}
	f.do("PUT", "/v1/kv/b?lease=9223372036854775807", "x").want(201, `"lease":"9223372036854775807"`)
	f.do("GET", "/v1/kv/b?meta", "").want(200, `"lease":"9223372036854775807"`)
	f.do("POST", "/v1/kv/b?append", "y").want(200, `"lease":"9223372036854775807"`)
	f.do("PUT", "/v1/kv/b", "z").want(200)
	f.do("GET", "/v1/kv/b?meta", "").want(200, `"lease":0`)
	f.do("POST", "/v1/kv/n?incr=1&ttl=1.5", "").want(201, `"ttl":"1.5s"`)
	f.do("PUT", "/short?ttl=10", "x").want(204)
	f.do("PUT", "/v1/kv/a?lease=77", "x").problem(404, api.LeaseNotFound)
	f.txn(`{"if":[{"key":"a","lease":{"gt":0}}],"then":[{"put":{"key":"c","value":"","lease":"9223372036854775807"}},{"append":{"key":"d","value":"","ttl":"1m"}},
		{"put":{"key":"a","value":"y","keep_lease":true}}]}`).want(200, `"succeeded":true`, `"lease":"9223372036854775807"`, `"ttl":"1m0s"`, `"lease":1}`)
	f.txn(`{"then":[{"put":{"key":"e","value":"","lease":77}}]}`).problem(404, api.LeaseNotFound, "then[0].put")
	wantAnswers(t, f.batchOf(`{"put":{"key":"e","value":"","ttl":"5s"}}`, `{"put":{"key":"e","value":"","lease":77}}`), `201 "ttl":"5s"`, `404 lease_not_found`)
	for _, q := range []string{"ttl=0", "ttl=-1s", "ttl=soon", "lease=0", "lease=-1", "lease=x", "lease=9223372036854775808", "ttl=1s&lease=1"} {
		f.do("PUT", "/v1/kv/a?"+q, "x").problem(400, api.BadRequest)
	}
	f.do("POST", "/v1/leases", `{"id":50,"ttl":"30s"}`).want(201)
	f.do("POST", "/v1/kv/b?append&lease=50", "z").want(200, `"lease":50`)
	f.do("POST", "/v1/kv/n?incr=1&lease=50", "").want(200, `"lease":50`)
	f.do("POST", "/v1/kv/n?incr=1&lease=77", "").problem(404, api.LeaseNotFound)
	f.do("POST", "/v1/kv/n?incr=1&lease=50&ttl=1s", "").problem(400, api.BadRequest)
	f.do("GET", "/v1/leases/50?keys", "").want(200, `"keys":[{"key":"b"},{"key":"n"}]`)
}

// A route that does not heed the headers of a repetition says so.
func TestIdempotencyKeysAreRefused(t *testing.T) {
	f := newFixture(t)
	heeded := 0
	for _, rt := range routeTable(true, false) {
		target := strings.NewReplacer("{key}", "k", "{id}", "4", "{check}", "leader", "{name}", "x").Replace(rt.pattern)
		for _, m := range rt.methods {
			if m.once {
				heeded++
			}
			for _, header := range []string{"Idempotency-Key", "Idempotency-Release"} {
				switch a := f.do(m.name, target, "", header+": a b"); {
				case m.mutates && !m.once:
					a.problem(400, api.BadRequest, header, "does not support", m.instead)
				case m.mutates:
					a.problem(400, api.BadRequest, header, "visible ASCII")
				case strings.Contains(a.body, "Idempotency") && target != "/openapi.yaml":
					t.Errorf("%s was refused: %s", a.what, a.body)
				}
			}
		}
	}
	if heeded < 9 {
		t.Errorf("only %d methods heed the headers", heeded)
	}
}

func TestConsistencyReachesTheNode(t *testing.T) {
	f := newFixture(t)
	f.put("k", "v")
	for _, c := range []struct {
		query string
		want  param.Freshness
	}{
		{"", param.Freshness{}},
		{"consistency=stale", param.Freshness{Stale: true}},
		{"consistency=stale&max_staleness=3", param.Freshness{Stale: true, MaxStaleness: 3e9}},
		{"consistency=stale&revision=1", param.Freshness{Stale: true}},
		{"consistency=stale&revision=99", param.Freshness{}}, // not here yet: ask
	} {
		for _, target := range []string{"/v1/kv/k?", "/v1/kv?prefix=k&", "/k?"} {
			f.node.barriers = nil
			f.do("GET", target+c.query, "")
			if len(f.node.barriers) != 1 || f.node.barriers[0] != c.want {
				t.Errorf("%s%s: asked for %+v, want %+v", target, c.query, f.node.barriers, c.want)
			}
		}
	}
}
