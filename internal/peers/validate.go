package peers

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

// Limits of what a message may hold. Nothing real comes near them; beyond
// them raft's memory could run out.
const (
	// maxMessageSizeBytes holds the largest command with room to spare.
	maxMessageSizeBytes = 64 << 20
	// maxMessageEntries is more than maxMessageBytes of the smallest entries.
	maxMessageEntries = 1 << 18
	maxContextBytes   = 64
	// readContextBytes is the size of raft's own context in heartbeats.
	readContextBytes = 8
	// maxReadContextBytes bounds the context of a forwarded ReadIndex.
	maxReadContextBytes = 256
)

// messageShape is what one type of message may look like.
type messageShape struct {
	// termless messages are forwarded as if they were local. raft panics when
	// it forwards one that has a term.
	termless bool
	entries  func(m *raftpb.Message) *refusalError // nil: must have none
}

// messageShapes are the messages that members send each other. All others are
// local to a node, or steer it (MsgTransferLeader, MsgForgetLeader), which no
// member ever asks of another.
var messageShapes = map[raftpb.MessageType]messageShape{
	raftpb.MsgProp:          {termless: true, entries: validateProposal},
	raftpb.MsgReadIndex:     {termless: true, entries: validateReadEntry},
	raftpb.MsgReadIndexResp: {entries: validateReadEntry},
	raftpb.MsgApp:           {entries: validateAppend},
	raftpb.MsgAppResp:       {},
	raftpb.MsgVote:          {},
	raftpb.MsgVoteResp:      {},
	raftpb.MsgPreVote:       {},
	raftpb.MsgPreVoteResp:   {},
	raftpb.MsgSnap:          {},
	raftpb.MsgHeartbeat:     {},
	raftpb.MsgHeartbeatResp: {},
	raftpb.MsgTimeoutNow:    {},
}

// ValidateMessage refuses what no member would send to self. raft trusts its
// messages: many of those refused here would panic it, one could acknowledge
// writes in the name of the disk. The error is a *refusalError.
//
// What it cannot judge without the log, the core does: see validateAgainst and
// validateReadAck.
func ValidateMessage(m *raftpb.Message, self uint64) error {
	if r := checkMessage(m, self); r != nil {
		return r
	}
	return nil
}

func checkMessage(m *raftpb.Message, self uint64) *refusalError {
	if m == nil {
		return refusef(refusedType, "no message")
	}
	shape, known := messageShapes[m.GetType()]
	switch {
	case !known || raft.IsLocalMsg(m.GetType()) || len(m.GetResponses()) > 0:
		return refusef(refusedType, "%v is not exchanged between members", m.GetType())
	case raft.IsLocalMsgTarget(m.GetFrom()) || !limits.ValidMemberID(m.GetFrom()) || m.GetFrom() == self:
		return refusef(refusedSender, "%v from %d", m.GetType(), m.GetFrom())
	case m.GetTo() != self:
		return refusef(refusedTarget, "%v to %d", m.GetType(), m.GetTo())
	}
	for _, check := range []func(*raftpb.Message, messageShape) *refusalError{
		validateNumbers, validateSize, validateEntries, validateContext, validateSnapshot,
	} {
		if r := check(m, shape); r != nil {
			return r
		}
	}
	return nil
}

// validateNumbers checks terms and indexes. A term of 0 would make raft take
// the message for a local one.
func validateNumbers(m *raftpb.Message, shape messageShape) *refusalError {
	switch {
	case shape.termless != (m.GetTerm() == 0):
		return refusef(refusedTerm, "%v with term %d", m.GetType(), m.GetTerm())
	case m.GetTerm() > limits.MaxTerm || m.GetLogTerm() > limits.MaxTerm:
		return refusef(refusedTerm, "term %d, log term %d", m.GetTerm(), m.GetLogTerm())
	// A candidate's and a leader's log is never ahead of its own term.
	case !raft.IsResponseMsg(m.GetType()) && !shape.termless && m.GetLogTerm() > m.GetTerm():
		return refusef(refusedTerm, "log term %d above term %d", m.GetLogTerm(), m.GetTerm())
	case max(m.GetIndex(), m.GetCommit(), m.GetRejectHint()) > limits.MaxIndex:
		return refusef(refusedIndex, "index %d, commit %d, hint %d", m.GetIndex(), m.GetCommit(), m.GetRejectHint())
	}
	return nil
}

func validateSize(m *raftpb.Message, _ messageShape) *refusalError {
	if n := len(m.GetEntries()); n > maxMessageEntries {
		return refusef(refusedSize, "%d entries", n)
	}
	if n := proto.Size(m); n > maxMessageSizeBytes {
		return refusef(refusedSize, "%d bytes", n)
	}
	return nil
}

func validateEntries(m *raftpb.Message, shape messageShape) *refusalError {
	if shape.entries != nil {
		return shape.entries(m)
	}
	if len(m.GetEntries()) > 0 {
		return refusef(refusedEntries, "%v with entries", m.GetType())
	}
	return nil
}

