package peers

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// boundStream is what another member sends on a stream that this one has opened. It
// binds the messages to that member: the node at its URLs, with its certificate,
// cannot speak as a third one. rafthttp would hand on each message under the name that
// it states, and its receiver cannot tell which stream it came from.
//
// It follows the frames of rafthttp's two codecs as the bytes pass, and of each
// message the fields at the top, because in protobuf the last value of a field wins.
// A message is judged at its last byte. If it is refused, that byte never reaches the
// decoder, and the stream ends.
type boundStream struct {
	io.ReadCloser
	t    *Transport
	peer uint64
	err  error // of a refused message

	// Where the next byte belongs. apps is the stream of appends, whose frames begin
	// with their kind.
	apps    bool
	state   frameState
	number  uint64 // the bytes of a number so far
	digits  int    // how many those are
	entries uint64 // that follow in this frame
	left    uint64 // bytes of the entry or message that follow
	fields  fieldScanner
}

type frameState uint8

const (
	frameStart  frameState = iota
	messageSize            // 8 bytes each, big-endian
	entryCount
	entrySize
	commitIndex
	entryBytes
	messageBytes
)

// The kinds of frames on the stream of appends.
const (
	frameLinkHeartbeat = 0
	frameEntries       = 1 // in the name of the other side: nothing to check
	frameMessage       = 2
)

// bind returns the body of a response to a request for a stream.
func bind(t *Transport, r *http.Request, resp *http.Response) io.ReadCloser {
	peer, err := types.IDFromString(r.Header.Get("X-Raft-To"))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(r.URL.Path, rafthttp.RaftStreamPrefix+"/") {
		return resp.Body
	}
	return &boundStream{ReadCloser: resp.Body, t: t, peer: uint64(peer), apps: strings.HasPrefix(r.URL.Path, rafthttp.RaftStreamPrefix+"/msgapp/")}
}

// Read implements io.Reader.
func (s *boundStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.ReadCloser.Read(p)
	for i := 0; i < n; {
		used, refused := s.take(p[i:n])
		if refused != nil {
			s.err = s.t.refuse(refused)
			if s.t.strangers.due(fmt.Sprintf("stream of %d", s.peer), refused.reason.String()) {
				s.t.lg.Warn("refused a message on the stream of another member", zap.Uint64("member", s.peer), zap.Error(refused))
			}
			return i + used - 1, s.err
		}
		i += used
	}
	return n, err
}

// take follows some of the bytes and returns how many. A refusal is about the last
// one of them.
func (s *boundStream) take(p []byte) (used int, _ *refusalError) {
	switch s.state {
	case frameStart:
		return s.begin(p)
	case entryBytes, messageBytes:
		used = int(min(s.left, uint64(len(p))))
		if s.state == messageBytes {
			if at, r := s.fields.takeAll(p[:used]); r != nil {
				return at, r
			}
		}
		s.left -= uint64(used)
		if s.left == 0 {
			return used, s.end()
		}
		return used, nil
	}
	s.number = s.number<<8 | uint64(p[0])
	if s.digits++; s.digits < 8 {
		return 1, nil
	}
	number := s.number
	s.number, s.digits = 0, 0
	return 1, s.count(number)
}

// begin takes the kind of a frame, if it has one.
func (s *boundStream) begin(p []byte) (used int, _ *refusalError) {
	s.state = messageSize
	if !s.apps {
		return 0, nil
	}
	switch p[0] {
	case frameLinkHeartbeat:
		s.state = frameStart
	case frameEntries:
		s.state = entryCount
	case frameMessage:
	default:
		return 1, refusef(refusedBody, "frame of kind %d", p[0])
	}
	return 1, nil
}

// count takes a number that is complete.
func (s *boundStream) count(number uint64) *refusalError {
	switch s.state {
	case messageSize:
		s.state, s.left, s.fields = messageBytes, number, fieldScanner{}
	case entryCount:
		if number > maxMessageEntries {
			return refusef(refusedSize, "%d entries exceed the limit of %d", number, maxMessageEntries)
		}
		s.entries = number
		s.nextEntry()
		return nil
	case entrySize:
		s.state, s.left = entryBytes, number
	default: // commitIndex
		s.state = frameStart
		return nil
	}
	if number > maxMessageSizeBytes {
		return refusef(refusedSize, "message of %d bytes exceeds the limit of %d", number, maxMessageSizeBytes)
	}
	if number == 0 {
		return s.end()
	}
	return nil
}

func (s *boundStream) nextEntry() {
	s.state = commitIndex
	if s.entries > 0 {
		s.state = entrySize
		s.entries--
	}
}

// end ends an entry, or a message, which it judges.
func (s *boundStream) end() *refusalError {
	if s.state == entryBytes {
		s.nextEntry()
		return nil
	}
	s.state = frameStart
	if !s.fields.atField() {
		return refusef(refusedBody, "a message that ends inside a field")
	}
	m := &raftpb.Message{Type: s.fields.kind.Enum(), From: &s.fields.from}
	if s.fields.from == 0 {
		return nil // a link heartbeat, or what ValidateMessage refuses
	}
	return checkAuthor(m, s.peer)
}

// fieldScanner finds the type and the sender in the encoding of a raftpb.Message,
// byte by byte.
type fieldScanner struct {
	kind raftpb.MessageType
	from uint64

	state  scanState
	varint uint64
	shift  uint
	field  uint64 // number of the field
	skip   uint64 // bytes left of its value
}

type scanState uint8

const (
	scanTag scanState = iota
	scanValue
	scanLength
	scanSkip
)

// The numbers of the fields in raft's protobuf definition.
const (
	fieldType = 1
	fieldFrom = 3
)

// atField reports whether the next byte begins a field.
func (f *fieldScanner) atField() bool { return f.state == scanTag && f.shift == 0 }

// takeAll takes some bytes. A refusal is about the last of those that it counts.
func (f *fieldScanner) takeAll(p []byte) (used int, _ *refusalError) {
	for used < len(p) {
		if f.state == scanSkip {
			n := min(f.skip, uint64(len(p)-used))
			used += int(n)
			f.skipBytes(f.skip - n)
			continue
		}
		used++
		if r := f.take(p[used-1]); r != nil {
			return used, r
		}
	}
	return used, nil
}

func (f *fieldScanner) take(b byte) *refusalError {
	if f.shift > 63 {
		return refusef(refusedBody, "a number of more than 64 bits")
	}
	f.varint |= uint64(b&0x7f) << f.shift
	f.shift += 7
	if b&0x80 != 0 {
		return nil
	}
	number := f.varint
	f.varint, f.shift = 0, 0
	return f.number(number)
}

// number takes a variable-length number that is complete.
func (f *fieldScanner) number(n uint64) *refusalError {
	switch f.state {
	case scanTag:
		return f.tag(n)
	case scanLength:
		f.skipBytes(n)
		return nil
	}
	switch f.field {
	case fieldType:
		f.kind = raftpb.MessageType(int32(n))
	case fieldFrom:
		f.from = n
	}
	f.state = scanTag
	return nil
}

// tag begins a field.
func (f *fieldScanner) tag(n uint64) *refusalError {
	f.field = n >> 3
	switch wire := n & 7; wire {
	case 0:
		f.state = scanValue
	case 1:
		f.skipBytes(8)
	case 2:
		f.state = scanLength
	case 5:
		f.skipBytes(4)
	default:
		return refusef(refusedBody, "a field of wire type %d", wire)
	}
	return nil
}

func (f *fieldScanner) skipBytes(n uint64) {
	f.state, f.skip = scanSkip, n
	if n == 0 {
		f.state = scanTag
	}
}
