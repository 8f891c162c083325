package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
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
		if err := validateMessage(m, 1); err != nil {
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
		{"from beyond the ids", message(raftpb.MsgApp, from(MaxMemberID+1)), refusedSender},
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
			err := validateMessage(test.m, 1)
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

func TestValidateAgainstLog(t *testing.T) {
	known := func(id uint64) bool { return id == 2 }
	ack := func(n uint64) func(*raftpb.Message) {
		return func(m *raftpb.Message) { m.Context = binary.LittleEndian.AppendUint64(nil, n) }
	}
	commit := func(v uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.Commit = new(v) } }
	stranger := message(raftpb.MsgApp)
	stranger.From = new(uint64(3))
	for _, test := range []struct {
		name string
		m    *raftpb.Message
		ok   bool
	}{
		{"append", message(raftpb.MsgApp, after(100, 1), commit(200)), true},
		{"append from outside the configuration", stranger, false},
		{"heartbeat", message(raftpb.MsgHeartbeat, commit(10)), true},
		{"heartbeat beyond the log", message(raftpb.MsgHeartbeat, commit(11)), false},
		{"acknowledgement", message(raftpb.MsgAppResp, after(10, 0)), true},
		{"acknowledgement beyond the log", message(raftpb.MsgAppResp, after(11, 0)), false},
		{"read acknowledgement", message(raftpb.MsgHeartbeatResp, ack(4)), true},
		{"empty read acknowledgement", message(raftpb.MsgHeartbeatResp), true},
		{"read acknowledgement beyond the reads", message(raftpb.MsgHeartbeatResp, ack(5)), false},
	} {
		err := validateAgainst(test.m, 10, known)
		if err == nil {
			err = validateReadAck(test.m, 4)
		}
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestLastIndexAfter(t *testing.T) {
	for _, test := range []struct {
		m          *raftpb.Message
		last, want uint64
	}{
		{message(raftpb.MsgApp, after(7, 4)), 10, 10},
		{message(raftpb.MsgApp, after(7, 4), withEntries(entry(8, 4))), 10, 8},
		{message(raftpb.MsgApp, after(10, 4), withEntries(entry(11, 4))), 10, 10},
		{snapshotMessage(2, 1, 9), 10, 9},
		{snapshotMessage(2, 1, 11), 10, 10},
		{message(raftpb.MsgHeartbeat), 10, 10},
	} {
		if got := lastIndexAfter(test.m, test.last); got != test.want {
			t.Errorf("%v after %d: %d, want %d", test.m.GetType(), test.last, got, test.want)
		}
	}
}

// bench3 is a real RawNode of three voters with a log in memory, driven as the
// node loop does it, but without a second goroutine.
type bench3 struct {
	rn      *raft.RawNode
	storage *raft.MemoryStorage
	term    uint64
	readAck uint64
	last    uint64 // as lastIndexAfter follows it
	stepped int    // messages that passed
	led     int    // turns as leader
	// lazy leaves the work that follows from messages for later, as a node
	// loop does that takes several at once.
	lazy bool
}

func newBench3() (*bench3, error) {
	b := &bench3{storage: raft.NewMemoryStorage(), last: 1}
	first := snapshotMessage(2, 1, 1).Snapshot
	first.Metadata.Term = new(uint64(1))
	if err := b.storage.ApplySnapshot(first); err != nil {
		return nil, err
	}
	if err := b.storage.SetHardState(&raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}); err != nil {
		return nil, err
	}
	var err error
	b.rn, err = raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 3, HeartbeatTick: 1, Storage: b.storage, Applied: 1,
		AsyncStorageWrites: true, MaxSizePerMsg: 1 << 10, MaxInflightMsgs: 4, MaxInflightBytes: 1 << 12,
		MaxUncommittedEntriesSize: 1 << 16, MaxCommittedSizePerReady: 1 << 12,
		CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
		Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
	})
	return b, err
}

// step steps m if it passes every check, then does all the work that follows.
func (b *bench3) step(m *raftpb.Message) error {
	if validateMessage(m, 1) != nil {
		return nil
	}
	known := func(id uint64) bool { return id == 2 || id == 3 }
	if validateAgainst(m, b.last, known) != nil || validateReadAck(m, b.readAck) != nil {
		return nil
	}
	b.stepped++
	_ = b.rn.Step(m) // errors say that raft ignores it
	b.last = lastIndexAfter(m, b.last)
	if b.lazy {
		return nil
	}
	return b.work()
}

