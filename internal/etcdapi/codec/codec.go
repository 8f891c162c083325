// Package codec is how messages become bytes on gRPC connections: protocol buffers as
// everywhere, except for answers that know their own bytes.
//
// Such an answer implements Message. A watch response is one: its events were encoded
// once for all watches, and gRPC writes those same bytes to every connection.
//
// # Rejected
//
//   - Events as unknown fields of a WatchResponse, which any codec would encode. Each
//     stream would copy them, and could not tell when gRPC is done with the memory.
//   - Registering the codec for the process, as encoding.RegisterCodecV2 does. It would
//     change the clients in it as well.
package codec

import (
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/runtime/protoiface"
)

// Message is an answer that encodes itself.
type Message interface {
	// Buffers returns the encoded message. gRPC frees the buffers once they are written,
	// or the connection is gone.
	Buffers() mem.BufferSlice
	// Empty returns a message of the type that the buffers encode.
	Empty() protobuf.Message
}

// Codec is for grpc.ForceServerCodecV2. It counts the bytes of messages, and may be shared
// by servers.
type Codec struct {
	plain          encoding.CodecV2
	sent, received atomic.Uint64
}

// New returns the codec.
func New() *Codec { return &Codec{plain: encoding.GetCodecV2(proto.Name)} }

// Sent and Received return the bytes of the messages so far, without those of the protocol
// around them.
func (c *Codec) Sent() uint64 { return c.sent.Load() }

// Received is the counterpart of Sent.
func (c *Codec) Received() uint64 { return c.received.Load() }

// Marshal implements encoding.CodecV2.
func (c *Codec) Marshal(v any) (out mem.BufferSlice, err error) {
	if m, ok := v.(Message); ok {
		out = m.Buffers()
	} else if out, err = c.plain.Marshal(v); err != nil {
		return nil, err
	}
	c.sent.Add(uint64(out.Len()))
	return out, nil
}

// Unmarshal implements encoding.CodecV2.
func (c *Codec) Unmarshal(data mem.BufferSlice, v any) error {
	c.received.Add(uint64(data.Len()))
	return c.plain.Unmarshal(data, v)
}

// UnmarshalWhole is Unmarshal for a large message. It frees the data as soon as it can, and
// the message refers to the one copy of it that is left instead of having its own: what is
// kept of the message keeps all of it.
func (c *Codec) UnmarshalWhole(data mem.BufferSlice, m protobuf.Message) error {
	whole := make([]byte, data.Len())
	data.CopyTo(whole)
	data.Free()
	c.received.Add(uint64(len(whole)))
	methods := m.ProtoReflect().ProtoMethods()
	if methods == nil || methods.Unmarshal == nil {
		return protobuf.Unmarshal(whole, m)
	}
	protobuf.Reset(m)
	_, err := methods.Unmarshal(protoiface.UnmarshalInput{
		Message: m.ProtoReflect(), Buf: whole, Flags: protoiface.UnmarshalAliasBuffer,
		Resolver: protoregistry.GlobalTypes, Depth: protowire.DefaultRecursionLimit,
	})
	return err
}

// Name implements encoding.CodecV2.
func (c *Codec) Name() string { return proto.Name }

// Decode turns an answer into a message of protocol buffers, for a receiver in the same
// process, which calls free when it is done, as gRPC does.
func Decode(m Message) (p protobuf.Message, free func(), err error) {
	p = m.Empty()
	buffers := m.Buffers()
	if err := protobuf.Unmarshal(buffers.Materialize(), p); err != nil {
		buffers.Free()
		return nil, nil, err
	}
	return p, buffers.Free, nil
}
