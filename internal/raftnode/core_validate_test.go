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

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/peers"
)

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

func snapshotMessage(index uint64, cs *raftpb.ConfState) *raftpb.Message {
	return message(raftpb.MsgSnap, func(m *raftpb.Message) {
		m.Snapshot = &raftpb.Snapshot{
			Data:     []byte("members"),
			Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(uint64(4)), ConfState: cs},
		}
	})
}

var threeVoters = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}

func TestValidateAgainstLog(t *testing.T) {
	ack := func(n uint64) func(*raftpb.Message) {
		return func(m *raftpb.Message) { m.Context = binary.LittleEndian.AppendUint64(nil, n) }
	}
	commit := func(v uint64) func(*raftpb.Message) { return func(m *raftpb.Message) { m.Commit = new(v) } }
	for _, test := range []struct {
		name string
		m    *raftpb.Message
		ok   bool
	}{
		{"append", message(raftpb.MsgApp, after(100, 1), commit(200)), true},
		{"heartbeat", message(raftpb.MsgHeartbeat, commit(10)), true},
		{"heartbeat beyond the log", message(raftpb.MsgHeartbeat, commit(11)), false},
		{"acknowledgement", message(raftpb.MsgAppResp, after(10, 0)), true},
		{"acknowledgement beyond the log", message(raftpb.MsgAppResp, after(11, 0)), false},
		{"read acknowledgement", message(raftpb.MsgHeartbeatResp, ack(4)), true},
		{"empty read acknowledgement", message(raftpb.MsgHeartbeatResp), true},
		{"read acknowledgement beyond the reads", message(raftpb.MsgHeartbeatResp, ack(5)), false},
	} {
		err := validateAgainst(test.m, 10)
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
		{snapshotMessage(9, threeVoters), 10, 9},
		{snapshotMessage(11, threeVoters), 10, 10},
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
	// lazy postpones the work that follows from messages, as a node loop
	// does that takes several at once.
	lazy bool
}

func newBench3() (*bench3, error) {
	b := &bench3{storage: raft.NewMemoryStorage(), last: 1}
	first := snapshotMessage(1, threeVoters).Snapshot
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
	if peers.ValidateMessage(m, 1) != nil {
		return nil
	}
	if id := m.GetFrom(); id != 2 && id != 3 {
		return nil // not known to the transport
	}
	if validateAgainst(m, b.last) != nil || validateReadAck(m, b.readAck) != nil {
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

// message makes a message that is often close to a valid one for this node.
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

// runChoices feeds a RawNode as the bytes decide: with ticks, messages made by
// choice, and messages decoded from raw bytes; and whether work waits in
// between.
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
	raw, err := proto.Marshal(message(raftpb.MsgHeartbeat))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{50, 30}, raw...))
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
	stepped, led, seeds := 0, 0, seedsOf(4000)
	for seed := range seeds {
		b, err := runChoices(randomBytes(seed, 2000))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		stepped, led = stepped+b.stepped, led+b.led
	}
	if stepped < int(seeds)*25/2 || led < int(seeds)/4 {
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

// TestUncheckedMessagesPanicRaft keeps the checks honest: raft does not
// survive without each one of them.
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
		{"snapshot with a member twice", false, []*raftpb.Message{snapshotMessage(9, &raftpb.ConfState{Voters: []uint64{1, 2, 2}})}},
		{"snapshot without voters", false, []*raftpb.Message{snapshotMessage(9, &raftpb.ConfState{Learners: []uint64{1}})}},
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
