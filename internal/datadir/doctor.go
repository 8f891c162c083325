package datadir

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Report is the offline verdict about a data directory.
type Report struct {
	Dir       string
	Identity  *Identity // nil if the directory is not claimed
	HeldBy    string    // pid of the process that has it open, or ""
	Segments  []string  // of the log, the oldest first
	Records   int
	LastEntry uint64
	Term      uint64
	Vote      uint64
	Commit    uint64 // as last written; the true one may be higher
	Snapshots []string
	Snapshot  uint64 // index of the one that a start would use; 0 if it would begin with the first log entry
	Watermark string // "" if there is none
	// TornFile is set if the log ends in a half-written record, which the next
	// start cuts off.
	TornFile   string
	TornOffset int64
	TornReason string
	// Refused is why a node would refuse to start on this directory; nil if it
	// would start.
	Refused *RefusedError
}

// Examine reads a data directory as a starting node would, and changes nothing.
// The error is about reading the directory, not about its content. If the
// directory is in use, the report may show the middle of a write.
//
// Examine judges only the files of this package. A caller that can open the
// store must judge the files in StorePath as well.
func Examine(dir string) (Report, error) {
	r := Report{Dir: dir}
	if _, err := os.ReadDir(dir); err != nil {
		return r, err
	}
	var err error
	if r.HeldBy, err = lockHolder(dir); err != nil {
		return r, fmt.Errorf("find the process that holds the data directory: %w", err)
	}
	return r, r.examine()
}

func (r *Report) examine() error {
	if err := checkNotRecovering(r.Dir); err != nil {
		// What is in place now is neither the old directory nor the new one.
		return r.refuse(err)
	}
	id, err := identify(r.Dir)
	if id != (Identity{}) {
		r.Identity = &id
	}
	if err := r.refuse(err); err != nil {
		return err
	}
	if err := r.refuse(id.checkUsable(r.Dir)); err != nil {
		return err
	}
	if !hasLog(r.Dir) {
		return r.refuse(checkNoLog(r.Dir))
	}
	return r.examineLog()
}

// JudgeMember adds what concerns the directory of a node: it belongs to a member.
func (r *Report) JudgeMember() {
	if r.Refused == nil && r.Identity == nil {
		_ = r.refuse(Identity{}.checkOwned(r.Dir)) // it returns nothing but refusals
	}
}

// refuse notes a refusal; the first one counts. It returns any other error.
func (r *Report) refuse(err error) error {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		return err
	}
	if r.Refused == nil {
		r.Refused = refused
	}
	return nil
}

func (r *Report) examineLog() error {
	x, err := inspect(r.Dir)
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

func (r *Report) fill(x *inspection) {
	g := x.log
	r.Segments, r.Records, r.LastEntry = g.segments, g.records, g.shape.last
	r.Term, r.Vote, r.Commit = g.hardState.term, g.hardState.vote, g.hardState.commit
	if g.torn() {
		r.TornFile, r.TornOffset, r.TornReason = g.file, g.offset, g.reason
	}
	if x.snapshot != nil {
		r.Snapshot = x.snapshot.index
	}
	if w := x.watermark; w != nil {
		r.Watermark = fmt.Sprintf("member %d, term %d, vote %d, entry %d, segment %s", w.Member, w.Term, w.Vote, w.Index, w.Segment)
	}
}

// Verdict sums the report up in one line.
func (r Report) Verdict() string {
	switch {
	case r.Refused != nil:
		return "refused: " + r.Refused.verdict()
	case r.TornFile != "":
		return fmt.Sprintf("torn tail, which the next start cuts off: %s at byte %d: %s", r.TornFile, r.TornOffset, r.TornReason)
	case r.Identity == nil && len(r.Segments) == 0:
		return "no data of a member; a start would begin as a new one"
	}
	return "ok"
}

// String describes the directory to a person, one fact per line and the
// verdict last.
func (r Report) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("directory", "%s", r.Dir)
	if r.HeldBy != "" {
		line("in use", "by process %s; this report may show the middle of a write", r.HeldBy)
	}
	if id := r.Identity; id != nil {
		line("member", "%d (%s), cluster %016x, %s", id.MemberID, id.Name, id.ClusterID, id.State)
		if id.Original != 0 {
			line("recovered", "from cluster %016x", id.Original)
		}
	} else {
		line("member", "none")
	}
	line("log", "last entry %d; %s in %s", r.LastEntry, count(r.Records, "record"), count(len(r.Segments), "segment"))
	for _, s := range r.Segments {
		line("", "%s", s)
	}
	line("hard state", "term %d, vote %d, commit %d", r.Term, r.Vote, r.Commit)
	if r.Snapshot > 0 {
		line("snapshots", "%d; a start would begin with the one at entry %d", len(r.Snapshots), r.Snapshot)
	} else {
		line("snapshots", "%d; a start would begin with the first log entry", len(r.Snapshots))
	}
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

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
