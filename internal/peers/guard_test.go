package peers

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func encode(t testing.TB, m *raftpb.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// envelope returns the head of a snapshot request.
func envelope(t testing.TB, m *raftpb.Message) []byte {
	t.Helper()
	b := encode(t, m)
	return append(binary.BigEndian.AppendUint64(nil, uint64(len(b))), b...)
}

func setPeerHeaders(r *http.Request, from uint64) {
	r.Header.Set("X-Server-From", types.ID(from).String())
	r.Header.Set("X-Server-Version", version.Version)
	r.Header.Set("X-Min-Cluster-Version", version.MinClusterVersion)
	r.Header.Set("X-Etcd-Cluster-ID", types.ID(testCluster).String())
	r.Header.Set("X-Raft-To", "1")
}

// peerRequest returns a request from member 2, as rafthttp makes it.
func peerRequest(method, path string, body []byte) *http.Request {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	setPeerHeaders(r, 2)
	return r
}

func do(p *testPeer, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.Handler(nil).ServeHTTP(w, r)
	return w
}

func TestGuardAnswers(t *testing.T) {
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	p := startPeer(t, 1)
	if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	good := encode(t, heartbeat(2, 1, 3))
	noSnapshot := envelope(t, &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1))})
	for _, test := range []struct {
		name, method, path string
		body               []byte
		edit               func(*http.Request)
		status             int
	}{
		{"a good message", "POST", "/raft", good, nil, 204},
		{"a good snapshot", "POST", "/raft/snapshot", append(envelope(t, snapshotMessage(2, 1, 9)), "body"...), nil, 204},
		{"probing", "GET", "/raft/probing", nil, nil, 200},
		{"probing without headers", "GET", "/raft/probing", nil, func(r *http.Request) { clear(r.Header) }, 200},
		{"malformed server version", "POST", "/raft", good, header("X-Server-Version", "x"), 400},
		{"malformed server version, stream", "GET", "/raft/stream/message/2", nil, header("X-Server-Version", "3.7"), 400},
		{"malformed server version, snapshot", "POST", "/raft/snapshot", nil, header("X-Server-Version", "3.7.x"), 400},
		{"malformed cluster version", "POST", "/raft", good, header("X-Min-Cluster-Version", "1.2.3.4.5"), 400},
		{"long version", "POST", "/raft", good, header("X-Server-Version", "3.7.0-"+strings.Repeat("a", 100)), 400},
		{"version overflow", "POST", "/raft", good, header("X-Server-Version", "99999999999999999999.0.0"), 400},
		{"old version", "POST", "/raft", good, header("X-Server-Version", "2.3.0"), 412},
		{"no version", "POST", "/raft", good, func(r *http.Request) { r.Header.Del("X-Server-Version") }, 412},
		{"newer cluster", "POST", "/raft", good, header("X-Min-Cluster-Version", "9.0.0"), 412},
		{"another cluster", "POST", "/raft", good, header("X-Etcd-Cluster-ID", "abc"), 412},
		{"no cluster", "POST", "/raft", good, func(r *http.Request) { r.Header.Del("X-Etcd-Cluster-ID") }, 400},
		{"malformed cluster", "POST", "/raft", good, header("X-Etcd-Cluster-ID", "cluster!"), 400},
		{"no sender", "POST", "/raft", good, func(r *http.Request) { r.Header.Del("X-Server-From") }, 400},
		{"malformed sender", "POST", "/raft", good, header("X-Server-From", "zz"), 400},
		{"reserved sender", "POST", "/raft", good, header("X-Server-From", "ffffffffffffffff"), 400},
		{"sender is us", "POST", "/raft", good, header("X-Server-From", "1"), 400},
		{"GET of a message", "GET", "/raft", nil, nil, 405},
		{"PUT of a message", "PUT", "/raft", good, nil, 405},
		{"GET of a snapshot", "GET", "/raft/snapshot", nil, nil, 405},
		{"POST of a stream", "POST", "/raft/stream/message/2", nil, nil, 405},
		{"POST of probing", "POST", "/raft/probing", nil, nil, 405},
		{"unclean path", "POST", "/raft//", good, nil, 404},
		{"unclean stream", "GET", "/raft/stream//message/2", nil, nil, 404},
		{"unknown path", "GET", "/raft/other", nil, nil, 404},
		{"unknown stream", "GET", "/raft/stream/other/2", nil, nil, 404},
		{"stream of another", "GET", "/raft/stream/message/3", nil, nil, 400},
		{"stream of an unknown", "GET", "/raft/stream/message/5", nil, header("X-Server-From", "5"), 404},
		{"stream to another", "GET", "/raft/stream/message/2", nil, header("X-Raft-To", "9"), 412},
		{"no length", "POST", "/raft", good, func(r *http.Request) { r.ContentLength = -1 }, 411},
		{"too long", "POST", "/raft", good, func(r *http.Request) { r.ContentLength = maxPostBytes + 1 }, 413},
		{"not a message", "POST", "/raft", []byte("\xff\xff\xff"), nil, 400},
		{"an empty message", "POST", "/raft", nil, nil, 400},
		{"a forged acknowledgement of the disk", "POST", "/raft", encode(t, &raftpb.Message{
			Type: raftpb.MsgStorageAppendResp.Enum(), From: new(^uint64(0)), To: new(uint64(1)), Index: new(uint64(3)),
		}), nil, 400},
		{"from an unknown", "POST", "/raft", encode(t, heartbeat(5, 1, 3)), header("X-Server-From", "5"), 503},
		{"in the name of another", "POST", "/raft", encode(t, heartbeat(5, 1, 3)), nil, 400},
		{"a snapshot in the name of another", "POST", "/raft/snapshot", envelope(t, snapshotMessage(5, 1, 9)), nil, 400},
		{"a snapshot in a POST", "POST", "/raft", encode(t, snapshotMessage(2, 1, 9)), nil, 400},
		{"a snapshot without one", "POST", "/raft/snapshot", noSnapshot, nil, 400},
		{"a snapshot that is none", "POST", "/raft/snapshot", envelope(t, heartbeat(2, 1, 3)), nil, 400},
		{"half a head", "POST", "/raft/snapshot", []byte{0, 0, 1}, nil, 400},
		{"half an envelope", "POST", "/raft/snapshot", noSnapshot[:len(noSnapshot)-1], nil, 400},
		{"an endless envelope", "POST", "/raft/snapshot", bytes.Repeat([]byte{0xff}, 64), nil, 400},
		{"a path of no one", "GET", "/other", nil, nil, 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := peerRequest(test.method, test.path, test.body)
			if test.edit != nil {
				test.edit(r)
			}
			w := do(p, r)
			if w.Code != test.status {
				t.Errorf("status %d, want %d: %s", w.Code, test.status, w.Body)
			}
			if test.name == "another cluster" && w.Header().Get("X-Etcd-Cluster-ID") != "c1" {
				t.Error("a stranger is not told which cluster this is, and cannot say why it was refused")
			}
		})
	}
	if n := p.Refusals()["panic"]; n != 0 {
		t.Errorf("%d panics had to be caught", n)
	}
}

