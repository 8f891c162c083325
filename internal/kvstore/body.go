package kvstore

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
	"github.com/kvd-io/kvd/internal/limits"
)

// A snapshot body is the whole state in one stream, the same for every engine:
//
//	head      "kvd body", format version
//	blocks    compressed size, size, xxHash64 of the compressed bytes, bytes
//	          (zstd; inside: key size, key, value size, value, …)
//	end       a block of size 0
//	trailer   records, index, term, revision, compact revision, state hash,
//	          and the xxHash64 of these
//
// Numbers have 8 bytes, little-endian; sizes inside a block are varints. Keys ascend.
// Writing and reading need the memory of one block, however large the state is.
//
// The counts and hashes are in a trailer and not in the head, so that a body can be
// written in one pass. The trailer also makes truncation detectable: a body that was
// cut at the boundary of a block lacks it.
const (
	bodyMagic     = "kvd body"
	bodyVersion   = 1
	bodyBlockSize = 256 << 10
	// maxBodyBlock is the size of a block that ends with the largest value. A
	// block is ended when it is full, not before.
	maxBodyBlock  = bodyBlockSize + limits.MaxValueBytes + 2*MaxKeyBytes + 64
	bodyHeadLen   = len(bodyMagic) + 1
	blockHeadLen  = 24
	bodyTrailFlds = 6
)

// ErrBody is wrapped by all errors about a snapshot body that is damaged, forged, or
// something else.
var ErrBody = errors.New("snapshot body is damaged")

// BodyInfo describes a verified body.
type BodyInfo struct {
	Position        Position
	Revision        uint64
	CompactRevision uint64
	Keys            uint64
	Records         uint64
	StateHash       uint64
	// Bytes is the size of the records before compression.
	Bytes uint64
}

// WriteTo writes the view as a snapshot body and returns its size.
func (v *View) WriteTo(w io.Writer) (int64, error) {
	b, err := newBodyWriter(w)
	if err != nil {
		return 0, err
	}
	if _, err := v.each(b.add); err != nil {
		return b.written, err
	}
	if err := b.finish(&v.meta); err != nil {
		return b.written, err
	}
	return b.written, nil
}

type bodyWriter struct {
	w       io.Writer
	zstd    *zstd.Encoder
	raw     []byte // the block being filled
	packed  []byte
	records uint64
	written int64
}

func newBodyWriter(w io.Writer) (*bodyWriter, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("snapshot body: %w", err)
	}
	b := &bodyWriter{w: w, zstd: enc}
	return b, b.write(append([]byte(bodyMagic), bodyVersion))
}

func (b *bodyWriter) write(p []byte) error {
	n, err := b.w.Write(p)
	b.written += int64(n)
	return err
}

func (b *bodyWriter) add(key, value []byte) error {
	b.raw = wire.AppendBytes(wire.AppendBytes(b.raw, key), value)
	b.records++
	if len(b.raw) < bodyBlockSize {
		return nil
	}
	return b.flush()
}

func (b *bodyWriter) flush() error {
	if len(b.raw) == 0 {
		return nil
	}
	b.packed = append(b.packed[:0], make([]byte, blockHeadLen)...)
	b.packed = b.zstd.EncodeAll(b.raw, b.packed)
	bytes := b.packed[blockHeadLen:]
	putNumbers(b.packed, uint64(len(bytes)), uint64(len(b.raw)), xxhash.Sum64(bytes))
	b.raw = b.raw[:0]
	return b.write(b.packed)
}

func putNumbers(dst []byte, numbers ...uint64) {
	for i, n := range numbers {
		binary.LittleEndian.PutUint64(dst[8*i:], n)
	}
}

func (b *bodyWriter) finish(m *meta) error {
	if err := b.flush(); err != nil {
		return err
	}
	end := make([]byte, blockHeadLen+8*(bodyTrailFlds+1))
	trailer := end[blockHeadLen:]
	putNumbers(trailer, b.records, m.position.Index, m.position.Term, m.revision, m.compact, m.hash())
	putNumbers(trailer[8*bodyTrailFlds:], xxhash.Sum64(trailer[:8*bodyTrailFlds]))
	return b.write(end)
}

// readBody reads a body, checks everything that can be checked, and passes each
// record to fn, in order. What fn got may be used only if readBody returns without an
// error: the trailer, which must agree with all of it, comes last.
func readBody(r io.Reader, fn func(key, value []byte) error) (BodyInfo, error) {
	b := bodyReader{r: bufio.NewReaderSize(r, 64<<10), fn: fn}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBodyBlock))
	if err != nil {
		return BodyInfo{}, fmt.Errorf("snapshot body: %w", err)
	}
	defer dec.Close()
	b.zstd = dec
	if err := b.head(); err != nil {
		return BodyInfo{}, err
	}
	for {
		more, err := b.block()
		if err != nil {
			return BodyInfo{}, err
		}
		if !more {
			return b.trailer()
		}
	}
}

