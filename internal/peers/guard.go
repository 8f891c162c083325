package peers

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	maxIncomingSnapshots = 2 // at the same time: each writes a file
	// maxEnvelopeBytes bounds the message that precedes the body of a snapshot:
	// the membership and the removed ids.
	maxEnvelopeBytes = 8 << 20
	// maxPostBytes bounds the message in one POST, maxPostsBytes those in all
	// POSTs that are being read.
	maxPostBytes    = maxMessageSizeBytes + 1<<20
	maxPostsBytes   = 4 * maxPostBytes
	maxVersionBytes = 64
	// streamWriteTimeout is how long a write to a stream may block. A reader that
	// is still alive opens a new stream afterwards.
	streamWriteTimeout = 5 * time.Second
	// writePiece is how much of a long write has to get through within it.
	writePiece = 256 << 10
)

const raftPathPrefix = "/raft"

// guard is the handler of the peer port. It stands in front of rafthttp's
// handlers, which trust what they are given: each of a malformed version header, a
// snapshot message without a snapshot, and an error of the receiver makes them
// panic; X-PeerURLs makes them connect to any address; and they read a body to
// its end, however long it is and however slowly it arrives.
//
// What the guard accepts has a known path, the identity of a member of this
// cluster, the certificate of that member if there is TLS, a size within the
// limits, and a sender that keeps sending.
type guard struct {
	t     *Transport
	raft  http.Handler // rafthttp's
	extra http.Handler

	// Each counter belongs to the handlers that run: a handler adds its share
	// before it works, and takes it back at its end.
	snapshots chan struct{} // a token for each snapshot that is being received
	posting   atomic.Int64  // bytes that the POSTs being read have announced
	monitors  atomic.Int64  // monitors that other members hold open
}

// Handler returns the handler of the peer port. It serves raft's messages under
// /raft, and the extra handlers under their http.ServeMux patterns. The extra
// handlers check the sender and bound the body themselves.
//
// The http.Server must not have a ReadTimeout or a WriteTimeout, because a stream
// lives as long as its connection. It should have a ReadHeaderTimeout.
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
		g.extra.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identifier{}, g.judge)))
		return
	}
	if !g.t.enter() {
		http.Error(w, errStopping.Error(), http.StatusServiceUnavailable)
		return
	}
	defer g.t.leave()
	g.serveRaft(w, r)
}

// recoverPanic answers a request over which a library panicked. net/http would
// recover too, but would log a stack trace for every request that a stranger
// repeats, and could not count it.
func (g *guard) recoverPanic(w *guardedWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	g.t.refusals.add(refusedPanic)
	g.t.lg.Error("peer handler panicked", zap.String("path", r.URL.Path), zap.Any("panic", p), zap.Stack("stack"))
	if w.wrote {
		panic(http.ErrAbortHandler) // half an answer must not look complete
	}
	w.Header().Set("Connection", "close")
	http.Error(w, "internal error", http.StatusInternalServerError)
}

// serveRaft routes by exact path. rafthttp's own mux would clean the path of a
// request and redirect it.
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
		// The reader of a stream takes an answer without this header for one of an
		// old version, and ignores the status. A removed member would never learn
		// that it was removed.
		w.Header().Set("X-Server-Version", version.Version)
	}
	if r.URL.Path == rafthttp.ProbingPrefix { // probes state no identity
		serve(w, r, 0)
		return
	}
	claim, ok := g.identify(w, r)
	if !ok {
		return
	}
	if r.Method == http.MethodGet { // a stream or a monitor
		release, ok := g.t.processes.hold(r.Context(), claim)
		if !ok {
			g.refuseClaim(w, r, claim, g.clone(claim))
			return
		}
		defer release()
	}
	serve(w, r, claim.member)
}

func (g *guard) clone(claim identity) *refusalError {
	return refusef(refusedClone, "another process acts as member %d and has been connected for longer: two processes run on copies of one data directory; stop one of them", claim.member)
}

// identify returns the sender of a request after it has checked what the headers
// state. If it refuses the request, it answers it, and ok is false.
func (g *guard) identify(w http.ResponseWriter, r *http.Request) (claim identity, ok bool) {
	claim, err := claimedBy(r.Header)
	if err == nil {
		err = g.checkClaim(r, claim)
	}
	if err == nil && !g.t.processes.hear(claim) {
		err = g.clone(claim)
	}
	if err == nil {
		return claim, true
	}
	g.refuseClaim(w, r, claim, err)
	return identity{}, false
}

