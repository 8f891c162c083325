package raftnode

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/roster"
)

// Replica is one running copy of the replicated state: the core and the
// goroutines around it.
//
// What each goroutine owns, and what it may wait for. The graph has no cycle
// (W1) and is drawn in ARCHITECTURE.md:
//
//	node loop       the core            its channels and mailbox; a read of the spool
//	append loop     the log on disk     the disk; the apply loop, to install a snapshot
//	apply loop      the applier         the state machine
//	snapshotter     the deliveries      its events; builds and transfers run beside it
//	checkpointer    its state           the disk; the append loop, to record a checkpoint
//	compactor       the spool           the disk
//	connector       the list of peers   the transport
//	leader monitor  its connection      the network
type Replica struct {
	cfg       Config
	lg        *zap.Logger
	disk      *datadir.Log
	log       *raftlog.Store
	applier   *applier
	core      *core
	transport *peers.Transport

	// From requests to the node loop. The capacities hold a burst between two
	// turns of the loop; beyond that, senders wait with their context. The waiting room
	// refuses what exceeds its bounds.
	waiting     *waitingRoom
	readC       chan *readRequest
	confChangeC chan *changeRequest
	callC       chan func(*core)
	// From peers to the node loop. While it is full, the peers' connections
	// push back.
	receiveC chan *raftpb.Message
	// From the other loops to the node loop; bounded by the work that it gave
	// them.
	events *mailbox[event]

	appends     *appendLoop
	applies     *applyLoop
	snapshots   *snapshotter
	checkpoints *checkpointer
	compactor   *compactor
	received    *receivedBodies
	connector   *connector
	monitor     *peers.LeaderMonitor

	membership atomic.Pointer[roster.Membership] // published by the apply loop

	// What the node loop publishes.
	position atomic.Pointer[Position]
	fresh    recency
	opened   time.Time
	ticked   moment // the loop's last tick

	refused     refusedStarts
	waiters     indexWaiters  // reads that wait for the applied index
	unreachable sync.Map      // id → true; noted by the transport for the next tick
	campaign    *time.Timer   // fires effects.campaignIn; owned by the node loop
	ready       chan struct{} // closed by the node loop; see Ready
	readyOnce   sync.Once
	stopped     chan struct{} // closed when Run returns
}

// event is something that happened outside of the node loop. Each event has one
// of these.
type event struct {
	responses  []*raftpb.Message // of finished appends
	applied    *appliedWork
	snapshotTo uint64 // a transfer to this member ended
	snapshotOK bool
	suspect    uint64 // the process of this leader is gone
}

