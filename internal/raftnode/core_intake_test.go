package raftnode

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

// logBytes is what a member's log holds after an index.
func logBytes(n *simNode, after uint64) (total int) {
	first, _ := n.log.FirstIndex()
	last, _ := n.log.LastIndex()
	if last < first {
		return 0
	}
	ents, err := n.log.Entries(max(first, after+1), last+1, 1<<40)
	if err != nil {
		return 0
	}
	return entryBytes(ents)
}

// TestIntakeLimitsWhatALeaderTakes: batches of all members together stay within
// the limit, and all of them get their turn. Reads do not wait.
func TestIntakeLimitsWhatALeaderTakes(t *testing.T) {
	s := newSim(t, 5, simOptions{members: 3, maxBatch: 400})
	l := s.elect()
	s.agree(l, 8, s.order...)
	const limit, ticks = 500, 40
	l.post(func(c *core) { c.limitIntake(limit) })
	s.run(simTick)
	var ops []*op
	for range 30 {
		for _, n := range s.alive() {
			ops = append(ops, s.write(n, 300))
		}
	}
	before, _ := l.log.LastIndex()
	s.run(ticks * simTick)
	if got, most := logBytes(l, before), ticks*limit+2*400; got > most || got < ticks*limit/2 {
		t.Errorf("%d bytes in %d ticks of %d", got, ticks, limit)
	}
	read := s.linearizable(l)
	s.must(2*simTick, "a read", func() bool { return read.outcome == succeeded })
	l.post(func(c *core) { c.limitIntake(0) })
	s.must(5*electionTimeout, "all writes", func() bool { return allDone(ops) })
	s.settle(patience)
}

// TestIntakeHoldsOneCopyOfABatch: a member that repeats its batch while the leader
// holds it does not fill the log with copies.
func TestIntakeHoldsOneCopyOfABatch(t *testing.T) {
	var i intake
	i.setLimit(100)
	message := func(member, sequence uint64) *raftpb.Message {
		data := roster.EncodeBatch(roster.BatchID{Member: member, Incarnation: 7, Sequence: sequence}, [][]byte{make([]byte, 50)})
		return &raftpb.Message{Type: raftpb.MsgProp.Enum(), Entries: []*raftpb.Entry{{Type: raftpb.EntryNormal.Enum(), Data: data}}}
	}
	for range 3 {
		i.hold(message(2, 1))
		i.hold(message(3, 1))
	}
	if len(i.held) != 2 || i.next() != nil {
		t.Errorf("%d messages are held", len(i.held))
	}
	for range 10 {
		i.fill()
	}
	if i.budget != 100 {
		t.Errorf("unused shares add up to %d", i.budget)
	}
	if m := i.next(); m == nil {
		t.Error("nothing comes out of a full bucket")
	}
	i.take(1000)
	if i.next() != nil || !i.empty() {
		t.Error("a bucket in debt gives more")
	}
	for n := range uint64(2 * maxHeld) {
		i.hold(message(4, n))
	}
	if len(i.held) > maxHeld {
		t.Errorf("%d messages are held", len(i.held))
	}
	start := &raftpb.Message{Type: raftpb.MsgProp.Enum(), Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum()}}}
	if _, ok := batchOf(start); ok {
		t.Error("a membership change counts as a batch")
	}
}