// validateProposal: raft panics over an empty proposal.
func validateProposal(m *raftpb.Message) *refusalError {
	if len(m.GetEntries()) == 0 {
		return refusef(refusedEntries, "a proposal of nothing")
	}
	for _, e := range m.GetEntries() {
		if r := validateEntry(e); r != nil {
			return r
		}
	}
	return nil
}

// validateReadEntry: the context of a ReadIndex travels as its only entry.
func validateReadEntry(m *raftpb.Message) *refusalError {
	if len(m.GetEntries()) != 1 || m.GetEntries()[0] == nil {
		return refusef(refusedEntries, "%v with %d entries", m.GetType(), len(m.GetEntries()))
	}
	if n := len(m.GetEntries()[0].GetData()); n > maxReadContextBytes {
		return refusef(refusedContext, "a read context of %d bytes", n)
	}
	return nil
}

// validateAppend: the entries follow the one at Index and LogTerm without a
// gap, in terms that never fall and never pass the leader's.
func validateAppend(m *raftpb.Message) *refusalError {
	term := max(m.GetLogTerm(), 1)
	for i, e := range m.GetEntries() {
		if r := validateEntry(e); r != nil {
			return r
		}
		if want := m.GetIndex() + 1 + uint64(i); e.GetIndex() != want {
			return refusef(refusedEntries, "entry %d where %d belongs", e.GetIndex(), want)
		}
		if e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return refusef(refusedEntries, "entry %d of term %d, between terms %d and %d", e.GetIndex(), e.GetTerm(), term, m.GetTerm())
		}
		term = e.GetTerm()
	}
	return nil
}

// validateEntry: raft panics over a configuration change that it can not
// decode, when proposed and when applied.
func validateEntry(e *raftpb.Entry) *refusalError {
	if e == nil {
		return refusef(refusedEntries, "no entry")
	}
	var err error
	switch e.GetType() {
	case raftpb.EntryNormal:
	case raftpb.EntryConfChange:
		err = proto.Unmarshal(e.GetData(), new(raftpb.ConfChange))
	case raftpb.EntryConfChangeV2:
		err = proto.Unmarshal(e.GetData(), new(raftpb.ConfChangeV2))
	default:
		return refusef(refusedEntries, "an entry of type %d", e.GetType())
	}
	if err != nil {
		return refusef(refusedEntries, "a configuration change that cannot be decoded")
	}
	return nil
}

// validateContext: raft reads 8 bytes of a heartbeat response's context
// without looking whether they are there.
func validateContext(m *raftpb.Message, _ messageShape) *refusalError {
	n := len(m.GetContext())
	switch m.GetType() {
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		if n != 0 && n != readContextBytes {
			return refusef(refusedContext, "a heartbeat context of %d bytes", n)
		}
	default:
		if n > maxContextBytes {
			return refusef(refusedContext, "%d bytes", n)
		}
	}
	return nil
}

func validateSnapshot(m *raftpb.Message, _ messageShape) *refusalError {
	if !isSnapshotMessage(m) {
		if m.GetSnapshot() != nil {
			return refusef(refusedSnapshot, "%v with a snapshot", m.GetType())
		}
		return nil
	}
	meta := m.GetSnapshot().GetMetadata()
	switch {
	case meta.GetConfState() == nil:
		return refusef(refusedSnapshot, "no metadata")
	case meta.GetIndex() == 0 || meta.GetIndex() > limits.MaxIndex:
		return refusef(refusedSnapshot, "index %d", meta.GetIndex())
	case meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm():
		return refusef(refusedSnapshot, "term %d in a message of term %d", meta.GetTerm(), m.GetTerm())
	}
	return validateConfState(meta.GetConfState())
}

// validateConfState: raft panics where restoring a configuration does not
// reproduce it, as with an id that is there twice. kvd has no joint ones.
func validateConfState(cs *raftpb.ConfState) *refusalError {
	switch n := len(cs.GetVoters()) + len(cs.GetLearners()); {
	case len(cs.GetVoters()) == 0:
		return refusef(refusedSnapshot, "no voters")
	case n > limits.MaxMembers:
		return refusef(refusedSnapshot, "%d members", n)
	case len(cs.GetVotersOutgoing()) > 0 || len(cs.GetLearnersNext()) > 0 || cs.GetAutoLeave():
		return refusef(refusedSnapshot, "a joint configuration")
	}
	seen := make(map[uint64]bool, limits.MaxMembers)
	for _, ids := range [][]uint64{cs.GetVoters(), cs.GetLearners()} {
		for _, id := range ids {
			if !limits.ValidMemberID(id) || seen[id] {
				return refusef(refusedSnapshot, "member %d is impossible or there twice", id)
			}
			seen[id] = true
		}
	}
	return nil
}
