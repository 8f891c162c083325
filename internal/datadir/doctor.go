package datadir

import (
	"fmt"
	"os"
	"strings"
)

// Report is the offline verdict about a data directory.
type Report struct {
	Dir       string
	Identity  *Identity // nil: the directory is not claimed
	HeldBy    string    // pid of the process that has it open; empty: none
	Segments  []string  // of the log, the oldest first
	Records   int
	LastEntry uint64
	Term      uint64
	Vote      uint64
	Commit    uint64 // as last written; the true one may be higher
	Snapshots []string
	// Snapshot is the index that a start would begin with; 0: the beginning.
	Snapshot  uint64
	Watermark string // empty: none
	// TornFile is set when the log ends in a half-written record, which is cut
	// off at the next start.
	TornFile   string
	TornOffset int64
	TornReason string
	// Refused is why a node would refuse to start on this directory; nil when
	// it would start.
	Refused error
}

// Doctor reads a data directory as a starting node would, and changes nothing.
// The error is about reading it, not about what is in it. Of a directory in
// use it sees a moment, perhaps one in the middle of a write.
func Doctor(dir string) (Report, error) {
	r := Report{Dir: dir}
	if _, err := os.ReadDir(dir); err != nil {
		return r, err
	}
	holder, err := lockHolder(dir)
	if err != nil {
		return r, fmt.Errorf("see who holds the data directory: %w", err)
	}
	r.HeldBy = holder
	return r, r.examine()
}

func (r *Report) examine() error {
	if err := checkNotRecovering(r.Dir); err != nil {
		r.Refused = err
		return nil
	}
	id, err := readIdentity(r.Dir)
	if err == nil {
		err = id.checkLog(r.Dir)
	}
	if id != (Identity{}) {
		r.Identity = &id
	}
	refused, ok := err.(*RefusedError)
	if err != nil && !ok {
		return err
	}
	if ok {
		r.Refused = refused
	}
	if id.State == StateRemoved {
		r.Refused = fmt.Errorf("member %d was removed from its cluster: its id never returns", id.MemberID)
	}
	return r.examineLog()
}

func (r *Report) examineLog() error {
	if !hasLog(r.Dir) {
		return r.examineNoLog()
	}
	x, err := examine(r.Dir)
	if err != nil {
		return err
	}
	if r.Refused == nil && x.refused != nil {
		r.Refused = x.refused
	}
	files, err := snapshotFiles(r.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		r.Snapshots = append(r.Snapshots, f.name)
	}
	r.fill(x)
	return nil
}

// examineNoLog tells a fresh directory from one whose log is gone.
func (r *Report) examineNoLog() error {
	mark, err := readWatermark(r.Dir)
	if refused, ok := err.(*RefusedError); ok {
		r.Refused = refused
		return nil
	}
	if mark != nil && r.Refused == nil {
		r.Refused = refuse(walDir(r.Dir), "the log is missing: the watermark says that entry %d was on disk", mark.Index)
	}
	return err
}

func (r *Report) fill(x *examination) {
	g := x.log
	r.Segments, r.Records, r.LastEntry = g.segments, g.records, g.shape.last
	r.Term, r.Vote, r.Commit = g.hardState.term, g.hardState.vote, g.hardState.commit
	if g.torn() {
		r.TornFile, r.TornOffset, r.TornReason = g.file, g.offset, g.reason
	}
	if x.snapshot != nil {
		r.Snapshot = x.snapshot.index
	}
	if m := x.mark; m != nil {
		r.Watermark = fmt.Sprintf("member %d, term %d, vote %d, entry %d, segment %s", m.Member, m.Term, m.Vote, m.Index, m.Segment)
	}
}

// Verdict is the one line that matters.
func (r Report) Verdict() string {
	switch {
	case r.Refused != nil:
		return "refused: " + r.Refused.Error()
	case r.TornFile != "":
		return fmt.Sprintf("torn tail: will be repaired at start: %s at byte %d: %s", r.TornFile, r.TornOffset, r.TornReason)
	}
	return "ok"
}

// String describes the directory to a person.
func (r Report) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("directory", "%s", r.Dir)
	if r.HeldBy != "" {
		line("in use", "by process %s: this is a moment, perhaps in the middle of a write", r.HeldBy)
	}
	if id := r.Identity; id != nil {
		line("member", "%d (%s), cluster %016x, %s", id.MemberID, id.Name, id.ClusterID, id.State)
		if id.Original != 0 {
			line("recovered", "from cluster %016x", id.Original)
		}
	} else {
		line("member", "none")
	}
	line("log", "%d segments, %d records, last entry %d", len(r.Segments), r.Records, r.LastEntry)
	for _, s := range r.Segments {
		line("", "%s", s)
	}
	line("hard state", "term %d, vote %d, commit %d", r.Term, r.Vote, r.Commit)
	line("snapshots", "%d, a start would use that at %d", len(r.Snapshots), r.Snapshot)
	for _, s := range r.Snapshots {
		line("", "%s", s)
	}
	if r.Watermark == "" {
		line("watermark", "none")
	} else {
		line("watermark", "%s", r.Watermark)
	}
	line("verdict", "%s", r.Verdict())
	return b.String()
}
