package peers

import (
	"errors"
	"math"
	"testing"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

func newSnapshotDir(t testing.TB) *snap.Snapshotter { return snap.New(nil, t.TempDir()) }

func message(typ raftpb.MessageType, edit ...func(*raftpb.Message)) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(5))}
	for _, f := range edit {
		f(m)
	}
	return m
}

func entry(index, term uint64) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(term), Data: []byte("x")}
}

func withEntries(es ...*raftpb.Entry) func(*raftpb.Message) {
	return func(m *raftpb.Message) { m.Entries = es }
}

func withoutTerm(m *raftpb.Message) { m.Term = nil }

func withContext(n int) func(*raftpb.Message) {
	return func(m *raftpb.Message) { m.Context = make([]byte, n) }
}

// after places an append in the log.
func after(index, logTerm uint64) func(*raftpb.Message) {
	return func(m *raftpb.Message) { m.Index, m.LogTerm = new(index), new(logTerm) }
}

func withConfState(cs *raftpb.ConfState) func(*raftpb.Message) {
	return func(m *raftpb.Message) {
		m.Snapshot = proto.Clone(snapshotMessage(2, 1, 9).Snapshot).(*raftpb.Snapshot)
		m.Snapshot.Metadata.ConfState = cs
	}
}

func TestGoodMessagesPass(t *testing.T) {
	change, err := proto.Marshal(&raftpb.ConfChangeV2{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*raftpb.Message{
		message(raftpb.MsgApp),
		message(raftpb.MsgApp, after(7, 4), withEntries(entry(8, 4), entry(9, 5))),
		message(raftpb.MsgApp, withEntries(entry(1, 1))),
		message(raftpb.MsgApp, withEntries(&raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(5)), Type: raftpb.EntryConfChangeV2.Enum(), Data: change})),
		message(raftpb.MsgAppResp, after(7, 4)),
		message(raftpb.MsgVote, after(7, 4), withContext(len("CampaignTransfer"))),
		message(raftpb.MsgPreVote), message(raftpb.MsgVoteResp), message(raftpb.MsgPreVoteResp),
		message(raftpb.MsgHeartbeat), message(raftpb.MsgHeartbeat, withContext(8)),
		message(raftpb.MsgHeartbeatResp), message(raftpb.MsgHeartbeatResp, withContext(8)),
		message(raftpb.MsgTimeoutNow),
		message(raftpb.MsgProp, withoutTerm, withEntries(&raftpb.Entry{Data: []byte("x")})),
		message(raftpb.MsgReadIndex, withoutTerm, withEntries(&raftpb.Entry{Data: make([]byte, 24)})),
		message(raftpb.MsgReadIndexResp, withEntries(&raftpb.Entry{Data: make([]byte, 24)})),
		snapshotMessage(2, 1, 9),
	} {
		if err := ValidateMessage(m, 1); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	}
}