// refuseClaim answers a request whose sender is refused for what it states about
// itself.
func (g *guard) refuseClaim(w http.ResponseWriter, r *http.Request, claim identity, err *refusalError) {
	g.t.refusals.add(err.reason)
	switch err.reason {
	case refusedCluster:
		g.t.warnSender(claim, r)
		w.Header().Set(headerCluster, types.ID(g.t.self.cluster).String())
	case refusedClone:
		w.Header().Set(headerRefused, err.reason.String())
	}
	if err.reason == refusedRemoved && r.Method == http.MethodGet {
		http.Error(w, err.Error(), http.StatusGone) // what the reader of a stream looks for
	} else {
		err.WriteTo(w)
	}
}

// checkClaim judges what the sender states about itself. The cluster comes first:
// whether a member was removed is only for members of the same cluster to know,
// and one of another cluster with the same id must not take it for its own.
func (g *guard) checkClaim(r *http.Request, claim identity) *refusalError {
	self := g.t.self
	if claim.cluster != self.cluster {
		return refusef(refusedCluster, "request is for cluster %016x", claim.cluster)
	}
	if err := checkVersions(r.Header); err != nil {
		return err
	}
	switch {
	case claim.member == self.member:
		return refusef(refusedSender, "request claims to be from this member, %d", self.member)
	case g.t.cfg.Receiver.IsRemoved(claim.member):
		return refusef(refusedRemoved, "member %d was removed from the cluster", claim.member)
	}
	return g.checkCertificate(r, claim.member)
}

// checkVersions refuses headers over which rafthttp would panic.
func checkVersions(h http.Header) *refusalError {
	for _, name := range []string{"X-Server-Version", "X-Min-Cluster-Version"} {
		v := h.Get(name)
		if v == "" {
			continue // rafthttp answers that this is an old version
		}
		if len(v) > maxVersionBytes {
			return refusef(refusedRequest, "%s exceeds %d bytes", name, maxVersionBytes)
		}
		if _, err := semver.NewVersion(v); err != nil {
			return refusef(refusedRequest, "%s: %q is not a version", name, v)
		}
	}
	return nil
}

// checkCertificate binds the claim to be a member to its certificate. A sender
// that is not known has no URLs to compare with: it is looked up, and nothing is
// done for it before that. serveStream refuses such a sender itself, with the
// status after which the reader of a stream tries again.
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
		return refusef(refusedUnknown, "member %d is not known yet", from)
	}
	if err := authorize(r.TLS, urls); err != nil {
		return refusef(refusedIdentity, "certificate does not match member %d: %v", from, err)
	}
	return nil
}

// checkAuthor refuses a message in the name of a member other than its sender.
// Forwarded messages, those without a term, keep the name of their origin.
func checkAuthor(m *raftpb.Message, from uint64) *refusalError {
	if m.GetFrom() != from && !messageShapes[m.GetType()].termless {
		return refusef(refusedSender, "%v of member %d was sent by member %d", m.GetType(), m.GetFrom(), from)
	}
	return nil
}

// serveStream lets a peer read our messages for as long as it likes.
func (g *guard) serveStream(w *guardedWriter, r *http.Request, from uint64) {
	if id, err := types.IDFromString(path.Base(r.URL.Path)); err != nil || uint64(id) != from {
		g.refuse(w, refusef(refusedRequest, "the path names a different member than %s", headerFrom))
		return
	}
	if !g.t.known(from) {
		g.t.lookUp(from)
		g.t.refusals.add(refusedUnknown)
		http.Error(w, fmt.Sprintf("member %d is not known yet", from), http.StatusNotFound)
		return
	}
	_ = w.ctl.SetReadDeadline(time.Time{}) // a connection without deadlines has none to lift
	w.timeout = streamWriteTimeout
	g.raft.ServeHTTP(w, r)
}

// servePost reads a whole message and checks it before rafthttp sees it, because
// rafthttp creates a metric for every sender that a message names.
func (g *guard) servePost(w *guardedWriter, r *http.Request, from uint64) {
	size := r.ContentLength
	switch {
	case size < 0:
		g.t.refusals.add(refusedRequest)
		http.Error(w, "length required", http.StatusLengthRequired)
		return
	case size > maxPostBytes:
		w.Header().Set("Connection", "close")
		g.refuse(w, refusef(refusedSize, "message of %d bytes exceeds the limit of %d", size, maxPostBytes))
		return
	}
	defer g.posting.Add(-size)
	if g.posting.Add(size) > maxPostsBytes {
		g.refuse(w, refusef(refusedBusy, "too many messages at the same time"))
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
		g.refuse(w, refusef(refusedBody, "decode message: not a raft message"))
		return
	}
	if !g.vet(w, m, from) {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	g.raft.ServeHTTP(w, r)
}

// serveSnapshot checks the message before rafthttp stores the body, which may be
// of any size.
func (g *guard) serveSnapshot(w *guardedWriter, r *http.Request, from uint64) {
	select {
	case g.snapshots <- struct{}{}:
		defer func() { <-g.snapshots }()
	default:
		w.Header().Set("Connection", "close")
		g.refuse(w, refusef(refusedBusy, "too many snapshots at the same time"))
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
		g.refuse(w, refusef(refusedSnapshot, "%v is not a snapshot message", m.GetType()))
		return
	}
	if !g.vet(w, m, from) {
		return
	}
	// The sender announces the length. A body that cannot fit is refused before
	// any of it is stored.
	if err := g.t.cfg.Bodies.Room(max(r.ContentLength, 0)); err != nil {
		w.Header().Set("Connection", "close")
		g.refuse(w, refusef(refusedRoom, "%v", err))
		return
	}
	defer g.t.expect(m)()
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(envelope), &roomyBody{r: body, room: g.t.cfg.Bodies.Room}), body}
	g.raft.ServeHTTP(w, r)
}

