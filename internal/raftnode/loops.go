package raftnode

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/datadir"
)

// appendJob is one thing for the append loop to do: a message of raft, or the
// record of a checkpoint.
type appendJob struct {
	message    *raftpb.Message
	checkpoint *raftpb.Snapshot
	done       chan error // of the checkpoint; capacity 1
}

// appendLoop owns the disk: all writes of the log go through it.
func (n *Replica) appendLoop(ctx context.Context) error {
	// After a burst the watermark lags; while idle it catches up.
	idle := time.NewTicker(datadir.WatermarkPace)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-idle.C:
		case <-n.appendWork.ready:
		}
		if err := n.appendTurn(n.appendWork.take()); err != nil {
			return err
		}
	}
}

// appendTurn saves everything that is queued with one write.
func (n *Replica) appendTurn(jobs []appendJob) error {
	var messages []*raftpb.Message
	bytes := 0
	for _, j := range jobs {
		if j.message != nil {
			messages = append(messages, j.message)
			bytes += entryBytes(j.message.GetEntries())
		}
	}
	n.appending.note()
	defer n.appending.clear()
	responses, err := n.appender.append(messages)
	if err != nil {
		return err
	}
	n.snapshots.appended.Add(int64(bytes))
	n.deliver(responses)
	if err := n.disk.UpdateWatermark(time.Now()); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.checkpoint == nil {
			continue
		}
		err := n.recordCheckpoint(j.checkpoint)
		j.done <- err
		if err != nil {
			return err
		}
	}
	return nil
}

// deliver sends the responses of a finished save: those for peers to the
// transport directly, raft's own to the node loop, each in order.
func (n *Replica) deliver(responses []*raftpb.Message) {
	var own, peers []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == n.cfg.ID {
			own = append(own, m)
		} else {
			peers = append(peers, m)
		}
	}
	if len(peers) > 0 {
		n.transport.Send(peers)
	}
	if len(own) > 0 {
		n.events.put(event{responses: own})
	}
}

// install hands a received snapshot to the apply loop and waits for it: the
// one place where the append loop waits for another.
func (n *Replica) install(ctx context.Context) func(*raftpb.Snapshot) error {
	return func(s *raftpb.Snapshot) error {
		index := s.GetMetadata().GetIndex()
		w := &restoreWork{
			index: index,
			term:  s.GetMetadata().GetTerm(),
			open:  func() (io.ReadCloser, error) { return os.Open(n.disk.BodyPath(index)) },
			done:  make(chan error, 1),
		}
		// Restoring may take long, and is not the log's disk hanging.
		n.appending.clear()
		defer n.appending.note()
		n.applyWork.put(applyWork{restore: w})
		select {
		case err := <-w.done:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// maintainTurns is after how many turns of a busy apply loop a piece of
// background work gets its share: otherwise history would grow for as long as
// there is something to apply.
const maintainTurns = 16

// applyLoop owns the applier, and through it all writes of the state machine.
func (n *Replica) applyLoop(ctx context.Context) error {
	more, turns := true, 0 // there may be work left from before a restart
	for {
		idle := n.applyWork.empty()
		if more && (idle || turns >= maintainTurns) {
			var err error
			if more, err = n.cfg.StateMachine.Maintain(); err != nil {
				return fmt.Errorf("maintain the state: %w", err)
			}
			if turns = 0; more && idle && ctx.Err() == nil {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.applyWork.ready:
		}
		if err := n.applyTurn(n.applyWork.take()); err != nil {
			return err
		}
		more = true
		turns++
	}
}

// applyTurn applies everything that is queued, in order.
func (n *Replica) applyTurn(work []applyWork) error {
	for len(work) > 0 {
		if r := work[0].restore; r != nil {
			out, err := n.applier.restore(r)
			r.done <- err
			if err != nil {
				return err
			}
			n.appliedUpTo(out)
			work = work[1:]
			continue
		}
		run := 1
		for run < len(work) && work[run].restore == nil {
			run++
		}
		out, err := n.applier.apply(work[:run])
		if err != nil {
			for _, w := range work[:run] {
				for _, own := range w.own {
					answerAll(own.batch.proposals, ErrUnknown)
				}
			}
			return err
		}
		n.appliedUpTo(out)
		work = work[run:]
	}
	return nil
}

func (n *Replica) appliedUpTo(out *appliedWork) {
	n.waiters.advance(out.index)
	n.events.put(event{applied: out})
	n.snapshots.noteApplied(out.index)
}
