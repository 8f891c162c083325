package gateway

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/freeport"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
)

// fixture is a real node, a cluster by itself, behind a gateway.
type fixture struct {
	t      *testing.T
	node   *node.Node
	server *etcdapi.Server
	web    *httptest.Server
	self   string // the URL for other members
}

// begin begins a stream whose first line has to be waited for, which is what the returned
// function does.
func (f *fixture) begin(path string, body io.Reader) func() *lines {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	f.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.web.URL+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	var answer *http.Response
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		answer, err = f.web.Client().Do(r)
	}()
	return func() *lines {
		f.t.Helper()
		if <-begun; err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { answer.Body.Close() })
		if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "application/json" {
			f.t.Fatal(answer.Status, answer.Header)
		}
		return &lines{f, answer.Body, bufio.NewScanner(answer.Body)}
	}
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	self := node.Peer{ID: 1, Name: "one", URL: freeURL(t)}
	n, err := node.New(node.Config{
		ID: self.ID, Name: self.Name, DataDir: t.TempDir(), Engine: "memory", Initial: []node.Peer{self}, Alone: true, IDGiven: true, Token: "test",
		ListenPeer: self.URL, AdvertisePeer: []string{self.URL}, AdvertiseClient: []string{"http://client:1"}, AdvertiseEtcd: []string{"http://etcd:2379"},
		TickInterval: 20 * time.Millisecond, ElectionTicks: 10, CheckpointBytes: 16 << 20, CatchUpBytes: 4 << 20, Settings: kvstore.DefaultSettings(),
	})
	if err != nil {
		t.Fatal(err)
	}
	face := node.Face{Node: n}
	memory := budget.New(16 << 20)
	f := &fixture{t: t, self: self.URL, node: n, server: etcdapi.New(etcdapi.Options{
		Replicator: face, Members: face, Member: face, Leadership: face, Inspector: face, LeaseTimes: face, Watches: face.Watches(),
		Memory: memory, WatchProgress: time.Minute,
		Gate: node.NewGate(n, access.Options{}),
	})}
	o := Options{
		Calls: f.server, Health: f.server.Probes(), Memory: memory, MaxMessage: f.server.MaxMessage(),
		Version: Version{Server: etcdapi.Version, Cluster: etcdapi.ClusterVersion, Storage: etcdapi.StorageVersion},
	}
	for _, c := range change {
		c(&o)
	}
	f.web = httptest.NewServer(New(o))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		f.server.SendAway()
		n.Watches().Close()
		f.web.Close()
		stop()
		if err := <-ended; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		if small, large := memory.Taken(); small+large != 0 {
			t.Errorf("%d bytes are still claimed", small+large)
		}
	})
	<-n.Ready()
	return f
}

func (f *fixture) open() *fixture {
	store := f.node.Store()
	f.server.Open(etcdapi.State{Store: store, Evaluator: kvstore.NewEvaluator(store), Limits: store, LeaseTable: store})
	return f
}

func freeURL(t *testing.T) string {
	t.Helper()
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + address
}

// do sends a request and returns the status and the body.
func (f *fixture) do(method, path, body string) (int, string) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, f.web.URL+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	return f.send(r)
}

func (f *fixture) send(r *http.Request) (int, string) {
	f.t.Helper()
	answer, err := f.web.Client().Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// header matches the header of an answer; what is left of it is the revision.
var header = regexp.MustCompile(`"header":\{"cluster_id":"\d+","member_id":"1"(?:,"revision":"(\d+)")?,"raft_term":"\d+"\}`)

// short makes headers short.
func short(body string) string { return header.ReplaceAllString(body, "@$1") }

// post is do for a call, with a short header.
func (f *fixture) post(path, body string) (int, string) {
	f.t.Helper()
	status, text := f.do(http.MethodPost, path, body)
	return status, short(text)
}

// want posts and compares: the answer with its status in front, unless that is 200.
func (f *fixture) want(path, body, want string) {
	f.t.Helper()
	status, got := f.post(path, body)
	if status != http.StatusOK {
		got = strconv.Itoa(status) + " " + got
	}
	if got != want {
		f.t.Errorf("%s %s:\n got %s\nwant %s", path, body, got, want)
	}
}

// lines is a stream that is being read.
type lines struct {
	f    *fixture
	body io.ReadCloser
	scan *bufio.Scanner
}

// stream begins a stream.
func (f *fixture) stream(path string, body io.Reader) *lines {
	f.t.Helper()
	return f.begin(path, body)()
}

// want reads lines and compares them.
func (l *lines) want(want ...string) *lines {
	l.f.t.Helper()
	for _, w := range want {
		if !l.scan.Scan() {
			l.f.t.Fatalf("the stream ended (%v), want %s", l.scan.Err(), w)
		}
		if got := short(l.scan.Text()); got != w {
			l.f.t.Errorf("\n got %s\nwant %s", got, w)
		}
	}
	return l
}

// end reads to the end of the stream.
func (l *lines) end() {
	l.f.t.Helper()
	if l.scan.Scan() {
		l.f.t.Errorf("one more line: %s", l.scan.Text())
	}
}
