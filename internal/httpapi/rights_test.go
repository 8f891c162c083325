package httpapi

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/httpapi/accounts"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/link"
	"github.com/kvd-io/kvd/internal/rights"
)

// credential is a kind of caller: how it proves itself, and what it may do.
type credential struct {
	name  string
	set   func(*http.Request) *http.Request
	wrong bool   // it proves nothing, and is refused
	may   string // words of the column needs below
}

// asked is a request to a route, and all that it takes, in words: open, user, a
// capability, or access to the key a/1, to the range of a/, or to the lock a/l. Routes of
// accounts are judged by their handlers (TestWhoMayDoWhatWithAccounts).
type asked struct{ target, body, needs string }

// routeRequests has requests for every method of every route.
var routeRequests = map[string][]asked{
	"GET /v1/kv/{key}": {
		{"/v1/kv/a%2F1", "", "read1"}, {"/v1/kv/a%2F1?meta", "", "read1"}, {"/v1/kv/a%2F1?revision=2", "", "read1"}, {"/v1/kv/a%2F1?wait=1ms&if_revision=0", "", "read1"},
		{"/v1/kv/a%2F1?consistency=stale", "", "read1"},
	},
	"PUT /v1/kv/{key}": {
		{"/v1/kv/a%2F1", "v", "write1"}, {"/v1/kv/a%2F1?return=previous", "v", "write1 read1"}, {"/v1/kv/a%2F1?if_revision=1", "v", "write1 read1"}, {"/v1/kv/a%2F1?lease=7", "v", "write1"},
		{"/v1/kv/a%2F1?lease=8", "v", "write1 bound"}, {"/v1/kv/a%2F1?ttl=1h", "v", "write1"},
	},
	"POST /v1/kv/{key}":   {{"/v1/kv/a%2F1?append", "v", "write1"}, {"/v1/kv/a%2F1?incr=1", "", "write1 read1"}},
	"DELETE /v1/kv/{key}": {{"/v1/kv/a%2F1", "", "write1"}, {"/v1/kv/a%2F1?return=previous", "", "write1 read1"}},
	"GET /{key}":          {{"/a/1", "", "read1"}},
	"PUT /{key}":          {{"/a/1", "v", "write1"}},
	"POST /{key}":         {{"/4", "http://a:1", "members"}},
	"DELETE /{key}":       {{"/4", "", "members"}},
	"GET /v1/kv": {
		{"/v1/kv?prefix=a/", "", "read"}, {"/v1/kv?prefix=a/&count_only", "", "read"}, {"/v1/kv?prefix=a/&keys_only", "", "read"}, {"/v1/kv?prefix=a/&delimiter=/", "", "read"},
		{"/v1/kv?prefix=a/&reverse", "", "read"}, {"/v1/kv?start=a/1&end=a/1%00", "", "read1"}, {"/v1/kv?prefix=", "", "root"},
	},
	"DELETE /v1/kv": {{"/v1/kv?prefix=a/", "", "write"}, {"/v1/kv?start=a/1&end=a/1%00", "", "write1"}, {"/v1/kv?start=a", "", "root"}},
	"POST /v1/txn": {
		{"/v1/txn", `{"then":[{"get":{"key":"a/1"}}]}`, "read1"},
		{"/v1/txn", `{"if":[{"key":"a/1","version":{"gt":0}}],"then":[{"put":{"key":"a/1","value":"v"}}]}`, "read1 write1"},
		{"/v1/txn", `{"if":[{"key":"a/1","version":{"gt":0}}],"else":[{"delete":{"prefix":"a/"}}]}`, "read1 write"},
		{"/v1/txn", `{"then":[{"txn":{"else":[{"put":{"key":"a/1","value":"v"}}]}}]}`, "write1"},
		{"/v1/txn", `{"then":[{"list":{"prefix":"a/"}}]}`, "read"},
	},
	"POST /v1/batch":                 {{"/v1/batch", `{"get":{"key":"a/1"}}`, "user"}},
	"GET /v1/watch":                  {{"/v1/watch?key=a/1&timeout=1ms", "", "read1"}, {"/v1/watch?prefix=a/&timeout=1ms", "", "read"}, {"/v1/watch?key=a/1&timeout=1ms&from_revision=2&previous", "", "read1"}},
	"GET /v1/leases":                 {{"/v1/leases", "", "user"}},
	"POST /v1/leases":                {{"/v1/leases", `{"ttl":"30s"}`, "user"}},
	"GET /v1/leases/{id}":            {{"/v1/leases/7", "", "user"}, {"/v1/leases/7?keys", "", "read1"}, {"/v1/leases/8?keys", "", "boundread"}},
	"DELETE /v1/leases/{id}":         {{"/v1/leases/7", "", "write1"}, {"/v1/leases/8", "", "bound"}, {"/v1/leases/10", "", "user"}},
	"POST /v1/leases/{id}/keepalive": {{"/v1/leases/7/keepalive", "", "write1"}, {"/v1/leases/8/keepalive", "", "bound"}, {"/v1/leases/10/keepalive", "", "user"}},
	"GET /v1/locks":                  {{"/v1/locks", "", "user"}},
	"GET /v1/locks/{name}":           {{"/v1/locks/a%2Fl", "", "lockread"}},
	"POST /v1/locks/{name}":          {{"/v1/locks/a%2Fl?ttl=15s", "", "lockwrite"}, {"/v1/locks/a%2Fl?lease=7", "", "lockwrite write1"}},
	"DELETE /v1/locks/{name}":        {{"/v1/locks/a%2Fl?lease=9", "", "lockwrite"}},
	"GET /v1/members":                {{"/v1/members", "", "user"}},
	"POST /v1/members":               {{"/v1/members", `{"peer_urls":["http://a:1"]}`, "members"}},
	"PUT /v1/members/{id}":           {{"/v1/members/4", `{"peer_urls":["http://a:1"]}`, "members"}},
	"DELETE /v1/members/{id}":        {{"/v1/members/4", "", "members"}},
	"POST /v1/members/{id}/promote":  {{"/v1/members/4/promote", "", "members"}},
	"GET /v1/leader":                 {{"/v1/leader", "", "user"}},
	"POST /v1/leader":                {{"/v1/leader?to=4", "", "members"}},
	"GET /v1/status":                 {{"/v1/status", "", "user"}},
	"GET /v1/cluster":                {{"/v1/cluster", "", "user"}},
	"GET /v1/snapshot":               {{"/v1/snapshot", "", "backup"}},
	"POST /v1/compact":               {{"/v1/compact?revision=1", "", "operate"}},
	"GET /v1/settings":               {{"/v1/settings", "", "user"}},
	"PUT /v1/settings":               {{"/v1/settings", `{"max_txn_ops":100}`, "settings"}},
	"PATCH /v1/settings":             {{"/v1/settings", `{"max_txn_ops":100}`, "settings"}},
	"GET /v1/operator/log-level":     {{"/v1/operator/log-level", "", "operate"}},
	"PUT /v1/operator/log-level":     {{"/v1/operator/log-level", `{"level":"info"}`, "operate"}},
	"GET /healthz":                   {{"/healthz", "", "open"}},
	"GET /livez":                     {{"/livez", "", "open"}},
	"GET /readyz":                    {{"/readyz?role=leader", "", "open"}},
	"GET /readyz/{check}":            {{"/readyz/none", "", "open"}},
	"GET /health":                    {{"/health", "", "open"}},
	"GET /version":                   {{"/version", "", "open"}},
	"GET /openapi.yaml":              {{"/openapi.yaml", "", "open"}},
	"GET /ui":                        {{"/ui", "", "open"}},
	"GET /ui/":                       {{"/ui/", "", "open"}},
	"GET /ui/{file}":                 {{"/ui/index.css", "", "open"}},
	"GET /metrics":                   {{"/metrics", "", "user"}}, // with AuthMetrics
	"GET /db/{key}":                  {{"/db/a/1", "", "read1"}},
	"POST /db/{key}":                 {{"/db/a/1", "v", "write1"}},
	"POST /join":                     {{"/join", `{"name":"x","connectionString":"http://a:1"}`, "members"}},
	"GET /members":                   {{"/members", "", "user"}},
	"GET /leader":                    {{"/leader", "", "user"}},
	"GET /state":                     {{"/state", "", "user"}},
	"GET /riot":                      {{"/riot?key=a/1", "", "read1"}, {"/riot?key=a/1&qs=0", "", "read1"}},
	"POST /riot":                     {{"/riot?key=a/1", "v", "write1"}},
	"DELETE /riot":                   {{"/riot?key=a/1", "", "write1"}},
	"GET /admin/status":              {{"/admin/status", "", "user"}},
	"GET /admin/peer":                {{"/admin/peer", "", "user"}},
	"GET /admin/leader":              {{"/admin/leader", "", "user"}},
	"POST /v1/auth/login":            {{"/v1/auth/login", `{"user":"ann","password":"none"}`, "login"}},
}

