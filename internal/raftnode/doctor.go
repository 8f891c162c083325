package raftnode

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Report is the offline verdict about a data directory.
type Report struct {
	Dir       string
	Identity  *Identity // nil: the directory is not claimed
	Segments  []string
	Records   int
	LastEntry uint64
	Snapshots []string
	// TornFile is set when the log ends in a half-written record, which is cut
	// off at the next start.
	TornFile   string
	TornOffset int64
	// Refused is why a node would refuse to start on this directory; nil when
	// it would start.
	Refused error
}

// Doctor reads a data directory as a starting node would, and changes nothing.
// The error is about reading it, not about what is in it.
func Doctor(dir string) (Report, error) {
	r := Report{Dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, "member.json"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return r, fmt.Errorf("%s is not a data directory of kvd: it has no member.json", dir)
	case err != nil:
		return r, err
	}
	id, err := parseIdentity(b)
	if err != nil {
		r.Refused = &RefusedError{File: filepath.Join(dir, "member.json"), Reason: err.Error(), Remedy: RemoveAndReAdd}
		return r, nil
	}
	r.Identity = &id
	if id.State == StateRemoved {
		r.Refused = fmt.Errorf("member %d was removed from its cluster: its id never returns", id.MemberID)
		return r, nil
	}
	return r, r.examineLog()
}

func (r *Report) examineLog() error {
	if !diskExists(r.Dir) {
		if r.Identity.State == StateAdmitted {
			r.Refused = &RefusedError{File: r.Dir, Reason: "the member has taken part, but its log is gone", Remedy: RemoveAndReAdd}
		}
		return nil
	}
	r.Snapshots, _ = listSuffix(snapDir(r.Dir), ".snap") // none before the first
	mark, err := readWatermark(r.Dir)
	if err != nil {
		return r.refusedBy(err)
	}
	g, err := guardLog(walDir(r.Dir))
	if err != nil {
		return r.refusedBy(err)
	}
	r.Segments, r.Records, r.LastEntry = g.segments, g.records, g.last
	r.TornFile, r.TornOffset = g.tornFile, g.tornOffset
	if mark != nil && r.Segments[len(r.Segments)-1] < mark.Segment {
		r.Refused = &RefusedError{File: walDir(r.Dir), Reason: fmt.Sprintf("the last segment is %s, but %s was in use", r.Segments[len(r.Segments)-1], mark.Segment), Remedy: RemoveAndReAdd}
	}
	return nil
}

// refusedBy keeps a refusal as the verdict and passes other errors on.
func (r *Report) refusedBy(err error) error {
	var refused *RefusedError
	if errors.As(err, &refused) {
		r.Refused = refused
		return nil
	}
	return err
}

// Verdict is the one line that matters.
func (r Report) Verdict() string {
	switch {
	case r.Refused != nil:
		return "refused: " + r.Refused.Error()
	case r.TornFile != "":
		return fmt.Sprintf("torn tail: %s is cut off at byte %d at the next start; nothing acknowledged is lost", r.TornFile, r.TornOffset)
	}
	return "ok"
}

// String describes the directory to a person.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "directory   %s\n", r.Dir)
	if r.Identity != nil {
		fmt.Fprintf(&b, "member      %d (%s), cluster %016x, %s\n", r.Identity.MemberID, r.Identity.Name, r.Identity.ClusterID, r.Identity.State)
	}
	fmt.Fprintf(&b, "log         %d segments, %d records, last entry %d\n", len(r.Segments), r.Records, r.LastEntry)
	fmt.Fprintf(&b, "snapshots   %s\n", strings.Join(r.Snapshots, " "))
	fmt.Fprintf(&b, "verdict     %s\n", r.Verdict())
	return b.String()
}
