package roster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// Every payload that kvd puts into the raft log has the same frame:
//
//	byte 0      format version of the frame
//	byte 1      kind
//	…           body, by kind
//	last 4      CRC32C (Castagnoli) of everything before, little-endian
//
// The checksum is verified when the entry is applied, long after the WAL has
// verified its own: it also covers the way through raft and the network. A
// payload that fails it, or that has an unknown version, stops the replica.
// Skipping the entry would make replicas diverge.

// PayloadVersion is the newest frame version that this binary understands. The
// version of a cluster is the lowest that its members announced.
const PayloadVersion = 1

type payloadKind uint8

const (
	kindBatch  payloadKind = 1 // commands of one member, in a normal entry
	kindStart  payloadKind = 2 // a member's process or directory introduces itself
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
	errChecksum  = errors.New("payload checksum mismatch")
	errMalformed = errors.New("payload is malformed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BatchID identifies a batch by its origin: the member, the incarnation of its
// process (the log index of its start entry) and a sequence number within that
// incarnation. A membership change is identified in the same way, with a
// sequence of its own.
type BatchID struct {
	Member      uint64
	Incarnation uint64
	Sequence    uint64
}

func beginPayload(dst []byte, kind payloadKind) []byte {
	return append(dst, PayloadVersion, byte(kind))
}

func sealPayload(p []byte) []byte {
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// openPayload checks the frame and returns the kind and the body.
func openPayload(p []byte) (payloadKind, []byte, error) {
	if len(p) < 6 {
		return 0, nil, fmt.Errorf("%w: %d bytes", errMalformed, len(p))
	}
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return 0, nil, errChecksum
	}
	if body[0] != PayloadVersion {
		return 0, nil, fmt.Errorf("payload has version %d, but this binary supports version %d: upgrade kvd", body[0], PayloadVersion)
	}
	return payloadKind(body[1]), body[2:], nil
}

func appendBatchID(dst []byte, id BatchID) []byte {
	dst = binary.AppendUvarint(dst, id.Member)
	dst = binary.AppendUvarint(dst, id.Incarnation)
	return binary.AppendUvarint(dst, id.Sequence)
}

// takeUvarint cuts a number off the front of b.
func takeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errMalformed
	}
	return v, b[n:], nil
}

func takeBatchID(b []byte) (id BatchID, rest []byte, err error) {
	for _, field := range []*uint64{&id.Member, &id.Incarnation, &id.Sequence} {
		if *field, b, err = takeUvarint(b); err != nil {
			return BatchID{}, nil, err
		}
	}
	return id, b, nil
}

// EncodeBatch packs commands into one payload. What an entry costs in raft, in the
// WAL and in the transport is then paid once for all of them.
func EncodeBatch(id BatchID, commands [][]byte) []byte {
	size := 2 + 4*binary.MaxVarintLen64 + 4
	for _, c := range commands {
		size += binary.MaxVarintLen32 + len(c)
	}
	p := beginPayload(make([]byte, 0, size), kindBatch)
	p = appendBatchID(p, id)
	p = binary.AppendUvarint(p, uint64(len(commands)))
	for _, c := range commands {
		p = binary.AppendUvarint(p, uint64(len(c)))
		p = append(p, c...)
	}
	return sealPayload(p)
}

// decodeBatch is the reverse of EncodeBatch, for a body whose checksum was
// verified. The commands alias body.
func decodeBatch(body []byte) (BatchID, [][]byte, error) {
	id, b, err := takeBatchID(body)
	if err != nil {
		return BatchID{}, nil, err
	}
	n, b, err := takeUvarint(b)
	if err != nil || n > uint64(len(b)) { // a command takes at least one byte
		return BatchID{}, nil, errMalformed
	}
	commands := make([][]byte, 0, n)
	for range n {
		var size uint64
		if size, b, err = takeUvarint(b); err != nil || size > uint64(len(b)) {
			return BatchID{}, nil, errMalformed
		}
		commands = append(commands, b[:size:size])
		b = b[size:]
	}
	if len(b) != 0 {
		return BatchID{}, nil, errMalformed
	}
	return id, commands, nil
}

// PeekBatch reads the identity of a batch without verifying the checksum. The core
// recognizes its own batch by it when an entry commits.
func PeekBatch(p []byte) (BatchID, bool) {
	if len(p) < 6 || p[0] != PayloadVersion || payloadKind(p[1]) != kindBatch {
		return BatchID{}, false
	}
	id, _, err := takeBatchID(p[2:])
	return id, err == nil
}

// Start introduces a member to the replicated state. It claims the member for a
// data directory. With a Boot it also begins a new incarnation; without one it is
// an admission, made by the cluster for a directory that has no log yet.
type Start struct {
	Member uint64 `json:"member"`
	Nonce  string `json:"nonce"`          // of the data directory
	Boot   string `json:"boot,omitempty"` // random, one for each process
	// Starts is the number of starts of the directory, this one included; 0 if the
	// directory does not count them.
	Starts     uint64   `json:"starts,omitempty"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls,omitempty"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Faces are those of Member.Faces, all that the process serves.
	Faces map[string][]string `json:"faces,omitempty"`
	// Version is the highest payload version that the binary understands.
	Version int `json:"version"`
}

// EncodeStart returns the payload of a start.
func EncodeStart(s *Start) []byte {
	return encodeJSON(beginPayload(nil, kindStart), s)
}

func decodeStart(body []byte) (*Start, error) {
	s := new(Start)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("%w: start: %v", errMalformed, err)
	}
	return s, nil
}

// encodeJSON appends v and seals the payload. Start and change entries are rare, so
// their readable form costs nothing.
func encodeJSON(p []byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("roster: encode %T: %v", v, err)) // plain data always encodes
	}
	return sealPayload(append(p, b...))
}
