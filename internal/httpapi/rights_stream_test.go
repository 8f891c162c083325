package httpapi

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// newJudged has rights enabled, and returns the header of the user ann, who may read and
// write below a/.
func newJudged(t *testing.T, change ...func(*Options)) (f *fixture, ann string) {
	t.Helper()
	f = newFixture(t, append([]func(*Options){withGate}, change...)...)
	f.enableRights()
	all := rights.Role{Permissions: []rights.Permission{prefixed(rights.ReadWrite, rights.Keys), prefixed(rights.ReadWrite, rights.Locks)}}
	return f, "Authorization: Bearer " + f.secret("ann", all, time.Time{})
}

// revokeAndWrite takes a right away and writes a key behind that, in one entry of the log.
func (f *fixture) revokeAndWrite(c rights.Change, key string) {
	f.t.Helper()
	by := kvstore.Origin{Principal: rights.Root}
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	results, err := f.node.applyGroupLocked([][]byte{
		kvstore.EncodeCommand(nil, &kvstore.Command{Op: kvstore.OpRights, Rights: &c, Origin: by}),
		kvstore.EncodeCommand(nil, &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte("secret"), Origin: by}),
	})
	if err != nil || results[0].Outcome != kvstore.OK || results[1].Outcome != kvstore.OK {
		f.t.Fatal(results, err)
	}
}

// TestWatchThatLosesItsRight: a stream ends with the right to it, also while nothing
// happens, and without an event that came after; other changes do not touch it.
func TestWatchThatLosesItsRight(t *testing.T) {
	const lost = `{"type":"permission_denied","detail":"`
	for name, c := range map[string]struct {
		change rights.Change
		why    string
	}{
		"role":  {rights.Change{DeleteRole: "of ann"}, `user \"ann\" may not read keys with the prefix \"a/\"`},
		"user":  {rights.Change{DeleteUser: "ann"}, "revoked"},
		"token": {rights.Change{DeleteToken: "of ann"}, "revoked"},
	} {
		f, ann := newJudged(t)
		idle := f.watch("prefix=a/", ann).want(`{"type":"progress","revision":1}`)
		busy := f.watch("prefix=a/", ann, "Accept: text/event-stream").want("id: 1", `data: {"type":"progress","revision":1}`, "")
		f.change(rights.Change{PutRole: &rights.Role{Name: "other"}})
		f.applyAny(&kvstore.Command{Op: kvstore.OpPut, Key: []byte("a/1"), Value: []byte("v"), Origin: kvstore.Origin{Principal: rights.Root}})
		for _, w := range []*watcher{idle, busy} {
			for !strings.Contains(w.line(), `"key":"a/1"`) {
				continue
			}
		}
		f.revokeAndWrite(c.change, "a/2")
		if got := idle.line(); !strings.HasPrefix(got, lost) || !strings.Contains(got, c.why) || idle.line() != "" {
			t.Errorf("%s: the stream ends with %s", name, got)
		}
		if _, got := busy.line(), busy.line(); !strings.HasPrefix(got, "data: "+lost) {
			t.Errorf("%s: the stream of events ends with %s", name, got)
		}
	}
	f, ann := newJudged(t, func(o *Options) { o.WatchProgress = time.Hour })
	idle := f.watch("prefix=a/", ann).want(`{"type":"progress","revision":1}`)
	f.change(rights.Change{DeleteRole: "of ann"}) // and nothing else happens
	if got := idle.line(); !strings.HasPrefix(got, lost) || idle.line() != "" {
		t.Errorf("an idle stream ends with %s", got)
	}
	expiring := f.watch("key=a/1", "Authorization: Bearer "+f.secret("bob", rights.Role{Permissions: []rights.Permission{prefixed(rights.Read, rights.Keys)}}, time.Now().Add(300*time.Millisecond)))
	expiring.want(`{"type":"progress","revision":1}`)
	if got := expiring.line(); !strings.HasPrefix(got, lost+"the token has expired") {
		t.Errorf("a stream whose token expires ends with %s", got)
	}
}