// TestPeerURLsHeaderIsStripped also shows that without the guard rafthttp would
// connect to any address that an unauthenticated request names.
func TestPeerURLsHeaderIsStripped(t *testing.T) {
	contacted := func(handler func(*testPeer) http.Handler) bool {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p := startPeer(t, 1)
		if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*http.Request{
			peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3))),
			peerRequest(http.MethodGet, "/raft/stream/message/7", nil),
		} {
			r.Header.Set("X-Server-From", "7")
			r.Header.Set("X-PeerURLs", "http://"+l.Addr().String())
			handler(p).ServeHTTP(httptest.NewRecorder(), r)
		}
		p.tr.Send([]*raftpb.Message{heartbeat(1, 7, 3)})
		if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !contacted(func(p *testPeer) http.Handler { return p.tr.Handler() }) {
		t.Error("the test does not notice the danger: rafthttp alone connects nowhere")
	}
	if contacted(func(p *testPeer) http.Handler { return p.Handler(nil) }) {
		t.Error("the address in X-PeerURLs was contacted")
	}
}

func TestMalformedVersionWouldPanicRafthttp(t *testing.T) {
	p := startPeer(t, 1)
	r := peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3)))
	r.Header.Set("X-Server-Version", "x")
	defer func() {
		if recover() == nil {
			t.Error("rafthttp survives it: the guard's check has become pointless")
		}
	}()
	p.tr.Handler().ServeHTTP(httptest.NewRecorder(), r)
}