func (b *bench3) work() (err error) {
	defer func() {
		if err == nil {
			b.last, err = b.storage.LastIndex() // exact: nothing is under way
		}
	}()
	for b.rn.HasReady() {
		for _, m := range b.rn.Ready().Messages {
			if err := b.handle(m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench3) handle(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		if m.GetTerm() != b.term {
			b.term, b.readAck = m.GetTerm(), 0
		}
		b.readAck = max(b.readAck, readAckOf(m))
		return nil
	case raftpb.MsgStorageAppend:
		if err := b.save(m); err != nil {
			return err
		}
	case raftpb.MsgStorageApply:
	default:
		return nil
	}
	for _, resp := range m.GetResponses() {
		if resp.GetTo() != 1 {
			continue
		}
		if err := b.rn.Step(resp); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return fmt.Errorf("own response %v: %w", resp.GetType(), err)
		}
	}
	return nil
}

func (b *bench3) save(m *raftpb.Message) error {
	if !raft.IsEmptySnap(m.GetSnapshot()) {
		if err := b.storage.ApplySnapshot(m.GetSnapshot()); err != nil {
			return err
		}
	}
	hs := &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	if !raft.IsEmptyHardState(hs) {
		if err := b.storage.SetHardState(hs); err != nil {
			return err
		}
	}
	return b.storage.Append(m.GetEntries())
}

// choices turns bytes into decisions; when they run out, it chooses 0.
type choices struct{ data []byte }

func (c *choices) done() bool { return len(c.data) == 0 }

func (c *choices) byte() byte {
	if c.done() {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return b
}

// edges are the numbers at which arithmetic breaks.
var edges = []uint64{
	math.MaxUint64, math.MaxUint64 - 1, 1 << 63, 1<<62 + 1, 1 << 62, 1<<62 - 1, math.MaxUint32, 255,
	math.MaxInt64, 1 << 53, 1<<53 - 1, 100, 1000, 16, 32, 64,
}

// number is mostly small, sometimes at an edge.
func (c *choices) number() uint64 {
	b := c.byte()
	if b < 240 {
		return uint64(b % 12)
	}
	return edges[b-240]
}

// near is mostly v or right beside it.
func (c *choices) near(v uint64) uint64 {
	switch b := c.byte(); {
	case b < 150:
		return v
	case b < 190:
		return v + 1
	case b < 230:
		return v - min(v, uint64(b%4))
	default:
		return c.number()
	}
}

func (c *choices) bytes() []byte {
	n := min(int(c.byte()%40), len(c.data))
	out := bytes.Clone(c.data[:n])
	c.data = c.data[n:]
	return out
}

// message makes one that is often close to a good one for this node.
func (c *choices) message(b *bench3) *raftpb.Message {
	st := b.rn.BasicStatus()
	m := &raftpb.Message{
		Type: raftpb.MessageType(c.byte() % 25).Enum(), From: new(uint64(2 + c.byte()%2)), To: new(uint64(1)), Term: new(c.near(st.GetTerm())),
	}
	shape := c.byte()
	if shape&3 != 0 {
		m.Index = new(c.near(b.last))
		term, _ := b.storage.Term(min(m.GetIndex(), b.last)) // 0 where it is not there
		m.LogTerm, m.Commit = new(c.near(term)), new(c.near(b.last))
	}
	if shape&12 == 12 {
		m.Reject, m.RejectHint = new(true), new(c.near(b.last))
	}
	if shape&48 == 48 {
		m.Context = c.bytes()
	} else if shape&16 != 0 {
		m.Context = binary.LittleEndian.AppendUint64(nil, c.near(b.readAck))
	}
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		c.entries(m)
	case raftpb.MsgSnap:
		m.Snapshot = c.snapshot(b)
	}
	if t := m.GetType(); t == raftpb.MsgProp || t == raftpb.MsgReadIndex {
		m.Term = nil
	}
	if shape > 250 {
		m.From = new(c.number())
	}
	return m
}

func (c *choices) entries(m *raftpb.Message) {
	term := max(m.GetLogTerm(), 1)
	for i := range uint64(c.byte() % 5) {
		if c.byte() > 200 {
			term = c.near(m.GetTerm())
		}
		e := &raftpb.Entry{Index: new(m.GetIndex() + 1 + i), Term: new(term), Data: c.bytes()}
		if kind := c.byte(); kind > 220 {
			e.Type = raftpb.EntryType(kind % 4).Enum()
			if kind > 230 {
				e.Data = nil
			}
			if kind > 250 {
				e.Index = new(c.number())
			}
		}
		m.Entries = append(m.Entries, e)
	}
}

func (c *choices) snapshot(b *bench3) *raftpb.Snapshot {
	cs := &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
	switch kind := c.byte(); {
	case kind > 250:
		cs = nil
	case kind > 220:
		cs.Voters, cs.Learners = []uint64{2, 3}, []uint64{1}
	case kind > 180:
		cs.Voters = []uint64{1, c.number(), c.number()}
	case kind > 150:
		cs.Learners = []uint64{c.number()}
	case kind > 140:
		cs.VotersOutgoing = []uint64{c.number()}
	}
	term := b.rn.BasicStatus().GetTerm()
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(c.near(b.last + 1)), Term: new(c.near(term)), ConfState: cs}}
}

