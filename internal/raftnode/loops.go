package raftnode

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/roster"
)

// appendJob is one thing for the append loop to do: a message of raft, or a
// checkpoint to record.
type appendJob struct {
	message    *raftpb.Message
	checkpoint *raftpb.Snapshot
	done       chan error // for the checkpoint; capacity 1
}

// appendLoop is the goroutine that owns the log on disk: every write of it
// happens here. Its body is the appender.
type appendLoop struct {
	self        uint64
	lg          *zap.Logger
	disk        *datadir.Log
	writes      raftlog.Disk // the disk, as the appender writes to it
	log         *raftlog.Store
	transport   *peers.Transport
	events      *mailbox[event]
	applies     *mailbox[applyWork]
	checkpoints *checkpointer

	// work comes from the node loop and the checkpointer. It is bounded by
	// raft's limits on uncommitted and inflight bytes.
	work *mailbox[appendJob]
	// saving is since when a write has been running; cleared while none is.
	saving moment
	// savingBytes is the size of the entries in that write.
	savingBytes atomic.Int64
	appender    *raftlog.Appender // owned by run
}

func (l *appendLoop) run(ctx context.Context) error {
	l.appender = &raftlog.Appender{Disk: l.writes, Log: l.log, Install: func(s *raftpb.Snapshot) error { return l.install(ctx, s) }}
	// After a burst the watermark lags; it catches up once the loop is idle.
	idle := time.NewTimer(datadir.WatermarkPace)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-idle.C:
		case <-l.work.ready:
			idle.Reset(datadir.WatermarkPace)
		}
		if err := l.turn(l.work.take()); err != nil {
			return err
		}
	}
}

// turn saves everything that is queued with one write.
func (l *appendLoop) turn(jobs []appendJob) error {
	var messages []*raftpb.Message
	bytes := 0
	for _, j := range jobs {
		if j.message != nil {
			messages = append(messages, j.message)
			bytes += entryBytes(j.message.GetEntries())
		}
	}
	l.savingBytes.Store(int64(bytes))
	l.saving.note()
	defer l.saving.clear()
	responses, err := l.appender.Append(messages)
	if err != nil {
		return err
	}
	l.checkpoints.appended.Add(int64(bytes))
	l.deliver(responses)
	// After the responses: nobody waits for the watermark, and it may lag behind
	// the log, but never be ahead of it.
	if err := l.disk.UpdateWatermark(time.Now()); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.checkpoint == nil {
			continue
		}
		// After the save: the snapshot's index must not be ahead of the log.
		err := l.recordCheckpoint(j.checkpoint)
		j.done <- err
		if err != nil {
			return err
		}
	}
	return nil
}

// deliver sends the responses of a finished save, each kind in order: those for
// peers directly to the transport, raft's own to the node loop.
func (l *appendLoop) deliver(responses []*raftpb.Message) {
	var own, peers []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == l.self {
			own = append(own, m)
		} else {
			peers = append(peers, m)
		}
	}
	if len(peers) > 0 {
		l.transport.Send(peers)
	}
	if len(own) > 0 {
		l.events.put(event{responses: own})
	}
}

