package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

const testClusterID = "0123456789abcdef"

// testNode is a cluster of one without a log: a real store to which commands are applied
// as they arrive.
type testNode struct {
	*kvstore.Store
	hub      *watch.Hub
	mu       sync.Mutex
	index    uint64            // of the last entry
	doErr    error             // answered to Do instead, if set
	readErr  error             // answered to Barrier instead, if set
	late     func()            // called by the next Barrier: what this node did not know yet
	barriers []param.Freshness // what reads asked for
	renewed  int               // keep-alives
	onDo     func(ctx context.Context)
	onGroup  func(ctx context.Context, commands [][]byte) error // before a group, whose error it can be
}

// Do pretends to have spent a millisecond on each of two stages.
func (n *testNode) Do(ctx context.Context, cmd *kvstore.Command, note NoteStage) (kvstore.Result, error) {
	if note != nil {
		note("commit", time.Millisecond)
		note("apply", 1500*time.Microsecond)
	}
	if n.onDo != nil {
		n.onDo(ctx)
	}
	if n.doErr != nil {
		return kvstore.Result{}, n.doErr
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applyLocked(cmd)
}

func (n *testNode) DoGroup(ctx context.Context, commands [][]byte, note NoteStage) ([]*kvstore.Result, error) {
	if note != nil {
		note("commit", time.Millisecond)
	}
	if n.onDo != nil {
		n.onDo(ctx)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onGroup != nil {
		if err := n.onGroup(ctx, commands); err != nil {
			return nil, err
		}
	}
	return n.applyGroupLocked(commands)
}

// AskLease knows no clock: what exists has all of its time left.
func (n *testNode) AskLease(_ context.Context, lease uint64, renew bool) (api.LeaseTime, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if renew {
		n.renewed++
	}
	l, err := n.Lease(lease)
	if err != nil {
		return api.LeaseTime{}, api.Errorf(api.LeaseNotFound, "lease %d does not exist", lease)
	}
	ttl := time.Duration(l.TTLMillis) * time.Millisecond
	return api.LeaseTime{TTL: ttl, Remaining: ttl}, nil
}

func (n *testNode) Barrier(_ context.Context, note NoteStage) error {
	if note != nil {
		note("readindex", 2*time.Millisecond)
	}
	n.mu.Lock()
	late := n.late
	n.late = nil
	n.mu.Unlock()
	if late != nil {
		late()
	}
	return n.noteRead(param.Freshness{})
}

func (n *testNode) CheckStaleness(limit time.Duration) error {
	return n.noteRead(param.Freshness{Stale: true, MaxStaleness: limit})
}

func (n *testNode) noteRead(f param.Freshness) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.barriers = append(n.barriers, f)
	return n.readErr
}

// testCluster records its calls and answers as the test says.
type testCluster struct {
	mu    sync.Mutex
	err   error
	calls []string
}

func (c *testCluster) note(format string, args ...any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, fmt.Sprintf(format, args...))
	return c.err
}

func (c *testCluster) Members(context.Context) ([]api.Member, error) {
	return []api.Member{{ID: 1, Name: "one", PeerURLs: []string{"http://a:1"}, Role: "leader"}}, c.note("members")
}

func (c *testCluster) AddMember(_ context.Context, m api.NewMember) (api.AddedMember, error) {
	return api.AddedMember{Member: api.Member{ID: 4, PeerURLs: m.PeerURLs}, Command: "kvd --join"}, c.note("add %d %q %v %v %v", m.ID, m.Name, m.PeerURLs, m.ClientURLs, m.Learner)
}

func (c *testCluster) UpdateMember(_ context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error) {
	return api.Member{ID: id, PeerURLs: peerURLs, ClientURLs: clientURLs}, c.note("update %d %v %v", id, peerURLs, clientURLs)
}

func (c *testCluster) PromoteMember(_ context.Context, id uint64) (api.Member, error) {
	return api.Member{ID: id}, c.note("promote %d", id)
}

func (c *testCluster) RemoveMember(_ context.Context, id uint64) error {
	return c.note("remove %d", id)
}

func (c *testCluster) PeerURLsOf(_ context.Context, clientURL string) ([]string, error) {
	return []string{"http://a:4"}, c.note("ask %s", clientURL)
}

func (c *testCluster) Leader() (api.Leader, error) {
	return api.Leader{ID: 1, Name: "one", Term: 7}, c.note("leader")
}

func (c *testCluster) TransferLeader(_ context.Context, to uint64) error {
	return c.note("transfer %d", to)
}

// testHealth answers as the test says.
type testHealth struct {
	err      error
	status   api.Status
	checks   []check
	leader   bool
	snapshot func(io.Writer) error
}

func (h *testHealth) Status(context.Context) (api.Status, error) { return h.status, h.err }
func (h *testHealth) ClusterStatus(context.Context) (api.ClusterStatus, error) {
	return api.ClusterStatus{ClusterID: testClusterID, Healthy: true}, h.err
}
func (h *testHealth) Checks(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, c := range h.checks {
			if !yield(c.name, c.err) {
				return
			}
		}
	}
}
func (h *testHealth) ClusterID() string { return testClusterID }
func (h *testHealth) IsLeader() bool    { return h.leader }
func (h *testHealth) Snapshot(_ context.Context, w io.Writer) error {
	return h.snapshot(w)
}