// runChoices feeds a RawNode with what the bytes say: ticks, messages made by
// choice, messages decoded from raw bytes, and whether work waits between.
func runChoices(data []byte) (b *bench3, err error) {
	if b, err = newBench3(); err != nil {
		return nil, err
	}
	c := &choices{data}
	for !c.done() {
		switch kind := c.byte(); {
		case kind < 10:
			b.lazy = !b.lazy
			err = b.work()
		case kind < 20:
			b.rn.Tick()
			err = b.work()
		case kind < 30:
			b.rn.ReadIndex([]byte{kind})
			err = b.work()
		case kind < 40:
			_ = b.rn.Propose([]byte{kind}) // refused without a leader
			err = b.work()
		case kind < 60:
			m := new(raftpb.Message)
			if raw := c.bytes(); proto.Unmarshal(raw, m) == nil {
				err = b.step(m)
			}
		default:
			err = b.step(c.message(b))
		}
		if err != nil {
			return b, err
		}
		if b.rn.BasicStatus().RaftState == raft.StateLeader {
			b.led++
		}
	}
	return b, nil
}

// FuzzValidateMessage: no sequence of messages that pass the checks panics
// raft, or makes it refuse its own storage responses.
func FuzzValidateMessage(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomBytes(seed, 400))
	}
	f.Add(append([]byte{50, 30}, encode(f, heartbeat(2, 1, 3))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := runChoices(data); err != nil {
			t.Fatal(err)
		}
	})
}

func randomBytes(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(rng.Uint32())
	}
	return out
}

func TestRandomMessagesNeverPanicRaft(t *testing.T) {
	stepped, led := 0, 0
	for seed := range uint64(4000) {
		b, err := runChoices(randomBytes(seed, 2000))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		stepped, led = stepped+b.stepped, led+b.led
	}
	if stepped < 50_000 || led < 1000 {
		t.Errorf("%d messages passed the checks, %d turns as leader: too few to mean anything", stepped, led)
	}
	t.Logf("%d messages stepped, %d turns as leader", stepped, led)
}

// lead makes it the leader of term 2, with an entry of its own committed.
func (b *bench3) lead() error {
	for _, m := range []*raftpb.Message{
		message(raftpb.MsgTimeoutNow, inTerm(1)),
		message(raftpb.MsgVoteResp, inTerm(2)),
		message(raftpb.MsgAppResp, inTerm(2), after(2, 0)),
	} {
		if err := b.step(m); err != nil {
			return err
		}
	}
	if st := b.rn.BasicStatus(); st.RaftState != raft.StateLeader || st.GetCommit() != 2 {
		return fmt.Errorf("%v with commit %d", st.RaftState, st.GetCommit())
	}
	return nil
}

func inTerm(v uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.Term = new(v) } }

// TestUncheckedMessagesPanicRaft keeps the checks honest: each one is here
// because raft does not survive without it.
func TestUncheckedMessagesPanicRaft(t *testing.T) {
	garbled := &raftpb.Entry{Type: raftpb.EntryConfChangeV2.Enum(), Data: []byte("\xff\xff")}
	forgedAck := func(from uint64) *raftpb.Message {
		m := message(raftpb.MsgHeartbeatResp, inTerm(2), withContext(8))
		m.From, m.Context[0] = new(from), 200
		return m
	}
	for _, test := range []struct {
		name     string
		leader   bool
		messages []*raftpb.Message
	}{
		{"heartbeat beyond the log", false, []*raftpb.Message{message(raftpb.MsgHeartbeat, func(m *raftpb.Message) { m.Commit = new(uint64(99)) })}},
		{"snapshot with a member twice", false, []*raftpb.Message{message(raftpb.MsgSnap, withConfState(&raftpb.ConfState{Voters: []uint64{1, 2, 2}}))}},
		{"snapshot without voters", false, []*raftpb.Message{message(raftpb.MsgSnap, withConfState(&raftpb.ConfState{Learners: []uint64{1}}))}},
		{"entry with a bad index", false, []*raftpb.Message{message(raftpb.MsgApp, after(1, 1), withEntries(entry(1, 4)))}},
		{"entries cut off, then a heartbeat beyond", false, []*raftpb.Message{
			message(raftpb.MsgApp, after(1, 1), withEntries(entry(2, 4), entry(3, 4), entry(4, 4))),
			message(raftpb.MsgApp, after(1, 1), withEntries(entry(2, 5))),
			message(raftpb.MsgHeartbeat, func(m *raftpb.Message) { m.Commit = new(uint64(4)) }),
		}},
		{"forwarded proposal with a term", false, []*raftpb.Message{message(raftpb.MsgHeartbeat), message(raftpb.MsgProp, withEntries(entry(0, 0)))}},
		{"proposal of nothing", true, []*raftpb.Message{message(raftpb.MsgProp, withoutTerm)}},
		{"proposal of a garbled change", true, []*raftpb.Message{message(raftpb.MsgProp, withoutTerm, withEntries(garbled))}},
		{"short read acknowledgement", true, []*raftpb.Message{message(raftpb.MsgHeartbeatResp, inTerm(2), withContext(3))}},
		{"read acknowledgements beyond the reads", true, []*raftpb.Message{forgedAck(2), forgedAck(3)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, err := newBench3()
			if err == nil && test.leader {
				err = b.lead()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if recover() == nil {
					t.Error("raft survives it")
				}
			}()
			for _, m := range test.messages {
				_ = b.rn.Step(m)
			}
		})
	}
}
