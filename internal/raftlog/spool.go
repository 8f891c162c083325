package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

// spool keeps entries on disk that have left the log's memory, for as long as a
// snapshot transfer needs them: what a member has to replicate after it has
// installed the body. However slow the transfer, and however much is written
// meanwhile, they take disk and no memory.
//
// It is a list of files, oldest first. A file holds records, one entry each:
//
//	length   4 bytes   of the entry
//	crc32c   4 bytes   of the entry
//	entry              as raft encodes it
//
// The index in memory is sparse: one point each pointBytes, so that 1 GiB of log
// takes about 256 KiB of it. A read begins at a point and skips less than
// pointBytes. Terms only change with the leader, so they are kept as runs.
//
// Files are dropped from the front as the transfers progress. They are never
// synced, because a crash ends the transfers too.
//
// Invariants:
//
//	P1  Only applied entries are spooled, so none is ever replaced.
//	P2  The spool is contiguous, and ends where the log's memory begins.
//	P3  A published range was written as a whole, and is not written again.
//
// Rejected: reading the WAL's segments. etcd's WAL says neither where a record
// is nor how far it has flushed, and its segments hold records that later ones
// replace. Keeping the entries in memory, as before, bounded the transfer
// instead: 64 MiB of writes were enough that no new member could ever catch up.
//
// The Store's mutex guards all fields. Only the compactor writes files and
// publishes what it wrote.
type spool struct {
	index, term uint64 // the entry before the first
	last        uint64
	bytes       int64
	parts       []*spoolPart
	terms       []termRun
}

// SpoolFile is a file of a spool. Close removes it.
type SpoolFile interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// spoolPart is one file and what is published of it.
type spoolPart struct {
	file   SpoolFile
	last   uint64 // entry
	size   int64
	points []spoolPoint
}

// spoolPoint is where the record of an entry begins.
type spoolPoint struct {
	index  uint64
	offset int64
}

// termRun is the term of the entries from an index on.
type termRun struct{ from, term uint64 }

const (
	// spoolPartBytes is the size from which a file is followed by another. Space
	// comes back by whole files.
	spoolPartBytes = 32 << 20
	pointBytes     = 64 << 10
	spoolHeadLen   = 8
	// spoolChunkBytes bounds what is encoded and written at once.
	spoolChunkBytes = 1 << 20
	// maxSpoolRead bounds the read of one call of Entries, unless a single entry is
	// larger. Raft asks for as much in one message.
	maxSpoolRead = limits.MaxAppendBytes
)

var (
	spoolTable     = crc32.MakeTable(crc32.Castagnoli)
	errSpoolRecord = errors.New("record of the spool is damaged")
)

// spoolChunk is a run of entries, encoded.
type spoolChunk struct {
	data    []byte
	entries []*raftpb.Entry
	offsets []int64 // of the records in data
}

// encodeChunk encodes the first entries, at least one.
func encodeChunk(entries []*raftpb.Entry) (*spoolChunk, error) {
	c := new(spoolChunk)
	for _, e := range entries {
		if len(c.data) >= spoolChunkBytes {
			break
		}
		at := len(c.data)
		c.offsets = append(c.offsets, int64(at))
		c.data = append(c.data, make([]byte, spoolHeadLen)...)
		var err error
		if c.data, err = (proto.MarshalOptions{}).MarshalAppend(c.data, e); err != nil {
			return nil, fmt.Errorf("encode entry %d: %w", e.GetIndex(), err)
		}
		record := c.data[at+spoolHeadLen:]
		binary.LittleEndian.PutUint32(c.data[at:], uint32(len(record)))
		binary.LittleEndian.PutUint32(c.data[at+4:], crc32.Checksum(record, spoolTable))
		c.entries = append(c.entries, e)
	}
	return c, nil
}

// publish makes a chunk readable that was written to the end of the part.
func (s *spool) publish(p *spoolPart, c *spoolChunk) {
	if len(s.parts) == 0 || s.parts[len(s.parts)-1] != p {
		s.parts = append(s.parts, p)
	}
	for i, e := range c.entries {
		at := p.size + c.offsets[i]
		if n := len(p.points); n == 0 || at-p.points[n-1].offset >= pointBytes {
			p.points = append(p.points, spoolPoint{e.GetIndex(), at})
		}
		if n := len(s.terms); n == 0 || s.terms[n-1].term != e.GetTerm() {
			s.terms = append(s.terms, termRun{e.GetIndex(), e.GetTerm()})
		}
	}
	s.last = c.entries[len(c.entries)-1].GetIndex()
	p.last = s.last
	p.size += int64(len(c.data))
	s.bytes += int64(len(c.data))
}