// TestReadBehindARevocation: a node that learns of a revocation only while a read waits to
// be linearizable answers by the rights that came with the data (O3).
func TestReadBehindARevocation(t *testing.T) {
	for _, c := range []struct{ method, target, body, accept string }{
		{"GET", "/v1/kv/a%2F1", "", ""},
		{"HEAD", "/v1/kv/a%2F1", "", ""},
		{"GET", "/v1/kv/a%2F1?meta", "", ""},
		{"GET", "/v1/kv/a%2Fnone", "", ""},
		{"GET", "/a/1", "", ""},
		{"GET", "/v1/kv?prefix=a/", "", ""},
		{"GET", "/v1/kv?prefix=a/&count_only", "", ""},
		{"GET", "/v1/kv?prefix=a/", "", "application/x-ndjson"},
		{"POST", "/v1/txn", `{"then":[{"get":{"key":"a/1"}}]}`, ""},
		{"POST", "/v1/batch", `{"get":{"key":"a/1"}}`, ""},
		{"POST", "/v1/batch", `{"list":{"prefix":"a/"}}`, ""},
		{"GET", "/v1/watch?prefix=a/", "", ""},
		{"GET", "/v1/locks/a%2Fl", "", ""},
		{"GET", "/v1/leases/9?keys", "", ""},
	} {
		f, ann := newJudged(t)
		f.bindLeases()
		f.node.mu.Lock()
		f.node.late = func() { f.revokeAndWrite(rights.Change{DeleteRole: "of ann"}, "a/1") }
		f.node.mu.Unlock()
		headers := []string{ann}
		if c.accept != "" {
			headers = append(headers, "Accept: "+c.accept)
		}
		got := f.do(c.method, c.target, c.body, headers...)
		text := got.body
		if f.node.late != nil {
			t.Errorf("%s %s does not wait to be linearizable", c.method, c.target)
		}
		if got.status != 403 && !strings.Contains(text, string(api.PermissionDenied)) || strings.Contains(text, "c2VjcmV0") || strings.Contains(text, `"value"`) || strings.Contains(text, "holder") {
			t.Errorf("%s %s %s: %d %s", c.method, c.target, c.body, got.status, text)
		}
	}
}

// TestAnswerBehindARevocation: the same for what needs no right to keys. The node learns that
// a token was revoked, that a role was deleted, or that rights were enabled at all.
func TestAnswerBehindARevocation(t *testing.T) {
	revoked := rights.Change{DeleteToken: "of ann"}
	for _, c := range []struct {
		method, target string
		change         rights.Change
		code           api.Code
	}{
		{"GET", "/v1/leases", revoked, api.Unauthenticated},
		{"GET", "/v1/leases/9", revoked, api.Unauthenticated},
		{"GET", "/v1/locks", revoked, api.Unauthenticated},
		{"GET", "/v1/settings", revoked, api.Unauthenticated},
		{"GET", "/v1/users/ann", revoked, api.Unauthenticated},
		{"GET", "/v1/auth/whoami", revoked, api.Unauthenticated},
		{"GET", "/v1/snapshot", rights.Change{DeleteRole: "of bob"}, api.PermissionDenied},
		{"HEAD", "/v1/snapshot", rights.Change{DeleteRole: "of bob"}, api.PermissionDenied},
		{"GET", "/v1/snapshot", rights.Change{Enable: true}, api.Unauthenticated},
	} {
		f, by := newJudged(t)
		f.health.snapshot = func(w io.Writer) error { _, err := io.WriteString(w, "secret"); return err }
		f.bindLeases()
		if c.target == "/v1/snapshot" {
			by = "Authorization: Bearer " + f.secret("bob", rights.Role{Capabilities: []rights.Capability{rights.Backup}}, time.Time{})
		}
		f.do(c.method, c.target, "", by).want(200)
		if c.change.Enable {
			f.change(rights.Change{PutRole: &rights.Role{Name: rights.Anonymous}}) // who may do something, but not that
			f.change(rights.Change{Disable: true})
		}
		f.node.mu.Lock()
		f.node.late = func() { f.change(c.change) }
		f.node.mu.Unlock()
		got := f.do(c.method, c.target, "", by)
		if want := map[api.Code]int{api.Unauthenticated: 401, api.PermissionDenied: 403}[c.code]; got.status != want || strings.Contains(got.body, "secret") {
			t.Errorf("%s %s behind %+v: %d %s", c.method, c.target, c.change, got.status, got.body)
		}
	}
}

// TestLongPollThatLosesItsRight: the answer is a refusal, and does not say what the key
// became.
func TestLongPollThatLosesItsRight(t *testing.T) {
	f, ann := newJudged(t)
	got := make(chan *answer, 1)
	go func() { got <- f.do("GET", "/v1/kv/a%2F1?wait=1m&if_revision=0", "", ann) }()
	f.awaitWatches(1)
	f.revokeAndWrite(rights.Change{DeleteRole: "of ann"}, "a/1")
	(<-got).problem(403, api.PermissionDenied, `may not read key`).lacks("secret")
}

