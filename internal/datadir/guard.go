package datadir

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// logVerdict is the boot guard's judgment of a log.
type logVerdict int

const (
	logClean   logVerdict = iota // every byte is accounted for
	logTorn                      // the last write did not reach the disk completely
	logCorrupt                   // something was changed or lost afterwards
)

func (v logVerdict) String() string {
	return [...]string{"clean", "torn tail", "corrupt"}[v]
}

// guardReport holds the boot guard's findings about a log. After the verdict
// corrupt, they describe the log up to the damage.
type guardReport struct {
	verdict logVerdict
	file    string // where it is torn or corrupt
	offset  int64
	reason  string

	segments  []string // names, the oldest first
	records   int
	metadata  []byte // of the segments: whose log it is
	shape     logShape
	hardState hardStateRecord
	save      uint64           // number of the last save that is complete (D8)
	snapshots []snapshotRecord // in the order they were written

	crc     uint32          // running checksum, continued from segment to segment
	pending *snapshotRecord // the record before, if it is a snapshot not yet in effect
}

func (g *guardReport) torn() bool { return g.verdict == logTorn }

// lastSegment is the name of the newest segment.
func (g *guardReport) lastSegment() string {
	if len(g.segments) == 0 {
		return ""
	}
	return g.segments[len(g.segments)-1]
}

// refusal is the error for a corrupt log.
func (g *guardReport) refusal() *RefusedError {
	return &RefusedError{File: g.file, Offset: g.offset, Reason: g.reason, Remedy: RemoveAndReAdd}
}

func (g *guardReport) corrupt(file string, offset int, format string, args ...any) {
	g.verdict, g.file, g.offset, g.reason = logCorrupt, file, int64(offset), fmt.Sprintf(format, args...)
}

// validSnapshots returns the snapshots that a start may begin with: those that
// the last hard state has committed (D2).
func (g *guardReport) validSnapshots() []snapshotRecord {
	var valid []snapshotRecord
	for _, s := range g.snapshots {
		if s.index <= g.hardState.commit {
			valid = append(valid, s)
		}
	}
	return valid
}

// guardLog reads an entire WAL before it is opened, and changes nothing. The
// package comment says why etcd's own reading is not enough.
//
// The verdict rests on the damage that a crash can do: to the last save, and to
// nothing else. A disk writes sectors of 512 bytes completely or not at all, in
// any order, and a segment is zeroed when it is created. So a save that a crash
// cut short shows as missing sectors (zeros) anywhere in it, or as a missing end
// of the file:
//
//	clean    every byte is accounted for
//	torn     in the last segment, sectors of a record, or the end of the file,
//	         are missing, and whatever comes after it belongs to the same save
//	         (see tail)
//	corrupt  everything else: a record of a later save after the damage, so that
//	         the damaged save was synced; a record with all its sectors and a
//	         wrong checksum; damage in another segment or in the head of a
//	         segment, both of which were synced before anything else was written
//
// Whether whole records are missing from the end is for the watermark to decide.
// The error is about reading the files, not about their content.
func guardLog(dir string) (*guardReport, error) {
	g := new(guardReport)
	var err error
	if g.segments, err = listSuffix(dir, ".wal"); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if !g.checkNames(dir) {
		return g, nil
	}
	var b []byte // reused from segment to segment
	for i, name := range g.segments {
		path := filepath.Join(dir, name)
		if b, err = readWhole(path, b); err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
		s := segment{path: path, data: b, first: i == 0, last: i == len(g.segments)-1}
		if !g.readSegment(&s) {
			return g, nil
		}
	}
	if end := max(g.shape.last, g.newestSnapshot()); g.hardState.commit > end && g.verdict != logCorrupt {
		g.corrupt(filepath.Join(dir, g.lastSegment()), 0, "the log ends at entry %d, but entries up to %d were committed", end, g.hardState.commit)
	}
	return g, nil
}

// newestSnapshot returns the index of the newest valid snapshot if the log
// itself says nothing about its end: its beginning was purged, and no entry
// came after the snapshot. Otherwise it returns 0.
func (g *guardReport) newestSnapshot() (index uint64) {
	if g.shape.known {
		return 0
	}
	for _, s := range g.validSnapshots() {
		index = max(index, s.index)
	}
	return index
}

