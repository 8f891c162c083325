package peers

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func newTrackedBody(data []byte) *trackedBody {
	return &trackedBody{Reader: bytes.NewReader(data), done: make(chan struct{})}
}

// newHangingBody returns a body that never yields a byte.
func newHangingBody(t *testing.T) *trackedBody {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return &trackedBody{Reader: r, done: make(chan struct{})}
}

func snapshotMessage(from, to, index uint64) *raftpb.Message {
	return &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(from), To: new(to), Term: new(uint64(5)),
		Snapshot: &raftpb.Snapshot{
			Data: []byte("members"),
			Metadata: &raftpb.SnapshotMetadata{
				Index: new(index), Term: new(uint64(4)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
			},
		},
	}
}

// oneStatus waits for the end of a transfer, and checks its status and that its body
// is closed.
func oneStatus(t *testing.T, p *testPeer, body *trackedBody, to uint64, ok bool) {
	t.Helper()
	s := wait(t, p.receiver.statuses, "the snapshot status")
	if s.id != to || s.ok != ok {
		t.Errorf("status %+v, want %v for %d", s, ok, to)
	}
	wait(t, body.done, "the body to be closed")
}

// noMoreStatus stops the transport, which waits for everything that might report,
// and checks that nothing else was reported.
func noMoreStatus(t *testing.T, p *testPeer) {
	t.Helper()
	p.Stop()
	if n := len(p.receiver.statuses); n > 0 {
		t.Errorf("%d statuses too many", n)
	}
}

func TestSnapshotArrives(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	data := make([]byte, 9<<20+17)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	body := newTrackedBody(data)
	a.SendSnapshot(snapshotMessage(1, 2, 77), body, int64(len(data)))
	oneStatus(t, a, body, 2, true)
	m := wait(t, b.receiver.messages, "the message")
	if m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() != 77 {
		t.Errorf("received %v", m)
	}
	path, err := b.snaps.DBFilePath(77)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the body differs (%d of %d bytes, %v)", len(got), len(data), err)
	}
	noMoreStatus(t, a)
}

// TestDamagedBodyIsRefusedWithItsReason: a body is checked before raft sees
// it, and its sender learns what is wrong with it.
func TestDamagedBodyIsRefusedWithItsReason(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	damaged := errors.New("body is damaged at byte 17")
	b.receiver.badBody.Store(&damaged)
	a.SendSnapshot(snapshotMessage(1, 2, 77), newTrackedBody(make([]byte, 1<<20)), 1<<20)
	if s := wait(t, a.receiver.statuses, "the status"); s.ok || !contains(s.err.Error(), damaged.Error()) {
		t.Errorf("status %+v, want the receiver's reason", s)
	}
	if len(b.receiver.messages) > 0 {
		t.Error("the message got through")
	}
	b.receiver.badBody.Store(nil)
	a.SendSnapshot(snapshotMessage(1, 2, 78), newTrackedBody(make([]byte, 1<<20)), 1<<20)
	if s := wait(t, a.receiver.statuses, "the status"); !s.ok {
		t.Errorf("the next transfer failed: %v", s.err)
	}
	noMoreStatus(t, a)
}

// TestBodyWithoutRoomIsNotStored: the receiver compares the announced length with
// its free space, and looks again while it stores the body.
func TestBodyWithoutRoomIsNotStored(t *testing.T) {
	const size = 64 << 20
	for _, c := range []struct {
		name string
		full func(b *testPeer, asked int64) bool
	}{
		{"before it is stored", func(_ *testPeer, asked int64) bool { return asked > size }},
		{"while it is stored", func(_ *testPeer, asked int64) bool { return asked == roomPace }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := startPeer(t, 1), startPeer(t, 2)
			connect(t, a, b)
			full := errors.New("no room for the body")
			b.receiver.noRoom.Store(&full)
			b.receiver.full = func(asked int64) bool { return c.full(b, asked) }
			a.SendSnapshot(snapshotMessage(1, 2, 77), newTrackedBody(make([]byte, size)), size)
			if s := wait(t, a.receiver.statuses, "the status"); s.ok {
				t.Error("reported as sent")
			}
			if _, err := b.snaps.DBFilePath(77); err == nil {
				t.Error("the body was stored")
			}
			noMoreStatus(t, a)
		})
	}
}

func TestSnapshotFromAFileCountsAsSent(t *testing.T) {
	// net/http and rafthttp both close the body. The second close of a file fails,
	// and rafthttp takes that for a failed transfer.
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	path := t.TempDir() + "/body"
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a.SendSnapshot(snapshotMessage(1, 2, 7), f, 1<<20)
	if s := wait(t, a.receiver.statuses, "the status"); !s.ok {
		t.Error("reported as failed")
	}
	noMoreStatus(t, a)
}

func TestSnapshotToUnknownPeerFailsOnce(t *testing.T) {
	a := startPeer(t, 1)
	body := newTrackedBody([]byte("body"))
	a.SendSnapshot(snapshotMessage(1, 2, 7), body, 4)
	oneStatus(t, a, body, 2, false)
	noMoreStatus(t, a)
}

