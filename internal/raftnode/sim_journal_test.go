package raftnode

import (
	"fmt"
	"strings"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// journal is what happened in a run, line by line. Messages, hard states and entries
// have the forms of raft's Describe functions, which its users know. What happens all
// the time is left out: heartbeats, and saves of a commit index alone.
type journal struct{ lines []string }

// journalTail is how many lines of a journal a report shows.
const journalTail = 60

// note adds a line, if somebody reads the journal.
func (s *sim) note(format string, args ...any) {
	if s.journal == nil {
		return
	}
	at := fmt.Sprintf("%4d.%03d ms  ", s.now/milli, s.now%milli)
	s.journal.lines = append(s.journal.lines, at+fmt.Sprintf(format, args...))
}

// noteMessage notes what a member receives.
func (s *sim) noteMessage(m *raftpb.Message) {
	if s.journal == nil || heartbeat(m) {
		return
	}
	s.note("%s", raft.DescribeMessage(m, describePayload))
}

func heartbeat(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgHeartbeat || m.GetType() == raftpb.MsgHeartbeatResp
}

// noteSave notes what a member writes to its log.
func (n *simNode) noteSave(hs *raftpb.HardState, entries []*raftpb.Entry) {
	if n.s.journal == nil || !raft.MustSync(hs, n.disk.last, len(entries)) {
		return
	}
	text := ""
	if hs != nil {
		text = " " + raft.DescribeHardState(hs)
	}
	for _, e := range entries {
		text += " " + raft.DescribeEntry(e, describePayload)
	}
	n.s.note("%x saves%s", n.id, text)
}

// describePayload stands for the content of an entry, which is binary.
func describePayload(data []byte) string { return fmt.Sprintf("%d bytes", len(data)) }

func (j *journal) String() string {
	lines := j.lines
	text := ""
	if left := len(lines) - journalTail; left > 0 {
		text = fmt.Sprintf("  … %d lines\n", left)
		lines = lines[left:]
	}
	for _, l := range lines {
		text += "  " + strings.TrimRight(l, "\n") + "\n"
	}
	return text
}
