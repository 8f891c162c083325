package raftnode

import (
	"bytes"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// snapshotTurn does what the snapshotter does: bodies for followers,
// compaction of the log in memory, checkpoints.
func (n *simNode) snapshotTurn() {
	if n.log.wanted() {
		n.offer()
	}
	if n.offered != nil && n.s.now-n.offeredAt > 2*second {
		n.log.withdrawSnapshot()
		n.offered = nil
	}
	if n.s.opts.catchUp > 0 {
		n.log.compact(n.applier.index, 1<<30, n.s.opts.catchUp, n.offered.GetMetadata().GetIndex())
	}
	every := n.s.opts.checkpoints
	if every > 0 && n.s.chance(float64(200*milli)/float64(every)) {
		n.recordCheckpoint()
	}
}

// body renders the machine as it is.
func (n *simNode) body() (*raftpb.Snapshot, []byte) {
	v, err := n.machine.View()
	if err != nil {
		n.s.violate("view: %v", err)
	}
	var b bytes.Buffer
	if _, err := v.WriteTo(&b); err != nil {
		n.s.violate("write body: %v", err)
	}
	s, err := describe(v)
	if err != nil {
		n.s.violate("describe: %v", err)
	}
	return s, b.Bytes()
}

func (n *simNode) offer() {
	if n.offered != nil {
		n.log.withdrawSnapshot()
		n.offered = nil
	}
	if n.applier.index == 0 {
		return
	}
	n.offered, n.offeredBody = n.body()
	n.offeredAt = n.s.now
	n.log.offerSnapshot(n.offered)
}

// recordCheckpoint records that the state survives without the log.
func (n *simNode) recordCheckpoint() {
	if n.applier.index <= n.checkpoint || len(n.appendJob) > 0 {
		return
	}
	s, body := n.body()
	index := s.GetMetadata().GetIndex()
	if n.s.opts.memory {
		n.bodies[index] = body
	} else if err := n.machine.Flush(); err != nil {
		n.s.violate("flush: %v", err)
	}
	if n.s.chance(0.3) {
		return // durable, but a crash comes before the record
	}
	if err := n.disk.SaveSnapshot(s); err != nil {
		n.crash()
		return
	}
	n.checkpoint = index
}

// sendSnapshot transfers the body, then the message. The sender's raft learns
// how it ended, whatever happens.
func (n *simNode) sendSnapshot(m *raftpb.Message) {
	to, index := m.GetTo(), m.GetSnapshot().GetMetadata().GetIndex()
	s := n.s
	s.known.snapshotsSent++
	report := func(ok bool) { n.post(func(c *core) { c.reportSnapshot(to, ok) }) }
	cs := m.GetSnapshot().GetMetadata().GetConfState()
	if !slices.Contains(cs.GetVoters(), to) && !slices.Contains(cs.GetLearners(), to) {
		// raft drops a snapshot from before its member was added, and would
		// be sent the same one again and again.
		n.offer()
		report(false)
		return
	}
	if n.offered.GetMetadata().GetIndex() != index {
		report(false)
		return
	}
	body := n.offeredBody
	life := n.life
	s.after(5*s.between(s.net.delay)+milli, "snapshot transfer", func() {
		target := s.nodes[to]
		ok := target != nil && target.up && !s.net.blocked[link{n.id, to}] && !s.chance(s.net.loss)
		if ok {
			target.bodies[index] = body
			target.receive(m)
		}
		if n.life == life {
			n.later(s.between(s.net.delay), "snapshot status", func() { report(ok) })
		}
	})
}
