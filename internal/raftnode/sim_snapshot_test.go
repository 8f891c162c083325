package raftnode

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/raftlog"
)

// startDeliveries gives a new life its deliveries and its spool, as Open does.
func (n *simNode) startDeliveries() {
	n.log.NewSpoolFile = n.newSpoolFile
	if n.s.opts.catchUp > 0 {
		n.log.MaxEntries = n.s.opts.catchUp
	}
	n.outgoing = make(map[*catchup.Body][]byte)
	n.deliveries = catchup.New(zap.NewNop(), n.log, n, 1<<20)
}

func (n *simNode) now() time.Duration { return time.Duration(n.s.now) * time.Microsecond }

// time is the virtual time as the recency of a member sees it.
func (n *simNode) time() time.Time { return time.UnixMicro(n.s.now) }

func (n *simNode) newSpoolFile() (raftlog.SpoolFile, error) {
	if n.disk.full || n.s.chance(n.s.net.spoolFails) {
		n.s.reach(spoolFails)
		return nil, errModelDisk
	}
	f := new(memoryFile)
	if n.s.chance(n.s.net.spoolFails) {
		n.s.reach(spoolFails)
		f.fail = errModelDisk
	}
	return f, nil
}

// snapshotTurn does what the loops of the snapshotter, the compactor and the
// checkpointer do.
func (n *simNode) snapshotTurn() {
	if n.s.opts.bug == bugReleasedEarly {
		n.log.NoteApplied(n.applier.index)
	}
	_ = n.log.Compact() // the spool may fail; then it is given up
	if !n.deliveries.Resting() {
		n.deliveries.Tick(n.now(), catchup.Place{
			Leads: n.core.isLeader(), Term: n.core.term, Applied: n.applier.index,
			Members: n.core.membership, Matches: n.core.matches(),
		})
	}
	every := n.s.opts.checkpoints
	if every > 0 && n.s.chance(float64(200*milli)/float64(every)) {
		n.recordCheckpoint()
	}
}

// body renders the machine as it is; nil if that meets a rotten block.
func (n *simNode) body() (*raftpb.Snapshot, []byte) {
	v, err := n.machine.View()
	if err != nil {
		n.s.violateUnlessDamaged("view", err)
		return nil, nil
	}
	var b bytes.Buffer
	_, err = v.WriteTo(&b)
	var s *raftpb.Snapshot
	if err == nil {
		s, err = describe(v)
	}
	if err = errors.Join(err, v.Close()); err != nil {
		n.s.violateUnlessDamaged("write body", err)
		return nil, nil
	}
	return s, b.Bytes()
}

// position describes the machine as it is, without reading all of it.
func (n *simNode) position() (s *raftpb.Snapshot, index uint64) {
	v, err := n.machine.View()
	if err == nil {
		s, err = describe(v)
		err = errors.Join(err, v.Close())
	}
	if err != nil {
		n.s.violateUnlessDamaged("describe", err)
		return nil, 0
	}
	return s, s.GetMetadata().GetIndex()
}

// violateUnlessDamaged is for errors of a store. One whose block has rotted ends soon.
func (s *sim) violateUnlessDamaged(what string, err error) {
	if err != nil && !engine.IsDamage(err) {
		s.violate("%s: %v", what, err)
	}
}

// Build implements catchup.Work: the state is that of now, and the file takes a
// while, or cannot be written.
func (n *simNode) Build() {
	snapshot, content := n.body()
	if content == nil {
		return
	}
	n.later(n.s.between(n.s.opts.build), "body built", func() {
		if n.disk.full || n.s.chance(n.s.net.buildFails) {
			n.s.reach(buildFails)
			n.deliveries.Built(n.now(), nil, errModelDisk)
			return
		}
		b := &catchup.Body{Snapshot: snapshot, Size: int64(len(content))}
		n.outgoing[b] = content
		n.deliveries.Built(n.now(), b, nil)
	})
}

// Remove implements catchup.Work.
func (n *simNode) Remove(b *catchup.Body) {
	if _, ok := n.outgoing[b]; !ok {
		n.s.violate("V3: member %d removed a body twice", n.id)
	}
	delete(n.outgoing, b)
}

// Report implements catchup.Work.
func (n *simNode) Report(to uint64, ok bool) {
	n.post(func(c *core) { c.reportSnapshot(to, ok) })
}

// LimitIntake implements catchup.Work.
func (n *simNode) LimitIntake(bytesPerSecond int64) {
	n.post(func(c *core) { c.limitIntake(bytesPerSecond / (second / simTick)) })
}

// recordCheckpoint writes down that the state survives without the log.
func (n *simNode) recordCheckpoint() {
	if n.applier.index <= n.checkpoint || len(n.appendJob) > 0 {
		return
	}
	if n.disk.full {
		n.crash() // the engine fails
		n.ended = errNoRoom
		return
	}
	s, index := n.position()
	if s == nil {
		return
	}
	if n.s.opts.memory {
		_, n.bodies[index] = n.body()
	} else if n.s.opts.bug == bugStoreNotFlushed {
		n.s.note("%x does not wait for its store", n.id)
	} else if err := n.machine.Flush(); err != nil {
		n.s.violateUnlessDamaged("flush", err)
		return
	}
	if n.s.chance(0.3) {
		n.last.flushed = index
		return // durable, but a crash comes before the record
	}
	if err := n.disk.SaveSnapshot(s); err != nil {
		n.crash()
		return
	}
	n.checkpoint = index
	if n.s.opts.memory {
		n.store.rotten = false // nobody starts from the rotten body anymore
	}
}

// Send implements catchup.Work: the body arrives, or not, or damaged, and then the
// message. A receiver that took the body may still not be heard.
func (n *simNode) Send(m *raftpb.Message, b *catchup.Body) {
	to, index := m.GetTo(), b.Index()
	s := n.s
	s.known.snapshotsSent++
	content, life := slices.Clone(n.outgoing[b]), n.life
	s.transfers[to]++
	s.trapTransfer(n, to)
	s.after(5*s.between(s.net.delay)+s.between(s.net.transfer)+milli, "snapshot transfer", func() {
		s.transfers[to]--
		target := s.nodes[to]
		err := errors.New("the connection broke")
		if target != nil && target.up && !s.net.blocked[link{n.id, to}] && !s.chance(s.net.loss) {
			if s.chance(s.net.damages) {
				content[s.rng.IntN(len(content))] ^= 1 << s.rng.IntN(8)
			}
			s.observeBody(n, target, index)
			err = target.receiveBody(m, index, content)
		}
		s.reachIf(bodyWithoutSender, n.life != life)
		if n.life == life {
			n.later(s.between(s.net.delay), "snapshot status", func() { n.deliveries.Sent(n.now(), to, err) })
		}
	})
}

// receiveBody is what receivedBodies and the transport do.
func (n *simNode) receiveBody(m *raftpb.Message, index uint64, content []byte) error {
	if n.s.opts.bug != bugBodyNotVerified {
		if err := n.machine.verify(bytes.NewReader(content)); err != nil {
			n.s.known.bodiesRefused++
			n.s.reach(bodyDamaged)
			return err
		}
	}
	if n.disk.full {
		n.s.reach(bodyWithoutRoom)
		return errNoRoom
	}
	n.bodies[index] = content
	n.recordFirst(index)
	n.receive(m)
	n.trapBody()
	return nil
}
