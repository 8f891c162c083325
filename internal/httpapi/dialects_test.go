package httpapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/dialect"
)

func withDialects(names ...string) func(*Options) {
	return func(o *Options) { o.Dialects = names }
}

// What goes beyond a dialect's own commands, which test/e2e runs against processes:
// errors, and paths that are nearly those of a dialect.
func TestDialectErrors(t *testing.T) {
	f := newFixture(t, withDialects(dialect.Names...))
	f.put("gone", "x")
	for _, c := range []struct {
		method, target, body string
		status               int
		parts                []string
	}{
		{"GET", "/riot", "", 400, []string{`"errCode":40003`, "the key is empty"}},
		{"GET", "/riot?key=a&qs=2", "", 400, []string{`"errCode":40005`, "qs"}},
		{"GET", "/riot?key=a&qs=0", "", 404, []string{`{"errCode":40004,"msg":"not found"}`}},
		{"GET", "/riot?kye=a", "", 400, []string{`"errCode":40005`, "kye"}},
		{"PUT", "/riot?key=a", "v", 400, []string{"reserved", "/v1/kv/riot"}},
		{"PATCH", "/riot?key=a", "v", 405, []string{`"errCode":40005`, "GET, HEAD, POST, DELETE"}},
		{"POST", "/riot?key=" + strings.Repeat("k", 5000), "v", 413, []string{`"errCode":40003`}},
		{"DELETE", "/riot?key=nothing", "", 404, []string{`{"errCode":40004,"msg":"not found"}`}},
		{"PUT", "/db/a", "v", 400, []string{"reserved", "/v1/kv/db/a"}},
		{"GET", "/db/", "", 400, []string{"the key is empty"}},
		{"GET", "/db", "", 404, []string{"does not exist"}},
		{"PUT", "/admin/x", "v", 400, []string{"reserved"}},
		{"POST", "/join", `{"name":"a"}`, 400, []string{"connectionString"}},
		{"POST", "/join", `{"name":"a","connectionString":"localhost:4002"}`, 400, []string{"connection string"}},
		{"POST", "/join", `{"name":"a","connectionString":"http://a:1","x":1}`, 400, []string{`"x"`}},
		{"POST", "/join", `{`, 400, nil},
		// With an escaped letter a path is a key of the short form (H1).
		{"PUT", "/%64b/a", "short", 204, nil},
		{"GET", "/v1/kv/db/a", "", 200, []string{"short"}},
	} {
		f.do(c.method, c.target, c.body).want(c.status, c.parts...)
	}
	if got := f.cluster.calls; slices.ContainsFunc(got, func(c string) bool { return strings.HasPrefix(c, "add ") }) {
		t.Errorf("a refused request to join added a member: %q", got)
	}
}

// A failure below is never success in a dialect, and has kvd's status.
func TestDialectsTellFailures(t *testing.T) {
	for _, c := range []struct {
		code      api.Code
		status    int
		riot, adm int
	}{
		{api.Timeout, 504, 40002, 4}, {api.NoLeader, 503, 40002, 3}, {api.Overloaded, 429, 40002, 4}, {api.Internal, 500, 50000, 4}, {api.PreconditionFailed, 412, 40001, 4},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			f := newFixture(t, withDialects("raftd", "riot"))
			failure := api.Errorf(c.code, "because")
			f.node.doErr, f.node.readErr, f.cluster.err, f.health.err = failure, failure, failure, failure
			for _, request := range []string{"GET /riot?key=a", "POST /riot?key=a", "DELETE /riot?key=a"} {
				method, target, _ := strings.Cut(request, " ")
				var doc struct {
					ErrCode int
					Msg     string
				}
				f.do(method, target, "").want(c.status).wantHeader("Content-Type", "application/json").decode(&doc)
				if doc.ErrCode != c.riot || doc.Msg != "because" {
					t.Errorf("%s: %+v", request, doc)
				}
			}
			for _, target := range []string{"/admin/status", "/admin/peer", "/admin/leader"} {
				var doc struct {
					Results string
					Error   int
				}
				f.do("GET", target, "").want(c.status).decode(&doc)
				if doc.Results != "because" || doc.Error != c.adm {
					t.Errorf("%s: %+v", target, doc)
				}
			}
			for _, request := range []string{"GET /db/a", "POST /db/a", "GET /members", "GET /leader", "GET /state"} {
				method, target, _ := strings.Cut(request, " ")
				f.do(method, target, "").problem(c.status, c.code, "because")
			}
			f.do("POST", "/join", `{"name":"n","connectionString":"http://h:4002"}`).problem(c.status, c.code)
		})
	}
}

