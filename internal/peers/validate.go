package peers

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

// Limits of what a message may hold.
const (
	// maxMessageSizeBytes bounds a message as a whole. It follows from the largest
	// proposal, so no entry in any log exceeds it. rafthttp itself takes 512 MiB.
	maxMessageSizeBytes = limits.MaxMessageBytes
	// maxMessageEntries is far more entries than a leader puts into one message,
	// even if they are empty.
	maxMessageEntries = 1 << 18
	maxContextBytes   = 64
	// readContextBytes is the size of raft's own context in heartbeats.
	readContextBytes = 8
	// maxReadContextBytes bounds the context of a forwarded ReadIndex.
	maxReadContextBytes = 256
)

// messageShape tells what messages of one type look like.
type messageShape struct {
	// termless messages are forwarded as if they were local, and must have no
	// term: raft panics when it forwards one that has.
	termless bool
	entries  func(m *raftpb.Message) *refusalError // nil: the type has no entries
}

// messageShapes has the types of messages that members send to each other. All
// other types are local to one member, or are commands that no member gives to
// another (MsgTransferLeader, MsgForgetLeader).
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

// ValidateMessage returns an error for a message that no member sends to self.
// raft trusts its messages: many of those refused here would make it panic, and a
// forged MsgStorageAppendResp would acknowledge writes in the name of the local
// disk.
//
// It judges a message by itself. What takes the log to judge, package raftnode
// does right before it steps the message.
func ValidateMessage(m *raftpb.Message, self uint64) error {
	if r := checkMessage(m, self); r != nil {
		return r
	}
	return nil
}