// prefixed is a permission for the names that begin with a/.
func prefixed(a rights.Access, s rights.Space) rights.Permission {
	return rights.Permission{Access: a, Space: s, Key: []byte("a/"), RangeEnd: []byte("a0")}
}

// bound are leases of the table: 7 has a/1, 8 has a/1, a/2 and the lock a/l2, 9 has the
// lock a/l, 10 has nothing.
func (f *fixture) bindLeases() {
	f.t.Helper()
	by := kvstore.Origin{Principal: rights.Root}
	for _, lease := range []uint64{7, 8, 9, 10} {
		f.applyAny(&kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: lease, TTLMillis: 60_000, Origin: by})
	}
	for _, key := range []string{"b", "a/2", "a/1"} {
		f.applyAny(&kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte("1"), Lease: map[string]uint64{"a/1": 7, "a/2": 8}[key], Origin: by})
	}
	for name, lease := range map[string]uint64{"a/l2": 8, "a/l": 9} {
		f.applyAny(&kvstore.Command{Op: kvstore.OpLock, Key: []byte(name), Lease: lease, Origin: by})
	}
}

// applyAny applies a command, whatever its outcome is.
func (f *fixture) applyAny(cmd *kvstore.Command) kvstore.Result {
	f.t.Helper()
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	res, err := f.node.applyLocked(cmd)
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// change changes the rights as root.
func (f *fixture) change(c rights.Change) {
	f.t.Helper()
	if res := f.applyAny(&kvstore.Command{Op: kvstore.OpRights, Rights: &c, Origin: kvstore.Origin{Principal: rights.Root}}); res.Outcome != kvstore.OK {
		f.t.Fatalf("%+v: %+v", c, res)
	}
}

// secret makes a user with a role and a token.
func (f *fixture) secret(user string, role rights.Role, expires time.Time) string {
	f.t.Helper()
	role.Name = "of " + user
	f.change(rights.Change{PutRole: &role})
	f.change(rights.Change{PutUser: &rights.User{Name: user, Roles: []string{role.Name}}})
	secret, sum := access.NewSecret()
	token := &rights.Token{ID: "of " + user, User: user, Sum: sum}
	if !expires.IsZero() {
		token.Expires = expires.UnixMilli()
	}
	f.change(rights.Change{PutToken: token})
	return secret
}

func bearer(secret string) func(*http.Request) *http.Request {
	return func(r *http.Request) *http.Request {
		r.Header.Set("Authorization", "Bearer "+secret)
		return r
	}
}

// ownSocket returns the link of a connection between this process and itself.
func ownSocket(t *testing.T) link.Link {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	return link.Of(server)
}

// credentials makes one caller of each kind.
func (f *fixture) credentials() []credential {
	permissions := func(p ...rights.Permission) rights.Role { return rights.Role{Permissions: p} }
	revoked := f.secret("revoked", rights.Role{}, time.Time{})
	f.change(rights.Change{DeleteToken: "of revoked"})
	all := permissions(prefixed(rights.ReadWrite, rights.Keys), prefixed(rights.ReadWrite, rights.Locks))
	everything := "user read read1 write write1 lockread lockwrite bound boundread"
	ann := f.secret("ann", all, time.Time{})
	socket := ownSocket(f.t)
	out := []credential{
		{"none", func(r *http.Request) *http.Request { return r }, false, ""},
		{"wrong", bearer("kvd_wrong"), true, ""},
		{"expired", bearer(f.secret("expired", all, time.Now().Add(-time.Second))), true, ""},
		{"revoked", bearer(revoked), true, ""},
		{"wrong password", func(r *http.Request) *http.Request { r.SetBasicAuth("root", "wrong"); return r }, true, ""},
		{"two headers", func(r *http.Request) *http.Request {
			r.Header["Authorization"] = []string{"Bearer " + ann, "Bearer " + ann}
			return r
		}, true, ""},
		{"user without rights", bearer(f.secret("poor", rights.Role{}, time.Time{})), false, "user"},
		{"read and write", bearer(ann), false, everything},
		{"read", bearer(f.secret("reader", permissions(prefixed(rights.Read, rights.Keys), prefixed(rights.Read, rights.Locks)), time.Time{})), false, "user read read1 lockread boundread"},
		{"write", bearer(f.secret("writer", permissions(prefixed(rights.Write, rights.Keys), prefixed(rights.Write, rights.Locks)), time.Time{})), false, "user write write1 lockwrite bound"},
		{"part of the range", bearer(f.secret("part", permissions(rights.Permission{Access: rights.ReadWrite, Key: []byte("a/"), RangeEnd: []byte("a/2")}), time.Time{})), false, "user read1 write1"},
		{"certificate", func(r *http.Request) *http.Request {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "ann"}}}}}
			return r
		}, false, everything},
		{"root", bearer(f.rootSecret()), false, "*"},
		{"local socket", func(r *http.Request) *http.Request { return r.WithContext(link.With(r.Context(), socket)) }, false, "*"},
	}
	for _, c := range rights.Capabilities {
		out = append(out, credential{"capability " + string(c), bearer(f.secret(string(c), rights.Role{Capabilities: []rights.Capability{c}}, time.Time{})), false, "user " + string(c)})
	}
	return out
}

