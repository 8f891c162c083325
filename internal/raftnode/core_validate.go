package raftnode

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// validateAgainst is the part of the validation that needs a moment's log and
// members; the owner of the log calls it right before stepping m.
//
// lastIndex is raft's own: it contains entries not yet on disk (followers
// acknowledge a leader's entries before its own disk does) and not those that
// were replaced; lastIndexAfter follows it from one Ready to the next. known
// holds for members and for leaders that the local configuration does not
// contain yet; raft itself takes a MsgApp from anybody.
func validateAgainst(m *raftpb.Message, lastIndex uint64, known func(id uint64) bool) error {
	switch {
	case !known(m.GetFrom()):
		return fmt.Errorf("member %d is not known", m.GetFrom())
	// A leader never tells a follower to commit more than it acknowledged;
	// raft panics when told to.
	case m.GetType() == raftpb.MsgHeartbeat && m.GetCommit() > lastIndex:
		return fmt.Errorf("commit %d beyond the last entry %d", m.GetCommit(), lastIndex)
	// Nobody can have entries of this leader that it has not made.
	case m.GetType() == raftpb.MsgAppResp && m.GetIndex() > lastIndex:
		return fmt.Errorf("acknowledged %d beyond the last entry %d", m.GetIndex(), lastIndex)
	}
	return nil
}

// lastIndexAfter is how far the log surely reaches once m was stepped, where it
// reached last before: an append or a snapshot may replace its end, and what
// raft made of it only shows in the next Ready. A forged append with a forged
// heartbeat right behind it would pass a check against the old end.
func lastIndexAfter(m *raftpb.Message, last uint64) uint64 {
	switch n := len(m.GetEntries()); {
	case m.GetType() == raftpb.MsgApp && n > 0:
		return min(last, m.GetIndex()+uint64(n))
	case m.GetType() == raftpb.MsgSnap:
		return min(last, m.GetSnapshot().GetMetadata().GetIndex())
	}
	return last
}

// readAckOf is the position in raft's queue of reads that a heartbeat asks to
// confirm, or its response confirms; 0 without one.
func readAckOf(m *raftpb.Message) uint64 {
	if len(m.GetContext()) < binary.Size(uint64(0)) {
		return 0
	}
	return binary.LittleEndian.Uint64(m.GetContext())
}

// validateReadAck refuses a heartbeat response that confirms reads which were
// never asked about: raft slices its queue by the number a quorum sent, and
// panics beyond its end. sent is the greatest readAckOf of the heartbeats sent
// in the current term.
func validateReadAck(m *raftpb.Message, sent uint64) error {
	if m.GetType() == raftpb.MsgHeartbeatResp && readAckOf(m) > sent {
		return fmt.Errorf("read %d confirmed, %d sent", readAckOf(m), sent)
	}
	return nil
}
