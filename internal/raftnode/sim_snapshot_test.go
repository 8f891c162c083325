package raftnode

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/catchup"
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
	if n.s.chance(n.s.net.spoolFails) {
		return nil, errModelDisk
	}
	f := new(memoryFile)
	if n.s.chance(n.s.net.spoolFails) {
		f.fail = errModelDisk
	}
	return f, nil
}

// snapshotTurn does what the loops of the snapshotter, the compactor and the
// checkpointer do.
func (n *simNode) snapshotTurn() {
	n.log.NoteApplied(n.applier.index)
	_ = n.log.Compact() // the spool may fail; then it is given up
	n.deliveries.Tick(n.now(), catchup.Place{
		Leads: n.core.isLeader(), Term: n.core.term, Applied: n.applier.index,
		Members: n.core.membership, Matches: n.core.matches(),
	})
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

// Build implements catchup.Work: the state is that of now, and the file takes a
// while, or cannot be written.
func (n *simNode) Build() {
	snapshot, content := n.body()
	n.later(n.s.between(n.s.opts.build), "body built", func() {
		if n.s.chance(n.s.net.buildFails) {
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

// Send implements catchup.Work: the body arrives, or not, or damaged, and then the
// message. A receiver that took the body may still not be heard.
func (n *simNode) Send(m *raftpb.Message, b *catchup.Body) {
	to, index := m.GetTo(), b.Index()
	s := n.s
	s.known.snapshotsSent++
	content, life := slices.Clone(n.outgoing[b]), n.life
	s.after(5*s.between(s.net.delay)+milli, "snapshot transfer", func() {
		target := s.nodes[to]
		err := errors.New("the connection broke")
		if target != nil && target.up && !s.net.blocked[link{n.id, to}] && !s.chance(s.net.loss) {
			if s.chance(s.net.damages) {
				content[s.rng.IntN(len(content))] ^= 1 << s.rng.IntN(8)
			}
			err = target.receiveBody(m, index, content)
		}
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
			return err
		}
	}
	n.bodies[index] = content
	n.receive(m)
	return nil
}
