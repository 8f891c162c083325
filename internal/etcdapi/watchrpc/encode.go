package watchrpc

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// The fields of the messages, as rpc.proto and kv.proto number them.
const (
	fieldHeader, fieldWatchID, fieldFragment, fieldEvents           = 1, 2, 7, 11
	fieldClusterID, fieldMemberID, fieldRevision, fieldTerm         = 1, 2, 3, 4
	fieldType, fieldKV, fieldPrevious                               = 1, 2, 3
	fieldKey, fieldCreate, fieldMod, fieldVersion, fieldVal, fieldL = 1, 2, 3, 4, 5, 6
)

const (
	typeDelete = 1
	// numbers is more than what the numbers and tags of a pair take: five varints of up to
	// ten bytes, and six tags.
	numbers = 64
)

// forms are the ways in which events are encoded, once for all streams (package feed has the
// slots 0 and 1): as a complete
// field "events" of a WatchResponse, so that a message is a few of them in a row.
var (
	plainForm    = &watch.Form{Slot: 2, Encode: appendEvent, Size: maxEvent}
	previousForm = &watch.Form{Slot: 3, Previous: true, Encode: appendEvent, Size: maxEvent}
)

// appendEvent appends an event, with its previous pair if it has one.
func appendEvent(dst []byte, e *kvstore.Event) []byte {
	size := 0
	if e.Deleted {
		size += 2
	}
	kv := pairSize(&e.KV)
	size += 1 + protowire.SizeBytes(kv)
	if e.Previous != nil {
		size += 1 + protowire.SizeBytes(pairSize(e.Previous))
	}
	dst = protowire.AppendTag(dst, fieldEvents, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	if e.Deleted {
		dst = appendNumber(dst, fieldType, typeDelete)
	}
	dst = appendPair(dst, fieldKV, &e.KV, kv)
	if e.Previous != nil {
		dst = appendPair(dst, fieldPrevious, e.Previous, pairSize(e.Previous))
	}
	return dst
}

// maxEvent is at least the length of appendEvent.
func maxEvent(e *kvstore.Event) int {
	n := 2*numbers + len(e.KV.Key) + len(e.KV.Value)
	if e.Previous != nil {
		n += numbers + len(e.Previous.Key) + len(e.Previous.Value)
	}
	return n
}

func appendPair(dst []byte, field protowire.Number, kv *kvstore.KV, size int) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = appendBytes(dst, fieldKey, kv.Key)
	dst = appendNumber(dst, fieldCreate, kv.CreateRevision)
	dst = appendNumber(dst, fieldMod, kv.ModRevision)
	dst = appendNumber(dst, fieldVersion, kv.Version)
	dst = appendBytes(dst, fieldVal, kv.Value)
	return appendNumber(dst, fieldL, kv.Lease)
}

func pairSize(kv *kvstore.KV) int {
	return bytesSize(kv.Key) + numberSize(kv.CreateRevision) + numberSize(kv.ModRevision) + numberSize(kv.Version) + bytesSize(kv.Value) + numberSize(kv.Lease)
}

// appendNumber appends a number unless it is zero, which proto3 leaves out.
func appendNumber(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

func appendBytes(dst []byte, field protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), b)
}

// Tags of fields below 16 take one byte.
func numberSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

func bytesSize(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(len(b))
}

// response is a WatchResponse with events. It implements codec.Message.
type response struct {
	header   *pb.ResponseHeader
	to       *watcher
	id       int64
	fragment bool
	events   mem.BufferSlice
	size     int // of the events
	// loan is what is claimed for this response and those before it, which is returned
	// once it is written; nil if that is nothing.
	loan *loan
}

var _ codec.Message = (*response)(nil)

// add adds an encoded event, whose bytes may be shared.
func (r *response) add(event []byte) {
	r.events = append(r.events, mem.SliceBuffer(event))
	r.size += len(event)
}

// Buffers implements codec.Message.
//
// The fields before the events come last if there is a loan. gRPC frees the buffers of a
// message one by one as it writes them, and the loan may not be returned before the last.
// The order of fields has no meaning.
func (r *response) Buffers() mem.BufferSlice {
	if r.loan == nil {
		return append(mem.BufferSlice{mem.SliceBuffer(r.appendHead(make([]byte, 0, numbers)))}, r.events...)
	}
	// A smaller buffer would be a mem.SliceBuffer, which nobody is told of when it is free.
	tail := r.appendHead(make([]byte, 0, pooled))
	return append(r.events, mem.NewBuffer(&tail, r.loan))
}

// Empty implements codec.Message.
func (r *response) Empty() proto.Message { return new(pb.WatchResponse) }

// pooled is a capacity from which on gRPC counts the references to a buffer.
const pooled = 2 << 10

func (r *response) appendHead(dst []byte) []byte {
	h := r.header
	size := numberSize(h.ClusterId) + numberSize(h.MemberId) + numberSize(uint64(h.Revision)) + numberSize(h.RaftTerm)
	dst = protowire.AppendTag(dst, fieldHeader, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = appendNumber(dst, fieldClusterID, h.ClusterId)
	dst = appendNumber(dst, fieldMemberID, h.MemberId)
	dst = appendNumber(dst, fieldRevision, uint64(h.Revision))
	dst = appendNumber(dst, fieldTerm, h.RaftTerm)
	dst = appendNumber(dst, fieldWatchID, uint64(r.id))
	if r.fragment {
		dst = appendNumber(dst, fieldFragment, 1)
	}
	return dst
}