func (f *fixture) rootSecret() string {
	secret, sum := access.NewSecret()
	f.change(rights.Change{PutToken: &rights.Token{ID: "of root", User: rights.Root, Sum: sum}})
	return secret
}

// enableRights begins with root, who has no password.
func (f *fixture) enableRights() {
	f.t.Helper()
	f.change(rights.Change{PutUser: &rights.User{Name: rights.Root, Roles: []string{rights.Root}}})
	f.change(rights.Change{Enable: true})
}

// ask sends a request past the network.
func (f *fixture) ask(method, target, body string, set func(*http.Request) *http.Request) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost"+target, strings.NewReader(body))
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, set(r))
	return w
}

// TestEveryRouteByEveryCredential is made from the route table: a route that is missing
// from routeRequests fails it.
func TestEveryRouteByEveryCredential(t *testing.T) {
	f := newFixture(t, withGate, func(o *Options) {
		o.Dialects, o.AuthMetrics, o.UI = Dialects, true, "on"
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	})
	f.health.status.Role = "leader"
	f.health.snapshot = func(w io.Writer) error { _, err := io.WriteString(w, "body"); return err }
	f.enableRights()
	callers := f.credentials()
	used := map[string]bool{}
	for _, anonymous := range []string{"", "user read1"} {
		if anonymous != "" {
			f.change(rights.Change{PutRole: &rights.Role{Name: rights.Anonymous, Permissions: []rights.Permission{{Access: rights.Read, Key: []byte("a/1")}}}})
			callers[0].name, callers[0].may = "the role anonymous", anonymous
		}
		for _, rt := range f.server.router.all {
			for _, m := range rt.methods {
				name := m.name + " " + rt.pattern
				requests := routeRequests[name]
				used[name] = true
				if len(requests) == 0 && !isAccount(rt.pattern) {
					t.Errorf("%s is not in routeRequests", name)
				}
				for _, request := range requests {
					for _, c := range callers {
						f.bindLeases()
						f.expect(m.name, request, &c)
					}
				}
			}
		}
	}
	for name := range routeRequests {
		if !used[name] {
			t.Errorf("%s is in routeRequests, but no route", name)
		}
	}
}

