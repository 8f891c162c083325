package raftnode

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// The transport has judged a message by itself (peers.ValidateMessage) and
// knows its sender. What remains needs the log and the reads of this moment,
// so the core judges it right before it steps the message. raft would panic
// over what is refused here; no member sends it.

// validateAgainst compares what m claims about the log with the log.
//
// lastIndex is raft's own. It includes entries that are not on disk yet, since
// followers acknowledge a leader's entries before its own disk does, and not
// those that were replaced. lastIndexAfter carries it from one Ready to the
// next.
func validateAgainst(m *raftpb.Message, lastIndex uint64) error {
	switch {
	// A leader never tells a follower to commit more than it acknowledged.
	case m.GetType() == raftpb.MsgHeartbeat && m.GetCommit() > lastIndex:
		return fmt.Errorf("commit index %d is beyond the last entry %d", m.GetCommit(), lastIndex)
	// Nobody can have entries of this leader that it has not made.
	case m.GetType() == raftpb.MsgAppResp && m.GetIndex() > lastIndex:
		return fmt.Errorf("acknowledged index %d is beyond the last entry %d", m.GetIndex(), lastIndex)
	}
	return nil
}

// lastIndexAfter returns up to where the log certainly reaches once m has been
// stepped, if it reached up to last before. An append or a snapshot may replace
// its end, and only the next Ready shows what raft made of it. Checked against
// the old end, a forged append that cuts the log would let a forged heartbeat
// right behind it pass.
func lastIndexAfter(m *raftpb.Message, last uint64) uint64 {
	switch n := len(m.GetEntries()); {
	case m.GetType() == raftpb.MsgApp && n > 0:
		return min(last, m.GetIndex()+uint64(n))
	case m.GetType() == raftpb.MsgSnap:
		return min(last, m.GetSnapshot().GetMetadata().GetIndex())
	}
	return last
}

// readAckOf returns the position in raft's queue of reads that a heartbeat
// asks to confirm, or that its response confirms; 0 if there is none.
func readAckOf(m *raftpb.Message) uint64 {
	if len(m.GetContext()) < binary.Size(uint64(0)) {
		return 0
	}
	return binary.LittleEndian.Uint64(m.GetContext())
}

// validateReadAck refuses a heartbeat response that confirms reads nobody asked
// it to confirm: raft slices its queue of reads by the position that a quorum
// confirmed, and panics beyond the end. sent is the largest readAckOf of the
// heartbeats sent in the current term.
func validateReadAck(m *raftpb.Message, sent uint64) error {
	if m.GetType() == raftpb.MsgHeartbeatResp && readAckOf(m) > sent {
		return fmt.Errorf("confirmed read %d is beyond the last one asked about, %d", readAckOf(m), sent)
	}
	return nil
}
