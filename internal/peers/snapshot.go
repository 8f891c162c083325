package peers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// maxOutgoingSnapshots bounds the transfers at the same time: each reads a file
// and fills a connection. The caller is told errTransferBusy beyond that.
const maxOutgoingSnapshots = 2

// SendSnapshot sends a MsgSnap and its body of exactly size bytes. It always
// closes the body, possibly while the body is being read; an os.File and an
// io.Pipe allow that. It always reports the outcome to Receiver.SnapshotStatus,
// exactly once, possibly before it returns.
func (t *Transport) SendSnapshot(m *raftpb.Message, body io.ReadCloser, size int64) {
	to := m.GetTo()
	b := &transferBody{body: body, size: size, envelope: int64(8 + proto.Size(m)), begun: time.Now()}
	if err := t.beginTransfer(m, b); err != nil {
		_ = body.Close() // nothing was read from it
		t.cfg.Receiver.SnapshotStatus(to, err)
		return
	}
	out := snap.NewMessage(m, b, size)
	go t.awaitTransfer(to, out, b)
	t.tr.SendSnapshot(out)
}

var (
	errTransferPeer  = errors.New("peer is not known")
	errTransferBusy  = errors.New("another transfer is in progress")
	errTransferKind  = errors.New("not a snapshot message")
	errTransferStall = errors.New("the transfer made no progress")
	errTransferLost  = errors.New("the connection broke")
	errWithoutBody   = errors.New("the snapshot message was sent without its body")
)

// beginTransfer takes a place among the transfers. endTransfer frees it.
func (t *Transport) beginTransfer(m *raftpb.Message, b *transferBody) error {
	to := m.GetTo()
	t.mu.Lock()
	defer t.mu.Unlock()
	_, known := t.mu.peers[to]
	switch {
	case t.mu.stopped:
		return errStopping
	case m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata() == nil:
		return errTransferKind
	case !known:
		return errTransferPeer
	case t.mu.sending[to] != nil || len(t.mu.sending) >= maxOutgoingSnapshots:
		return errTransferBusy
	}
	t.mu.sending[to] = b
	t.running.Add(1)
	return nil
}

// endTransfer frees the place before it reports, because the receiver of the report
// may begin the next transfer at once.
func (t *Transport) endTransfer(to uint64, err error) {
	defer t.running.Done()
	t.mu.Lock()
	delete(t.mu.sending, to)
	t.mu.Unlock()
	t.cfg.Receiver.SnapshotStatus(to, err)
}

// awaitTransfer reports how a transfer ends, once (T1). rafthttp always announces
// that it has let go of the message, but a receiver that stops reading without
// closing its connection can make that take forever. Such a transfer has failed;
// connecting to the peer again makes rafthttp let go.
func (t *Transport) awaitTransfer(to uint64, m *snap.Message, b *transferBody) {
	ticker := time.NewTicker(max(t.cfg.SnapshotStall/4, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case ok := <-m.CloseNotify():
			t.endTransfer(to, b.outcome(ok))
			return
		case <-ticker.C:
		}
		if b.idle() < b.patience(t.cfg.SnapshotStall) {
			continue
		}
		t.lg.Warn("snapshot transfer stalled", zap.Uint64("to", to), zap.Duration("idle", b.idle()))
		_ = b.Close() // its error only says that the body was not read to its end
		t.reconnect(to)
		<-m.CloseNotify()
		t.endTransfer(to, errTransferStall)
		return
	}
}

// maxReasonBytes bounds what is read of a peer's reason for refusing a snapshot.
const maxReasonBytes = 4 << 10

// roundTripBody makes the request of a transfer. It announces the length, so that
// the receiver can compare it with its free space before it takes anything, and
// keeps the reason of a failure, which rafthttp drops.
func (t *Transport) roundTripBody(rt http.RoundTripper, r *http.Request) (*http.Response, error) {
	b := t.transferTo(r.URL)
	if b == nil {
		return rt.RoundTrip(r)
	}
	r.ContentLength = b.envelope + b.size
	resp, err := rt.RoundTrip(r)
	if err != nil {
		b.fail(err)
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReasonBytes))
	if reason := strings.TrimSpace(string(text)); reason != "" {
		b.fail(errors.New(reason))
	} else {
		b.fail(errors.Join(errors.New(resp.Status), err))
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(text), resp.Body}
	return resp, nil
}

// transferTo finds the transfer that a request belongs to. No two peers share a
// URL.
func (t *Transport) transferTo(u *url.URL) *transferBody {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for to, b := range t.mu.sending {
		if slices.Contains(t.mu.peers[to], u.Scheme+"://"+u.Host) {
			return b
		}
	}
	return nil
}

var errBodyIncomplete = errors.New("snapshot body closed before its end")

// transferBody is the body of an outgoing snapshot. rafthttp and net/http both
// close it, one of them possibly while the other reads. Only the first Close
// reaches the body: the second would return os.ErrClosed, and rafthttp would take
// a finished transfer for a failed one.
type transferBody struct {
	body     io.ReadCloser
	size     int64
	envelope int64     // bytes of the message before the body
	begun    time.Time // with a reading of the monotonic clock: a clock that is set is no stall
	sent     atomic.Int64
	active   atomic.Int64 // time from begun to the last progress
	closed   atomic.Bool
	reason   atomic.Pointer[error] // the first failure
}

func (b *transferBody) touch() { b.active.Store(int64(time.Since(b.begun))) }

func (b *transferBody) idle() time.Duration {
	return time.Since(b.begun) - time.Duration(b.active.Load())
}

// checkRate is how fast a receiver surely syncs and checks a body, per second.
const checkRate = 8 << 20

// patience returns how long the transfer may make no progress.
func (b *transferBody) patience(stall time.Duration) time.Duration {
	if b.sent.Load() < b.size {
		return stall
	}
	return stall + time.Duration(b.size/checkRate)*time.Second
}

func (b *transferBody) fail(err error) { b.reason.CompareAndSwap(nil, &err) }

// outcome returns the error to report once rafthttp has let go of the message.
func (b *transferBody) outcome(ok bool) error {
	if ok {
		return nil
	}
	if reason := b.reason.Load(); reason != nil {
		return *reason
	}
	return errTransferLost
}

func (b *transferBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil && err != io.EOF {
		b.fail(fmt.Errorf("read the body: %w", err))
	}
	b.sent.Add(int64(n))
	b.touch()
	return n, err
}

func (b *transferBody) Close() error {
	var err error
	if b.closed.CompareAndSwap(false, true) {
		err = b.body.Close()
	}
	if b.sent.Load() < b.size {
		return errBodyIncomplete
	}
	return err
}

// snapshotKey identifies a snapshot that is being received.
type snapshotKey struct{ from, term, index uint64 }

func snapshotKeyOf(m *raftpb.Message) snapshotKey {
	meta := m.GetSnapshot().GetMetadata()
	return snapshotKey{from: m.GetFrom(), term: meta.GetTerm(), index: meta.GetIndex()}
}

// expect notes that the guard is about to have the body of m stored. A MsgSnap
// that was not announced in this way has no body. The returned function takes the
// note back.
func (t *Transport) expect(m *raftpb.Message) (done func()) {
	key := snapshotKeyOf(m)
	t.mu.Lock()
	t.mu.expected[key]++
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.mu.expected[key]--; t.mu.expected[key] == 0 {
			delete(t.mu.expected, key)
		}
	}
}

func (t *Transport) expects(m *raftpb.Message) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.expected[snapshotKeyOf(m)] > 0
}