// readEnvelope reads the message at the head of a snapshot request: its length in
// 8 bytes, big-endian, then the message. It also returns the bytes that it read,
// for rafthttp to read again.
func readEnvelope(r io.Reader) (*raftpb.Message, []byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint64(head[:])
	if n > maxEnvelopeBytes {
		return nil, nil, fmt.Errorf("message of %d bytes exceeds the limit of %d", n, maxEnvelopeBytes)
	}
	// ReadAll grows as bytes arrive. The length is only a claim, and no reason to
	// allocate.
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return nil, nil, err
	}
	if uint64(len(data)) < n {
		return nil, nil, io.ErrUnexpectedEOF
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, nil, errors.New("not a raft message")
	}
	return m, append(head[:], data...), nil
}

// vet reports whether a message may go on to rafthttp. If not, it answers.
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

// pace returns the body of a request. Reading it fails when the sender pauses for
// too long, or when the transport stops.
func (g *guard) pace(w *guardedWriter, r *http.Request) *pacedBody {
	b := &pacedBody{body: r.Body, ctl: w.ctl, ctx: g.t.ctx, stall: g.t.cfg.ReadStall}
	// This wakes a Read that waits already.
	b.release = context.AfterFunc(g.t.ctx, func() { _ = b.ctl.SetReadDeadline(time.Now()) })
	return b
}

// pacedBody is the body of a request whose sender must keep sending. On a
// connection without deadlines, as in some tests, it only reads.
type pacedBody struct {
	body    io.ReadCloser
	ctl     *http.ResponseController
	ctx     context.Context
	stall   time.Duration
	release func() bool
}

func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.ctl.SetReadDeadline(time.Now().Add(b.stall))
	// Stop may have set its deadline right before ours replaced it.
	if b.ctx.Err() != nil {
		return 0, errStopping
	}
	n, err := b.body.Read(p)
	if err != nil {
		b.release()
		// net/http reads on in the background after the body. A deadline that is
		// left over would make it close the connection while the handler works.
		_ = b.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *pacedBody) Close() error {
	b.release()
	return b.body.Close()
}

// roomPace is after how many bytes a receiver looks at its free space again.
const roomPace = 8 << 20

// roomyBody stops reading before the disk is full: others write to it too.
type roomyBody struct {
	r    io.Reader
	room func(bytes int64) error
	left int64 // bytes until the next look
}

func (b *roomyBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if err := b.room(roomPace); err != nil {
			return 0, err
		}
		b.left = roomPace
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// guardedWriter notes whether an answer has begun, and sets a new deadline for
// each write to a stream.
type guardedWriter struct {
	http.ResponseWriter
	ctl     *http.ResponseController
	timeout time.Duration // 0 means none
	wrote   bool
}

func (w *guardedWriter) WriteHeader(status int) {
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

// Write sets a deadline for each piece: rafthttp writes an entry in one call, and a
// reader that takes 64 MiB in ten seconds is slow, but alive.
func (w *guardedWriter) Write(p []byte) (n int, err error) {
	w.wrote = true
	for {
		w.deadline()
		k, err := w.ResponseWriter.Write(p[:min(len(p), writePiece)])
		n += k
		if p = p[k:]; err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// Flush implements http.Flusher, which rafthttp requires.
func (w *guardedWriter) Flush() {
	w.wrote = true
	w.deadline()
	_ = w.ctl.Flush() // rafthttp notices a broken stream at its next write
}

// Unwrap is for http.ResponseController.
func (w *guardedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *guardedWriter) deadline() {
	if w.timeout > 0 {
		_ = w.ctl.SetWriteDeadline(time.Now().Add(w.timeout))
	}
}