// Run drives the replica until the context ends, the member is removed
// (ErrRemoved), its directory is refused (ErrRefused), or something fails that
// the replica must not survive. It answers every request before it returns.
// After ErrDiskStall a write to the disk still hangs, and the process should
// exit.
func (r *Replica) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var loops, appending sync.WaitGroup
	start := func(group *sync.WaitGroup, name string, body func(context.Context) error) {
		group.Go(func() {
			if err := body(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start(&appending, "append loop", r.appends.run)
	start(&loops, "apply loop", r.applies.run)
	start(&loops, "snapshotter", r.snapshots.run)
	start(&loops, "checkpointer", r.checkpoints.run)
	start(&loops, "compactor", r.compactor.run)
	start(&loops, "connector", r.connector.run)
	start(&loops, "leader monitor", r.monitor.Run)
	start(&loops, "node loop", r.nodeLoop)
	<-ctx.Done()
	loops.Wait()
	err := context.Cause(ctx)
	stalled := errors.Is(err, ErrDiskStall)
	if !stalled { // otherwise a write hangs, perhaps forever
		appending.Wait()
	}
	r.transport.Stop()
	close(r.stopped)
	r.failRest()
	if stalled {
		return err
	}
	if cerr := r.disk.Close(); cerr != nil && errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the log: %w", cerr)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// failRest answers what was queued when the loops ended.
func (r *Replica) failRest() {
	r.core.fail(ErrStopping)
	r.waiters.close(ErrStopping)
	for _, w := range r.applies.work.take() {
		w.fail(ErrUnknown)
	}
	for _, e := range r.events.take() {
		if e.applied != nil {
			for _, b := range e.applied.skipped {
				answerAll(b.proposals, ErrUnknown)
			}
		}
	}
	for p := r.waiting.take(); p != nil; p = r.waiting.take() {
		p.done <- answer{err: ErrStopping}
	}
	for {
		select {
		case read := <-r.readC:
			read.done <- ErrStopping
		case change := <-r.confChangeC:
			change.done <- ErrStopping
		default:
			return
		}
	}
}

// nodeLoop owns the core. It waits for nothing but its channels and mailbox.
func (r *Replica) nodeLoop(ctx context.Context) error {
	ticker := time.NewTicker(r.cfg.TickInterval)
	defer ticker.Stop()
	defer r.campaign.Stop()
	if err := r.dispatch(); err != nil {
		return err
	}
	for {
		waitingReady, readC := r.requests()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.tick()
			if err := r.watchDisk(); err != nil {
				return err
			}
		case <-waitingReady:
			r.takeProposals()
		case read := <-readC:
			r.takeRead(read)
		case change := <-r.confChangeC:
			r.core.change(change)
		case f := <-r.callC:
			f(r.core)
		case m := <-r.receiveC:
			r.core.step(m)
		case <-r.campaign.C:
			r.core.campaignDue()
		case <-r.events.ready:
		}
		r.drain()
		if err := r.dispatch(); err != nil {
			return err
		}
	}
}

// requests returns the channels to wait for requests on. A request that the core
// could do nothing with stays where it is: if the loop turned once for each
// command that has to wait for the batch in flight, it would only slow that
// batch down.
func (r *Replica) requests() (<-chan struct{}, <-chan *readRequest) {
	waitingReady, readC := r.waiting.ready, r.readC
	if !r.core.takesProposals() {
		waitingReady = nil
	}
	if !r.core.takesReads() {
		readC = nil
	}
	return waitingReady, readC
}

// tick advances the core's time by one.
func (r *Replica) tick() {
	r.ticked.note()
	// Once per tick and member, however many messages could not be sent.
	r.unreachable.Range(func(id, _ any) bool {
		r.unreachable.Delete(id)
		r.core.unreachable(id.(uint64))
		return true
	})
	r.core.tick()
}

// drainLimit bounds what one turn takes from the channels, so that ticks and
// responses are not starved.
const drainLimit = 1024

// drain takes whatever else has arrived, so that one turn serves it all.
func (r *Replica) drain() {
	for _, e := range r.events.take() {
		r.takeEvent(e)
	}
	waitingReady, readC := r.requests()
	for range drainLimit {
		select {
		case m := <-r.receiveC:
			r.core.step(m)
		case <-waitingReady:
			r.takeProposals()
		case read := <-readC:
			r.takeRead(read)
		default:
			return
		}
	}
}

// takeProposals passes what waits in the waiting room on to the core.
func (r *Replica) takeProposals() {
	for range drainLimit {
		p := r.waiting.take()
		if p == nil {
			return
		}
		p.timing.pass(StageTaken)
		if err := r.core.propose(p); err != nil {
			p.done <- answer{err: err}
		}
	}
	r.waiting.wake() // there may be more, for the next turn
}

func (r *Replica) takeRead(read *readRequest) {
	if err := r.core.read(read); err != nil {
		read.done <- err
	}
}

func (r *Replica) takeEvent(e event) {
	if e.snapshotTo != 0 {
		r.core.reportSnapshot(e.snapshotTo, e.snapshotOK)
	}
	if e.suspect != 0 {
		r.core.suspect(e.suspect)
	}
	if e.applied != nil {
		r.core.applied(e.applied)
		r.checkpoints.looks.Stir()
		r.compactor.looks.Stir()
	}
	r.core.storageDone(e.responses)
}

// dispatch carries out what the core wants done. None of it waits.
func (r *Replica) dispatch() error {
	out := r.core.takeEffects()
	r.fresh.note(&out, time.Now(), r.Applied()) // before the messages go out
	// The messages are first, so that the others write while this member does.
	if len(out.messages) > 0 {
		r.transport.Send(out.messages)
	}
	for _, m := range out.snapshots {
		r.snapshots.request(m)
	}
	for _, m := range out.appends {
		r.appends.work.put(appendJob{message: m})
	}
	r.notePacked(out.packed)
	for _, w := range out.applies {
		w.notePassed()
		r.applies.work.put(w)
	}
	for _, round := range out.reads {
		round.notePassed()
		r.waiters.wait(round)
	}
	if out.membership != nil {
		r.connector.tell(out.membership)
	}
	if out.campaignIn != 0 {
		r.campaign.Reset(out.campaignIn)
	}
	r.publish()
	return out.fatal
}

// publish makes the core's view visible to other goroutines.
func (r *Replica) publish() {
	p := r.core.position()
	if old := r.position.Load(); old == nil || *old != p {
		now := p // goes to the heap only if it is kept
		r.position.Store(&now)
		r.logPosition(old, p)
		if old == nil || old.Leader != p.Leader || old.Term != p.Term {
			r.monitor.Follow(p.Leader, p.Term)
		}
	}
	if r.core.started() {
		r.readyOnce.Do(func() {
			// The start entry was proposed after this process began, and so comes after
			// all that was committed before that.
			r.fresh.confirm(r.opened)
			close(r.ready)
		})
	}
}

// logPosition logs changes of the leader for the operator. The steps between,
// roles and terms, come several times in each election: they are for debugging.
func (r *Replica) logPosition(old *Position, p Position) {
	level := zap.DebugLevel
	switch {
	case old == nil || old.Leader != p.Leader:
		level = zap.InfoLevel
	case old.Role == p.Role && old.Term == p.Term:
		return
	}
	r.lg.Log(level, "raft position changed", zap.Uint64("term", p.Term), zap.Uint64("leader", p.Leader), zap.String("role", strings.ToLower(strings.TrimPrefix(p.Role.String(), "State"))))
}

// watchDisk looks at the age of the save that is running. Heartbeats do not
// depend on the disk, so a leader whose disk hangs would stay in office while
// its writes hang. After two election timeouts it refuses proposals and hands
// leadership over; after StallExit the replica gives up.
func (r *Replica) watchDisk() error {
	age := r.Stalled()
	limit := stallLimit(time.Duration(r.cfg.ElectionTicks)*r.cfg.TickInterval, r.appends.savingBytes.Load())
	switch {
	case age > r.cfg.StallExit:
		return fmt.Errorf("%w for %v", ErrDiskStall, age.Round(time.Second))
	case age > limit:
		if r.core.diskStalled() {
			r.lg.Error("disk stalled; refusing writes and handing leadership over", zap.Duration("age", age))
		}
	default:
		r.core.diskAnswers()
	}
	return nil
}

// savedRate is how fast any disk saves that is fit for a log, in bytes per second.
const savedRate = 8 << 20

// stallLimit returns how long a write of so many bytes may run before the disk
// counts as stalled. The size matters: a busy disk needs seconds for the largest
// value, and a leader that was deposed for it would leave that value to the next
// leader, whose disk is as busy.
func stallLimit(election time.Duration, bytes int64) time.Duration {
	return 2*election + time.Duration(bytes)*time.Second/savedRate
}

// Handler serves the peer port: raft's messages, and the extra handlers by their
// paths.
func (r *Replica) Handler(extra map[string]http.Handler) http.Handler {
	return r.transport.Handler(extra)
}

// receiver is the replica as the transport sees it. rafthttp may call it from
// inside Send, and thus from the node loop itself, so it only leaves notes.
type receiver struct{ r *Replica }

// Process implements peers.Receiver.
func (rc receiver) Process(ctx context.Context, m *raftpb.Message) error {
	if err := rc.checkCluster(m); err != nil {
		return err
	}
	select {
	case rc.r.receiveC <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-rc.r.stopped:
		return ErrStopping
	}
}

// checkCluster refuses a snapshot of another cluster. The transport has refused
// its sender already, unless the sender states a cluster that is not its own.
func (rc receiver) checkCluster(m *raftpb.Message) error {
	if m.GetType() != raftpb.MsgSnap {
		return nil
	}
	data, err := roster.DecodeSnapshotData(m.GetSnapshot().GetData())
	if err == nil && data.ClusterID != rc.r.cfg.ClusterID {
		err = fmt.Errorf("snapshot is of cluster %016x, and this member belongs to %016x", data.ClusterID, rc.r.cfg.ClusterID)
	}
	return err
}

// IsRemoved implements peers.Receiver.
func (rc receiver) IsRemoved(id uint64) bool { return rc.r.Membership().Removed[id] }

// Unreachable implements peers.Receiver. The next tick looks at the note: there
// may be one for each message that could not be sent.
func (rc receiver) Unreachable(id uint64) { rc.r.unreachable.Store(id, true) }

// SnapshotStatus implements peers.Receiver.
func (rc receiver) SnapshotStatus(id uint64, err error) {
	rc.r.snapshots.ended(id, err)
}

// Position is a replica's place in the cluster, as it last knew it.
type Position struct {
	Term   uint64
	Leader uint64 // 0: unknown
	Role   raft.StateType
	Commit uint64 // within its own log
	Known  uint64 // index up to which it has heard entries to be committed
}
