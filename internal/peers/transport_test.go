package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/limits"
)

// deliveryPatience bounds how long a test waits for an event that must happen.
const deliveryPatience = 20 * time.Second

const testCluster = 0xc1

type snapshotStatus struct {
	id  uint64
	ok  bool
	err error
}

// notingReceiver records what a transport reports.
type notingReceiver struct {
	messages    chan *raftpb.Message
	statuses    chan snapshotStatus
	badBody     atomic.Pointer[error]  // the answer of Check
	noRoom      atomic.Pointer[error]  // the answer of Room
	full        func(asked int64) bool // when it is given; set before the first request
	unreachable chan uint64
	mu          struct {
		sync.Mutex
		removed map[uint64]bool
		err     error // Process answers it
	}
}

func newNotingReceiver() *notingReceiver {
	r := &notingReceiver{
		messages:    make(chan *raftpb.Message, 1<<14),
		statuses:    make(chan snapshotStatus, 64),
		unreachable: make(chan uint64, 1<<14),
	}
	r.mu.removed = make(map[uint64]bool)
	return r
}

func (r *notingReceiver) Process(ctx context.Context, m *raftpb.Message) error {
	r.mu.Lock()
	err := r.mu.err
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case r.messages <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *notingReceiver) IsRemoved(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.removed[id]
}

func (r *notingReceiver) Unreachable(id uint64) {
	select {
	case r.unreachable <- id:
	default:
	}
}

func (r *notingReceiver) Check(context.Context, *raftpb.Snapshot) error {
	if p := r.badBody.Load(); p != nil {
		return *p
	}
	return nil
}

func (r *notingReceiver) Room(asked int64) error {
	if p := r.noRoom.Load(); p != nil && r.full(asked) {
		return *p
	}
	return nil
}

func (r *notingReceiver) SnapshotStatus(id uint64, err error) {
	r.statuses <- snapshotStatus{id, err == nil, err}
}

func (r *notingReceiver) remove(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.removed[id] = true
}

// testPeer is a transport with a listener on loopback.
type testPeer struct {
	*Transport
	id       uint64
	url      string
	receiver *notingReceiver
	snaps    *snap.Snapshotter
	server   *httptest.Server
}

func startPeer(t *testing.T, id uint64, edit ...func(*Config)) *testPeer {
	t.Helper()
	p := &testPeer{id: id, receiver: newNotingReceiver(), snaps: snap.New(zap.NewNop(), t.TempDir())}
	cfg := Config{ID: id, ClusterID: testCluster, Snapshotter: p.snaps, Receiver: p.receiver, Bodies: p.receiver}
	for _, f := range edit {
		f(&cfg)
	}
	var err error
	if p.Transport, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	p.server = httptest.NewServer(p.Handler(nil))
	p.url = p.server.URL
	t.Cleanup(func() {
		p.Stop()
		p.server.CloseClientConnections()
		p.server.Close()
	})
	return p
}