func isAccount(pattern string) bool {
	return slices.ContainsFunc(accounts.Routes(), func(r accounts.Route) bool { return r.Pattern == pattern })
}

func (f *fixture) expect(method string, request asked, c *credential) {
	f.t.Helper()
	w := f.ask(method, request.target, request.body, c.set)
	what := fmt.Sprintf("%s %s by %s: %d %.200s", method, request.target, c.name, w.Code, w.Body)
	needs := strings.Fields(request.needs)
	allowed := !slices.ContainsFunc(needs, func(n string) bool { return !slices.Contains(strings.Fields(c.may), n) })
	switch open := needs[0] == "open"; {
	case w.Code == http.StatusInternalServerError:
		f.t.Error(what)
	case needs[0] == "login": // the password is the credential
		if w.Code != http.StatusUnauthorized && w.Code != http.StatusTooManyRequests || strings.Contains(w.Body.String(), "token is not valid") {
			f.t.Error(what)
		}
	case open || !c.wrong && (c.may == "*" || allowed):
		if w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden {
			f.t.Error(what)
		}
	case c.name == "two headers":
		if w.Code != http.StatusBadRequest {
			f.t.Error(what)
		}
	case c.wrong || c.name == "none" || c.name == "the role anonymous":
		// Guesses are slowed down.
		if (w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "") && (w.Code != http.StatusTooManyRequests || c.name != "wrong password") {
			f.t.Error(what)
		}
	default:
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "permission") && !strings.Contains(w.Body.String(), "may not") {
			f.t.Error(what)
		}
	}
}