type bodyReader struct {
	r           *bufio.Reader
	zstd        *zstd.Decoder
	fn          func(key, value []byte) error
	scan        stateScan
	packed, raw []byte
	last        []byte // the last key
	records     uint64
	bytes       uint64 // of the records
	hasSettings bool
	meta        *meta
	newest      uint64 // the highest revision of any record
	cleaned     uint64 // revision up to which history was removed
}

func (b *bodyReader) read(p []byte, what string) error {
	if _, err := io.ReadFull(b.r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: unexpected end in its %s", ErrBody, what)
		}
		return fmt.Errorf("read snapshot body: %w", err)
	}
	return nil
}

func (b *bodyReader) head() error {
	head := make([]byte, bodyHeadLen)
	if err := b.read(head, "head"); err != nil {
		return err
	}
	if string(head[:len(bodyMagic)]) != bodyMagic {
		return fmt.Errorf("%w: not a snapshot body", ErrBody)
	}
	if v := head[len(bodyMagic)]; v != bodyVersion {
		return &UnknownVersionError{What: "snapshot body", Version: v}
	}
	return nil
}

// block reads one block. It returns false at the end of the blocks.
func (b *bodyReader) block() (more bool, err error) {
	var head [blockHeadLen]byte
	if err := b.read(head[:], "blocks"); err != nil {
		return false, err
	}
	packedLen := binary.LittleEndian.Uint64(head[0:])
	rawLen := binary.LittleEndian.Uint64(head[8:])
	if head == [blockHeadLen]byte{} {
		return false, nil
	}
	if packedLen > maxBodyBlock || rawLen > maxBodyBlock {
		return false, fmt.Errorf("%w: block of %d bytes", ErrBody, max(packedLen, rawLen))
	}
	if err := b.fill(int(packedLen)); err != nil {
		return false, err
	}
	if xxhash.Sum64(b.packed) != binary.LittleEndian.Uint64(head[16:]) {
		return false, fmt.Errorf("%w: checksum mismatch in the block after record %d", ErrBody, b.records)
	}
	if b.raw, err = b.zstd.DecodeAll(b.packed, b.raw[:0]); err != nil || uint64(len(b.raw)) != rawLen {
		return false, fmt.Errorf("%w: cannot decompress the block after record %d", ErrBody, b.records)
	}
	return true, b.unpack()
}

// fill reads n bytes into packed, which grows only as they arrive: a head that claims
// 64 MiB must not allocate them before a byte has come.
func (b *bodyReader) fill(n int) error {
	b.packed = b.packed[:0]
	for len(b.packed) < n {
		from := len(b.packed)
		b.packed = append(b.packed, make([]byte, min(n-from, bodyBlockSize))...)
		if err := b.read(b.packed[from:], "blocks"); err != nil {
			return err
		}
	}
	return nil
}