// install hands a received snapshot to the apply loop and waits for it. This is
// the only place where the append loop waits for another.
func (l *appendLoop) install(ctx context.Context, s *raftpb.Snapshot) error {
	index := s.GetMetadata().GetIndex()
	w := &restoreWork{
		index: index,
		term:  s.GetMetadata().GetTerm(),
		open:  func() (io.ReadCloser, error) { return os.Open(l.disk.BodyPath(index)) },
		done:  make(chan error, 1),
	}
	// A restore may take long, and does not mean that the log's disk hangs.
	l.saving.clear()
	defer l.saving.note()
	l.applies.put(applyWork{restore: w})
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// recordCheckpoint makes a checkpoint durable and releases the log before it
// (S1).
func (l *appendLoop) recordCheckpoint(s *raftpb.Snapshot) error {
	if err := l.disk.SaveSnapshot(s); err != nil {
		return err
	}
	l.lg.Debug("checkpoint recorded", zap.Uint64("index", s.GetMetadata().GetIndex()))
	return l.disk.Purge(keptSnapshots)
}

// applyLoop is the goroutine that owns the applier, and through it all writes
// of the state machine.
type applyLoop struct {
	lg        *zap.Logger
	sm        StateMachine
	applier   *applier
	events    *mailbox[event]
	waiters   *indexWaiters
	members   *atomic.Pointer[roster.Membership] // as of what is applied
	snapshots *snapshotter
	refused   *refusedStarts

	// work comes from the node loop and, to install a snapshot, from the append
	// loop. It is bounded by maxApplyingBytes.
	work *mailbox[applyWork]
}

// maintainTurns is the number of turns of a busy loop after which background
// work gets its share. Otherwise history would grow for as long as there is
// something to apply.
const maintainTurns = 16

func (l *applyLoop) run(ctx context.Context) error {
	more, turns := true, 0 // there may be work left from before a restart
	for {
		idle := l.work.empty()
		if more && (idle || turns >= maintainTurns) {
			var err error
			if more, err = l.sm.Maintain(); err != nil {
				return fmt.Errorf("maintain the state: %w", err)
			}
			if turns = 0; more && idle && ctx.Err() == nil {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.work.ready:
		}
		if err := l.turn(l.work.take()); err != nil {
			return err
		}
		more = true // what was applied may have superseded something
		turns++
	}
}

// turn applies everything that is queued, in order: runs of entries together,
// snapshots one by one.
func (l *applyLoop) turn(work []applyWork) error {
	for len(work) > 0 {
		if w := work[0].restore; w != nil {
			out, err := l.applier.restore(w)
			w.done <- err
			if err != nil {
				return err
			}
			l.report(out)
			work = work[1:]
			continue
		}
		run := 1
		for run < len(work) && work[run].restore == nil {
			run++
		}
		out, err := l.applier.apply(work[:run])
		if err != nil {
			// The entries are committed: the other members apply them, even if
			// this one cannot.
			for i := range work[:run] {
				work[i].fail(ErrUnknown)
			}
			return err
		}
		l.report(out)
		work = work[run:]
	}
	return nil
}

// report tells everybody how far the state machine has come. The members come first: who
// has waited for an index reads them as of it, or later (TestMembersAreAsOfTheBarrier).
func (l *applyLoop) report(out *appliedWork) {
	if out.membership != nil || out.restored != nil {
		l.members.Store(l.applier.roster.Membership())
	}
	l.waiters.advance(out.index)
	l.refused.note(out.starts)
	l.snapshots.applied.Store(out.index) // before the event, which stirs those who read it
	l.events.put(event{applied: out})
	for _, c := range out.made {
		l.logChange(c)
	}
}

// logChange tells the operator about a membership change that took effect. Every
// member does, so that each log is complete. After a restart, those that the
// store had not saved appear again.
func (l *applyLoop) logChange(c *roster.Change) {
	message := map[roster.ChangeKind]string{
		roster.AddMember: "member added as a learner", roster.PromoteMember: "member promoted to voter",
		roster.UpdateMember: "member URLs changed", roster.RemoveMember: "member removed", roster.ReplaceMember: "member replaced; its directory was lost",
	}[c.Kind]
	fields := []zap.Field{zap.Uint64("member", c.Member.ID)}
	if c.Replaces != 0 {
		fields = append(fields, zap.Uint64("replaces", c.Replaces))
	}
	if c.Member.Name != "" {
		fields = append(fields, zap.String("name", c.Member.Name))
	}
	if len(c.Member.PeerURLs) > 0 {
		fields = append(fields, zap.Strings("peer_urls", c.Member.PeerURLs))
	}
	if len(c.Member.ClientURLs) > 0 {
		fields = append(fields, zap.Strings("client_urls", c.Member.ClientURLs))
	}
	l.lg.Info(message, append(fields, c.By.Fields()...)...)
}

// fail answers the proposals that travel with the work.
func (w *applyWork) fail(err error) {
	for _, own := range w.own {
		answerAll(own.batch.proposals, err)
	}
}
