package raftnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// watermark is what this member surely had on disk. A log that is shorter, or
// whose term or vote went back, has lost what may have been promised: the WAL
// alone can not tell a lost tail from one that never was.
type watermark struct {
	Format  int    `json:"format"`
	Term    uint64 `json:"term"`
	Vote    uint64 `json:"vote"`
	Index   uint64 `json:"index"`   // last entry that was synced
	Segment string `json:"segment"` // last WAL segment at that time
	CRC32C  uint32 `json:"crc32c"`  // of the other fields
}

const (
	watermarkFormat = 1
	// watermarkPace bounds how often it is written: each time costs two fsyncs.
	watermarkPace = time.Second
)

func watermarkPath(dir string) string { return filepath.Join(dir, "watermark") }

func (w watermark) checksum() uint32 {
	return crc32.Checksum(fmt.Appendf(nil, "%d %d %d %d %s", w.Format, w.Term, w.Vote, w.Index, w.Segment), castagnoli)
}

// readWatermark returns nil where there is none yet.
func readWatermark(dir string) (*watermark, error) {
	b, err := os.ReadFile(watermarkPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the watermark: %w", err)
	}
	w := new(watermark)
	if err := json.Unmarshal(b, w); err != nil || w.CRC32C != w.checksum() || w.Format != watermarkFormat {
		return nil, &RefusedError{File: watermarkPath(dir), Reason: "the watermark is damaged or of an unknown format", Remedy: RemoveAndReAdd}
	}
	return w, nil
}

func (w watermark) write(dir string) error {
	w.Format = watermarkFormat
	w.CRC32C = w.checksum()
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := writeFileDurably(watermarkPath(dir), append(b, '\n')); err != nil {
		return fmt.Errorf("write the watermark: %w", err)
	}
	return nil
}

// check holds what was read from the log against the watermark. A log that
// goes on below the index after an overwrite by a newer leader has a newer
// term.
func (w *watermark) check(dir string, hs *raftpb.HardState, lastIndex uint64, lastSegment string) error {
	if w == nil {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return &RefusedError{File: filepath.Join(dir, "wal"), Reason: fmt.Sprintf(format, args...), Remedy: RemoveAndReAdd}
	}
	switch {
	case lastSegment < w.Segment:
		return refuse("the last segment is %s, but %s was in use", lastSegment, w.Segment)
	case hs.GetTerm() < w.Term:
		return refuse("the log is of term %d, but this member was in term %d", hs.GetTerm(), w.Term)
	case hs.GetTerm() == w.Term && w.Vote != 0 && hs.GetVote() != w.Vote:
		return refuse("the log says it voted for %d in term %d, but it voted for %d", hs.GetVote(), w.Term, w.Vote)
	case lastIndex < w.Index && hs.GetTerm() == w.Term:
		return refuse("the log ends at entry %d, but entry %d was on disk", lastIndex, w.Index)
	}
	return nil
}
