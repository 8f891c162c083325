package raftnode

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/roster"
)

func testApplier(t *testing.T) (*applier, *machine) {
	m := newMachine(false)
	m.violation = t.Errorf
	m.observe = func(*Entry, uint64) {}
	r := roster.New(simCluster, []roster.Member{simMember(1), simMember(2)})
	return &applier{self: 1, sm: m, roster: r, index: InitialIndex}, m
}

func command8(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func committedEntry(index uint64, data []byte) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(uint64(1)), Data: data}
}

// TestApplierAnswers: results go to the proposals of this process's batches,
// skipped batches come back, and everything else is reported in order.
func TestApplierAnswers(t *testing.T) {
	a, m := testApplier(t)
	ran := &batch{id: roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, proposals: []*proposal{
		newProposal(command8(7)), newGroup([][]byte{command8(3), command8(4)}), newProposal(command8(8)),
	}}
	skipped := &batch{id: roster.BatchID{Member: 1, Incarnation: 1, Sequence: 9}, proposals: []*proposal{newProposal(command8(9))}}
	entry := func(b *batch) []byte {
		var cs [][]byte
		for _, p := range b.proposals {
			cs = append(cs, p.commands...)
		}
		return roster.EncodeBatch(b.id, cs)
	}
	st := &roster.Start{Member: 1, Nonce: "dir", Boot: "boot", Version: 1}
	change := roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: 3, PeerURLs: []string{"http://x:1"}}}
	cc := confChangeEntry(t, 6, change.ConfChange(roster.EncodeChange(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, &change)))
	work := []applyWork{
		{entries: []*raftpb.Entry{committedEntry(2, roster.EncodeStart(st)), committedEntry(3, entry(ran))}, own: []ownBatch{{3, ran}},
			responses: []*raftpb.Message{{Index: new(uint64(1))}}},
		{entries: []*raftpb.Entry{committedEntry(4, entry(skipped)), committedEntry(5, nil), cc}, own: []ownBatch{{4, skipped}},
			responses: []*raftpb.Message{{Index: new(uint64(2))}}},
	}
	out, err := a.apply(work)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ran.proposals {
		if got, ok := p.answered(); !ok || got.err != nil || len(got.results) != len(p.commands) || got.results[0].(machineResult).index != 3 {
			t.Errorf("answer %+v %v to %d commands", got, ok, len(p.commands))
		}
	}
	if _, ok := skipped.proposals[0].answered(); ok || len(out.skipped) != 1 || m.seen[9] {
		t.Error("the skipped batch was answered, lost or ran")
	}
	if len(out.starts) != 1 || !out.starts[0].began || len(out.changes) != 1 || out.changes[0].err != nil || len(out.confChanges) != 1 {
		t.Errorf("starts %+v changes %+v", out.starts, out.changes)
	}
	if out.index != 6 || len(out.responses) != 2 || out.responses[0].GetIndex() != 1 || len(out.membership.Members) != 3 {
		t.Errorf("index %d, %d responses, membership %+v", out.index, len(out.responses), out.membership)
	}
	if out, err = a.apply([]applyWork{{entries: []*raftpb.Entry{committedEntry(7, nil)}}}); err != nil || out.membership != nil {
		t.Errorf("an empty entry changes the membership: %v %v", out.membership, err)
	}
}

// TestMembersAreAsOfTheBarrier: when a read that waits for an index is answered, the members
// are known as of that index, although the node loop has not heard of a change yet.
func TestMembersAreAsOfTheBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := testApplier(t)
		members := new(atomic.Pointer[roster.Membership])
		l := &applyLoop{
			lg: zap.NewNop(), applier: a, events: newMailbox[event](), waiters: new(indexWaiters), members: members,
			snapshots: new(snapshotter), refused: &refusedStarts{lg: zap.NewNop()},
		}
		read := &readRequest{done: make(chan error)} // the answer waits until it is taken
		l.waiters.wait(readRound{index: 3, requests: []*readRequest{read}})
		change := roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: 3, PeerURLs: []string{"http://x:1"}}}
		start := committedEntry(2, roster.EncodeStart(&roster.Start{Member: 1, Nonce: "dir", Boot: "boot", Version: 1}))
		cc := confChangeEntry(t, 3, change.ConfChange(roster.EncodeChange(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, &change)))
		go func() {
			if err := l.turn([]applyWork{{entries: []*raftpb.Entry{start, cc}}}); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		if ms := members.Load(); ms == nil || len(ms.Members) != 3 {
			t.Errorf("the read is answered with the members %+v", ms)
		}
		<-read.done
	})
}

// TestApplierStopsAtWhatItCannotRead: an entry that cannot be decoded stops
// the applier, and nobody is answered.
func TestApplierStopsAtWhatItCannotRead(t *testing.T) {
	a, m := testApplier(t)
	b := &batch{id: roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, proposals: []*proposal{newProposal(command8(7))}}
	_, err := a.apply([]applyWork{{
		entries: []*raftpb.Entry{committedEntry(2, roster.EncodeBatch(b.id, [][]byte{command8(7)})), committedEntry(3, []byte("garbage"))},
		own:     []ownBatch{{2, b}},
	}})
	if err == nil || !strings.Contains(err.Error(), "entry 3") || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("error %v", err)
	}
	if _, ok := b.proposals[0].answered(); ok || len(m.cur.IDs) > 0 {
		t.Error("went on")
	}
}

func TestApplierPanicsOnAGap(t *testing.T) {
	a, _ := testApplier(t)
	defer func() {
		if recover() == nil {
			t.Error("a gap passed")
		}
	}()
	_, _ = a.apply([]applyWork{{entries: []*raftpb.Entry{committedEntry(5, nil)}}})
}

// TestApplierRestore: the body must be at the index and term that its snapshot
// states, and brings the origins with it.
func TestApplierRestore(t *testing.T) {
	a, m := testApplier(t)
	if err := m.Apply([]Entry{{Index: 1, Term: 1, Records: a.roster.Records()}}); err != nil {
		t.Fatal(err)
	}
	_, err := a.apply([]applyWork{{entries: []*raftpb.Entry{
		committedEntry(2, roster.EncodeStart(&roster.Start{Member: 1, Nonce: "dir", Boot: "boot"})),
		committedEntry(3, roster.EncodeBatch(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 4}, [][]byte{command8(7)})),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	v, _ := m.View()
	var body bytes.Buffer
	if _, err := v.WriteTo(&body); err != nil {
		t.Fatal(err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body.Bytes())), nil }

	b, _ := testApplier(t)
	out, err := b.restore(&restoreWork{index: 3, term: 1, open: open})
	if err != nil {
		t.Fatal(err)
	}
	want := roster.Origin{Boot: "boot", Incarnation: 2, LastBatch: 4}
	if out.restored.origin != want || out.index != 3 || b.index != 3 {
		t.Errorf("restored %+v at %d", out.restored.origin, b.index)
	}
	for _, w := range []*restoreWork{
		{index: 4, term: 1, open: open},
		{index: 3, term: 2, open: open},
		{index: 3, term: 1, open: func() (io.ReadCloser, error) { return nil, io.ErrUnexpectedEOF }},
		{index: 3, term: 1, open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("{")), nil }},
	} {
		c, _ := testApplier(t)
		if _, err := c.restore(w); err == nil {
			t.Errorf("index %d term %d: no error", w.index, w.term)
		}
	}
}
