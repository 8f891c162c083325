package peers

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Limits of the peer port.
const (
	maxIncomingSnapshots = 2 // at a time: each writes a file
	// maxEnvelopeBytes bounds the message before a snapshot's body: the
	// membership and the removed ids.
	maxEnvelopeBytes = 8 << 20
	// maxPostBytes bounds one message in a POST, maxPostsBytes all at a time.
	maxPostBytes  = maxMessageSizeBytes + 1<<20
	maxPostsBytes = 4 * maxPostBytes
	maxVersionLen = 64
	// streamWriteTimeout is after how long a stream whose reader does not
	// read is given up; the reader then asks for a new one.
	streamWriteTimeout = 5 * time.Second
)

const raftPathPrefix = "/raft"

// guard stands before rafthttp's handlers, which trust what they get: a
// malformed version header, a snapshot message without a snapshot and an
// error of the receiver each panic them, X-PeerURLs makes them POST wherever
// it says, and a body is read to its end.
type guard struct {
	t         *Transport
	raft      http.Handler
	extra     http.Handler
	snapshots chan struct{} // holds a token for each one being received
	posting   atomic.Int64  // bytes announced by the POSTs being read
	monitors  atomic.Int64  // held open by other members
}

// Handler serves the peer port: raft's messages under /raft, and beside them
// the given handlers by http.ServeMux pattern. Those check for themselves who
// asks, and bound their bodies.
//
// The http.Server must not have a ReadTimeout or WriteTimeout, streams live as
// long as the connection; it should have a ReadHeaderTimeout.
func (t *Transport) Handler(extra map[string]http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range extra {
		mux.Handle(pattern, h)
	}
	return &guard{t: t, raft: t.tr.Handler(), extra: mux, snapshots: make(chan struct{}, maxIncomingSnapshots)}
}

func (g *guard) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &guardedWriter{ResponseWriter: rw, ctl: http.NewResponseController(rw)}
	defer g.recoverPanic(w, r)
	if r.URL.Path != raftPathPrefix && !strings.HasPrefix(r.URL.Path, raftPathPrefix+"/") {
		g.extra.ServeHTTP(w, r)
		return
	}
	if !g.t.enter() {
		http.Error(w, errStopping.Error(), http.StatusServiceUnavailable)
		return
	}
	defer g.t.leave()
	g.serveRaft(w, r)
}

// recoverPanic keeps a panic of the libraries from becoming a stack trace for
// each request that a stranger sends.
func (g *guard) recoverPanic(w *guardedWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	g.t.refusals.add(refusedPanic)
	g.t.lg.Error("panic in the peer handler", zap.String("path", r.URL.Path), zap.Any("panic", p), zap.Stack("stack"))
	if w.wrote {
		panic(http.ErrAbortHandler) // half an answer must not look whole
	}
	w.Header().Set("Connection", "close")
	http.Error(w, "internal error", http.StatusInternalServerError)
}