func TestExtraHandlers(t *testing.T) {
	p := startPeer(t, 1)
	h := p.Handler(map[string]http.Handler{
		"GET /status": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") }),
		"/panic":      http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") }),
		"/late": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			panic("oops")
		}),
	})
	server := httptest.NewServer(h)
	defer server.Close()
	get := func(path string) (int, string, error) {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	if status, body, err := get("/status"); status != 200 || body != "fine" || err != nil {
		t.Errorf("status: %d %q %v", status, body, err)
	}
	if status, _, err := get("/panic"); status != 500 || err != nil {
		t.Errorf("panic: %d %v", status, err)
	}
	if status, _, err := get("/late"); err == nil {
		t.Errorf("a panic in the middle of an answer looks like %d", status)
	}
	if n := p.Refusals()["panic"]; n != 2 {
		t.Errorf("%d panics counted", n)
	}
}

func TestIdentityIsAuthorized(t *testing.T) {
	url3 := closedURL(t)
	p := startPeer(t, 1, func(c *Config) {
		c.Security.Authorize = func(_ *tls.ConnectionState, urls []string) error {
			if !slices.Equal(urls, []string{url3}) {
				return errors.New("the certificate is of member 3")
			}
			return nil
		}
	})
	if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	w := do(p, peerRequest(http.MethodPost, "/raft", encode(t, heartbeat(2, 1, 3))))
	// After 403 or 410 the sender would stop for good.
	if w.Code != http.StatusUnauthorized {
		t.Errorf("status %d", w.Code)
	}
	as3 := func(m *raftpb.Message) int {
		r := peerRequest(http.MethodPost, "/raft", encode(t, m))
		r.Header.Set("X-Server-From", "3")
		return do(p, r).Code
	}
	if status := as3(heartbeat(2, 1, 3)); status != http.StatusServiceUnavailable {
		t.Errorf("from a member that is not known yet, in the name of one that is: %d", status)
	}
	if err := p.AddPeer(3, []string{url3}); err != nil {
		t.Fatal(err)
	}
	if status := as3(heartbeat(3, 1, 3)); status != http.StatusNoContent {
		t.Errorf("the right certificate: %d", status)
	}
	if status := as3(heartbeat(2, 1, 3)); status != http.StatusBadRequest {
		t.Errorf("the right certificate, a message in the name of another: %d", status)
	}
	for _, path := range []string{"/raft/stream/message/2", MonitorPath} {
		r := peerRequest(http.MethodGet, path, nil)
		r.Header.Set("X-Raft-To", "1")
		if w := do(p, r); w.Code != http.StatusUnauthorized {
			t.Errorf("%s of member 2: %d", path, w.Code)
		}
	}
}

func TestIncomingSnapshotsAtATimeAreBounded(t *testing.T) {
	p := startPeer(t, 1)
	if err := p.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	h := p.Handler(nil)
	var writers []*io.PipeWriter
	done := make(chan int, maxIncomingSnapshots)
	for i := range maxIncomingSnapshots {
		r, w := io.Pipe()
		req := peerRequest(http.MethodPost, "/raft/snapshot", nil)
		req.Body = r
		go func() {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			done <- rec.Code
		}()
		// Write returns only once the handler has read it all.
		if _, err := w.Write(envelope(t, snapshotMessage(2, 1, 10+uint64(i)))); err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, peerRequest(http.MethodPost, "/raft/snapshot", envelope(t, snapshotMessage(2, 1, 30))))
	if rec.Code != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", rec.Code)
	}
	for _, w := range writers {
		w.Close()
		if code := wait(t, done, "a transfer"); code != http.StatusNoContent {
			t.Errorf("a transfer within the limit: %d", code)
		}
	}
}

