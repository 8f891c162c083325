package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// RefusedError says that a data directory must not be used: what its member
// has promised may be lost. The process ends with exit code 3; nothing is
// deleted or repaired.
type RefusedError struct {
	File   string
	Offset int64 // where in the file; 0 when it is about the file as a whole
	Reason string
	Remedy string
}

// RemoveAndReAdd is the remedy for a member that can not keep its promises.
const RemoveAndReAdd = "keep the directory for a post-mortem, remove this member from the cluster (DELETE /v1/members/ID on another member), and add the machine under a new id with an empty directory"

func (e *RefusedError) Error() string {
	if e.Offset > 0 {
		return fmt.Sprintf("refusing to start: %s at byte %d: %s; %s", e.File, e.Offset, e.Reason, e.Remedy)
	}
	return fmt.Sprintf("refusing to start: %s: %s; %s", e.File, e.Reason, e.Remedy)
}

// The record types of etcd's WAL.
const (
	walMetadata = 1
	walEntry    = 2
	walState    = 3
	walCRC      = 4
	walSnapshot = 5
)

const (
	walSector    = 512
	walFrameHead = 8
	// maxWALRecord is more than the largest entry: what claims to be larger is
	// no record.
	maxWALRecord = 256 << 20
)

// guardReport is what the boot guard found in a log that may be used.
type guardReport struct {
	segments []string
	records  int
	last     uint64 // index of the last entry
	// tornFile is set when the last write did not reach the disk whole: its
	// records were never acknowledged and are cut off at tornOffset.
	tornFile   string
	tornOffset int64
}

func (g *guardReport) torn() bool { return g.tornFile != "" }

// guardLog reads a whole WAL before it is opened, because opening it would
// silently cut off acknowledged entries at a damaged record in the middle of
// the last segment (wal.Repair calls that a torn tail), or take a missing or
// emptied last segment for the end. It changes nothing.
//
// A torn tail is the end of the last segment, with no record after it. If
// there is one, records were lost in between: that is corruption, and a
// *RefusedError.
func guardLog(dir string) (*guardReport, error) {
	names, err := segmentNames(dir)
	if err != nil {
		return nil, err
	}
	g := &guardReport{segments: names}
	crc := crc32.New(castagnoli)
	for i, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		s := segment{path: filepath.Join(dir, name), data: data, last: i == len(names)-1}
		if crc, err = g.readSegment(&s, crc); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// segmentNames lists the segments and checks that none is missing in between.
func segmentNames(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	var names []string
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".wal") {
			names = append(names, f.Name())
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return nil, &RefusedError{File: dir, Reason: "the log has no segment", Remedy: RemoveAndReAdd}
	}
	var next uint64
	for i, name := range names {
		seq, _, err := parseSegmentName(name)
		if err != nil {
			return nil, &RefusedError{File: filepath.Join(dir, name), Reason: err.Error(), Remedy: RemoveAndReAdd}
		}
		if i > 0 && seq != next {
			return nil, &RefusedError{File: dir, Reason: fmt.Sprintf("segment %d of the log is missing before %s", next, name), Remedy: RemoveAndReAdd}
		}
		next = seq + 1
	}
	return names, nil
}

func parseSegmentName(name string) (seq, index uint64, err error) {
	if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &index); err != nil {
		return 0, 0, errors.New("not the name of a log segment")
	}
	return seq, index, nil
}

// segment is one file of the log being read.
type segment struct {
	path string
	data []byte
	last bool
}

func (s *segment) refuse(offset int, format string, args ...any) error {
	return &RefusedError{File: s.path, Offset: int64(offset), Reason: fmt.Sprintf(format, args...), Remedy: RemoveAndReAdd}
}

// errTorn marks a record that a crash may have left behind half-written.
var errTorn = errors.New("half-written record")

// readSegment walks the records and returns the running checksum.
func (g *guardReport) readSegment(s *segment, crc hash.Hash32) (hash.Hash32, error) {
	offset, first := 0, true
	for offset < len(s.data) {
		rec, size, err := nextRecord(s.data[offset:])
		if err == nil && rec == nil {
			break // zeros: space not yet written
		}
		if err == nil {
			crc, err = g.take(s, rec, crc, s.data[offset:offset+size])
		}
		if err != nil {
			return crc, g.judge(s, offset, first, err)
		}
		first = false
		offset += size
	}
	switch {
	case first:
		return crc, s.refuse(0, "the segment is empty; it had at least a checksum when it was made")
	case !s.last && offset < len(s.data):
		return crc, s.refuse(offset, "zeros where records were")
	case s.last && laterRecord(s.data, offset):
		return crc, s.refuse(offset, "zeros, with records after them: acknowledged entries are lost")
	case s.last && !allZero(s.data[offset:]):
		g.tornFile, g.tornOffset = s.path, int64(offset)
	}
	return crc, nil
}

// judge decides what a record that can not be read means.
func (g *guardReport) judge(s *segment, offset int, first bool, err error) error {
	switch {
	case !s.last || first || !errors.Is(err, errTorn):
		return s.refuse(offset, "%v", err)
	case laterRecord(s.data, offset+walFrameHead):
		return s.refuse(offset, "%v, with records after it: acknowledged entries are lost", err)
	}
	g.tornFile, g.tornOffset = s.path, int64(offset)
	return nil
}