// termOf returns the term of an entry between index and last.
func (s *spool) termOf(index uint64) uint64 {
	if index == s.index {
		return s.term
	}
	n := sort.Search(len(s.terms), func(i int) bool { return s.terms[i].from > index })
	return s.terms[n-1].term
}

// trim drops the files whose entries all lie at or before the index, and returns
// them to be closed.
func (s *spool) trim(index uint64) (dead []SpoolFile) {
	for len(s.parts) > 0 && s.parts[0].last <= index {
		p := s.parts[0]
		s.index, s.term = p.last, s.termOf(p.last)
		s.bytes -= p.size
		s.parts = s.parts[1:]
		dead = append(dead, p.file)
	}
	for len(s.terms) > 1 && s.terms[1].from <= s.index+1 {
		s.terms = s.terms[1:]
	}
	return dead
}

// files returns all files, to be closed.
func (s *spool) files() (all []SpoolFile) {
	for _, p := range s.parts {
		all = append(all, p.file)
	}
	return all
}

// BytesAfter returns the size of the records after an index, to the nearest
// point.
func (s *spool) bytesAfter(index uint64) (total int64) {
	for _, p := range s.parts {
		switch {
		case index >= p.last:
		case index < p.points[0].index:
			total += p.size
		default:
			total += p.size - p.points[p.point(index)].offset
		}
	}
	return total
}

// point returns the position of the last point at or before an entry.
func (p *spoolPart) point(index uint64) int {
	return sort.Search(len(p.points), func(i int) bool { return p.points[i].index > index }) - 1
}

// spoolRange is a place to read from, found under the lock and read without it.
type spoolRange struct {
	file   SpoolFile
	offset int64
	end    int64
}

// find returns where to look for an entry. Its file ends at an entry that may
// lie before the last one wanted: Entries may return fewer than it is asked for.
func (s *spool) find(index uint64) spoolRange {
	n := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].last >= index })
	p := s.parts[n]
	return spoolRange{file: p.file, offset: p.points[p.point(index)].offset, end: p.size}
}

// read returns the entries in [lo, hi), as many as fit into maxSize bytes but at
// least one. It reads from the file once, and a second time if the first entry is
// large.
func (r spoolRange) read(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	buf, err := r.at(r.offset, int64(min(maxSize, maxSpoolRead))+pointBytes)
	if err != nil {
		return nil, err
	}
	var entries []*raftpb.Entry
	size := uint64(0)
	for at := int64(0); at+spoolHeadLen <= int64(len(buf)); {
		length := int64(binary.LittleEndian.Uint32(buf[at:]))
		end := at + spoolHeadLen + length
		if end > int64(len(buf)) {
			if len(entries) > 0 || r.offset+end > r.end {
				break
			}
			// A single entry that is larger than the read.
			if buf, err = r.at(r.offset+at, spoolHeadLen+length); err != nil {
				return nil, err
			}
			r.offset += at
			at, end = 0, spoolHeadLen+length
		}
		e, err := decodeRecord(buf[at:end])
		if err != nil {
			return nil, err
		}
		at = end
		if e.GetIndex() < lo {
			continue
		}
		if size += uint64(proto.Size(e)); e.GetIndex() >= hi || len(entries) > 0 && size > maxSize {
			break
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 || entries[0].GetIndex() != lo {
		return nil, fmt.Errorf("%w: entry %d is not where it should be", errSpoolRecord, lo)
	}
	return entries, nil
}

// at reads up to n bytes.
func (r spoolRange) at(offset, n int64) ([]byte, error) {
	buf := make([]byte, min(n, r.end-offset))
	if _, err := r.file.ReadAt(buf, offset); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return buf, nil
}

func decodeRecord(record []byte) (*raftpb.Entry, error) {
	data := record[spoolHeadLen:]
	if crc32.Checksum(data, spoolTable) != binary.LittleEndian.Uint32(record[4:]) {
		return nil, errSpoolRecord
	}
	e := new(raftpb.Entry)
	if err := proto.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("%w: %w", errSpoolRecord, err)
	}
	return e, nil
}