// The member that joins gets the peer URLs that it told, and its connection string.
func TestRaftdJoinAsksForThePeerURL(t *testing.T) {
	f := newFixture(t, withDialects("raftd"))
	f.do("POST", "/join", `{"name":"2832bfa","connectionString":"http://LocalHost:4002/"}`).wantBody(200, "")
	want := []string{"members", "ask http://localhost:4002", `add 0 "2832bfa" [http://a:4] [http://localhost:4002] false`}
	if !slices.Equal(f.cluster.calls, want) {
		t.Errorf("calls %q, want %q", f.cluster.calls, want)
	}
}

// A dialect that is off leaves its paths to the keys; without raftexample there are no
// keys at the root.
func TestDialectsAreOffUnlessNamed(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/db/a", "v").want(204)
	f.do("GET", "/v1/kv/db/a", "").wantBody(200, "v")
	f.do("PUT", "/riot?key=a", "v").want(400, "key")
	f.do("GET", "/state", "").problem(404, api.KeyNotFound)

	f = newFixture(t, withDialects("raftd"))
	for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
		f.do(method, "/4", "http://a:5").problem(404, api.NotFound, "/v1/kv/")
	}
	f.do("POST", "/db/a", "v").wantBody(200, "")

	f = newFixture(t, withDialects())
	f.do("GET", "/a", "").want(404)
}

// Requests of dialects take effect once with an idempotency key, like others.
func TestDialectsHeedIdempotencyKeys(t *testing.T) {
	f := newFixture(t, withDialects("raftd", "riot"))
	for _, target := range []string{"/db/a", "/riot?key=b"} {
		key := "Idempotency-Key: k" + target[:3]
		f.do("POST", target, "1", key).wantBody(200, "")
		f.do("POST", target, "1", key).wantBody(200, "").wantHeader("Idempotency-Replayed", "true")
		f.do("POST", target, "2", key).want(422)
	}
	for _, key := range []string{"a", "b"} {
		if kv, _, err := f.node.Get([]byte(key), 0); err != nil || kv.Version != 1 {
			t.Errorf("%s: %+v, %v", key, kv, err)
		}
	}
}

// No path belongs to two dialects, or to kvd itself.
func TestDialectRoutesAreDistinct(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range dialect.Names {
		for _, r := range dialect.Routes(name) {
			if other, ok := seen[r.Pattern]; ok && other != name {
				t.Errorf("%s belongs to %s and %s", r.Pattern, other, name)
			}
			seen[r.Pattern] = name
		}
	}
	for _, rt := range routeTable(true, false) {
		if rt.pattern != shortPattern && seen[rt.pattern] != "" {
			t.Errorf("%s of %s hides kvd's own route", rt.pattern, seen[rt.pattern])
		}
	}
	if len(seen) != 9 {
		t.Errorf("%d patterns: %v", len(seen), seen)
	}
}

// HEAD and large values work as elsewhere, and the value has the headers that keep a
// browser from running it.
func TestDialectValues(t *testing.T) {
	f := newFixture(t, withDialects("raftd", "riot"))
	value := strings.Repeat("\xff\x00<script>", 20_000)
	f.do("POST", "/riot?key=big", value).wantBody(200, "")
	for _, target := range []string{"/riot?key=big", "/db/big"} {
		f.do("GET", target, "", "Accept: application/json").wantBody(200, value).
			wantHeader("Content-Security-Policy", "sandbox").wantHeader("Kvd-Revision", "2").wantHeader("Etag", `"2"`)
		f.do("HEAD", target, "").wantBody(200, "").wantHeader("Content-Length", "200000")
	}
	f.do("POST", "/db/a%2Fb/%00", "odd").wantBody(200, "")
	if kv, _, err := f.node.Get([]byte("a/b/\x00"), 0); err != nil || string(kv.Value) != "odd" {
		t.Errorf("%+v, %v", kv, err)
	}
}

func TestRiotStatusIsANumberOfSeconds(t *testing.T) {
	f := newFixture(t, withDialects("riot"))
	for role, want := range map[string]string{"leader": "Leader", "follower": "Follower", "candidate": "Candidate", "learner": "Follower"} {
		f.health.status.Role = role
		var doc map[string]json.RawMessage
		f.do(http.MethodGet, "/admin/status", "").want(200).decode(&doc)
		if len(doc) != 3 || string(doc["results"]) != `"`+want+`"` || string(doc["error"]) != "0" {
			t.Errorf("%s: %s", role, doc)
		}
		var seconds float64
		if err := json.Unmarshal(doc["time"], &seconds); err != nil || seconds <= 0 || seconds > 10 {
			t.Errorf("time %s, %v", doc["time"], err)
		}
	}
}
