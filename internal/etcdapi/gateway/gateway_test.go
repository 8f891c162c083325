package gateway

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// The lines of the documentation of etcd's gateway, and what surrounds them.
func TestKV(t *testing.T) {
	f := newFixture(t).open()
	f.want("/v3/kv/put", `{"key": "Zm9v", "value": "YmFy"}`, `{@2}`)
	f.want("/v3/kv/range", `{"key": "Zm9v"}`, `{@2,"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}`)
	f.want("/v3/kv/range", `{"key": "Zm9v", "range_end": "Zm9w"}`, `{@2,"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}`)
	f.want("/v3/kv/txn", `{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"2"}],"success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}}]}`,
		`{@3,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"3"}}}]}`)
	f.want("/v3/kv/txn", `{"compare":[{"version":"4","result":"EQUAL","target":"VERSION","key":"Zm9v"}],"success":[{"requestRange":{"key":"Zm9v"}}]}`, `{@3}`)
	f.want("/v3/kv/put", `{"key": "Zm9v", "value": "", "prev_kv": true}`, `{@4,"prev_kv":{"key":"Zm9v","create_revision":"2","mod_revision":"3","version":"2","value":"YmFy"}}`)
	f.want("/v3/kv/deleterange", `{"key":"Zm9v","prev_kv":true}`, `{@5,"deleted":"1","prev_kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"4","version":"3"}]}`)
	f.want("/v3/kv/deleterange", `{"key":"Zm9v"}`, `{@5}`)
	f.want("/v3/kv/range", `{"key": "Zm9v"}`, `{@5}`)
	f.want("/v3/kv/compaction", `{"revision": 4}`, `{@5}`)
	// Both names of a field, numbers as strings and as numbers, enums as either, unknown fields.
	f.want("/v3/kv/put", `{"key":"YQ==","value":"MQ==","nonsense":{"x":[1]}}`, `{@6}`)
	f.want("/v3/kv/put", `{"key":"Yg==","value":"MQ=="}`, `{@7}`)
	for _, q := range []string{`"sortOrder":"DESCEND","sort_target":"KEY"`, `"sort_order":2,"sortTarget":0`, `"sort_order":"DESCEND","limit":"0"`} {
		f.want("/v3/kv/range", `{"key":"AA==","range_end":"AA==","keys_only":true,`+q+`}`,
			`{@7,"kvs":[{"key":"Yg==","create_revision":"7","mod_revision":"7","version":"1"},{"key":"YQ==","create_revision":"6","mod_revision":"6","version":"1"}],"count":"2"}`)
	}
	f.want("/v3beta/kv/range", `{"key":"YQ==","count_only":true} and what follows is ignored`, `{@7,"count":"1"}`)
	f.want("/v3/kv/range", `{"key":"AA==","range_end":"AA==","limit":1,"keys_only":true}`, `{@7,"kvs":[{"key":"YQ==","create_revision":"6","mod_revision":"6","version":"1"}],"more":true,"count":"2"}`)
}

// Errors have etcd's text and status, and the member that older clients look for.
func TestErrors(t *testing.T) {
	f := newFixture(t).open()
	for _, c := range []struct{ path, body, want string }{
		{"/v3/kv/put", ``, `400 {"code":3,"message":"etcdserver: key is not provided","error":"etcdserver: key is not provided"}`},
		{"/v3/kv/put", `{"key":"YQ==","lease":"77"}`, `404 {"code":5,"message":"etcdserver: requested lease not found","error":"etcdserver: requested lease not found"}`},
		{"/v3/kv/range", `{"key":"YQ==","revision":"77"}`, `400 {"code":11,"message":"etcdserver: mvcc: required revision is a future revision","error":"etcdserver: mvcc: required revision is a future revision"}`},
		{"/v3/kv/put", `{`, `400 {"code":3,"message":"unexpected EOF","error":"unexpected EOF"}`},
		{"/v3/kv/put", `x`, `400 {"code":3,"message":"invalid character 'x' looking for beginning of value","error":"invalid character 'x' looking for beginning of value"}`},
		{"/v3/nothing", `{}`, `404 {"code":5,"message":"Not Found","error":"Not Found"}`},
		{"/v3/kv/range/", `{}`, `404 {"code":5,"message":"Not Found","error":"Not Found"}`},
	} {
		f.want(c.path, c.body, c.want)
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		if status, body := f.do(method, "/v3/kv/range", ""); status != 501 || body != `{"code":12,"message":"Method Not Allowed","error":"Method Not Allowed"}` {
			t.Errorf("%s: %d %s", method, status, body)
		}
	}
	if status, body := f.post("/v3/kv/put", `{"key":"!"}`); status != 400 || !strings.Contains(body, `"code":3`) {
		t.Errorf("bad base64: %d %s", status, body)
	}
	if status, body := f.post("/v3/kv/put", `{"key":"YQ==","value":"`+strings.Repeat("YWFh", 1<<19)+`"}`); status != 400 || !strings.Contains(body, "etcdserver: request is too large") {
		t.Errorf("1.5 MiB: %d %s", status, body)
	}
	if status, body := f.post("/v3/kv/put", `{"key":"YQ==","value":"`+strings.Repeat("YWFh", 1<<20)+`"}`); status != 429 || !strings.Contains(body, "larger than max") {
		t.Errorf("3 MiB: %d %s", status, body)
	}
	if status, body := f.do(http.MethodGet, "/nothing", ""); status != 404 || body != "404 page not found\n" {
		t.Errorf("%d %s", status, body)
	}
}