// nextRecord reads one frame: a length word, whose top byte says how much
// padding follows the record, the record, the padding. A nil record without
// an error is the end.
func nextRecord(b []byte) (rec *walpb.Record, size int, err error) {
	if len(b) < walFrameHead {
		return nil, 0, errTorn
	}
	head := binary.LittleEndian.Uint64(b)
	if head == 0 {
		return nil, 0, nil
	}
	length, padding := int64(head&(1<<56-1)), 0
	if head>>63 != 0 {
		padding = int(head>>56) & 7
	}
	if length > maxWALRecord {
		return nil, 0, fmt.Errorf("%w: it claims %d bytes", errTorn, length)
	}
	size = walFrameHead + int(length) + padding
	if size > len(b) {
		return nil, 0, fmt.Errorf("%w: %d of %d bytes", errTorn, len(b), size)
	}
	rec = new(walpb.Record)
	if err := proto.Unmarshal(b[walFrameHead:walFrameHead+int(length)], rec); err != nil {
		return nil, 0, damaged(b[:size], "it can not be decoded")
	}
	return rec, size, nil
}

// damaged tells a write that missed whole sectors (torn) from one that was
// changed afterwards.
func damaged(frame []byte, what string) error {
	if hasZeroSector(frame) {
		return fmt.Errorf("%w: %s", errTorn, what)
	}
	return fmt.Errorf("damaged record: %s", what)
}

// hasZeroSector looks for a run of zeros as long as what is left of a sector:
// disks write sectors whole. Without the frame's place in the file any aligned
// piece of half a sector counts.
func hasZeroSector(frame []byte) bool {
	for b := frame; len(b) > 0; {
		n := min(len(b), walSector)
		if allZero(b[:n]) {
			return true
		}
		b = b[n:]
	}
	return allZero(frame[max(0, len(frame)-walFrameHead):])
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// take checks a record against the running checksum and counts it.
func (g *guardReport) take(s *segment, rec *walpb.Record, crc hash.Hash32, frame []byte) (hash.Hash32, error) {
	switch rec.GetType() {
	case walCRC:
		if g.records > 0 && crc.Sum32() != 0 && rec.GetCrc() != crc.Sum32() {
			return crc, errors.New("the checksum does not continue that of the segment before")
		}
		g.records++
		return newRunningCRC(rec.GetCrc()), nil
	case walMetadata, walEntry, walState, walSnapshot:
	default:
		return crc, damaged(frame, fmt.Sprintf("unknown type %d", rec.GetType()))
	}
	_, _ = crc.Write(rec.GetData()) // a hash never fails
	if rec.GetCrc() != crc.Sum32() {
		return crc, damaged(frame, "its checksum does not match")
	}
	g.records++
	if rec.GetType() == walEntry {
		e := new(raftpb.Entry)
		if err := proto.Unmarshal(rec.GetData(), e); err != nil {
			return crc, fmt.Errorf("damaged record: entry: %w", err)
		}
		g.last = e.GetIndex()
	}
	return crc, nil
}

// runningCRC continues a CRC32C from a sum.
type runningCRC struct{ sum uint32 }

func newRunningCRC(sum uint32) hash.Hash32 { return &runningCRC{sum} }

func (c *runningCRC) Write(p []byte) (int, error) {
	c.sum = crc32.Update(c.sum, castagnoli, p)
	return len(p), nil
}
func (c *runningCRC) Sum32() uint32       { return c.sum }
func (c *runningCRC) Sum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, c.sum) }
func (c *runningCRC) Reset()              { c.sum = 0 }
func (c *runningCRC) Size() int           { return crc32.Size }
func (c *runningCRC) BlockSize() int      { return 1 }

// laterRecord looks for something that can only be a record, from the offset
// on. Frames are aligned to 8 bytes.
func laterRecord(data []byte, offset int) bool {
	for o := (offset + 7) &^ 7; o+walFrameHead <= len(data); o += 8 {
		if binary.LittleEndian.Uint64(data[o:]) == 0 {
			continue
		}
		if rec, _, err := nextRecord(data[o:]); err == nil && rec != nil && plausibleRecord(rec) {
			return true
		}
	}
	return false
}

// plausibleRecord is strict, since arbitrary values inside a torn record must
// not look like a record of their own.
func plausibleRecord(rec *walpb.Record) bool {
	switch rec.GetType() {
	case walEntry:
		e := new(raftpb.Entry)
		return rec.Crc != nil && proto.Unmarshal(rec.GetData(), e) == nil &&
			e.GetIndex() > 0 && e.GetIndex() < maxPlausibleIndex && e.GetTerm() > 0 && e.GetTerm() < maxPlausibleTerm
	case walState:
		hs := new(raftpb.HardState)
		return rec.Crc != nil && proto.Unmarshal(rec.GetData(), hs) == nil && hs.GetTerm() > 0 && hs.GetTerm() < maxPlausibleTerm
	case walSnapshot:
		s := new(walpb.Snapshot)
		return rec.Crc != nil && proto.Unmarshal(rec.GetData(), s) == nil && s.GetIndex() > 0 && s.GetIndex() < maxPlausibleIndex
	}
	return false
}
