package raftnode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// Every payload that kvd puts into the raft log has one frame:
//
//	byte 0      format version of the frame
//	byte 1      kind
//	…           body, by kind
//	last 4      CRC32C (Castagnoli) of all before, little-endian
//
// Apply checks it: a payload that fails the check or has an unknown version
// stops the node, because skipping it would make replicas diverge.

// payloadVersion is the newest frame version this binary understands. The
// cluster version is the minimum of what the members announced.
const payloadVersion = 1

type payloadKind uint8

const (
	kindBatch  payloadKind = 1 // commands of one member, in a normal entry
	kindStart  payloadKind = 2 // a member's process or directory presents itself
	kindChange payloadKind = 3 // a membership change, in a ConfChangeV2's context
)

func (k payloadKind) String() string {
	switch k {
	case kindBatch:
		return "batch"
	case kindStart:
		return "start"
	case kindChange:
		return "change"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

var (
	errPayloadChecksum = errors.New("payload checksum mismatch")
	errPayloadShape    = errors.New("payload is malformed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchID identifies a batch or change by who sent it: the member, the
// incarnation of its process (the log index of its start entry) and a
// sequence number within that incarnation.
type batchID struct {
	member      uint64
	incarnation uint64
	sequence    uint64
}

func beginPayload(dst []byte, kind payloadKind) []byte {
	return append(dst, payloadVersion, byte(kind))
}

func sealPayload(p []byte) []byte {
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// openPayload checks the frame and returns the kind and the body.
func openPayload(p []byte) (payloadKind, []byte, error) {
	if len(p) < 6 {
		return 0, nil, fmt.Errorf("%w: %d bytes", errPayloadShape, len(p))
	}
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return 0, nil, errPayloadChecksum
	}
	if body[0] != payloadVersion {
		return 0, nil, fmt.Errorf("payload version %d is not known to this binary (it knows %d): upgrade it", body[0], payloadVersion)
	}
	return payloadKind(body[1]), body[2:], nil
}

func appendBatchID(dst []byte, o batchID) []byte {
	dst = binary.AppendUvarint(dst, o.member)
	dst = binary.AppendUvarint(dst, o.incarnation)
	return binary.AppendUvarint(dst, o.sequence)
}

// takeUvarint cuts a number off the front of b.
func takeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errPayloadShape
	}
	return v, b[n:], nil
}

func takeBatchID(b []byte) (o batchID, rest []byte, err error) {
	for _, field := range []*uint64{&o.member, &o.incarnation, &o.sequence} {
		if *field, b, err = takeUvarint(b); err != nil {
			return batchID{}, nil, err
		}
	}
	return o, b, nil
}

// encodeBatch packs commands into one payload, so that raft, the WAL and the
// transport pay their price an entry once for all of them.
func encodeBatch(o batchID, commands [][]byte) []byte {
	size := 2 + 4*binary.MaxVarintLen64 + 4
	for _, c := range commands {
		size += binary.MaxVarintLen32 + len(c)
	}
	p := beginPayload(make([]byte, 0, size), kindBatch)
	p = appendBatchID(p, o)
	p = binary.AppendUvarint(p, uint64(len(commands)))
	for _, c := range commands {
		p = binary.AppendUvarint(p, uint64(len(c)))
		p = append(p, c...)
	}
	return sealPayload(p)
}

// decodeBatch is the reverse of encodeBatch for a checked body. The commands
// alias body.
func decodeBatch(body []byte) (batchID, [][]byte, error) {
	o, b, err := takeBatchID(body)
	if err != nil {
		return batchID{}, nil, err
	}
	n, b, err := takeUvarint(b)
	if err != nil || n > uint64(len(b)) {
		return batchID{}, nil, errPayloadShape
	}
	commands := make([][]byte, 0, n)
	for range n {
		var size uint64
		if size, b, err = takeUvarint(b); err != nil || size > uint64(len(b)) {
			return batchID{}, nil, errPayloadShape
		}
		commands = append(commands, b[:size:size])
		b = b[size:]
	}
	if len(b) != 0 {
		return batchID{}, nil, errPayloadShape
	}
	return o, commands, nil
}

// peekBatch reads only the origin of a batch entry, without the checksum: it
// serves to recognise one's own batch when it commits.
func peekBatch(p []byte) (batchID, bool) {
	if len(p) < 6 || p[0] != payloadVersion || payloadKind(p[1]) != kindBatch {
		return batchID{}, false
	}
	o, _, err := takeBatchID(p[2:])
	return o, err == nil
}

// start is how a member presents itself to the replicated state. With an
// empty Boot it only claims the member's identity for a directory (admission);
// with one it also begins a new incarnation.
type start struct {
	Member     uint64   `json:"member"`
	Nonce      string   `json:"nonce"` // of the data directory
	Boot       string   `json:"boot,omitempty"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls,omitempty"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Version is the highest payload version the binary understands.
	Version int `json:"version"`
}

func encodeStart(s *start) []byte {
	return encodeJSON(beginPayload(nil, kindStart), s)
}

func decodeStart(body []byte) (*start, error) {
	s := new(start)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("%w: start: %v", errPayloadShape, err)
	}
	return s, nil
}

// ChangeKind says what a Change does to the membership.
type ChangeKind string

// The kinds of membership changes.
const (
	AddMember     ChangeKind = "add"
	PromoteMember ChangeKind = "promote"
	UpdateMember  ChangeKind = "update"
	RemoveMember  ChangeKind = "remove"
)

// Change is a membership change.
type Change struct {
	Kind ChangeKind `json:"kind"`
	// Member is the one to add or to change. Promote and remove need its ID
	// only; update takes the URL lists that are not nil.
	Member Member `json:"member"`
}

func encodeChange(o batchID, c *Change) []byte {
	return encodeJSON(appendBatchID(beginPayload(nil, kindChange), o), c)
}

func decodeChange(body []byte) (batchID, *Change, error) {
	o, b, err := takeBatchID(body)
	if err != nil {
		return batchID{}, nil, err
	}
	c := new(Change)
	if err := json.Unmarshal(b, c); err != nil {
		return batchID{}, nil, fmt.Errorf("%w: change: %v", errPayloadShape, err)
	}
	return o, c, nil
}

// encodeJSON appends v and seals the payload. Start and change entries are
// rare, so that the readable form costs nothing.
func encodeJSON(p []byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("raftnode: encode %T: %v", v, err)) // plain data always encodes
	}
	return sealPayload(append(p, b...))
}
