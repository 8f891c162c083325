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
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
)

// Message is an answer that encodes itself.
type Message interface {
	// Buffers returns the encoded message. gRPC frees the buffers once they are written,
	// or the connection is gone.
	Buffers() mem.BufferSlice
	// Empty returns a message of the type that the buffers encode.
	Empty() protobuf.Message
}

// Codec is for grpc.ForceServerCodecV2.
type Codec struct{ plain encoding.CodecV2 }

// New returns the codec.
func New() Codec { return Codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(Message); ok {
		return m.Buffers(), nil
	}
	return c.plain.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error { return c.plain.Unmarshal(data, v) }

// Name implements encoding.CodecV2.
func (c Codec) Name() string { return proto.Name }

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