// fixture is a Server that is being served, and everything behind it.
type fixture struct {
	t       *testing.T
	node    *testNode
	cluster *testCluster
	health  *testHealth
	server  *Server
	http    *httptest.Server
	logs    *observer.ObservedLogs
}

// newServer makes a Server that is not listening.
func newServer(t testing.TB, change ...func(*Options)) (*Server, *fixture) {
	core, logs := observer.New(zap.DebugLevel)
	f := &fixture{
		node:    newTestNode(t),
		cluster: &testCluster{},
		health:  &testHealth{status: api.Status{ID: 1, Leader: 1}, leader: true, snapshot: func(io.Writer) error { return nil }},
		logs:    logs,
	}
	opts := Options{
		Store: f.node, Transactions: f.node, Replicator: f.node, Members: f.cluster, Newcomers: f.cluster, Leadership: f.cluster, Health: f.health, Inspector: f.health, Leases: f.node, Locks: f.node, LeaseTimes: f.node, Watches: f.node.hub,
		Logger: zap.New(core), RootMembers: true, Version: api.Version{Version: "1.2.3", API: []string{"v1"}},
		Hosts: []string{"x", "elsewhere"}, // what raw requests in tests say
	}
	for _, c := range change {
		c(&opts)
	}
	f.server = New(opts)
	return f.server, f
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	s, f := newServer(t, change...)
	f.t = t
	f.http = httptest.NewUnstartedServer(nil)
	f.http.Config = NewServer(s, nil)
	f.http.Start()
	t.Cleanup(f.http.Close)
	return f
}

// answer is a response with its whole body.
type answer struct {
	t      *testing.T
	what   string
	status int
	header http.Header
	body   string
}

// do sends a request; headers are "Name: value".
func (f *fixture) do(method, target, body string, headers ...string) *answer {
	f.t.Helper()
	req, err := http.NewRequest(method, f.http.URL+target, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := f.http.Client().Do(req)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, target, err)
	}
	return readAnswer(f.t, method+" "+target, resp)
}

func readAnswer(t *testing.T, what string, resp *http.Response) *answer {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: read the answer: %v", what, err)
	}
	_ = resp.Body.Close()
	return &answer{t, what, resp.StatusCode, resp.Header, string(b)}
}

// raw sends bytes on a new connection and reads one response.
func (f *fixture) raw(request string) *answer {
	f.t.Helper()
	conn := f.dial()
	if _, err := io.WriteString(conn, request); err != nil {
		f.t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		f.t.Fatalf("%.60q: %v", request, err)
	}
	return readAnswer(f.t, fmt.Sprintf("%.60q", request), resp)
}

func (f *fixture) dial() net.Conn {
	f.t.Helper()
	conn, err := net.Dial("tcp", f.http.Listener.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// want checks the status, and that the body contains each of the parts.
func (a *answer) want(status int, parts ...string) *answer {
	a.t.Helper()
	if a.status != status {
		a.t.Errorf("%s: status %d, want %d; body %.300s", a.what, a.status, status, a.body)
	}
	for _, p := range parts {
		if !strings.Contains(a.body, p) {
			a.t.Errorf("%s: the body lacks %q: %.300s", a.what, p, a.body)
		}
	}
	return a
}

// wantBody checks the status and the whole body.
func (a *answer) wantBody(status int, body string) *answer {
	a.t.Helper()
	a.want(status)
	if a.body != body {
		a.t.Errorf("%s: body %.300q, want %.300q", a.what, a.body, body)
	}
	return a
}

func (a *answer) wantHeader(name, value string) *answer {
	a.t.Helper()
	if got := a.header.Get(name); got != value {
		a.t.Errorf("%s: header %s is %q, want %q", a.what, name, got, value)
	}
	return a
}

// problem checks that the answer is a problem document with the code.
func (a *answer) problem(status int, code api.Code, parts ...string) *answer {
	a.t.Helper()
	a.want(status, parts...).wantHeader("Content-Type", "application/problem+json")
	var doc struct {
		Title, Detail, Code string
		Status              int
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		a.t.Fatalf("%s: %v in %.300q", a.what, err, a.body)
	}
	if doc.Code != string(code) || doc.Status != status || doc.Title != titleOf(status) || doc.Detail == "" {
		a.t.Errorf("%s: problem %+v, want code %s and status %d", a.what, doc, code, status)
	}
	return a
}

// decode reads a JSON body.
func (a *answer) decode(into any) *answer {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		a.t.Fatalf("%s: %v in %.300q", a.what, err, a.body)
	}
	return a
}

// put stores a value.
func (f *fixture) put(key, value string) {
	f.t.Helper()
	if res, err := f.node.Do(f.t.Context(), &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte(value)}, nil); err != nil || res.Outcome != kvstore.OK {
		f.t.Fatalf("put %q: %+v, %v", key, res, err)
	}
}
