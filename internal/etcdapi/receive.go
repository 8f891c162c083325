package etcdapi

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/answer"
)

const (
	// callWorkers is how many goroutines of gRPC carry out one call after the other. A new
	// goroutine for each would have to grow its stack each time. Calls beyond that, and
	// streams, get their own.
	callWorkers = 256
	// streamWindow is how much of a message a client may send before memory for it is
	// claimed, and connWindow the same for all messages of a connection. Both are fixed:
	// growing windows would let clients send more than is claimed, and cost pings.
	streamWindow = 64 << 10
	connWindow   = 1 << 20
)

// incoming is a stream in gRPC's transport. The head of a message can be read first; the
// client may not send the rest until it is read.
type incoming interface {
	ReadMessageHeader(head []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// single returns the handler of a unary call.
//
// gRPC would receive the whole request before the handler runs, in memory that is not
// claimed: 300 clients with a request of 1.4 MB each took 1.6 GB. So unary calls are
// registered as streams, and the request is received here.
func (s *Server) single(c *call) grpc.StreamHandler {
	return func(_ any, ss grpc.ServerStream) error {
		held := &callContext{ss.Context(), s.opts.Memory.Claim()}
		defer held.claim.Release()
		decode := func(req any) error {
			err := s.receive(held, ss, req, &held.claim, true)
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.Internal, "etcdserver: the call has no request")
			}
			return err
		}
		resp, err := c.unary.Handler(c.service, held, decode, s.unary)
		if err != nil {
			return err
		}
		return ss.SendMsg(resp)
	}
}

// receive receives a message. A large one is claimed before its client may send more of it
// than fits into streamWindow: twice while it is received, and once from then on. If it is
// not kept beyond its call, it is not copied once more.
func (s *Server) receive(ctx context.Context, ss grpc.ServerStream, m any, claim *budget.Claim, passing bool) error {
	in, fromClient := grpc.ServerTransportStreamFromContext(ctx).(incoming)
	p, ok := m.(proto.Message)
	if !fromClient || !ok {
		return ss.RecvMsg(m) // of a stream in this process
	}
	size, err := s.messageSize(in)
	if err != nil {
		return err
	}
	if size <= budget.Free {
		data, err := read(in, size)
		if err != nil {
			return err
		}
		defer data.Free()
		return malformed(s.codec.Unmarshal(data, p))
	}
	if err := claim.Wait(ctx, 2*int64(size)); err != nil {
		return answer.Error(err)
	}
	// A client that stops sending holds memory that others wait for.
	if due := cutLater(ctx, s.opts.Grace, int64(size)); due != nil {
		defer due.Stop()
	}
	data, err := read(in, size)
	if err != nil {
		return err
	}
	if passing {
		err = s.codec.UnmarshalWhole(data, p)
	} else {
		err = s.codec.Unmarshal(data, p)
		data.Free()
	}
	claim.Lower(int64(size))
	return malformed(err)
}

// messageSize reads the head of a message.
func (s *Server) messageSize(in incoming) (int, error) {
	var head [5]byte // whether it is compressed, and its length
	if err := in.ReadMessageHeader(head[:]); err != nil {
		return 0, incomplete(err)
	}
	if head[0] != 0 {
		return 0, status.Error(codes.Unimplemented, "etcdserver: compressed requests are not supported")
	}
	size := binary.BigEndian.Uint32(head[1:])
	if most := s.MaxMessage(); int64(size) > int64(most) {
		return 0, status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", size, most)
	}
	return int(size), nil
}

// read reads the rest of a message.
func read(in incoming, size int) (mem.BufferSlice, error) {
	data, err := in.Read(size)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return data, incomplete(err)
}

// incomplete turns the end of a message before its time into an error of gRPC. An io.EOF is
// the end of a stream.
func incomplete(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return status.Error(codes.Internal, "etcdserver: the request ended before it was complete")
	}
	return err
}

// malformed turns an error of decoding into one of gRPC.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
}
