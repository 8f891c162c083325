package peers

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func marshaled(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(len(b))), b...)
}

// TestStreamsAreBoundToTheirMember: on a stream of member 2, in any pieces, exactly
// what member 2 may say passes, byte for byte.
func TestStreamsAreBoundToTheirMember(t *testing.T) {
	from := func(id uint64, typ raftpb.MessageType) *raftpb.Message {
		return &raftpb.Message{Type: typ.Enum(), To: new(uint64(1)), From: new(id), Term: new(uint64(3)), Commit: new(uint64(5)),
			Context: bytes.Repeat([]byte{0x18, 3}, 10), // looks like the field of the sender
			Entries: []*raftpb.Entry{{Index: new(uint64(7)), Term: new(uint64(3)), Data: bytes.Repeat([]byte("x"), 300)}}}
	}
	own := marshaled(t, from(2, raftpb.MsgHeartbeat))
	late := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(own), fieldFrom, protowire.VarintType), 3)
	heartbeat := marshaled(t, &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum()})
	entry := marshaled(t, from(2, raftpb.MsgApp).Entries[0])
	entries := append([]byte{frameEntries}, binary.BigEndian.AppendUint64(nil, 2)...)
	entries = append(append(append(entries, sized(entry)...), sized(entry)...), make([]byte, 8)...)
	app := func(b []byte) []byte { return append([]byte{frameMessage}, sized(b)...) }
	for name, c := range map[string]struct {
		apps    bool
		before  []byte
		refused []byte // the frame at which the stream ends; nil: it passes as a whole
		reason  refusalReason
	}{
		"its own messages":            {before: slicesOf(sized(own), sized(heartbeat), sized(nil), sized(own))},
		"forwarded messages":          {before: slicesOf(sized(marshaled(t, from(3, raftpb.MsgProp))), sized(marshaled(t, from(3, raftpb.MsgReadIndex))))},
		"another's vote":              {before: sized(own), refused: sized(marshaled(t, from(3, raftpb.MsgVoteResp))), reason: refusedSender},
		"another's acknowledgment":    {refused: sized(marshaled(t, from(3, raftpb.MsgAppResp))), reason: refusedSender},
		"a name that is changed":      {before: sized(own), refused: sized(late), reason: refusedSender},
		"no message":                  {before: sized(own), refused: sized([]byte{0x0b}), reason: refusedBody},
		"half a field":                {refused: sized([]byte{0x18}), reason: refusedBody},
		"an endless number":           {refused: sized(bytes.Repeat([]byte{0xff}, 11)), reason: refusedBody},
		"a size without end":          {refused: bytes.Repeat([]byte{0xff}, 8), reason: refusedSize},
		"its own appends":             {apps: true, before: slicesOf(app(own), []byte{frameLinkHeartbeat}, entries, app(own), entries)},
		"another's append":            {apps: true, before: slicesOf(entries, app(own)), refused: app(marshaled(t, from(3, raftpb.MsgApp))), reason: refusedSender},
		"an unknown frame":            {apps: true, before: entries, refused: []byte{9}, reason: refusedBody},
		"more entries than there are": {apps: true, refused: append([]byte{frameEntries}, bytes.Repeat([]byte{0xff}, 8)...), reason: refusedSize},
	} {
		for pieces, reader := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader,
		} {
			p := startPeer(t, 1)
			s := &boundStream{ReadCloser: io.NopCloser(reader(bytes.NewReader(slicesOf(c.before, c.refused, own)))), t: p.Transport, peer: 2, apps: c.apps}
			if c.refused == nil {
				s.ReadCloser = io.NopCloser(reader(bytes.NewReader(c.before)))
			}
			got, err := io.ReadAll(s)
			var r *refusalError
			switch errors.As(err, &r); {
			case c.refused == nil && (err != nil || !bytes.Equal(got, c.before)):
				t.Errorf("%s, %s: %d bytes of %d passed, %v", name, pieces, len(got), len(c.before), err)
			case c.refused == nil:
			case r == nil || r.reason != c.reason || p.Refusals()[c.reason.String()] != 1:
				t.Errorf("%s, %s: %v, counted %v", name, pieces, err, p.Refusals())
			case !bytes.HasPrefix(got, c.before) || len(got) >= len(c.before)+len(c.refused):
				t.Errorf("%s, %s: %d bytes passed; %d come before the refused frame, and that has %d", name, pieces, len(got), len(c.before), len(c.refused))
			}
		}
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestMembersSpeakForThemselves: a member that sends a message in the name of another on
// its stream is refused; what it says in its own name arrives.
func TestMembersSpeakForThemselves(t *testing.T) {
	a, b := startPeer(t, 1), startPeer(t, 2)
	connect(t, a, b)
	if err := a.AddPeer(3, []string{closedURL(t)}); err != nil {
		t.Fatal(err)
	}
	sendUntilReceived(t, b, heartbeat(2, 1, 5), a.receiver) // there is a stream, or will be soon
	forged := heartbeat(3, 1, 9)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.After(deliveryPatience); a.streamRefusals() == 0; {
		b.Send([]*raftpb.Message{forged})
		select {
		case m := <-a.receiver.messages:
			if m.GetFrom() != 2 {
				t.Fatalf("a message in the name of member %d arrived", m.GetFrom())
			}
		case <-again.C:
		case <-deadline:
			t.Fatalf("no forged message was refused on a stream: %v", a.Refusals())
		}
	}
	sendUntilReceived(t, b, heartbeat(2, 1, 6), a.receiver)
}

// streamRefusals counts the warnings about streams of other members.
func (p *testPeer) streamRefusals() (n int) {
	p.strangers.mu.Lock()
	defer p.strangers.mu.Unlock()
	for who := range p.strangers.mu.paces {
		if strings.HasPrefix(who, "stream of ") {
			n++
		}
	}
	return n
}