// awaitWatches waits until streams are open.
func (f *fixture) awaitWatches(n int) {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); f.node.hub.Stats().Watches < n; runtime.Gosched() {
		if time.Now().After(deadline) {
			f.t.Fatal("no watch was opened")
		}
	}
}

// TestLockWaiterThatLosesItsRight: a lock that comes free is not given to somebody who may
// not have it anymore.
func TestLockWaiterThatLosesItsRight(t *testing.T) {
	f, ann := newJudged(t)
	f.bindLeases() // lease 9 holds the lock
	f.do("POST", "/v1/leases", `{"id":77,"ttl":"1m"}`, ann).want(201)
	got := make(chan *answer, 1)
	go func() { got <- f.do("POST", "/v1/locks/a%2Fl?lease=77&wait=1m", "", ann) }()
	for f.server.lockWaiters.Load() == 0 {
		runtime.Gosched()
	}
	f.change(rights.Change{DeleteRole: "of ann"})
	f.applyAny(&kvstore.Command{Op: kvstore.OpUnlock, Key: []byte("a/l"), Lease: 9, Origin: kvstore.Origin{Principal: rights.Root}})
	(<-got).problem(403, api.PermissionDenied, `may not write lock \"a/l\"`)
}

// TestBatchLinesAreJudged: one line is refused, and the others are not.
func TestBatchLinesAreJudged(t *testing.T) {
	f, ann := newJudged(t)
	lines := strings.Split(f.do("POST", "/v1/batch", strings.Join([]string{
		`{"put":{"key":"a/1","value":"v"}}`, `{"put":{"key":"b","value":"v"}}`, `{"get":{"key":"b"}}`, `{"list":{"prefix":"a"}}`, `{"get":{"key":"a/1"}}`,
	}, "\n"), ann).want(200).body, "\n")
	for i, want := range []string{`"n":1`, `may not write key \"b\"`, `may not read key \"b\"`, `may not read keys with the prefix \"a\"`, `"value":"v"`} {
		if !strings.Contains(lines[i], want) || (i >= 1 && i <= 3) != strings.Contains(lines[i], `"status":403,"code":"permission_denied"`) {
			t.Errorf("line %d: %s", i+1, lines[i])
		}
	}
	f.do("POST", "/v1/batch", `{"get":{"key":"a/1"}}`).problem(401, api.Unauthenticated)
	if _, _, err := f.node.Get([]byte("b"), 0); err == nil {
		t.Error("the key was written")
	}
}

// TestCursorsCarryNoRights: the place where somebody else's listing continues is of no use.
func TestCursorsCarryNoRights(t *testing.T) {
	f, ann := newJudged(t)
	for _, key := range []string{"a/1", "a/2", "b", "c"} {
		f.applyAny(&kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Origin: kvstore.Origin{Principal: rights.Root}})
	}
	root := "Authorization: Bearer " + f.rootSecret()
	var page struct{ Next string }
	f.do("GET", "/v1/kv?start=a&limit=1", "", root).want(200).decode(&page)
	f.do("GET", "/v1/kv?start=a&limit=1&cursor="+page.Next, "", ann).problem(403, api.PermissionDenied)
	f.do("GET", "/v1/kv?start=a&limit=1&cursor="+page.Next, "", root).want(200, "a/2")
}

