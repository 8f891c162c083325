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

// maxOutgoingSnapshots bounds the transfers at the same time: each reads a file
// and fills a connection. raft asks again for those that are refused.
const maxOutgoingSnapshots = 2

// SendSnapshot sends a MsgSnap and its body of exactly size bytes. It always
// closes the body, possibly while the body is being read; an os.File and an
// io.Pipe allow that. It always reports the outcome to Receiver.SnapshotStatus,
// exactly once, possibly before it returns.
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
	go t.awaitTransfer(to, out, b)
	t.tr.SendSnapshot(out)
}

var (
	errTransferPeer = errors.New("peer is not known")
	errTransferBusy = errors.New("another transfer must end first")
	errTransferKind = errors.New("not a snapshot message")
)

// beginTransfer takes a place among the transfers. endTransfer frees it.
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

// awaitTransfer reports how a transfer ends, once (T1). rafthttp always announces
// that it has let go of the message, but a receiver that stops reading without
// closing its connection can make that take forever. Such a transfer has failed;
// connecting to the peer again makes rafthttp let go.
func (t *Transport) awaitTransfer(to uint64, m *snap.Message, b *transferBody) {
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
		t.lg.Warn("snapshot transfer stalled", zap.Uint64("to", to), zap.Duration("idle", b.idle()))
		_ = b.Close() // its error only says that the body was not read to its end
		t.reconnect(to)
		<-m.CloseNotify()
		t.cfg.Receiver.SnapshotStatus(to, false)
		return
	}
}

var errBodyIncomplete = errors.New("snapshot body closed before its end")

// transferBody is the body of an outgoing snapshot. rafthttp and net/http both
// close it, one of them possibly while the other reads. Only the first Close
// reaches the body: the second would return os.ErrClosed, and rafthttp would take
// a finished transfer for a failed one.
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