func TestForgedMessagesAreRefused(t *testing.T) {
	from := func(id uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.From = new(id) } }
	to := func(id uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.To = new(id) } }
	term := func(v uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.Term = new(v) } }
	commit := func(v uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.Commit = new(v) } }
	voters := func(ids ...uint64) *raftpb.ConfState { return &raftpb.ConfState{Voters: ids} }
	meta := func(index, term uint64) func(*raftpb.Message) {
		return func(m *raftpb.Message) {
			withConfState(voters(1, 2))(m)
			m.Snapshot.Metadata.Index, m.Snapshot.Metadata.Term = new(index), new(term)
		}
	}
	garbage := func(kind raftpb.EntryType) *raftpb.Entry {
		return &raftpb.Entry{Type: kind.Enum(), Index: new(uint64(1)), Term: new(uint64(1)), Data: []byte("\xff\xff")}
	}
	for _, test := range []struct {
		name   string
		m      *raftpb.Message
		reason refusalReason
	}{
		{"nothing", nil, refusedType},
		{"empty", &raftpb.Message{}, refusedType},
		{"hup", message(raftpb.MsgHup), refusedType},
		{"beat", message(raftpb.MsgBeat), refusedType},
		{"unreachable", message(raftpb.MsgUnreachable), refusedType},
		{"snapshot status", message(raftpb.MsgSnapStatus), refusedType},
		{"check quorum", message(raftpb.MsgCheckQuorum), refusedType},
		{"storage append", message(raftpb.MsgStorageAppend), refusedType},
		{"storage append response", message(raftpb.MsgStorageAppendResp), refusedType},
		{"storage apply", message(raftpb.MsgStorageApply), refusedType},
		{"storage apply response", message(raftpb.MsgStorageApplyResp), refusedType},
		{"transfer leader", message(raftpb.MsgTransferLeader), refusedType},
		{"forget leader", message(raftpb.MsgForgetLeader), refusedType},
		{"unknown type", message(raftpb.MessageType(99)), refusedType},
		{"negative type", message(raftpb.MessageType(-1)), refusedType},
		{"carries responses", message(raftpb.MsgApp, func(m *raftpb.Message) { m.Responses = []*raftpb.Message{{}} }), refusedType},
		{"from the append thread", message(raftpb.MsgApp, from(raft.LocalAppendThread)), refusedSender},
		{"from the apply thread", message(raftpb.MsgApp, from(raft.LocalApplyThread)), refusedSender},
		{"from nobody", message(raftpb.MsgApp, from(0)), refusedSender},
		{"from beyond the ids", message(raftpb.MsgApp, from(limits.MaxMemberID+1)), refusedSender},
		{"from us", message(raftpb.MsgApp, from(1)), refusedSender},
		{"to another", message(raftpb.MsgApp, to(3)), refusedTarget},
		{"to nobody", message(raftpb.MsgApp, to(0)), refusedTarget},
		{"to the append thread", message(raftpb.MsgApp, to(raft.LocalAppendThread)), refusedTarget},
		{"append without term", message(raftpb.MsgApp, withoutTerm), refusedTerm},
		{"vote response without term", message(raftpb.MsgVoteResp, withoutTerm), refusedTerm},
		{"proposal with term", message(raftpb.MsgProp, withEntries(entry(0, 0))), refusedTerm},
		{"read with term", message(raftpb.MsgReadIndex, withEntries(entry(0, 0))), refusedTerm},
		{"term at the end", message(raftpb.MsgApp, term(math.MaxUint64)), refusedTerm},
		{"term beyond plausible", message(raftpb.MsgVote, term(limits.MaxTerm+1)), refusedTerm},
		{"log term at the end", message(raftpb.MsgAppResp, after(1, math.MaxUint64)), refusedTerm},
		{"log ahead of the term", message(raftpb.MsgApp, after(1, 6)), refusedTerm},
		{"index at the end", message(raftpb.MsgApp, after(math.MaxUint64, 1)), refusedIndex},
		{"index overflows", message(raftpb.MsgApp, after(math.MaxUint64, 1), withEntries(entry(0, 1))), refusedIndex},
		{"commit at the end", message(raftpb.MsgHeartbeat, commit(math.MaxUint64)), refusedIndex},
		{"hint at the end", message(raftpb.MsgAppResp, func(m *raftpb.Message) { m.RejectHint = new(uint64(math.MaxUint64)) }), refusedIndex},
		{"read index at the end", message(raftpb.MsgReadIndexResp, after(math.MaxUint64, 0), withEntries(entry(0, 0))), refusedIndex},
		{"entry with a bad index", message(raftpb.MsgApp, after(7, 4), withEntries(entry(3, 4))), refusedEntries},
		{"entry 0", message(raftpb.MsgApp, withEntries(entry(0, 4))), refusedEntries},
		{"entries with a gap", message(raftpb.MsgApp, withEntries(entry(1, 4), entry(3, 4))), refusedEntries},
		{"entries repeated", message(raftpb.MsgApp, withEntries(entry(1, 4), entry(1, 4))), refusedEntries},
		{"entry of a later term", message(raftpb.MsgApp, withEntries(entry(1, 6))), refusedEntries},
		{"entry without term", message(raftpb.MsgApp, withEntries(entry(1, 0))), refusedEntries},
		{"terms that fall", message(raftpb.MsgApp, withEntries(entry(1, 4), entry(2, 3))), refusedEntries},
		{"term below the one before", message(raftpb.MsgApp, after(7, 4), withEntries(entry(8, 3))), refusedEntries},
		{"entry of an unknown type", message(raftpb.MsgApp, withEntries(&raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(1)), Type: raftpb.EntryType(9).Enum()})), refusedEntries},
		{"no entry", message(raftpb.MsgApp, withEntries(nil)), refusedEntries},
		{"heartbeat with entries", message(raftpb.MsgHeartbeat, withEntries(entry(1, 1))), refusedEntries},
		{"proposal of nothing", message(raftpb.MsgProp, withoutTerm), refusedEntries},
		{"proposal of no entry", message(raftpb.MsgProp, withoutTerm, withEntries(nil)), refusedEntries},
		{"proposal of a garbled change", message(raftpb.MsgProp, withoutTerm, withEntries(garbage(raftpb.EntryConfChange))), refusedEntries},
		{"proposal of a garbled change v2", message(raftpb.MsgProp, withoutTerm, withEntries(garbage(raftpb.EntryConfChangeV2))), refusedEntries},
		{"append of a garbled change", message(raftpb.MsgApp, withEntries(garbage(raftpb.EntryConfChangeV2))), refusedEntries},
		{"read of nothing", message(raftpb.MsgReadIndex, withoutTerm), refusedEntries},
		{"read of two", message(raftpb.MsgReadIndex, withoutTerm, withEntries(entry(0, 0), entry(0, 0))), refusedEntries},
		{"too many entries", message(raftpb.MsgApp, withEntries(make([]*raftpb.Entry, maxMessageEntries+1)...)), refusedSize},
		{"too many bytes", message(raftpb.MsgProp, withoutTerm, withEntries(&raftpb.Entry{Data: make([]byte, maxMessageSizeBytes)})), refusedSize},
		{"short read acknowledgement", message(raftpb.MsgHeartbeatResp, withContext(3)), refusedContext},
		{"long read acknowledgement", message(raftpb.MsgHeartbeatResp, withContext(9)), refusedContext},
		{"short heartbeat context", message(raftpb.MsgHeartbeat, withContext(1)), refusedContext},
		{"long vote context", message(raftpb.MsgVote, withContext(maxContextBytes+1)), refusedContext},
		{"long read context", message(raftpb.MsgReadIndex, withoutTerm, withEntries(&raftpb.Entry{Data: make([]byte, maxReadContextBytes+1)})), refusedContext},
		{"snapshot without one", message(raftpb.MsgSnap), refusedSnapshot},
		{"snapshot without metadata", message(raftpb.MsgSnap, func(m *raftpb.Message) { m.Snapshot = &raftpb.Snapshot{} }), refusedSnapshot},
		{"snapshot without members", message(raftpb.MsgSnap, withConfState(nil)), refusedSnapshot},
		{"snapshot without voters", message(raftpb.MsgSnap, withConfState(&raftpb.ConfState{Learners: []uint64{1}})), refusedSnapshot},
		{"snapshot with a member twice", message(raftpb.MsgSnap, withConfState(voters(1, 2, 2))), refusedSnapshot},
		{"snapshot with voter and learner", message(raftpb.MsgSnap, withConfState(&raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{2}})), refusedSnapshot},
		{"snapshot with member 0", message(raftpb.MsgSnap, withConfState(voters(1, 0))), refusedSnapshot},
		{"snapshot with a local target", message(raftpb.MsgSnap, withConfState(voters(1, raft.LocalApplyThread))), refusedSnapshot},
		{"joint snapshot", message(raftpb.MsgSnap, withConfState(&raftpb.ConfState{Voters: []uint64{1}, VotersOutgoing: []uint64{2}})), refusedSnapshot},
		{"snapshot with too many members", message(raftpb.MsgSnap, withConfState(voters(make([]uint64, limits.MaxMembers+1)...))), refusedSnapshot},
		{"snapshot at 0", message(raftpb.MsgSnap, meta(0, 4)), refusedSnapshot},
		{"snapshot at the end", message(raftpb.MsgSnap, meta(math.MaxUint64, 4)), refusedSnapshot},
		{"snapshot of term 0", message(raftpb.MsgSnap, meta(9, 0)), refusedSnapshot},
		{"snapshot of a later term", message(raftpb.MsgSnap, meta(9, 6)), refusedSnapshot},
		{"vote with a snapshot", message(raftpb.MsgVote, meta(9, 4)), refusedSnapshot},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := ValidateMessage(test.m, 1)
			var r *refusalError
			if !errors.As(err, &r) {
				t.Fatalf("accepted (%v)", err)
			}
			if r.reason != test.reason {
				t.Errorf("refused for %v, want %v: %v", r.reason, test.reason, err)
			}
		})
	}
}