// connect makes the peers known to each other.
func connect(t *testing.T, peers ...*testPeer) {
	t.Helper()
	for _, p := range peers {
		for _, q := range peers {
			if p == q {
				continue
			}
			if err := p.AddPeer(q.id, []string{q.url}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func heartbeat(from, to, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(to), Term: new(term)}
}

func appendMessage(from, to, term, index uint64, data ...[]byte) *raftpb.Message {
	m := &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: new(from), To: new(to), Term: new(term),
		LogTerm: new(term), Index: new(index), Commit: new(index),
	}
	for i, d := range data {
		m.Entries = append(m.Entries, &raftpb.Entry{Term: new(term), Index: new(index + 1 + uint64(i)), Data: d})
	}
	return m
}

// sendUntilReceived repeats a message, because delivery is not promised, until the
// receiver has one that matches.
func sendUntilReceived(t *testing.T, from *testPeer, m *raftpb.Message, to *notingReceiver) *raftpb.Message {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(deliveryPatience)
	for {
		from.Send([]*raftpb.Message{m})
		select {
		case got := <-to.messages:
			if got.GetType() == m.GetType() && got.GetFrom() == m.GetFrom() && got.GetTerm() == m.GetTerm() {
				return got
			}
		case <-again.C:
		case <-deadline:
			t.Fatalf("%v from %d did not arrive", m.GetType(), m.GetFrom())
		}
	}
}

func wait[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deliveryPatience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func TestTransportsExchangeMessages(t *testing.T) {
	peers := []*testPeer{startPeer(t, 1), startPeer(t, 2), startPeer(t, 3)}
	connect(t, peers...)
	big := make([]byte, 2<<20)
	for _, p := range peers {
		for _, q := range peers {
			if p == q {
				continue
			}
			sendUntilReceived(t, p, heartbeat(p.id, q.id, 7), q.receiver)
			got := sendUntilReceived(t, p, appendMessage(p.id, q.id, 8, 5, big, []byte("x")), q.receiver)
			if len(got.GetEntries()) != 2 || len(got.GetEntries()[0].GetData()) != len(big) || got.GetIndex() != 5 {
				t.Fatalf("append arrived as %d entries after %d", len(got.GetEntries()), got.GetIndex())
			}
		}
	}
	if peers[0].ActiveSince(2).IsZero() || peers[0].ActiveSince(3).IsZero() {
		t.Error("working connections are not active")
	}
	for reason, n := range peers[1].Refusals() {
		if n > 0 && reason != refusedUnknown.String() { // 2 may not have known 1 yet
			t.Errorf("%d good messages were refused: %s", n, reason)
		}
	}
}

// TestLargestMessage: the largest entry that can be proposed arrives, as a leader's
// append and as a proposal that a follower forwards.
func TestLargestMessage(t *testing.T) {
	p, q := startPeer(t, 1), startPeer(t, 2)
	connect(t, p, q)
	data := make([]byte, limits.MaxEntryBytes)
	proposal := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: []*raftpb.Entry{{Data: data}}}
	for _, m := range []*raftpb.Message{appendMessage(1, 2, 8, 5, data), proposal} {
		if got := sendUntilReceived(t, p, m, q.receiver); len(got.GetEntries()[0].GetData()) != len(data) {
			t.Errorf("%v arrived with %d bytes", m.GetType(), len(got.GetEntries()[0].GetData()))
		}
	}
	if n := q.Refusals()[refusedSize.String()]; n > 0 {
		t.Errorf("%d messages were refused for their size", n)
	}
}

// closedURL returns a URL at which connections are refused. Its port is bound but
// does not listen, so nobody else gets it while the test runs.
func closedURL(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", addr.(*syscall.SockaddrInet4).Port)
}

// loopReceiver notes when it is called from inside Send, where waiting for the loop
// would never end.
type loopReceiver struct {
	*notingReceiver
	inSend chan bool // holds a token while the loop is in Send
	inside chan struct{}
}

func (r *loopReceiver) Unreachable(id uint64) {
	r.notingReceiver.Unreachable(id)
	select {
	case <-r.inSend:
		r.inSend <- true
		select {
		case r.inside <- struct{}{}:
		default:
		}
	default:
	}
}

// TestSendToUnreachablePeerDoesNotBlockTheLoop proves that rafthttp reports a full
// queue from inside Send. A receiver that waited for the loop then would wait for
// itself.
func TestSendToUnreachablePeerDoesNotBlockTheLoop(t *testing.T) {
	r := &loopReceiver{newNotingReceiver(), make(chan bool, 1), make(chan struct{}, 1)}
	p := startPeer(t, 1, func(c *Config) { c.Receiver = r })
	if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // the loop
		defer close(done)
		r.inSend <- true
		for range 2000 { // more than any queue of an unconnected peer holds
			p.Send([]*raftpb.Message{heartbeat(1, 2, 3)})
		}
		<-r.inSend
	}()
	wait(t, done, "Send to return")
	wait(t, r.inside, "a report from inside Send")
	if id := wait(t, r.unreachable, "a report"); id != 2 {
		t.Errorf("member %d reported unreachable", id)
	}
	if !p.ActiveSince(2).IsZero() {
		t.Error("a peer that nobody answers for is active")
	}
}

func TestUnknownSenderIsLookedUpAndAdded(t *testing.T) {
	asked := make(chan uint64, 1<<10)
	leader := startPeer(t, 9)
	sleeper := startPeer(t, 1, func(c *Config) {
		c.Lookup = func(_ context.Context, id uint64) ([]string, bool) {
			asked <- id
			return []string{leader.url}, true
		}
	})
	if err := leader.AddPeer(1, []string{sleeper.url}); err != nil {
		t.Fatal(err)
	}
	got := sendUntilReceived(t, leader, heartbeat(9, 1, 4), sleeper.receiver)
	if got.GetFrom() != 9 {
		t.Fatalf("message from %d", got.GetFrom())
	}
	if id := wait(t, asked, "the look-up"); id != 9 {
		t.Errorf("looked up %d", id)
	}
	// The sender can be answered, too.
	sendUntilReceived(t, sleeper, &raftpb.Message{
		Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(1)), To: new(uint64(9)), Term: new(uint64(4)),
	}, leader.receiver)
	if n := sleeper.Refusals()["unknown"]; n == 0 {
		t.Error("the messages before the look-up were not refused")
	}
}

