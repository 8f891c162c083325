package etcdapi

import (
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/budget"
)

// wire is the transport of a stream, with one message.
type wire struct {
	grpc.ServerStream
	message []byte
	onRead  func()
	reads   int
}

func (*wire) Method() string               { return "/etcdserverpb.KV/Put" }
func (*wire) SetHeader(metadata.MD) error  { return nil }
func (*wire) SendHeader(metadata.MD) error { return nil }

// transport is the transport's view of the wire, whose SetTrailer has another form.
type transport struct{ *wire }

func (transport) SetTrailer(metadata.MD) error { return nil }

func (w *wire) ReadMessageHeader(head []byte) error {
	binary.BigEndian.PutUint32(head[1:], uint32(len(w.message)))
	return nil
}

func (w *wire) Read(n int) (mem.BufferSlice, error) {
	w.reads++
	w.onRead()
	half := n / 2
	return mem.BufferSlice{mem.SliceBuffer(w.message[:half]), mem.SliceBuffer(w.message[half:n])}, nil
}

func (w *wire) context(ctx context.Context) context.Context {
	return grpc.NewContextWithServerTransportStream(ctx, transport{w})
}

// TestLargeRequestIsClaimedFirst: a client may not send a large request before there is
// room for it, and the claim covers what is held of it at each time.
func TestLargeRequestIsClaimedFirst(t *testing.T) {
	const size = 1 << 20
	message, err := proto.Marshal(&pb.PutRequest{Key: []byte("a"), Value: make([]byte, size)})
	if err != nil {
		t.Fatal(err)
	}
	for _, passing := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			memory := budget.New(0)
			s := New(Options{Memory: memory})
			w := &wire{message: message, onRead: func() {
				if _, large := memory.Taken(); large != 2*int64(len(message)) {
					t.Errorf("%d bytes are claimed while %d are received", large, len(message))
				}
			}}
			got, claim := new(pb.PutRequest), memory.Claim()
			if err := s.receive(w.context(t.Context()), w, got, &claim, passing); err != nil || len(got.GetValue()) != size || string(got.GetKey()) != "a" {
				t.Fatal(err, len(got.GetValue()))
			}
			if _, large := memory.Taken(); large != int64(len(message)) {
				t.Errorf("%d bytes are claimed for a request of %d", large, len(message))
			}
			claim.Release()

			others := memory.Claim()
			if err := others.Wait(t.Context(), memory.Limit()); err != nil { // all of the large part
				t.Fatal(err)
			}
			w.reads = 0
			claim = memory.Claim()
			err := s.receive(w.context(t.Context()), w, got, &claim, passing)
			if status.Code(err) != codes.ResourceExhausted || w.reads > 0 || claim.Bytes() > 0 {
				t.Errorf("without room: %v, received %d times, %d bytes are claimed", err, w.reads, claim.Bytes())
			}
		})
	}
}

// TestRequestsThatAreRefusedUnread: what is too large or compressed is not received.
func TestRequestsThatAreRefusedUnread(t *testing.T) {
	s := New(Options{MaxRequestBytes: 1000})
	w := &wire{message: make([]byte, s.MaxMessage()+1), onRead: func() {}}
	claim := s.opts.Memory.Claim()
	if err := s.receive(w.context(t.Context()), w, new(pb.PutRequest), &claim, true); status.Code(err) != codes.ResourceExhausted || w.reads > 0 {
		t.Errorf("too large: %v, received %d times", err, w.reads)
	}
}

// TestTransportOfGRPC: the head of a message can be read by itself from gRPC's own streams,
// on its own connections and on those of net/http.
func TestTransportOfGRPC(t *testing.T) {
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		if _, ok := grpc.ServerTransportStreamFromContext(ss.Context()).(incoming); !ok {
			return status.Error(codes.Internal, "the transport has no heads of messages")
		}
		return ss.SendMsg(new(pb.PutResponse))
	}))
	defer server.Stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	web := httptest.NewUnstartedServer(server)
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	for address, creds := range map[string]credentials.TransportCredentials{
		l.Addr().String(): insecure.NewCredentials(), web.Listener.Addr().String(): credentials.NewTLS(web.Client().Transport.(*http.Transport).TLSClientConfig),
	} {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithAuthority("example.com"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Invoke(t.Context(), "/etcdserverpb.KV/Put", new(pb.PutRequest), new(pb.PutResponse)); err != nil {
			t.Error(err)
		}
	}
}