func (b *bodyReader) unpack() error {
	b.bytes += uint64(len(b.raw))
	d := wire.Decoder{B: b.raw}
	for len(d.B) > 0 {
		key, value := d.Bytes(), d.Bytes()
		if d.Failed || len(key) == 0 {
			return fmt.Errorf("%w: record %d is malformed", ErrBody, b.records)
		}
		if b.records > 0 && bytes.Compare(key, b.last) <= 0 {
			return fmt.Errorf("%w: record %d is out of order", ErrBody, b.records)
		}
		b.last = append(b.last[:0], key...)
		b.records++
		if err := b.check(key, value); err != nil {
			return fmt.Errorf("%w: record %d: %w", ErrBody, b.records, err)
		}
		if err := b.fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (b *bodyReader) check(key, value []byte) error {
	if err := b.decode(key, value); err != nil {
		return err
	}
	if err := b.noteRevision(key); err != nil {
		return err
	}
	return b.scan.add(key, value)
}

// noteRevision checks and remembers the revision in a well-formed key.
func (b *bodyReader) noteRevision(key []byte) error {
	var revision uint64
	switch key[0] {
	case tableVersion:
		revision = ^binary.BigEndian.Uint64(key[len(key)-revisionLen:])
	case tableChange, tableTime:
		revision = binary.BigEndian.Uint64(key[1:])
	default:
		return nil
	}
	if revision < firstRevision {
		return fmt.Errorf("%w: revision %d", errLayout, revision)
	}
	b.newest = max(b.newest, revision)
	return nil
}

// decode decodes the record as later reads of it would: after the restore it is too
// late to refuse it.
func (b *bodyReader) decode(key, value []byte) (err error) {
	wantLen := 1
	switch key[0] {
	case tableMeta:
		b.meta = new(meta)
		*b.meta, err = decodeMeta(value)
	case tableSetting:
		b.hasSettings = true
		_, err = decodeSettings(value)
	case tableHistory:
		var done place
		done, err = decodeProgress(value)
		b.cleaned = done.revision - 1
	case tableTime:
		wantLen = 1 + revisionLen
		_, err = decodeSample(key, value)
	case tableChange:
		wantLen = len(key)
		var last uint64
		last, err = checkChanges(key, value)
		b.newest = max(b.newest, last)
	case tableVersion:
		wantLen = len(key)
		if err = checkVersionKey(key); err == nil {
			_, err = decodeVersion(^binary.BigEndian.Uint64(key[len(key)-revisionLen:]), value)
		}
	case tableRecord:
		wantLen = len(key)
	default:
		if isRowTable(key[0]) {
			return checkRow(key, value)
		}
		return fmt.Errorf("%w: unknown table %#x", errLayout, key[0])
	}
	if err == nil && len(key) != wantLen {
		return fmt.Errorf("%w: key of %d bytes in table %q", errLayout, len(key), key[0])
	}
	return err
}

func (b *bodyReader) trailer() (BodyInfo, error) {
	t := make([]byte, 8*(bodyTrailFlds+1))
	if err := b.read(t, "trailer"); err != nil {
		return BodyInfo{}, err
	}
	if xxhash.Sum64(t[:8*bodyTrailFlds]) != binary.LittleEndian.Uint64(t[8*bodyTrailFlds:]) {
		return BodyInfo{}, fmt.Errorf("%w: checksum mismatch in the trailer", ErrBody)
	}
	if _, err := b.r.ReadByte(); !errors.Is(err, io.EOF) {
		return BodyInfo{}, fmt.Errorf("%w: data after its end", ErrBody)
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(t[8*i:]) }
	info := BodyInfo{
		Records: number(0), Position: Position{Index: number(1), Term: number(2)},
		Revision: number(3), CompactRevision: number(4), StateHash: number(5), Keys: b.scan.keys, Bytes: b.bytes,
	}
	return info, b.compare(&info)
}

// compare compares the trailer, the meta record and what the records add up to.
func (b *bodyReader) compare(info *BodyInfo) error {
	if !b.hasSettings {
		b.scan.rest += emptyHash()
	}
	sum := b.scan.pairs + b.scan.rest
	m := b.meta
	if m == nil {
		m = &meta{revision: firstRevision, compact: firstRevision, rest: emptyHash()}
	}
	switch {
	case info.Records != b.records:
		return fmt.Errorf("%w: has %d records, want %d", ErrBody, b.records, info.Records)
	case m.position != info.Position || m.revision != info.Revision || m.compact != info.CompactRevision || m.hash() != info.StateHash:
		return fmt.Errorf("%w: its trailer does not match its content", ErrBody)
	// If the newest revision were compacted, nothing could be read. A version of a
	// future revision would hide those that are written until then.
	case m.compact < firstRevision || m.compact > m.revision || b.newest > m.revision || b.cleaned > m.compact:
		return fmt.Errorf("%w: its revisions contradict each other", ErrBody)
	case sum != info.StateHash:
		return fmt.Errorf("%w: the state hash of its content is %016x, want %016x", ErrBody, sum, info.StateHash)
	case m.pairs != b.scan.pairs || m.keys != b.scan.keys || m.logical != b.scan.logical:
		return fmt.Errorf("%w: has %d keys of %d bytes, want %d of %d", ErrBody, b.scan.keys, b.scan.logical, m.keys, m.logical)
	}
	return nil
}

// VerifyBody reads and checks a whole snapshot body.
func VerifyBody(r io.Reader) (BodyInfo, error) {
	return readBody(r, func(_, _ []byte) error { return nil })
}

// BodyContents is what a backup holds beside the keys.
type BodyContents struct {
	BodyInfo
	Settings    Settings
	Replication []Record // what the replication layer keeps in the store
}

// InspectBody is VerifyBody, and returns what is in the body.
func InspectBody(r io.Reader) (BodyContents, error) {
	c := BodyContents{Settings: DefaultSettings()}
	info, err := readBody(r, func(key, value []byte) (err error) {
		switch key[0] {
		case tableSetting:
			c.Settings, err = decodeSettings(value)
		case tableRecord:
			c.Replication = append(c.Replication, Record{Key: bytes.Clone(key[1:]), Value: bytes.Clone(value)})
		}
		return err
	})
	c.BodyInfo = info
	return c, err
}

// Restore replaces the whole state with that of a snapshot body. The body is verified
// before anything of it becomes visible; after an error or a crash the old state is
// still there (S7). It belongs to the goroutine that applies.
func (s *Store) Restore(r io.Reader) error {
	if s.exec.failed != nil {
		return s.exec.failed
	}
	verified := false
	err := s.eng.Replace(func(set func(key, value []byte) error) error {
		if _, err := readBody(r, set); err != nil {
			return err
		}
		// Only the swap is left. Readers wait from here until it is visible.
		s.swap.Lock()
		verified = true
		return nil
	})
	if verified {
		defer s.swap.Unlock()
	}
	if err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	s.exec.writes.Reset()
	if err := s.load(); err != nil {
		return s.exec.fail(err)
	}
	if s.observer == nil {
		s.publish()
	} else {
		s.observer.Reset(s.publish)
	}
	s.waiters.wakeAll()
	if s.leases != nil {
		s.leases.LeasesReset()
	}
	return nil
}
