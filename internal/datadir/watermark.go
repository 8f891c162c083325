package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"
)

// watermark records a position that the log had surely reached on disk. A log
// that ends earlier, or whose term or vote is older, has lost entries or a vote
// that other members may rely on. The WAL alone cannot tell a lost tail from one
// that never existed: a missing last segment, or a file cut between two records,
// leaves a perfect log.
//
// It lags behind the log by up to WatermarkPace, and never claims more than
// the log holds (D3): it is lowered before entries are overwritten.
type watermark struct {
	Format  int    `json:"format"`
	Member  uint64 `json:"member"` // 0 if the directory had no identity
	Term    uint64 `json:"term"`
	Vote    uint64 `json:"vote"`
	Index   uint64 `json:"index"`   // last entry that was synced
	Segment string `json:"segment"` // newest WAL segment at that time
	CRC32C  uint32 `json:"crc32c"`  // of the other fields
}

const (
	watermarkFormat = 1
	// WatermarkPace bounds how often the watermark is written. Each time costs two
	// fsyncs.
	WatermarkPace = time.Second
)

func watermarkPath(dir string) string { return filepath.Join(dir, "watermark") }

func (w watermark) checksum() uint32 {
	return crc32.Checksum(fmt.Appendf(nil, "%d %d %d %d %d %s", w.Format, w.Member, w.Term, w.Vote, w.Index, w.Segment), castagnoli)
}

// readWatermark returns nil if there is none. A damaged one is a *RefusedError
// (D6). Format and checksum are left out of the result, so that two watermarks
// of the same position are equal.
func readWatermark(dir string) (*watermark, error) {
	path := watermarkPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read watermark: %w", err)
	}
	w := new(watermark)
	if err := json.Unmarshal(b, w); err != nil || w.CRC32C != w.checksum() || !bytes.Equal(b, w.encode()) {
		return nil, refuse(path, "the watermark is damaged")
	}
	if w.Format != watermarkFormat {
		return nil, fmt.Errorf("%s has format %d, but this binary supports only format %d: upgrade kvd", path, w.Format, watermarkFormat)
	}
	w.Format, w.CRC32C = 0, 0 // write sets them again
	return w, nil
}

func (w watermark) encode() []byte {
	b, err := json.Marshal(w)
	if err != nil {
		panic(fmt.Sprintf("datadir: encode the watermark: %v", err)) // plain data always encodes
	}
	return append(b, '\n')
}

func (w watermark) write(dir string) error {
	w.Format = watermarkFormat
	w.CRC32C = w.checksum()
	if err := replaceFile(watermarkPath(dir), w.encode()); err != nil {
		return fmt.Errorf("write watermark: %w", err)
	}
	return nil
}

// checkNoLog judges a directory without a log: an empty log may begin in it
// only if the watermark knows of none.
func checkNoLog(dir string) error {
	w, err := readWatermark(dir)
	if err == nil && w != nil {
		return refuse(walDir(dir), "the log is missing, but according to the watermark entry %d was on disk", w.Index)
	}
	return err
}

// check compares a log that is clean or torn with the watermark.
func (w *watermark) check(dir string, g *guardReport) *RefusedError {
	wal := walDir(dir)
	if w == nil {
		// createLog writes the log first and the watermark second. Once
		// something is in the log, a start has written the watermark.
		if g.shape.known && g.shape.last == 0 && g.hardState == (hardStateRecord{}) {
			return nil
		}
		return refuse(watermarkPath(dir), "the watermark is missing, so nothing proves that the log is complete")
	}
	hs := g.hardState
	last := max(g.shape.last, g.newestSnapshot())
	switch {
	case segmentBefore(g.lastSegment(), w.Segment):
		return refuse(filepath.Join(wal, w.Segment), "the last segment is missing: the log ends with %s", g.lastSegment())
	case hs.term < w.Term:
		return refuse(wal, "the log is at term %d, but this member had reached term %d", hs.term, w.Term)
	case hs.term == w.Term && w.Vote != 0 && hs.vote != w.Vote:
		return refuse(wal, "the log has a vote for member %d in term %d, but this member voted for member %d", hs.vote, w.Term, w.Vote)
	case last < w.Index:
		r := refuse(wal, "the log ends at entry %d, but entry %d was on disk", last, w.Index)
		if g.torn() {
			r.File, r.Offset = g.file, g.offset
		}
		return r
	}
	return nil
}

// segmentBefore compares segments by their number only. The index in a name
// may go back: a newer leader overwrites entries, and the next segment begins
// at a lower index.
func segmentBefore(a, b string) bool {
	sa, _, _ := parseSegmentName(a)
	sb, _, err := parseSegmentName(b)
	return err == nil && sa < sb
}