func TestLookUpsAreHeldBack(t *testing.T) {
	now := time.Unix(1000, 0)
	var l lookupState
	l.mu.next = make(map[uint64]time.Time)
	if !l.begin(1, now) {
		t.Fatal("the first is refused")
	}
	if l.begin(2, now) {
		t.Error("a second at once")
	}
	now = now.Add(lookupPace)
	if l.begin(1, now) {
		t.Error("the same id before its time")
	}
	if !l.begin(2, now) {
		t.Error("another id is refused")
	}
	if now = now.Add(lookupPace); l.begin(3, now) {
		t.Error("more than the limit at a time")
	}
	l.end()
	if !l.begin(3, now) {
		t.Error("refused after one ended")
	}
	l.end()
	l.end()
	begun := 0
	for id := uint64(10); id < 10_000; id++ {
		if now = now.Add(time.Millisecond); l.begin(id, now) {
			l.end()
			begun++
		}
	}
	if most := int(10*time.Second/lookupPace) + 1; begun > most || begun < most/2 {
		t.Errorf("%d look-ups in ten seconds", begun)
	}
	if len(l.mu.next) > maxLookupsNoticed {
		t.Errorf("%d ids remembered", len(l.mu.next))
	}
}

func TestRemovedPeerLearnsIt(t *testing.T) {
	for _, known := range []bool{true, false} {
		stays, gone := startPeer(t, 1), startPeer(t, 2)
		if known {
			connect(t, stays)
			if err := stays.AddPeer(2, []string{gone.url}); err != nil {
				t.Fatal(err)
			}
		}
		stays.receiver.remove(2)
		select {
		case <-gone.Removed():
			t.Fatal("removed before it was told")
		default:
		}
		if err := gone.AddPeer(1, []string{stays.url}); err != nil {
			t.Fatal(err)
		}
		wait(t, gone.Removed(), "the removed member to learn it")
		if n := stays.Refusals()["removed"]; n == 0 {
			t.Error("the refusal is not counted")
		}
	}
}

func TestRemovedPeerIsAnsweredWithGone(t *testing.T) {
	p := startPeer(t, 1)
	p.receiver.remove(2)
	w := do(p, peerRequest(http.MethodGet, "/raft/stream/message/2", nil))
	if w.Code != http.StatusGone {
		t.Errorf("stream: %d", w.Code)
	}
	w = do(p, peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3))))
	if w.Code != http.StatusForbidden { // what rafthttp's sender takes for removed
		t.Errorf("POST: %d", w.Code)
	}
}

func TestErrorsOfTheReceiverAreAnswered(t *testing.T) {
	p := startPeer(t, 1)
	if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	p.receiver.mu.err = errors.New("no room")
	w := do(p, peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3))))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d", w.Code)
	}
	if n := p.Refusals()["panic"]; n != 0 {
		t.Errorf("%d panics", n)
	}
}

func TestPeersAreValidated(t *testing.T) {
	own := "http://127.0.0.1:2380"
	p := startPeer(t, 1, func(c *Config) { c.PeerURLs = []string{own} })
	for name, test := range map[string]struct {
		id   uint64
		urls []string
	}{
		"no id":               {0, []string{"http://127.0.0.1:1"}},
		"itself":              {1, []string{"http://127.0.0.1:1"}},
		"a local target":      {^uint64(0), []string{"http://127.0.0.1:1"}},
		"no URLs":             {2, nil},
		"a bad URL":           {2, []string{"http://127.0.0.1:1", "ftp://127.0.0.1:1"}},
		"our own URL":         {2, []string{own}},
		"a URL with a space":  {2, []string{" http://127.0.0.1:1"}},
		"a URL with a path":   {2, []string{"http://127.0.0.1:1/x"}},
		"a URL without port":  {2, []string{"http://127.0.0.1"}},
		"a link-local target": {2, []string{"http://169.254.169.254:80"}},
	} {
		for what, f := range map[string]func(uint64, []string) error{
			"AddPeer": p.AddPeer, "UpdatePeer": p.UpdatePeer, "AddRemote": p.addRemote,
		} {
			if err := f(test.id, test.urls); err == nil {
				t.Errorf("%s accepts %s", what, name)
			}
		}
	}
	if p.known(2) {
		t.Error("a refused peer is known")
	}
}