func checkMessage(m *raftpb.Message, self uint64) *refusalError {
	if m == nil {
		return refusef(refusedType, "empty message")
	}
	shape, known := messageShapes[m.GetType()]
	switch {
	case !known || raft.IsLocalMsg(m.GetType()) || len(m.GetResponses()) > 0:
		return refusef(refusedType, "%v is not exchanged between members", m.GetType())
	case raft.IsLocalMsgTarget(m.GetFrom()) || !limits.ValidMemberID(m.GetFrom()) || m.GetFrom() == self:
		return refusef(refusedSender, "%v from %d, which is not another member", m.GetType(), m.GetFrom())
	case m.GetTo() != self:
		return refusef(refusedTarget, "%v is addressed to member %d", m.GetType(), m.GetTo())
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

// validateNumbers checks terms and indexes. raft takes a message with term 0 for a
// local one, and adds to indexes without looking for an overflow.
func validateNumbers(m *raftpb.Message, shape messageShape) *refusalError {
	switch {
	case shape.termless != (m.GetTerm() == 0):
		return refusef(refusedTerm, "%v with term %d", m.GetType(), m.GetTerm())
	case m.GetTerm() > limits.MaxTerm || m.GetLogTerm() > limits.MaxTerm:
		return refusef(refusedTerm, "term %d and log term %d exceed the plausible maximum", m.GetTerm(), m.GetLogTerm())
	// The log of a candidate or a leader never is ahead of its own term.
	case !raft.IsResponseMsg(m.GetType()) && !shape.termless && m.GetLogTerm() > m.GetTerm():
		return refusef(refusedTerm, "log term %d is above term %d", m.GetLogTerm(), m.GetTerm())
	case max(m.GetIndex(), m.GetCommit(), m.GetRejectHint()) > limits.MaxIndex:
		return refusef(refusedIndex, "index %d, commit %d, or reject hint %d exceeds the plausible maximum", m.GetIndex(), m.GetCommit(), m.GetRejectHint())
	}
	return nil
}

func validateSize(m *raftpb.Message, _ messageShape) *refusalError {
	if n := len(m.GetEntries()); n > maxMessageEntries {
		return refusef(refusedSize, "%d entries exceed the limit of %d", n, maxMessageEntries)
	}
	if n := proto.Size(m); n > maxMessageSizeBytes {
		return refusef(refusedSize, "message of %d bytes exceeds the limit of %d", n, maxMessageSizeBytes)
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

// validateProposal refuses an empty proposal, over which raft panics.
func validateProposal(m *raftpb.Message) *refusalError {
	if len(m.GetEntries()) == 0 {
		return refusef(refusedEntries, "proposal without entries")
	}
	for _, e := range m.GetEntries() {
		if r := validateEntry(e); r != nil {
			return r
		}
	}
	return nil
}

// validateReadEntry checks the context of a ReadIndex, which travels as the only
// entry of the message.
func validateReadEntry(m *raftpb.Message) *refusalError {
	if len(m.GetEntries()) != 1 || m.GetEntries()[0] == nil {
		return refusef(refusedEntries, "%v with %d entries", m.GetType(), len(m.GetEntries()))
	}
	if n := len(m.GetEntries()[0].GetData()); n > maxReadContextBytes {
		return refusef(refusedContext, "read context of %d bytes exceeds the limit of %d", n, maxReadContextBytes)
	}
	return nil
}

// validateAppend checks that the entries follow the one at Index and LogTerm
// without a gap, and that their terms never decrease and never exceed the leader's.
func validateAppend(m *raftpb.Message) *refusalError {
	term := max(m.GetLogTerm(), 1)
	for i, e := range m.GetEntries() {
		if r := validateEntry(e); r != nil {
			return r
		}
		if want := m.GetIndex() + 1 + uint64(i); e.GetIndex() != want {
			return refusef(refusedEntries, "entry %d where entry %d is expected", e.GetIndex(), want)
		}
		if e.GetTerm() < term || e.GetTerm() > m.GetTerm() {
			return refusef(refusedEntries, "entry %d has term %d, but must have one from %d to %d", e.GetIndex(), e.GetTerm(), term, m.GetTerm())
		}
		term = e.GetTerm()
	}
	return nil
}

// validateEntry refuses a configuration change that cannot be decoded. raft panics
// over it twice: when it is proposed, and when it is applied.
func validateEntry(e *raftpb.Entry) *refusalError {
	if e == nil {
		return refusef(refusedEntries, "empty entry")
	}
	var err error
	switch e.GetType() {
	case raftpb.EntryNormal:
	case raftpb.EntryConfChange:
		err = proto.Unmarshal(e.GetData(), new(raftpb.ConfChange))
	case raftpb.EntryConfChangeV2:
		err = proto.Unmarshal(e.GetData(), new(raftpb.ConfChangeV2))
	default:
		return refusef(refusedEntries, "unknown entry type %d", e.GetType())
	}
	if err != nil {
		return refusef(refusedEntries, "configuration change cannot be decoded")
	}
	return nil
}

// validateContext checks the length of the context. raft reads 8 bytes of a
// heartbeat response's context without checking that they exist.
func validateContext(m *raftpb.Message, _ messageShape) *refusalError {
	n := len(m.GetContext())
	switch m.GetType() {
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		if n != 0 && n != readContextBytes {
			return refusef(refusedContext, "heartbeat context of %d bytes, want %d", n, readContextBytes)
		}
	default:
		if n > maxContextBytes {
			return refusef(refusedContext, "context of %d bytes exceeds the limit of %d", n, maxContextBytes)
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
		return refusef(refusedSnapshot, "snapshot without a configuration")
	case meta.GetIndex() == 0 || meta.GetIndex() > limits.MaxIndex:
		return refusef(refusedSnapshot, "snapshot with index %d", meta.GetIndex())
	case meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm():
		return refusef(refusedSnapshot, "snapshot of term %d in a message of term %d", meta.GetTerm(), m.GetTerm())
	}
	return validateConfState(meta.GetConfState())
}

// validateConfState refuses configurations that raft cannot restore. raft panics
// if restoring does not reproduce the configuration, for example when an id
// appears twice. kvd has no joint configurations.
func validateConfState(cs *raftpb.ConfState) *refusalError {
	switch n := len(cs.GetVoters()) + len(cs.GetLearners()); {
	case len(cs.GetVoters()) == 0:
		return refusef(refusedSnapshot, "configuration without voters")
	case n > limits.MaxMembers:
		return refusef(refusedSnapshot, "configuration of %d members exceeds the limit of %d", n, limits.MaxMembers)
	case len(cs.GetVotersOutgoing()) > 0 || len(cs.GetLearnersNext()) > 0 || cs.GetAutoLeave():
		return refusef(refusedSnapshot, "joint configuration")
	}
	seen := make(map[uint64]bool, limits.MaxMembers)
	for _, ids := range [][]uint64{cs.GetVoters(), cs.GetLearners()} {
		for _, id := range ids {
			if !limits.ValidMemberID(id) || seen[id] {
				return refusef(refusedSnapshot, "member id %d is invalid or appears twice", id)
			}
			seen[id] = true
		}
	}
	return nil
}
