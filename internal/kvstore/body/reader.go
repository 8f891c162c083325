package body

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// ErrDamaged is wrapped by all errors about a body that is damaged, forged, or
// something else.
var ErrDamaged = errors.New("snapshot body is damaged")

// Section describes a section that was read.
type Section struct {
	Name     string
	Version  byte
	Records  uint64
	Bytes    uint64 // before compression
	Checksum uint64 // of the records: equal for equal content
}

// Read reads a body, checks its form, and passes what is in it to begin, for each section,
// and record, for each record in it, which may be used during the call. What they got counts
// only if Read returns without an error.
func Read(r io.Reader, begin func(name string, version byte) error, record func(key, value []byte) error) (Trailer, []Section, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlock))
	if err != nil {
		return Trailer{}, nil, fmt.Errorf("snapshot body: %w", err)
	}
	defer dec.Close()
	b := reader{r: bufio.NewReaderSize(r, 64<<10), zstd: dec, begin: begin, record: record}
	if err := b.head(); err != nil {
		return Trailer{}, nil, err
	}
	for {
		more, err := b.section()
		if err != nil {
			return Trailer{}, nil, err
		}
		if !more {
			t, err := b.trailer()
			return t, b.sections, err
		}
	}
}

type reader struct {
	r           *bufio.Reader
	zstd        *zstd.Decoder
	begin       func(name string, version byte) error
	record      func(key, value []byte) error
	packed, raw []byte
	last        []byte // the last key of the section
	digest      xxhash.Digest
	sections    []Section
	records     uint64 // of all sections
}

func (b *reader) read(p []byte, what string) error {
	if _, err := io.ReadFull(b.r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: unexpected end in its %s", ErrDamaged, what)
		}
		return fmt.Errorf("read snapshot body: %w", err)
	}
	return nil
}

func (b *reader) byte(what string) (byte, error) {
	var p [1]byte
	err := b.read(p[:], what)
	return p[0], err
}

func (b *reader) head() error {
	head := make([]byte, headLen)
	if err := b.read(head, "head"); err != nil {
		return err
	}
	if string(head[:len(Magic)]) != Magic {
		return fmt.Errorf("%w: not a snapshot body", ErrDamaged)
	}
	if v := head[len(Magic)]; v != Version {
		return &wire.UnknownVersionError{What: "snapshot body", Version: v}
	}
	return nil
}

// section reads one section. It returns false if the trailer follows.
func (b *reader) section() (more bool, err error) {
	mark, err := b.byte("sections")
	if err != nil || mark == trailerMark {
		return false, err
	}
	if mark != sectionMark {
		return false, fmt.Errorf("%w: neither a section nor its trailer", ErrDamaged)
	}
	if err := b.sectionHead(); err != nil {
		return false, err
	}
	for more := true; more; {
		if more, err = b.block(); err != nil {
			return false, err
		}
	}
	return true, b.sectionEnd()
}

func (b *reader) sectionHead() error {
	var head [2]byte
	if err := b.read(head[:], "section"); err != nil {
		return err
	}
	if head[1] > maxNameLen {
		return fmt.Errorf("%w: section with a name of %d bytes", ErrDamaged, head[1])
	}
	name := make([]byte, head[1])
	if err := b.read(name, "section"); err != nil {
		return err
	}
	b.sections = append(b.sections, Section{Name: string(name), Version: head[0]})
	b.digest.Reset()
	b.last = b.last[:0]
	return b.begin(string(name), head[0])
}

func (b *reader) sectionEnd() error {
	var end [sectionEndLen]byte
	if err := b.read(end[:], "section"); err != nil {
		return err
	}
	s := &b.sections[len(b.sections)-1]
	s.Checksum = b.digest.Sum64()
	if n := binary.LittleEndian.Uint64(end[0:]); n != s.Records {
		return fmt.Errorf("%w: section %s has %d records, want %d", ErrDamaged, s.Name, s.Records, n)
	}
	if binary.LittleEndian.Uint64(end[8:]) != s.Checksum {
		return fmt.Errorf("%w: checksum mismatch in section %s", ErrDamaged, s.Name)
	}
	return nil
}

// block reads one block. It returns false at the end of the section.
func (b *reader) block() (more bool, err error) {
	var head [blockHeadLen]byte
	if err := b.read(head[:], "blocks"); err != nil {
		return false, err
	}
	packedLen := binary.LittleEndian.Uint64(head[0:])
	rawLen := binary.LittleEndian.Uint64(head[8:])
	if head == [blockHeadLen]byte{} {
		return false, nil
	}
	if packedLen > maxBlock || rawLen > maxBlock {
		return false, fmt.Errorf("%w: block of %d bytes", ErrDamaged, max(packedLen, rawLen))
	}
	if err := b.fill(int(packedLen)); err != nil {
		return false, err
	}
	if xxhash.Sum64(b.packed) != binary.LittleEndian.Uint64(head[16:]) {
		return false, fmt.Errorf("%w: checksum mismatch in the block after record %d", ErrDamaged, b.records)
	}
	if b.raw, err = b.zstd.DecodeAll(b.packed, b.raw[:0]); err != nil || uint64(len(b.raw)) != rawLen {
		return false, fmt.Errorf("%w: cannot decompress the block after record %d", ErrDamaged, b.records)
	}
	return true, b.unpack()
}

// fill reads n bytes into packed, which grows only as they arrive: a head that claims
// 64 MiB must not allocate them before a byte has come.
func (b *reader) fill(n int) error {
	b.packed = b.packed[:0]
	for len(b.packed) < n {
		from := len(b.packed)
		b.packed = append(b.packed, make([]byte, min(n-from, blockSize))...)
		if err := b.read(b.packed[from:], "blocks"); err != nil {
			return err
		}
	}
	return nil
}

func (b *reader) unpack() error {
	s := &b.sections[len(b.sections)-1]
	s.Bytes += uint64(len(b.raw))
	_, _ = b.digest.Write(b.raw) // never fails
	d := wire.Decoder{B: b.raw}
	for len(d.B) > 0 {
		key, value := d.Bytes(), d.Bytes()
		if d.Failed {
			return fmt.Errorf("%w: record %d is malformed", ErrDamaged, b.records)
		}
		if s.Records > 0 && bytes.Compare(key, b.last) <= 0 {
			return fmt.Errorf("%w: record %d is out of order", ErrDamaged, b.records)
		}
		b.last = append(b.last[:0], key...)
		s.Records++
		b.records++
		if err := b.record(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (b *reader) trailer() (t Trailer, err error) {
	p := make([]byte, trailerLen)
	if err := b.read(p, "trailer"); err != nil {
		return t, err
	}
	if xxhash.Sum64(p[:trailerLen-8]) != binary.LittleEndian.Uint64(p[trailerLen-8:]) {
		return t, fmt.Errorf("%w: checksum mismatch in the trailer", ErrDamaged)
	}
	if _, err := b.r.ReadByte(); !errors.Is(err, io.EOF) {
		return t, fmt.Errorf("%w: data after its end", ErrDamaged)
	}
	for i, n := range t.numbers() {
		*n = binary.LittleEndian.Uint64(p[8*i:])
	}
	if t.Records != b.records {
		return t, fmt.Errorf("%w: has %d records, want %d", ErrDamaged, b.records, t.Records)
	}
	return t, nil
}