func TestPeerChanges(t *testing.T) {
	a, b, moved := startPeer(t, 1), startPeer(t, 2), startPeer(t, 2)
	connect(t, a, b)
	sendUntilReceived(t, a, heartbeat(1, 2, 3), b.receiver)
	if err := moved.AddPeer(1, []string{a.url}); err != nil {
		t.Fatal(err)
	}
	// UpdatePeer and AddPeer both change the URLs of a known peer.
	b.Stop()
	b.server.CloseClientConnections()
	if err := a.UpdatePeer(2, []string{moved.url}); err != nil {
		t.Fatal(err)
	}
	sendUntilReceived(t, a, heartbeat(1, 2, 4), moved.receiver)
	if err := a.AddPeer(2, []string{moved.url}); err != nil {
		t.Fatal(err)
	}
	a.RemovePeer(2)
	a.RemovePeer(2)
	if a.known(2) || !a.ActiveSince(2).IsZero() {
		t.Error("the removed peer is still there")
	}
	if err := a.UpdatePeer(2, []string{b.url}); err != nil || a.known(2) {
		t.Errorf("an update adds a peer (%v)", err)
	}
	a.Send([]*raftpb.Message{heartbeat(1, 2, 5)}) // to nobody
}

func TestRemotesAreBounded(t *testing.T) {
	p := startPeer(t, 1)
	url := []string{closedURL(t)}
	for id := uint64(2); id < 2+maxRemotes; id++ {
		if err := p.addRemote(id, url); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.addRemote(2, url); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	if err := p.addRemote(1000, url); err == nil {
		t.Error("no limit")
	}
}

func TestNothingHappensAfterStop(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	sendUntilReceived(t, a, heartbeat(1, 2, 3), b.receiver)
	a.Stop()
	a.Stop()
	url := []string{closedURL(t)}
	for what, err := range map[string]error{
		"AddPeer": a.AddPeer(3, url), "UpdatePeer": a.UpdatePeer(2, url), "AddRemote": a.addRemote(4, url),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.RemovePeer(2)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 4), heartbeat(1, 3, 4)})
	if !a.ActiveSince(2).IsZero() {
		t.Error("active after Stop")
	}
	body := newTrackedBody([]byte("body"))
	a.SendSnapshot(snapshotMessage(1, 2, 9), body, 4)
	if s := wait(t, a.receiver.statuses, "the status"); s.ok || !body.closed() {
		t.Errorf("status %v, closed %v", s, body.closed())
	}
	if w := do(a, peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3)))); w.Code != http.StatusServiceUnavailable {
		t.Errorf("handler: %d", w.Code)
	}
	if err := (callbacks{a.Transport}).Process(context.Background(), heartbeat(2, 1, 3)); err == nil {
		t.Error("a message was taken")
	}
	if len(a.receiver.messages) > 0 {
		t.Error("a message got through")
	}
}

func TestTransportConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nothing":        {},
		"no snapshotter": {ID: 1, Receiver: newNotingReceiver()},
		"no receiver":    {ID: 1, Snapshotter: snap.New(nil, t.TempDir())},
		"reserved id":    {ID: ^uint64(0), Receiver: newNotingReceiver(), Snapshotter: snap.New(nil, t.TempDir())},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// trackedBody is a snapshot body that records whether it was closed.
type trackedBody struct {
	io.Reader
	once sync.Once
	done chan struct{}
}

func (b *trackedBody) Close() error {
	b.once.Do(func() { close(b.done) })
	if c, ok := b.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (b *trackedBody) closed() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// TestRequestsOfRafthttpAreOurs proves that rafthttp's own transports, which know
// proxies and no revocation, never connect, and that each request states the
// identity of this member.
func TestRequestsOfRafthttpAreOurs(t *testing.T) {
	p := startPeer(t, 1)
	headers := make(chan http.Header, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { headers <- r.Header }))
	defer server.Close()
	for _, field := range []string{"streamRt", "pipelineRt"} {
		rt, err := httpTransport(p.tr, field)
		if err != nil {
			t.Fatal(err)
		}
		rt.Proxy = func(*http.Request) (*url.URL, error) { return nil, errors.New("a proxy was asked for") }
		rt.DialContext = refuseDial
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", field, err)
		}
		_ = resp.Body.Close()
		claim, refusal := claimedBy(<-headers)
		if want := (identity{member: 1, cluster: testCluster}); refusal != nil || claim != want {
			t.Errorf("%s: the request states %+v (%v), want %+v", field, claim, refusal, want)
		}
		if len(req.Header) > 0 {
			t.Errorf("%s: the caller's request was changed: %v", field, req.Header)
		}
	}
	for _, rt := range p.own {
		if rt.Proxy != nil {
			t.Error("peers are reached through a proxy")
		}
	}
	if _, err := httpTransport(p.tr, "ID"); err == nil {
		t.Error("a field of another kind is taken for a transport")
	}
}
