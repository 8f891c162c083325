package peers

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// maxOutgoingSnapshots bounds the transfers at a time: each reads a file and
// fills a connection. raft asks again for the others.
const maxOutgoingSnapshots = 2

// SendSnapshot sends a MsgSnap followed by its body of exactly size bytes.
// The body is always closed, possibly while it is being read (an os.File and
// an io.Pipe allow that), and the outcome is always reported, once; perhaps
// before SendSnapshot returns.
func (t *Transport) SendSnapshot(m *raftpb.Message, body io.ReadCloser, size int64) {
	to := m.GetTo()
	if err := t.beginTransfer(m); err != nil {
		t.lg.Info("snapshot not sent", zap.Uint64("to", to), zap.Error(err))
		_ = body.Close() // nothing was read from it
		t.cfg.Receiver.SnapshotStatus(to, false)
		return
	}
	b := &transferBody{body: body, size: size}
	b.touch()
	out := snap.NewMessage(m, b, size)
	go t.watchTransfer(to, out, b)
	t.tr.SendSnapshot(out)
}

var (
	errTransferPeer = errors.New("the peer is not known")
	errTransferBusy = errors.New("too many snapshots are being sent")
	errTransferKind = errors.New("not a snapshot message")
)

// beginTransfer takes a place among the transfers; endTransfer frees it.
func (t *Transport) beginTransfer(m *raftpb.Message) error {
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
	case t.mu.sending[to] || len(t.mu.sending) >= maxOutgoingSnapshots:
		return errTransferBusy
	}
	t.mu.sending[to] = true
	t.running.Add(1)
	return nil
}

func (t *Transport) endTransfer(to uint64) {
	t.mu.Lock()
	delete(t.mu.sending, to)
	t.mu.Unlock()
	t.running.Done()
}

// watchTransfer reports how a transfer ends, once. rafthttp always says that
// it let go of the message, but a receiver that stops reading without closing
// the connection can keep it for ever: then the transfer has failed, and the
// connection with the peer is made afresh, which frees the place.
func (t *Transport) watchTransfer(to uint64, m *snap.Message, b *transferBody) {
	defer t.endTransfer(to)
	ticker := time.NewTicker(max(t.cfg.SnapshotStall/4, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case ok := <-m.CloseNotify():
			t.cfg.Receiver.SnapshotStatus(to, ok)
			return
		case <-ticker.C:
		}
		if b.idle() < t.cfg.SnapshotStall {
			continue
		}
		t.lg.Warn("a snapshot transfer hangs", zap.Uint64("to", to), zap.Duration("idle", b.idle()))
		_ = b.Close() // its error says that the body was not read to its end
		t.reconnect(to)
		<-m.CloseNotify()
		t.cfg.Receiver.SnapshotStatus(to, false)
		return
	}
}

var errBodyIncomplete = errors.New("snapshot body closed before its end")

// transferBody is a body on its way out. rafthttp and net/http both close it,
// the one perhaps while the other reads; only the first Close reaches the
// body. A second one that returned os.ErrClosed would turn a finished
// transfer into a failed one.
type transferBody struct {
	body   io.ReadCloser
	size   int64
	sent   atomic.Int64
	active atomic.Int64 // unix nanoseconds of the last progress
	closed atomic.Bool
}

func (b *transferBody) touch() { b.active.Store(time.Now().UnixNano()) }

func (b *transferBody) idle() time.Duration {
	return time.Duration(time.Now().UnixNano() - b.active.Load())
}

func (b *transferBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
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

// snapshotKey names a snapshot that is being received.
type snapshotKey struct{ from, term, index uint64 }

func snapshotKeyOf(m *raftpb.Message) snapshotKey {
	meta := m.GetSnapshot().GetMetadata()
	return snapshotKey{from: m.GetFrom(), term: meta.GetTerm(), index: meta.GetIndex()}
}

// expect announces that the snapshot handler is about to store the body of m:
// a MsgSnap that comes any other way has none. The returned function takes
// the announcement back.
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