// checkNames reports whether the segments are numbered without a gap.
func (g *guardReport) checkNames(dir string) bool {
	if len(g.segments) == 0 {
		g.corrupt(dir, 0, "the log has no segments")
		return false
	}
	var next uint64
	for i, name := range g.segments {
		seq, _, err := parseSegmentName(name)
		if err != nil {
			g.corrupt(filepath.Join(dir, name), 0, "%v", err)
			return false
		}
		if i > 0 && seq != next {
			g.corrupt(dir, 0, "log segment %d, which precedes %s, is missing", next, name)
			return false
		}
		next = seq + 1
	}
	// Only a log that was never purged has a known beginning: entry 1.
	first, _, _ := parseSegmentName(g.segments[0])
	g.shape.known = first == 0
	return true
}

// parseSegmentName reads a name as etcd writes it, and no other: the number of
// the segment and the index of the first entry written to it.
func parseSegmentName(name string) (seq, index uint64, err error) {
	_, err = fmt.Sscanf(name, "%016x-%016x.wal", &seq, &index)
	if err != nil || name != fmt.Sprintf("%016x-%016x.wal", seq, index) {
		return 0, 0, fmt.Errorf("%q is not the name of a log segment", name)
	}
	return seq, index, nil
}

// readWhole reads a file into b, growing it if necessary.
func readWhole(path string, b []byte) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return b, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return b, err
	}
	b = slices.Grow(b[:0], int(info.Size()))[:info.Size()]
	n, err := io.ReadFull(f, b)
	if err == io.ErrUnexpectedEOF || err == io.EOF {
		err = nil // it became shorter meanwhile: the doctor looks at a live directory
	}
	return b[:n], err
}

// segment is one file of the log being read.
type segment struct {
	path        string
	data        []byte
	first, last bool
}

// readSegment walks the records of a segment. It reports whether to continue with
// the next segment.
func (g *guardReport) readSegment(s *segment) bool {
	offset, n := 0, 0
	for offset < len(s.data) && !s.zeroWordAt(offset) {
		rec, next, problem := readRecord(s.data, offset, g.crc)
		if problem == "" {
			if problem = g.take(rec, n, s.first); problem != "" {
				g.corrupt(s.path, offset, "%s", problem)
				return false
			}
			offset, n = next, n+1
			continue
		}
		if !s.last || n < segmentHead {
			g.corrupt(s.path, offset, "%s", problem)
			return false
		}
		g.judgeTail(s, offset, problem)
		return false
	}
	return g.endSegment(s, offset, n)
}

// segmentHead is the number of records that a segment has before it gets its
// name: the checksum of the segments before it, and the metadata. A crash
// cannot leave a segment without them.
const segmentHead = 2

func (s *segment) zeroWordAt(offset int) bool {
	return len(s.data)-offset >= walFrameHead && binary.LittleEndian.Uint64(s.data[offset:]) == 0
}

// endSegment checks the space after the last record: there must be none, or
// zeros to the end of the file. It reports whether to continue with the next
// segment.
func (g *guardReport) endSegment(s *segment, offset, records int) bool {
	if records < segmentHead {
		g.corrupt(s.path, offset, "the header of the segment is missing, although a segment has one before it gets its name")
		return false
	}
	at := firstNonZero(s.data[offset:])
	switch {
	case at < 0:
		return true // if records are missing, the next segment's checksum reveals it
	case !s.last:
		g.corrupt(s.path, offset, "a record is zeroed")
	default:
		g.judgeZeros(s, offset, offset+at)
	}
	return false
}