// TestForgottenJudgment: a handler that does not ask whether a request is permitted shows
// nothing, and a method that says nothing is for root (O1, O2).
func TestForgottenJudgment(t *testing.T) {
	f, ann := newJudged(t)
	add := func(target string, m method) {
		m.name = http.MethodGet
		f.server.router.static[target] = &route{pattern: target, methods: []method{m}}
	}
	written := func(_ *Server, x *exchange) error {
		x.writeWhole(http.StatusOK, []byte("secret"))
		return nil
	}
	add("/v1/forgotten", method{who: door.ByHandler, handle: written})
	add("/v1/header", method{who: door.ByHandler, handle: func(_ *Server, x *exchange) error {
		_, err := x.Write([]byte("secret"))
		return err
	}})
	add("/v1/absent", method{who: door.ByHandler, handle: func(*Server, *exchange) error { return kvstore.ErrKeyNotFound }})
	add("/v1/silent", method{handle: written})
	root := "Authorization: Bearer " + f.rootSecret()
	for _, target := range []string{"/v1/forgotten", "/v1/header", "/v1/absent"} {
		for _, who := range []string{"X-None: x", ann, root} {
			f.do("GET", target, "", who).problem(500, api.Internal).lacks("secret", "not exist")
		}
	}
	if n := len(f.logs.FilterFieldKey("request_id").All()); n != 9 {
		t.Errorf("%d of 9 requests are in the log", n)
	}
	f.do("GET", "/v1/silent", "").problem(401, api.Unauthenticated)
	f.do("GET", "/v1/silent", "", ann).problem(403, api.PermissionDenied, "only the role root")
	f.do("GET", "/v1/silent", "", root).want(200, "secret")
	f.change(rights.Change{Disable: true})
	f.do("GET", "/v1/forgotten", "").want(200, "secret")
	f.do("GET", "/v1/silent", "").want(200, "secret")
}

// TestChallenge: who is told of which credentials.
func TestChallenge(t *testing.T) {
	const both = `Bearer, Basic realm="kvd"`
	f, _ := newJudged(t)
	for _, c := range []struct{ agent, accept, want string }{
		{"curl/8", "*/*", both},
		{"Mozilla/5.0 (X11)", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", both},
		{"Mozilla/5.0 (X11)", "*/*", "Bearer"},
		{"Mozilla/5.0 (X11)", "application/json", "Bearer"},
	} {
		f.do("GET", "/v1/kv/a", "", "User-Agent: "+c.agent, "Accept: "+c.accept).problem(401, api.Unauthenticated).wantHeader("WWW-Authenticate", c.want)
	}
}

// TestOnceByUser: a key of one user is not a key of another, for commands and for changes
// of the membership.
func TestOnceByUser(t *testing.T) {
	f, ann := newJudged(t)
	bob := "Authorization: Bearer " + f.secret("bob", rights.Role{Permissions: []rights.Permission{prefixed(rights.ReadWrite, rights.Keys)}}, time.Time{})
	for _, who := range []string{ann, bob} {
		if a := f.do("PUT", "/v1/kv/a%2F1", "v", who, "Idempotency-Key: k"); a.status >= 300 || a.header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%d, replayed: %q", a.status, a.header.Get("Idempotency-Replayed"))
		}
	}
	f.do("PUT", "/v1/kv/a%2F1", "v", ann, "Idempotency-Key: k").wantHeader("Idempotency-Replayed", "true")
	keys := map[string]bool{}
	f.server.opts.Members = membersWithKeys{f.cluster, keys}
	for _, user := range []string{"carl", "carla"} {
		secret := f.secret(user, rights.Role{Capabilities: []rights.Capability{rights.Members}}, time.Time{})
		for range 2 {
			f.do("DELETE", "/v1/members/4", "", "Authorization: Bearer "+secret, "Idempotency-Key: ak").want(204)
		}
	}
	if len(keys) != 2 || keys["ak"] {
		t.Errorf("keys %v", keys)
	}
}

// membersWithKeys notes the idempotency keys of removals.
type membersWithKeys struct {
	*testCluster
	keys map[string]bool
}

func (m membersWithKeys) RemoveMember(ctx context.Context, _ uint64) error {
	m.keys[api.OnceOf(ctx).Key] = true
	if by := api.RequesterOf(ctx).Principal; !strings.HasPrefix(by, "carl") {
		return api.Errorf(api.Internal, "asked by %q", by)
	}
	return nil
}

// TestMetricsForUsers: /metrics asks for credentials only where it is told to.
func TestMetricsForUsers(t *testing.T) {
	for _, demanded := range []bool{false, true} {
		f, ann := newJudged(t, func(o *Options) {
			o.AuthMetrics = demanded
			o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("kvd_x 1")) })
		})
		nobody := 200
		if demanded {
			nobody = 401
		}
		f.do("GET", "/metrics", "").want(nobody)
		f.do("GET", "/metrics", "", ann).want(200, "kvd_x")
		// While a node starts, it does not know its users.
		starting := NewStandby(f.server.opts, api.Errorf(api.Starting, "soon"))
		w := httptest.NewRecorder()
		starting.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/metrics", nil))
		if want := map[bool]int{false: 200, true: 503}[demanded]; w.Code != want {
			t.Errorf("while the node starts: %d, want %d", w.Code, want)
		}
	}
}
