package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/pace"
)

// writeGrace is how long the client of a stream may accept no data.
const writeGrace = 60 * time.Second

// stream is a stream of gRPC over a request of HTTP. RecvMsg and SendMsg may be called by
// two goroutines, as with any other.
type stream struct {
	ctx  context.Context //nolint:containedctx // a stream is its context
	kind kind
	w    http.ResponseWriter
	conn *http.ResponseController

	body     meter // belongs to who receives
	requests *json.Decoder
	received bool

	out   []byte // belongs to who sends
	begun bool   // the first line is out
}

// serveStream answers a call that streams.
func (g *Gateway) serveStream(w http.ResponseWriter, r *http.Request, c call) {
	s := &stream{ctx: incoming(r), kind: c.kind, w: w, conn: http.NewResponseController(w), body: meter{from: r.Body}}
	s.requests = json.NewDecoder(&s.body)
	// Without it, net/http reads the whole body before the first line goes out.
	_ = s.conn.EnableFullDuplex() // HTTP/2 always is
	if err := g.opts.Calls.Stream(c.method, s); err != nil {
		s.fail(status.Convert(err))
	}
	s.body.close(s.conn)
}

// fail ends the stream with an error.
func (s *stream) fail(st *status.Status) {
	if !s.begun {
		s.w.Header()["Content-Type"] = jsonType
		s.w.WriteHeader(statusOf(st.Code()))
	}
	s.limitTime(len(st.Message()))
	writeJSON(s.w, map[string]*failure{"error": {Code: st.Code(), Message: st.Message(), GRPCCode: st.Code(), HTTPCode: statusOf(st.Code())}})
	_, _ = s.w.Write([]byte{'\n'})
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *stream) RecvMsg(m any) error {
	var text json.RawMessage
	s.body.left = budget.Free
	err := s.requests.Decode(&text)
	switch {
	case drained(err) && s.kind == answers && !s.received:
		text, err = json.RawMessage("{}"), nil
	case drained(err):
		return io.EOF
	case errors.Is(err, errLongMessage):
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	if s.received = true; err == nil {
		err = unmarshal.Unmarshal(text, m.(proto.Message))
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *stream) SendMsg(m any) error {
	p, free, err := plain(m)
	if err != nil {
		return err
	}
	defer free()
	s.out = append(s.out[:0], `{"result":`...)
	if s.out, err = marshal(s.out, p); err != nil {
		return status.Errorf(codes.Internal, "encode an answer: %v", err)
	}
	s.out = append(s.out, '}', '\n')
	if err = s.write(); cap(s.out) > budget.Free {
		s.out = nil
	}
	return err
}

// plain returns an answer as a message of protocol buffers, and what to call when it has
// been written.
func plain(m any) (p proto.Message, free func(), err error) {
	switch m := m.(type) {
	case proto.Message:
		return m, func() {}, nil
	case codec.Message:
		return codec.Decode(m)
	}
	return nil, nil, status.Errorf(codes.Internal, "a %T has no JSON form", m)
}

// write writes a line, all the way to the client.
func (s *stream) write() error {
	if !s.begun {
		s.w.Header()["Content-Type"] = jsonType
		s.begun = true
	}
	s.limitTime(len(s.out))
	if _, err := s.w.Write(s.out); err != nil {
		return status.Error(codes.Canceled, err.Error())
	}
	if err := s.conn.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return status.Error(codes.Canceled, err.Error())
	}
	// HTTP/2 would break the stream at the deadline even if nothing is left to send.
	_ = s.conn.SetWriteDeadline(time.Time{})
	return nil
}

func (s *stream) limitTime(size int) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeGrace + pace.TransferTime(int64(size))))
}

// SetHeader implements grpc.ServerStream. There are no metadata in answers.
func (s *stream) SetHeader(metadata.MD) error { return nil }

// SendHeader implements grpc.ServerStream.
func (s *stream) SendHeader(metadata.MD) error { return nil }

// SetTrailer implements grpc.ServerStream.
func (s *stream) SetTrailer(metadata.MD) {}

var _ grpc.ServerStream = (*stream)(nil)

var errLongMessage = fmt.Errorf("a message on a stream exceeds %d bytes", budget.Free)

// meter is the body of a stream. It bounds what is read for one message, and lets nobody
// read once the answer is complete: a service may return while another goroutine of it
// receives, and net/http does not expect that.
type meter struct {
	from io.Reader
	left int
	over atomic.Bool // there is nothing more to read
	busy sync.Mutex  // held while somebody reads
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	m.busy.Lock()
	defer m.busy.Unlock()
	switch {
	case m.over.Load():
		return 0, io.EOF
	case m.left <= 0:
		return 0, errLongMessage
	}
	n, err := m.from.Read(p[:min(len(p), m.left)])
	m.left -= n
	if err != nil {
		m.over.Store(true)
	}
	return n, err
}

// close ends the reading, also under somebody who waits for more of the body. What has
// arrived is read to the end: net/http would do so when the request is over, and, of a
// stream that reads while it writes, start to look for the next request while it still
// does. A body that goes on is broken off, and its connection with it.
func (m *meter) close(conn *http.ResponseController) {
	if m.over.Load() {
		return
	}
	_ = conn.SetReadDeadline(time.Now())
	m.busy.Lock()
	defer m.busy.Unlock()
	_, _ = io.CopyN(io.Discard, m.from, budget.Free)
	m.over.Store(true)
}
