package raftnode

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/roster"
)

// intake limits how fast a leader takes batches into its log, its own and those
// that the other members forward. It is used while a member that follows by
// snapshot cannot keep up (catchup.Deliveries), and off otherwise.
//
// It is a bucket that each tick fills. A batch is taken whenever the bucket is
// not empty, and may leave it in debt: batches are larger than a tick's share,
// and must not be cut. What waits costs little: each member has one batch in
// flight (C1), so at most one of each is held here, and everything else waits at
// its origin, where queues are bounded and clients learn that they wait.
//
// Starts and membership changes are not held: they may be what repairs the
// cluster. Reads are not affected.
type intake struct {
	limit  int64 // bytes per tick; 0: no limit
	budget int64
	held   []*raftpb.Message
}

// maxHeld bounds the forwarded batches that are held. A message beyond it is
// dropped, and its sender repeats it.
const maxHeld = 64

// setLimit changes the limit, from now on.
func (i *intake) setLimit(bytesPerTick int64) {
	i.limit = bytesPerTick
	i.budget = min(i.budget, bytesPerTick)
}

// empty reports whether batches have to wait for the next tick.
func (i *intake) empty() bool { return i.limit > 0 && i.budget <= 0 }

// take counts a batch that raft was given.
func (i *intake) take(bytes int) {
	if i.limit > 0 {
		i.budget -= int64(bytes)
	}
}

// fill adds a tick's share. Unused shares do not add up.
func (i *intake) fill() { i.budget = min(i.budget+i.limit, i.limit) }

// hold keeps a forwarded batch for later. A sender that loses patience sends its
// batch again; only one copy stays.
func (i *intake) hold(m *raftpb.Message) {
	id, _ := batchOf(m)
	for n, other := range i.held {
		if have, _ := batchOf(other); have == id {
			i.held[n] = m
			return
		}
	}
	if len(i.held) < maxHeld {
		i.held = append(i.held, m)
	}
}

// next returns a held batch, if there is one and the bucket is not empty.
func (i *intake) next() *raftpb.Message {
	if len(i.held) == 0 || i.empty() {
		return nil
	}
	m := i.held[0]
	i.held = i.held[1:]
	return m
}

// batchOf returns the id of the batch that a message forwards, if it does.
func batchOf(m *raftpb.Message) (roster.BatchID, bool) {
	ents := m.GetEntries()
	if m.GetType() != raftpb.MsgProp || len(ents) != 1 || ents[0].GetType() != raftpb.EntryNormal {
		return roster.BatchID{}, false
	}
	return roster.PeekBatch(ents[0].GetData())
}

// limitIntake sets how many bytes of batches this node takes in a tick while it
// leads; 0 means no limit. A node that does not lead ignores it.
func (c *core) limitIntake(bytesPerTick int64) {
	if !c.isLeader() {
		bytesPerTick = 0
	}
	c.intake.setLimit(bytesPerTick)
	c.releaseHeld()
}

// holdBack reports whether a message was put aside because the leader's intake is
// limited.
func (c *core) holdBack(m *raftpb.Message) bool {
	if c.intake.limit == 0 || !c.isLeader() {
		return false
	}
	if _, ok := batchOf(m); !ok {
		return false
	}
	if c.intake.empty() {
		c.intake.hold(m)
		return true
	}
	c.intake.take(len(m.GetEntries()[0].GetData()))
	return false
}

// releaseHeld gives raft the batches that were put aside, as far as the bucket
// reaches.
func (c *core) releaseHeld() {
	for m := c.intake.next(); m != nil; m = c.intake.next() {
		c.intake.take(len(m.GetEntries()[0].GetData()))
		_ = c.rn.Step(m) // raft may drop it; then its sender repeats it
	}
}

// endIntake lifts the limit when this node stops leading. What was held goes
// nowhere: its senders propose it again to the new leader.
func (c *core) endIntake() {
	if !c.isLeader() {
		c.intake = intake{}
	}
}