func TestSnapshotToUnreachablePeerFailsOnce(t *testing.T) {
	a := startPeer(t, 1)
	if err := a.AddPeer(2, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	body := newTrackedBody([]byte("body"))
	a.SendSnapshot(snapshotMessage(1, 2, 7), body, 4)
	oneStatus(t, a, body, 2, false)
	noMoreStatus(t, a)
}

func TestSnapshotThatIsRefusedFailsOnce(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	m := snapshotMessage(1, 2, 7)
	m.Snapshot.Metadata.Term = new(uint64(6)) // above the message's own
	body := newTrackedBody(make([]byte, 1<<20))
	a.SendSnapshot(m, body, 1<<20)
	oneStatus(t, a, body, 2, false)
	if n := b.Refusals()["snapshot"]; n != 1 {
		t.Errorf("%d refusals", n)
	}
	if _, err := b.snaps.DBFilePath(7); err == nil {
		t.Error("the body of a refused snapshot was stored")
	}
	noMoreStatus(t, a)
}

func TestSnapshotShorterThanSaidFails(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	body := newTrackedBody(make([]byte, 1000))
	a.SendSnapshot(snapshotMessage(1, 2, 7), body, 2000)
	oneStatus(t, a, body, 2, false)
	if _, err := b.snaps.DBFilePath(7); err == nil {
		t.Error("half a body was stored")
	}
	noMoreStatus(t, a)
}

func TestSnapshotsAtATimeAreBounded(t *testing.T) {
	a := startPeer(t, 1)
	for id := uint64(2); id <= 4; id++ {
		q := startPeer(t, id)
		connect(t, a, q)
	}
	first, second := newHangingBody(t), newHangingBody(t)
	a.SendSnapshot(snapshotMessage(1, 2, 7), first, 4)
	again := newTrackedBody([]byte("body"))
	a.SendSnapshot(snapshotMessage(1, 2, 7), again, 4) // to the same peer
	oneStatus(t, a, again, 2, false)
	a.SendSnapshot(snapshotMessage(1, 3, 7), second, 4)
	third := newTrackedBody([]byte("body"))
	a.SendSnapshot(snapshotMessage(1, 4, 7), third, 4)
	oneStatus(t, a, third, 4, false)
	if first.closed() || second.closed() {
		t.Error("a transfer under way was closed")
	}
	a.RemovePeer(2) // ends its transfer, and makes room
	oneStatus(t, a, first, 2, false)
	last := newTrackedBody([]byte("body"))
	sendSnapshotUntilAccepted(t, a, 4, last)
}

// sendSnapshotUntilAccepted repeats a transfer until it succeeds: a place becomes
// free only right after the report of the transfer before.
func sendSnapshotUntilAccepted(t *testing.T, a *testPeer, to uint64, body *trackedBody) {
	t.Helper()
	deadline := time.After(deliveryPatience)
	for {
		a.SendSnapshot(snapshotMessage(a.id, to, 8), body, 4)
		select {
		case s := <-a.receiver.statuses:
			if s.id == to && s.ok {
				return
			}
			body = newTrackedBody([]byte("body"))
		case <-deadline:
			t.Fatal("no transfer was accepted anymore")
		}
	}
}

func TestStopEndsATransfer(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	body := newHangingBody(t)
	a.SendSnapshot(snapshotMessage(1, 2, 7), body, 1<<20)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		a.Stop()
	}()
	wait(t, stopped, "Stop")
	oneStatus(t, a, body, 2, false)
	noMoreStatus(t, a)
}

// TestHangingTransferIsGivenUp sends to a receiver that accepts the connection and
// never reads, so that neither side ever sees an error.
func TestHangingTransferIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := startPeer(t, 1, func(c *Config) { c.SnapshotStall = 300 * time.Millisecond })
	if err := a.AddPeer(2, []string{"http://" + l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20 // more than the sockets hold
	body := newTrackedBody(make([]byte, size))
	a.SendSnapshot(snapshotMessage(1, 2, 7), body, size)
	oneStatus(t, a, body, 2, false)
	if !a.known(2) {
		t.Error("the peer is gone")
	}
	noMoreStatus(t, a)
}

func TestMsgSnapIsNotSentWithoutItsBody(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	a.Send([]*raftpb.Message{snapshotMessage(1, 2, 7)})
	if s := wait(t, a.receiver.statuses, "the status"); s.id != 2 || s.err != errWithoutBody {
		t.Errorf("status %+v", s)
	}
	// It is not accepted either, neither from a POST nor from a stream, whose
	// messages arrive at Process.
	w := do(b, peerRequest(http.MethodPost, "/raft", encode(t, snapshotMessage(3, 2, 7))))
	if w.Code == http.StatusNoContent {
		t.Error("a MsgSnap was taken from a POST")
	}
	if err := b.addRemote(3, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	err := callbacks{b.Transport}.Process(t.Context(), snapshotMessage(3, 2, 7))
	if err == nil || !contains(err.Error(), "without a body") {
		t.Errorf("Process: %v", err)
	}
	if len(b.receiver.messages) > 0 {
		t.Error("it got through")
	}
	noMoreStatus(t, a)
}

// TestStopInterruptsAnIncomingSnapshot proves that Stop does not wait for a sender.
func TestStopInterruptsAnIncomingSnapshot(t *testing.T) {
	b := startPeer(t, 2)
	if err := b.AddPeer(1, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	defer w.Close()
	req, err := http.NewRequest(http.MethodPost, b.url+"/raft/snapshot", r)
	if err != nil {
		t.Fatal(err)
	}
	setPeerHeaders(req, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	if _, err := w.Write(envelope(t, snapshotMessage(1, 2, 7))); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1<<20)); err != nil { // it is being stored
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b.Stop()
	}()
	wait(t, stopped, "Stop")
	w.Close()
	wait(t, done, "the request to end")
	if _, err := b.snaps.DBFilePath(7); err == nil {
		t.Error("half a body was stored")
	}
}
