package body

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/limits"
)

const (
	// Magic is what a body begins with; the format version follows.
	Magic = "kvd body"
	// Version is the version of the container.
	Version = 2

	blockSize = 256 << 10
	// maxBlock is the size of a block that ends with the largest value. A block is
	// ended when it is full, not before.
	maxBlock      = blockSize + limits.MaxValueBytes + 2*limits.MaxKeyBytes + 64
	headLen       = len(Magic) + 1
	blockHeadLen  = 24
	sectionEndLen = 16
	maxNameLen    = 64

	sectionMark = 'S'
	trailerMark = 'E'
)

// Trailer is what a body says about its content at its end.
type Trailer struct {
	Records                   uint64 // of all sections; a Writer counts them itself
	Index, Term               uint64
	Revision, CompactRevision uint64
	StateHash                 uint64
}

// numbers returns the fields in the order of the format.
func (t *Trailer) numbers() [6]*uint64 {
	return [6]*uint64{&t.Records, &t.Index, &t.Term, &t.Revision, &t.CompactRevision, &t.StateHash}
}

const trailerLen = 8 * (6 + 1)

// Writer writes a body. Sections do not overlap: each ends where the next one begins.
type Writer struct {
	w       io.Writer
	zstd    *zstd.Encoder
	raw     []byte // the block being filled
	packed  []byte
	open    bool // a section is being written
	records uint64
	digest  xxhash.Digest // of the section's records
	total   uint64        // records of all sections
	written int64
}

// NewWriter begins a body.
func NewWriter(w io.Writer) (*Writer, error) {
	// The window is for blocks of the usual size; the default would take 8 MiB of memory.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(2*blockSize), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("snapshot body: %w", err)
	}
	b := &Writer{w: w, zstd: enc}
	return b, b.write(append([]byte(Magic), Version))
}

// Written returns the bytes written so far.
func (b *Writer) Written() int64 { return b.written }

func (b *Writer) write(p []byte) error {
	n, err := b.w.Write(p)
	b.written += int64(n)
	return err
}

// Section begins a section.
func (b *Writer) Section(name string, version byte) error {
	if err := b.endSection(); err != nil {
		return err
	}
	b.open, b.records = true, 0
	b.digest.Reset()
	return b.write(wire.AppendBytes([]byte{sectionMark, version}, name))
}

// Add adds a record to the section.
func (b *Writer) Add(key, value []byte) error {
	b.raw = wire.AppendBytes(wire.AppendBytes(b.raw, key), value)
	b.records++
	if len(b.raw) < blockSize {
		return nil
	}
	return b.flush()
}

func (b *Writer) flush() error {
	if len(b.raw) == 0 {
		return nil
	}
	_, _ = b.digest.Write(b.raw) // never fails
	b.packed = append(b.packed[:0], make([]byte, blockHeadLen)...)
	b.packed = b.zstd.EncodeAll(b.raw, b.packed)
	content := b.packed[blockHeadLen:]
	putNumbers(b.packed, uint64(len(content)), uint64(len(b.raw)), xxhash.Sum64(content))
	b.raw = b.raw[:0]
	return b.write(b.packed)
}

func putNumbers(dst []byte, numbers ...uint64) {
	for i, n := range numbers {
		binary.LittleEndian.PutUint64(dst[8*i:], n)
	}
}

func (b *Writer) endSection() error {
	if !b.open {
		return nil
	}
	if err := b.flush(); err != nil {
		return err
	}
	end := make([]byte, blockHeadLen+sectionEndLen)
	putNumbers(end[blockHeadLen:], b.records, b.digest.Sum64())
	b.open = false
	b.total += b.records
	return b.write(end)
}

// Finish ends the body.
func (b *Writer) Finish(t Trailer) error {
	if err := b.endSection(); err != nil {
		return err
	}
	t.Records = b.total
	end := make([]byte, 1+trailerLen)
	end[0] = trailerMark
	for i, n := range t.numbers() {
		putNumbers(end[1+8*i:], *n)
	}
	putNumbers(end[1+trailerLen-8:], xxhash.Sum64(end[1:1+trailerLen-8]))
	return b.write(end)
}