// serveRaft routes by exact path: rafthttp's own mux would clean and redirect.
func (g *guard) serveRaft(w *guardedWriter, r *http.Request) {
	serve, method := g.serveStream, http.MethodGet
	switch dir := path.Dir(r.URL.Path); {
	case r.URL.Path == rafthttp.RaftPrefix:
		serve, method = g.servePost, http.MethodPost
	case r.URL.Path == rafthttp.RaftSnapshotPrefix:
		serve, method = g.serveSnapshot, http.MethodPost
	case r.URL.Path == MonitorPath:
		serve = g.serveMonitor
	case r.URL.Path == rafthttp.ProbingPrefix:
		serve = func(w *guardedWriter, r *http.Request, _ uint64) { g.raft.ServeHTTP(w, r) }
	case r.URL.Path == dir+"/"+path.Base(r.URL.Path) && (dir == rafthttp.RaftStreamPrefix+"/message" || dir == rafthttp.RaftStreamPrefix+"/msgapp"):
	default:
		g.t.refusals.add(refusedRequest)
		http.NotFound(w, r)
		return
	}
	if r.Method != method {
		g.t.refusals.add(refusedRequest)
		w.Header().Set("Allow", method)
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	r.Header.Del("X-PeerURLs")
	if r.Method == http.MethodGet {
		// Without it a stream's reader does not look at the status, and a
		// removed member would never learn that it was.
		w.Header().Set("X-Server-Version", version.Version)
	}
	if r.URL.Path == rafthttp.ProbingPrefix { // a prober says nothing of itself
		serve(w, r, 0)
		return
	}
	from, ok := g.identify(w, r)
	if ok {
		serve(w, r, from)
	}
}

// identify returns the sender of a request, after it has checked what the
// headers claim. If it refuses the request, it answers it, and ok is false.
func (g *guard) identify(w http.ResponseWriter, r *http.Request) (from uint64, ok bool) {
	claim, err := claimedBy(r.Header)
	if err == nil && claim.cluster != g.t.self.cluster {
		err = refusef(refusedCluster, "the request is meant for cluster %016x", claim.cluster)
	}
	if err == nil {
		err = checkVersions(r.Header)
	}
	if err == nil {
		err = g.checkSender(r, claim.member)
	}
	if err == nil {
		return claim.member, true
	}
	g.t.refusals.add(err.reason)
	if err.reason == refusedRemoved && r.Method == http.MethodGet {
		http.Error(w, err.Error(), http.StatusGone)
	} else {
		err.WriteTo(w)
	}
	return 0, false
}

// checkVersions refuses headers that rafthttp would panic over.
func checkVersions(h http.Header) *refusalError {
	for _, name := range []string{"X-Server-Version", "X-Min-Cluster-Version"} {
		v := h.Get(name)
		if v == "" {
			continue // rafthttp takes it for an old version and answers so
		}
		if len(v) > maxVersionLen {
			return refusef(refusedRequest, "%s of %d bytes", name, len(v))
		}
		if _, err := semver.NewVersion(v); err != nil {
			return refusef(refusedRequest, "%s %q is not a version", name, v)
		}
	}
	return nil
}

func (g *guard) checkSender(r *http.Request, from uint64) *refusalError {
	if from == g.t.self.member {
		return refusef(refusedSender, "a request from this member itself")
	}
	if g.t.cfg.Receiver.IsRemoved(from) {
		return refusef(refusedRemoved, "member %d was removed", from)
	}
	return g.checkCertificate(r, from)
}

// checkCertificate binds the claim to be a member to its certificate. Who is
// not known yet has no URLs to compare: it is looked up, and gets nothing done
// before. A stream's answer is the one that makes it come again.
func (g *guard) checkCertificate(r *http.Request, from uint64) *refusalError {
	authorize := g.t.cfg.Security.Authorize
	if authorize == nil {
		return nil
	}
	urls := g.t.urlsOf(from)
	if urls == nil && r.Method == http.MethodGet && r.URL.Path != MonitorPath {
		return nil // serveStream refuses it
	}
	if urls == nil {
		g.t.lookUp(from)
		return refusef(refusedUnknown, "member %d is not known here yet", from)
	}
	if err := authorize(r.TLS, urls); err != nil {
		return refusef(refusedIdentity, "the certificate is not that of member %d: %v", from, err)
	}
	return nil
}

// checkAuthor refuses a message in the name of another member than the one
// that sends it. Forwarded ones keep the name of where they come from.
func checkAuthor(m *raftpb.Message, from uint64) *refusalError {
	if m.GetFrom() != from && !messageShapes[m.GetType()].termless {
		return refusef(refusedSender, "%v of member %d, sent by member %d", m.GetType(), m.GetFrom(), from)
	}
	return nil
}

// serveStream lets a peer read our messages for as long as it likes.
func (g *guard) serveStream(w *guardedWriter, r *http.Request, from uint64) {
	if id, err := types.IDFromString(path.Base(r.URL.Path)); err != nil || uint64(id) != from {
		g.refuse(w, refusef(refusedRequest, "the path names another member than X-Server-From"))
		return
	}
	if !g.t.known(from) {
		g.t.lookUp(from)
		g.t.refusals.add(refusedUnknown)
		http.Error(w, "member is not known here yet", http.StatusNotFound)
		return
	}
	_ = w.ctl.SetReadDeadline(time.Time{}) // without deadlines of its own there is none to lift
	w.timeout = streamWriteTimeout
	g.raft.ServeHTTP(w, r)
}

// servePost reads one message and hands it on once it is found good: rafthttp
// makes a metric for every sender it is told of.
func (g *guard) servePost(w *guardedWriter, r *http.Request, from uint64) {
	size := r.ContentLength
	switch {
	case size < 0:
		g.t.refusals.add(refusedRequest)
		http.Error(w, "length required", http.StatusLengthRequired)
		return
	case size > maxPostBytes:
		w.Header().Set("Connection", "close")
		g.refuse(w, refusef(refusedSize, "a message of %d bytes", size))
		return
	}
	defer g.posting.Add(-size)
	if g.posting.Add(size) > maxPostsBytes {
		g.refuse(w, refusef(refusedBusy, "too many messages at a time"))
		return
	}
	body := g.pace(w, r)
	defer body.release()
	data, err := io.ReadAll(http.MaxBytesReader(w, body, maxPostBytes))
	if err != nil {
		g.refuse(w, refusef(refusedBody, "read message: %v", err))
		return
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(data, m); err != nil {
		g.refuse(w, refusef(refusedBody, "the message cannot be decoded"))
		return
	}
	if !g.vet(w, m, from) {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	g.raft.ServeHTTP(w, r)
}

// serveSnapshot looks at the message before the body, of any size, is stored.
func (g *guard) serveSnapshot(w *guardedWriter, r *http.Request, from uint64) {
	select {
	case g.snapshots <- struct{}{}:
		defer func() { <-g.snapshots }()
	default:
		w.Header().Set("Connection", "close")
		g.refuse(w, refusef(refusedBusy, "too many snapshots at a time"))
		return
	}
	body := g.pace(w, r)
	defer body.release()
	m, envelope, err := readEnvelope(body)
	if err != nil {
		g.refuse(w, refusef(refusedBody, "read snapshot message: %v", err))
		return
	}
	if !isSnapshotMessage(m) {
		g.refuse(w, refusef(refusedSnapshot, "%v instead of a snapshot", m.GetType()))
		return
	}
	if !g.vet(w, m, from) {
		return
	}
	defer g.t.expect(m)()
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(envelope), body), body}
	g.raft.ServeHTTP(w, r)
}

// readEnvelope reads the message at the head of a snapshot request: its length
// in 8 bytes, big-endian, then the message. It also returns those bytes.
func readEnvelope(r io.Reader) (*raftpb.Message, []byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint64(head[:])
	if n > maxEnvelopeBytes {
		return nil, nil, errors.New("the message is too long")
	}
	// Grows as bytes arrive: the length is only a claim.
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, nil, err
	}
	if uint64(len(data)) < n {
		return nil, nil, io.ErrUnexpectedEOF
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, nil, errors.New("the message cannot be decoded")
	}
	return m, append(head[:], data...), nil
}