// FuzzPeerHeaders checks that no headers make the guard or rafthttp panic, and that
// only a removed sender is told that it was removed.
func FuzzPeerHeaders(f *testing.F) {
	f.Add("POST", "/raft", "2", "3.7.0", "3.0.0", "c1", "1", "http://127.0.0.1:1")
	f.Add("GET", "/raft/stream/message/4", "4", "3.7.0", "3.0.0", "c1", "1", "")
	f.Add("GET", "/raft/stream/msgapp/9", "9", "x", "3.0.0-a+b", "c1", "1", ",")
	f.Add("POST", "/raft/snapshot", "ffffffffffffffff", "-1.0.0", "1..2", "", "zz", "::")
	f.Add("GET", "/raft/probing", "", "", "", "", "", "\x00")
	p := &testPeer{receiver: newNotingReceiver()}
	cfg := Config{ID: 1, ClusterID: testCluster, Receiver: p.receiver, Bodies: p.receiver, Snapshotter: newSnapshotDir(f)}
	var err error
	if p.Transport, err = New(cfg); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Stop)
	p.receiver.remove(4)
	body := encode(f, heartbeat(2, 1, 3))
	f.Fuzz(func(t *testing.T, method, path, from, version, cluster, clusterID, to, urls string) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Method, r.URL.Path = method, path
		for name, v := range map[string]string{
			"X-Server-From": from, "X-Server-Version": version, "X-Min-Cluster-Version": cluster,
			"X-Etcd-Cluster-ID": clusterID, "X-Raft-To": to, "X-PeerURLs": urls,
		} {
			r.Header.Set(name, v)
		}
		w := do(p, r)
		if n := p.Refusals()["panic"]; n != 0 {
			t.Fatalf("panic: %d", w.Code)
		}
		if id, err := types.IDFromString(from); (w.Code == 403 || w.Code == 410) && (err != nil || id != 4) {
			t.Fatalf("member %q is told that it was removed: %d", from, w.Code)
		}
		if len(p.receiver.messages) > 0 || p.known(2) {
			t.Fatal("a stranger's message got through")
		}
	})
}

// FuzzPeerBodies sends arbitrary bodies as a member does. Nothing panics, what gets through
// is the message that was sent, by its author, and the message at the head of a snapshot is
// read as far as it goes and no further.
func FuzzPeerBodies(f *testing.F) {
	for _, m := range []*raftpb.Message{heartbeat(2, 1, 3), heartbeat(3, 1, 3), heartbeat(2, 9, 3), snapshotMessage(2, 1, 9)} {
		f.Add("/raft", encode(f, m))
		f.Add("/raft/snapshot", append(envelope(f, m), "body"...))
	}
	f.Add("/raft/snapshot", binary.BigEndian.AppendUint64(nil, maxEnvelopeBytes))
	f.Add("/raft/snapshot", []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	p := &testPeer{receiver: newNotingReceiver()}
	var err error
	if p.Transport, err = New(Config{ID: 1, ClusterID: testCluster, Receiver: p.receiver, Bodies: p.receiver, Snapshotter: newSnapshotDir(f)}); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Stop)
	if err := p.AddPeer(2, []string{"http://127.0.0.1:1"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if m, head, err := readEnvelope(bytes.NewReader(body)); err == nil {
			if !bytes.HasPrefix(body, head) || uint64(len(head)) != 8+binary.BigEndian.Uint64(body) || m == nil {
				t.Fatalf("%d bytes of %x were read", len(head), body)
			}
		}
		if path != "/raft" && path != "/raft/snapshot" {
			return
		}
		before := p.Refusals()
		w := do(p, peerRequest(http.MethodPost, path, body))
		if n := p.Refusals()["panic"]; n != 0 {
			t.Fatalf("panic: %d", w.Code)
		}
		if w.Code < 300 && !maps.Equal(before, p.Refusals()) || w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Fatalf("%d, refusals %v after %v", w.Code, p.Refusals(), before)
		}
		for len(p.receiver.messages) > 0 {
			got, want := <-p.receiver.messages, new(raftpb.Message)
			text := body
			if path == "/raft/snapshot" {
				want, _, err = readEnvelope(bytes.NewReader(body))
			} else {
				err = proto.Unmarshal(text, want)
			}
			if err != nil || !proto.Equal(got, want) || got.GetFrom() != 2 || got.GetTo() != 1 {
				t.Fatalf("%v came through as %v (%v)", want, got, err)
			}
		}
	})
}
