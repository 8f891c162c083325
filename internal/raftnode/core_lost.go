package raftnode

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

// oneDirectory is the remedy for two copies of one data directory.
const oneDirectory = "a member has one data directory and one process: stop the other process, or remove this copy; " +
	"to run a node here as well, start it with an empty directory and --join"

// lostLog notices that this member's log lacks what the member has acknowledged,
// because its directory was replaced by an older copy, or because another process
// with a copy of the directory acknowledges in its name.
//
// A leader puts a commit index into its heartbeat that is never above what the
// member has acknowledged in the leader's term. An acknowledged entry is durable,
// and one that is committed as well is never taken back. So a commit index beyond
// the end of the log is proof. raft itself would panic over it.
//
// Without this check such a member waits forever: it rejects what the leader
// appends, and the leader takes the rejections for old ones.
type lostLog struct {
	heartbeats int // with such a commit index, one after the other
	commit     uint64
}

// lostLogTimeouts is for how many election timeouts the heartbeats must agree. A
// single one would do in theory; nothing is lost by asking for more.
const lostLogTimeouts = 2

// note takes a message from a peer. last is the end of the log, on disk or not
// yet. An error is final.
func (l *lostLog) note(m *raftpb.Message, term, last uint64, electionTicks int) error {
	if m.GetType() != raftpb.MsgHeartbeat || m.GetTerm() < term {
		return nil
	}
	if m.GetCommit() <= last {
		l.heartbeats = 0
		return nil
	}
	l.heartbeats, l.commit = l.heartbeats+1, m.GetCommit()
	if l.heartbeats < lostLogTimeouts*electionTicks {
		return nil
	}
	return fmt.Errorf("%w: the leader, member %d, has seen this member acknowledge entry %d, but the log here ends at entry %d: "+
		"%w; %s", ErrRefused, m.GetFrom(), l.commit, last, roster.ErrStaleDirectory, datadir.RemoveAndReAdd)
}