// vet answers a message that is refused.
func (g *guard) vet(w http.ResponseWriter, m *raftpb.Message, from uint64) bool {
	if r := checkAuthor(m, from); r != nil {
		g.refuse(w, r)
		return false
	}
	err := g.t.vet(m)
	if err == nil {
		return true
	}
	var r *refusalError
	if errors.As(err, &r) {
		r.WriteTo(w)
	} else {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return false
}

func (g *guard) refuse(w http.ResponseWriter, r *refusalError) {
	g.t.refusals.add(r.reason)
	r.WriteTo(w)
}

// pace makes reading the body fail when the sender pauses for too long, or the
// transport stops.
func (g *guard) pace(w *guardedWriter, r *http.Request) *pacedBody {
	b := &pacedBody{body: r.Body, ctl: w.ctl, ctx: g.t.ctx, stall: g.t.cfg.ReadStall}
	// A read that waits already is woken.
	b.release = context.AfterFunc(g.t.ctx, func() { _ = b.ctl.SetReadDeadline(time.Now()) })
	return b
}

// pacedBody is a request body whose sender has to keep sending. Where the
// connection has no deadlines (in tests without one) it only reads.
type pacedBody struct {
	body    io.ReadCloser
	ctl     *http.ResponseController
	ctx     context.Context
	stall   time.Duration
	release func() bool
}

func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.ctl.SetReadDeadline(time.Now().Add(b.stall))
	if b.ctx.Err() != nil {
		return 0, errStopping
	}
	n, err := b.body.Read(p)
	if err != nil {
		b.release()
		// The server reads on in the background; an old deadline would make
		// it close the connection while the handler still works.
		_ = b.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *pacedBody) Close() error {
	b.release()
	return b.body.Close()
}

// guardedWriter knows whether an answer has begun, and gives the writes of a
// stream a deadline each.
type guardedWriter struct {
	http.ResponseWriter
	ctl     *http.ResponseController
	timeout time.Duration // 0: none
	wrote   bool
}

func (w *guardedWriter) WriteHeader(status int) {
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *guardedWriter) Write(p []byte) (int, error) {
	w.wrote = true
	w.deadline()
	return w.ResponseWriter.Write(p)
}

// Flush makes it an http.Flusher, which rafthttp insists on.
func (w *guardedWriter) Flush() {
	w.wrote = true
	w.deadline()
	_ = w.ctl.Flush() // rafthttp notices a broken stream with its next write
}

// Unwrap is for http.ResponseController.
func (w *guardedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *guardedWriter) deadline() {
	if w.timeout > 0 {
		_ = w.ctl.SetWriteDeadline(time.Now().Add(w.timeout))
	}
}