// The page of another site cannot use a browser to write (J4). Clients that are no
// browsers say nothing of where they come from.
func TestForeignPage(t *testing.T) {
	f := newFixture(t).open()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.web.URL+"/v3/kv/put", strings.NewReader(`{"key":"YQ=="}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://elsewhere.example")
	r.Header.Set("Content-Type", "text/plain")
	if status, body := f.send(r); status != http.StatusForbidden {
		t.Errorf("%d %s", status, body)
	}
	f.want("/v3/kv/range", `{"key":"YQ=="}`, `{@1}`)
}

// A watch, as curl sees it, which sends one object and closes its side; and as a client
// that goes on sending.
func TestWatch(t *testing.T) {
	f := newFixture(t).open()
	one := f.stream("/v3/watch", strings.NewReader(`{"create_request": {"key":"Zm9v", "prev_kv":true} }`)).want(`{"result":{@1,"created":true}}`)
	f.want("/v3/kv/put", `{"key":"Zm9v","value":"YmFy"}`, `{@2}`)
	one.want(`{"result":{@2,"events":[{"kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}}]}}`)
	f.want("/v3/kv/deleterange", `{"key":"Zm9v"}`, `{@3,"deleted":"1"}`)
	one.want(`{"result":{@3,"events":[{"type":"DELETE","kv":{"key":"Zm9v","mod_revision":"3"},"prev_kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}}]}}`)

	body, client := io.Pipe()
	say := func(text string) {
		if _, err := io.WriteString(client, text); err != nil {
			t.Error(err)
		}
	}
	go say(`{"create_request":{"key":"Zm9v","watch_id":"7"}}`)
	many := f.stream("/v3/watch", body).want(`{"result":{@3,"watch_id":"7","created":true}}`)
	say(`{"create_request":{"key":"Yg==","watch_id":"7"}}`)
	many.want(`{"result":{@3,"watch_id":"-1","created":true,"canceled":true,"cancel_reason":"mvcc: duplicate watch ID provided on the WatchStream"}}`)
	say(`{"progress_request":{}}`)
	many.want(`{"result":{@3,"watch_id":"-1"}}`)
	say(`{"cancel_request":{"watch_id":7}}`)
	many.want(`{"result":{@3,"watch_id":"7","canceled":true}}`)
	say(`{"create_request":{"key":"Zm9v","start_revision":"2"}}`)
	many.want(
		`{"result":{@3,"created":true}}`,
		`{"result":{@3,"events":[{"kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}},{"type":"DELETE","kv":{"key":"Zm9v","mod_revision":"3"}}]}}`,
	)
	say(`{"create_request":`)
	say(`nonsense}`)
	many.want(`{"error":{"code":3,"message":"invalid character 'o' in literal null (expecting 'u')","grpc_code":3,"http_code":400}}`).end()
}

// Over HTTP/2, which curl prefers with TLS.
func TestHTTP2(t *testing.T) {
	f := newFixture(t).open()
	plain := f.web
	defer func() { f.web = plain }()
	f.web = httptest.NewUnstartedServer(plain.Config.Handler)
	f.web.EnableHTTP2 = true
	f.web.StartTLS()
	defer f.web.Close()
	body, client := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := io.WriteString(client, `{"create_request":{"key":"Zm9v"}}`)
		first <- err
	}()
	s := f.stream("/v3/watch", body).want(`{"result":{@1,"created":true}}`)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	f.want("/v3/kv/put", `{"key":"Zm9v","value":"YmFy"}`, `{@2}`)
	s.want(`{"result":{@2,"events":[{"kv":{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}}]}}`)
	if _, err := io.WriteString(client, `{"cancel_request":{"watch_id":"0"}}`); err != nil {
		t.Fatal(err)
	}
	s.want(`{"result":{@2,"canceled":true}}`)
	f.want("/v3/kv/nothing", `{}`, `404 {"code":5,"message":"Not Found","error":"Not Found"}`)
	f.server.SendAway()
	s.want(`{"error":{"code":14,"message":"etcdserver: server stopped","grpc_code":14,"http_code":503}}`).end()
}

// The stop of a node ends a stream with an error that its client can see.
func TestWatchEnds(t *testing.T) {
	f := newFixture(t).open()
	s := f.stream("/v3/watch", strings.NewReader(`{"create_request":{"key":"Zm9v"}}`)).want(`{"result":{@1,"created":true}}`)
	f.server.SendAway()
	s.want(`{"error":{"code":14,"message":"etcdserver: server stopped","grpc_code":14,"http_code":503}}`).end()
}

// An error before the first line has a status.
func TestStreamFails(t *testing.T) {
	f := newFixture(t)
	f.want("/v3/watch", `{}`, `503 {"error":{"code":14,"message":"etcdserver: no leader","grpc_code":14,"http_code":503}}`+"\n")
	f.want("/v3/kv/range", `{}`, `503 {"code":14,"message":"etcdserver: no leader","error":"etcdserver: no leader"}`)
	f.open()
	f.want("/v3/watch", `{"create_request":{"key":"`+strings.Repeat("YWFh", 1<<13)+`"}}`,
		`429 {"error":{"code":8,"message":"a message on a stream exceeds 16384 bytes","grpc_code":8,"http_code":429}}`+"\n")
}

// /health, /livez, /readyz and /version.
func TestProbes(t *testing.T) {
	f := newFixture(t)
	check := func(method, path string, status int, body string) {
		t.Helper()
		if s, b := f.do(method, path, ""); s != status || b != body {
			t.Errorf("%s %s: %d %q, want %d %q", method, path, s, b, status, body)
		}
	}
	check("GET", "/readyz/serializable_read", 503, "[-]serializable_read failed: etcdserver: no leader\n\n")
	check("GET", "/health?serializable=true", 503, `{"health":"false","reason":"RANGE ERROR:etcdserver: no leader"}`+"\n")
	f.open()
	check("GET", "/health", 200, `{"health":"true","reason":""}`)
	check("GET", "/health?serializable=true&exclude=NOSPACE", 200, `{"health":"true","reason":""}`)
	check("POST", "/health", 405, "Method Not Allowed\n")
	check("GET", "/livez", 200, "ok\n")
	check("GET", "/livez?verbose", 200, "[+]serializable_read ok\nok\n")
	check("GET", "/readyz?verbose", 200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n")
	check("GET", "/readyz?verbose&exclude=non_learner&exclude=data_corruption", 200, "[+]serializable_read ok\n[+]linearizable_read ok\nok\n")
	check("GET", "/readyz/non_learner?verbose", 200, "[+]non_learner ok\nok\n")
	check("GET", "/readyz/nothing", 404, "404 page not found\n")
	check("GET", "/health/nothing", 404, "404 page not found\n")
	check("GET", "/version", 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`)
	check("DELETE", "/version", 405, "Method Not Allowed\n")
}

// Every alarm is a reason to be unhealthy, unless it is excluded.
func TestAlarms(t *testing.T) {
	sick := &sick{alarms: []string{"NOSPACE", "CORRUPT"}}
	f := newFixture(t, func(o *Options) { o.Health = sick }).open()
	for path, want := range map[string]string{
		"/health":                 `{"health":"false","reason":"ALARM NOSPACE"}` + "\n",
		"/health?exclude=NOSPACE": `{"health":"false","reason":"ALARM CORRUPT"}` + "\n",
		"/health?exclude=NOSPACE&exclude=CORRUPT": `{"health":"false","reason":"RAFT NO LEADER"}` + "\n",
		"/readyz": "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n[+]linearizable_read ok\n[-]non_learner failed: not supported for learner\n\n",
	} {
		if status, body := f.do("GET", path, ""); status != 503 || body != want {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
}

// sick is a member that is not well.
type sick struct{ alarms []string }

func (s *sick) Alarms(context.Context) []string { return s.alarms }
func (*sick) HasLeader() bool                   { return false }
func (*sick) IsLearner() bool                   { return true }
func (*sick) Read(context.Context, bool) error  { return nil }

// Each path of the table is a method of the generated services, each method has a path, and
// streams are known as such.
func TestTable(t *testing.T) {
	known := make(map[string]bool)
	for path, c := range calls {
		service, method, _ := strings.Cut(strings.TrimPrefix(c.method, "/"), "/")
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
		if m == nil {
			t.Errorf("%s: no method %s", path, c.method)
			continue
		}
		known[c.method] = true
		want := unary
		if m.IsStreamingServer() {
			want = answers
		}
		if m.IsStreamingClient() {
			want = dialogue
		}
		if c.kind != want {
			t.Errorf("%s is of another kind", path)
		}
	}
	for _, service := range []protoreflect.FullName{
		"etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "etcdserverpb.Cluster", "etcdserverpb.Maintenance", "etcdserverpb.Auth", "v3lockpb.Lock", "v3electionpb.Election",
	} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			name := "/" + string(service) + "/" + string(methods.Get(i).Name())
			if !known[name] && name != "/etcdserverpb.KV/RangeStream" { // it has no JSON in etcd either
				t.Errorf("%s has no path", name)
			}
		}
	}
}