// judgeZeros decides between torn and corrupt if there are zeros at the offset
// and other bytes behind them, the first one at position after.
func (g *guardReport) judgeZeros(s *segment, offset, after int) {
	t := tail{data: s.data, save: g.save}
	t.scan(offset + walFrameHead)
	switch {
	case t.later > 0:
		g.corrupt(s.path, offset, "a record is zeroed, and another record follows at byte %d", t.later)
	case after/walSector == offset/walSector:
		// The length word and the bytes right after it are in one sector, which
		// is written completely or not at all. So a crash cannot have zeroed
		// the word alone.
		g.corrupt(s.path, offset, "the length of a record is zeroed")
	default:
		g.tear(s, offset, "the beginning of a record in the last write is missing")
	}
}

func (g *guardReport) tear(s *segment, offset int, problem string) {
	g.verdict, g.file, g.offset, g.reason = logTorn, s.path, int64(offset), problem
}

// judgeTail decides between torn and corrupt for a damaged record in the last
// segment: did a crash cut the write short, or was the record damaged later?
func (g *guardReport) judgeTail(s *segment, offset int, problem string) {
	body := offset + walFrameHead
	if body > len(s.data) {
		g.tear(s, offset, problem) // the file ends inside the length word
		return
	}
	t := tail{data: s.data, save: g.save}
	t.walk(offset)
	switch {
	case t.later > 0:
		g.corrupt(s.path, offset, "%s, and another record follows at byte %d", problem, t.later)
	case !missesSector(s.data, offset):
		g.corrupt(s.path, offset, "%s, although no part of the record is missing", problem)
	default:
		g.tear(s, offset, problem)
	}
}

// take checks that a record may follow the records before it, and notes its
// content. n is its number in its segment. problem is empty if it may.
func (g *guardReport) take(rec walRecord, n int, first bool) (problem string) {
	if problem = g.placed(rec, n, first); problem != "" {
		return problem
	}
	g.records++
	g.crc = rec.crc
	before := g.pending
	g.pending = nil
	switch rec.kind {
	case walMetadata:
		g.metadata = slices.Clone(rec.data)
	case walEntry:
		return g.takeEntry(rec)
	case walState:
		return g.takeState(rec, before)
	case walSnapshot:
		return g.takeSnapshot(rec)
	}
	return ""
}

// placed checks that a segment begins with its head (checksum, then metadata),
// and that no other record in it is one of these.
func (g *guardReport) placed(rec walRecord, n int, first bool) (problem string) {
	switch {
	case (n == 0) != (rec.kind == walCRC), (n == 1) != (rec.kind == walMetadata):
		return fmt.Sprintf("record %d of the segment has unexpected type %d", n, rec.kind)
	case n == 0 && (len(rec.data) > 0 || !first && rec.crc != g.crc):
		return "the segment does not continue the previous one"
	}
	return ""
}

func (g *guardReport) takeEntry(rec walRecord) (problem string) {
	e, ok := rec.entry()
	switch {
	case !ok:
		return "a log entry is damaged"
	case e.index <= g.hardState.commit: // D1: it was written before the commit index
		return fmt.Sprintf("entry %d was overwritten after entry %d was committed", e.index, g.hardState.commit)
	}
	return g.shape.put(e)
}

// takeState also puts a snapshot into effect: by D2 the hard state that commits
// a snapshot follows it at once. Without it the log continues as if the
// snapshot were not there.
func (g *guardReport) takeState(rec walRecord, snapshot *snapshotRecord) (problem string) {
	s, save, ok := rec.hardState()
	old := g.hardState
	switch {
	case !ok:
		return "a hard state is damaged"
	case s.term < old.term:
		return fmt.Sprintf("the term goes back from %d to %d", old.term, s.term)
	case s.term == old.term && old.vote != 0 && s.vote != old.vote:
		return fmt.Sprintf("the vote in term %d changes from member %d to member %d", s.term, old.vote, s.vote)
	}
	g.hardState, g.save = s, save
	if snapshot != nil && s.commit >= snapshot.index && !g.shape.continues(*snapshot) {
		g.shape.restart(*snapshot)
	}
	return ""
}

func (g *guardReport) takeSnapshot(rec walRecord) (problem string) {
	s, ok := rec.snapshot()
	if !ok {
		return "a snapshot record is damaged"
	}
	g.snapshots = append(g.snapshots, s)
	if s.index > g.hardState.commit {
		g.pending = &s
	}
	return ""
}
