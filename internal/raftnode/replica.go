// Package raftnode replicates opaque commands: it joins etcd's raft library
// with its WAL, snapshot and transport packages into one member of a cluster
// that feeds a StateMachine.
//
// Read it in this order: core.go (the deterministic heart and how a command
// travels), core_propose.go, core_start.go, core_read.go,
// core_change.go, core_transfer.go, core_seek.go, roster.go (the
// replicated membership), appender.go and applier.go (the bodies of the two
// storage loops), replica.go (the goroutines around them), snapshots.go, disk.go.
package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/peers"
)

// Config describes one member. Zero values of the tunables mean the defaults.
type Config struct {
	// ID is the member's, between 1 and MaxMemberID.
	ID        uint64
	ClusterID uint64
	// Dir holds the WAL and the snapshots. It must be locked by the caller.
	Dir string
	// Nonce is the data directory's.
	Nonce string
	// Name, PeerURLs and ClientURLs are announced to the cluster.
	Name       string
	PeerURLs   []string
	ClientURLs []string
	// Initial are the members of a cluster that is being bootstrapped; used
	// only where Dir has no log yet. Empty when joining.
	Initial []Member
	// Known are members to talk to before the membership has been received;
	// used when joining.
	Known []Member

	StateMachine StateMachine
	// VerifyBody reads a whole snapshot body, checks everything that
	// StateMachine.Restore would, and changes nothing. Several goroutines may call
	// it.
	VerifyBody func(r io.Reader) (BodyInfo, error)
	Logger     *zap.Logger
	// Observer hears what the loops do; nil for nobody.
	Observer Observer
	// Security is how members know each other.
	Security peers.Security
	// Lookup finds the peer URLs of a member that this node does not know
	// yet, by asking those it knows.
	Lookup func(ctx context.Context, id uint64) (urls []string, ok bool)

	// TickInterval is the unit of raft's time: a heartbeat. Default 100 ms.
	TickInterval time.Duration
	// ElectionTicks is the election timeout in ticks. Default 10.
	ElectionTicks int
	// MaxBatchBytes bounds the commands packed into one entry. Default 512 KiB.
	MaxBatchBytes int
	// MaxQueueBytes bounds the commands waiting to be packed. Default 64 MiB.
	MaxQueueBytes int
	// CatchUpBytes bounds the applied entries kept in memory for followers
	// that lag. Default 16 MiB.
	CatchUpBytes int
	// CheckpointBytes is after how much log the state is flushed and the log
	// before it released. A restart reads about twice as much. Default 32 MiB.
	CheckpointBytes int64
	// CheckpointInterval is after how long it is flushed all the same.
	// Default 30 s.
	CheckpointInterval time.Duration
	// StallExit is how long one write to the log may hang before the node
	// gives itself up. Default 60 s.
	StallExit time.Duration
}

func (c *Config) setDefaults() {
	setDefault(&c.TickInterval, 100*time.Millisecond)
	setDefault(&c.ElectionTicks, 10)
	setDefault(&c.MaxBatchBytes, 512<<10)
	setDefault(&c.MaxQueueBytes, 64<<20)
	setDefault(&c.CatchUpBytes, 16<<20)
	setDefault(&c.CheckpointBytes, 32<<20)
	setDefault(&c.CheckpointInterval, 30*time.Second)
	setDefault(&c.StallExit, time.Minute)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Replica is one member of the cluster.
//
// Its goroutines, and what each may wait for (the graph has no cycle, and is
// drawn in ARCHITECTURE.md):
//
//	node loop     owns the core         its mailbox
//	append loop   owns the disk         the disk; the apply loop, to install a snapshot
//	apply loop    owns the applier      the state machine
//	snapshotter   owns outgoing bodies  the disk; the append loop, to record a checkpoint
//	connector     owns the peer list    the transport
//	monitor       owns its connection   the network (the leader monitor)
type Replica struct {
	cfg       Config
	lg        *zap.Logger
	disk      *datadir.Log
	writes    logDisk // the disk, as the append loop writes to it
	observer  Observer
	log       *logStore
	applier   *applier
	appender  *appender
	core      *core
	transport *peers.Transport

	// What comes from the request side. Their bounds hold a burst of requests
	// between two turns of the node loop; senders wait with their context.
	proposeC    chan *proposal
	readC       chan *readRequest
	confChangeC chan *changeRequest
	callC       chan func(*core)
	// What comes from peers; a full channel pushes back on their connection.
	receiveC chan *raftpb.Message

	// What the loops hand to each other.
	events     *mailbox[event]      // to the node loop; bounded by the work it handed out
	appendWork *mailbox[appendJob]  // bounded by raft's limit on uncommitted and inflight bytes
	applyWork  *mailbox[applyWork]  // bounded by maxApplyingBytes
	peersC     chan *Membership     // capacity 1, the newest wins
	sendC      chan *raftpb.Message // MsgSnap; capacity bounds the transfers that wait
	appending  moment               // since when a save has been running; cleared while idle
	waiters    indexWaiters         // reads that wait for the applied index
	membership atomic.Pointer[Membership]
	position   atomic.Pointer[Position]
	// unreachable members, noted by the transport for the next tick.
	unreachable sync.Map // id → true
	leaderSeen  moment   // the last sign of a leader
	ticked      moment   // the node loop's last tick
	monitor     *leaderMonitor
	campaign    *time.Timer // of effects.campaignIn; owned by the node loop
	snapshots   *snapshotter
	received    *receivedBodies

	ready   chan struct{} // closed once this process's start entry is applied
	stopped chan struct{} // closed when Run returns
	once    sync.Once
}

// Position is what the node last knew of its place in the cluster.
type Position struct {
	Term   uint64
	Leader uint64 // 0: unknown
	Role   raft.StateType
	Commit uint64
}

// event is something that happened outside of the node loop.
type event struct {
	responses  []*raftpb.Message // of finished appends
	applied    *appliedWork
	snapshotTo uint64 // a transfer to this member ended
	snapshotOK bool
	suspect    uint64 // this leader's process is gone
}

// Applied returns the index of the last entry in the state machine.
func (n *Replica) Applied() uint64 {
	n.waiters.mu.Lock()
	defer n.waiters.mu.Unlock()
	return n.waiters.mu.applied
}

// Membership returns the newest picture of the members.
func (n *Replica) Membership() *Membership { return n.membership.Load() }

// Position returns what the node last knew of term, leader and commit index.
func (n *Replica) Position() Position { return *n.position.Load() }

// Ready is closed once this process can take part: its start entry, and so
// everything before it, has been applied.
func (n *Replica) Ready() <-chan struct{} { return n.ready }

// Handler serves the peer port: raft's messages, and the given handlers
// beside them.
func (n *Replica) Handler(extra map[string]http.Handler) http.Handler {
	return n.transport.Handler(extra)
}

// ActiveSince returns since when the connection to the member works; zero
// while it does not.
func (n *Replica) ActiveSince(id uint64) time.Time { return n.transport.ActiveSince(id) }

// Freshness is how current a replica's state is, as far as the replica itself
// can tell. Readiness, max_staleness and the status all judge by it.
type Freshness struct {
	Leader  uint64 // the leader that the replica follows, or itself; 0: none
	Commit  uint64 // the entries up to here are known to be committed
	Applied uint64 // the entries up to here are in the state machine
	// Confirmed is when the replica last had a sign of a leader, with a
	// reading of the monotonic clock; zero if it never had one.
	Confirmed time.Time
}

// Lag is the number of entries known to be committed that are not applied.
func (f Freshness) Lag() uint64 { return f.Commit - min(f.Commit, f.Applied) }

// Freshness returns how current this replica's state is.
func (n *Replica) Freshness() Freshness {
	p := n.Position()
	return Freshness{Leader: p.Leader, Commit: p.Commit, Applied: n.Applied(), Confirmed: n.leaderSeen.time()}
}

// hungAfter is after how long without a tick the node loop counts as hung:
// some heartbeats, and longer than a machine under load makes it wait.
func (n *Replica) hungAfter() time.Duration { return max(5*n.cfg.TickInterval, 5*time.Second) }

// Responsive reports whether the node loop still turns; true before it begins.
func (n *Replica) Responsive() bool {
	age, began := n.ticked.age()
	return !began || age < n.hungAfter()
}

// LogSizeBytes returns the sizes of the log and of the snapshots on disk.
func (n *Replica) LogSizeBytes() (log, snapshots int64) { return n.disk.SizeBytes() }

// Run drives the node until the context ends, it is removed (ErrRemoved), its
// directory is refused (ErrRefused), or something fails that must not be
// survived. Every request is answered before it returns. After ErrDiskStall a
// write to the disk still hangs, and the process should exit.
func (n *Replica) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n.appender = &appender{disk: n.writes, log: n.log, install: n.install(ctx)}
	var loops, appending sync.WaitGroup
	start := func(group *sync.WaitGroup, name string, body func(context.Context) error) {
		group.Go(func() {
			if err := body(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	start(&appending, "append loop", n.appendLoop)
	start(&loops, "apply loop", n.applyLoop)
	start(&loops, "snapshotter", n.snapshots.run)
	start(&loops, "connector", n.connectLoop)
	start(&loops, "leader monitor", n.monitor.run)
	start(&loops, "node loop", n.nodeLoop)
	<-ctx.Done()
	loops.Wait()
	err := context.Cause(ctx)
	stalled := errors.Is(err, ErrDiskStall)
	if !stalled { // a hanging write would be waited for without end
		appending.Wait()
	}
	n.transport.Stop()
	close(n.stopped)
	n.failRest()
	if stalled {
		return err
	}
	if cerr := n.disk.Close(); cerr != nil && errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the log: %w", cerr)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// failRest answers what was queued when the loops ended.
func (n *Replica) failRest() {
	n.core.fail(ErrStopping)
	n.waiters.close(ErrStopping)
	for _, w := range n.applyWork.take() {
		for _, own := range w.own {
			answerAll(own.batch.proposals, ErrUnknown)
		}
	}
	for _, e := range n.events.take() {
		if e.applied != nil {
			for _, b := range e.applied.skipped {
				answerAll(b.proposals, ErrUnknown)
			}
		}
	}
	for {
		select {
		case p := <-n.proposeC:
			p.done <- answer{err: ErrStopping}
		case r := <-n.readC:
			r.done <- ErrStopping
		case r := <-n.confChangeC:
			r.done <- ErrStopping
		default:
			return
		}
	}
}

// nodeLoop owns the core. It waits for nothing but its mailbox.
func (n *Replica) nodeLoop(ctx context.Context) error {
	ticker := time.NewTicker(n.cfg.TickInterval)
	defer ticker.Stop()
	defer n.campaign.Stop()
	if err := n.dispatch(); err != nil {
		return err
	}
	for {
		proposeC, readC := n.requests()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			n.tick()
			if err := n.watchDisk(); err != nil {
				return err
			}
		case p := <-proposeC:
			n.takeProposal(p)
		case r := <-readC:
			n.takeRead(r)
		case r := <-n.confChangeC:
			n.core.change(r)
		case f := <-n.callC:
			f(n.core)
		case m := <-n.receiveC:
			n.core.step(m)
		case <-n.campaign.C:
			n.core.campaignDue()
		case <-n.events.ready:
		}
		n.drain()
		if err := n.dispatch(); err != nil {
			return err
		}
	}
}

// requests are the channels to take requests from. While the core could do
// nothing with them they stay where they are: a batch that is under way is
// not hurried by a loop that turns for each command that has to wait for it.
func (n *Replica) requests() (<-chan *proposal, <-chan *readRequest) {
	proposeC, readC := n.proposeC, n.readC
	if !n.core.takesProposals() {
		proposeC = nil
	}
	if !n.core.takesReads() {
		readC = nil
	}
	return proposeC, readC
}

// tick advances the core's time by one.
func (n *Replica) tick() {
	n.ticked.note()
	n.unreachable.Range(func(id, _ any) bool {
		n.unreachable.Delete(id)
		n.core.unreachable(id.(uint64))
		return true
	})
	n.core.tick()
}

// drainLimit bounds what one turn takes from each channel, so that no source
// starves the others.
const drainLimit = 1024

// drain takes what else has arrived, so that one turn serves it all.
func (n *Replica) drain() {
	for _, e := range n.events.take() {
		n.takeEvent(e)
	}
	proposeC, readC := n.requests()
	for range drainLimit {
		select {
		case m := <-n.receiveC:
			n.core.step(m)
		case p := <-proposeC:
			n.takeProposal(p)
		case r := <-readC:
			n.takeRead(r)
		default:
			return
		}
	}
}

func (n *Replica) takeProposal(p *proposal) {
	p.timing.pass(StageTaken)
	if err := n.core.propose(p); err != nil {
		p.done <- answer{err: err}
	}
}

func (n *Replica) takeRead(r *readRequest) {
	if err := n.core.read(r); err != nil {
		r.done <- err
	}
}

func (n *Replica) takeEvent(e event) {
	if e.snapshotTo != 0 {
		n.core.reportSnapshot(e.snapshotTo, e.snapshotOK)
	}
	if e.suspect != 0 {
		n.core.suspect(e.suspect)
	}
	if e.applied != nil {
		n.core.applied(e.applied)
	}
	n.core.storageDone(e.responses)
}

// dispatch carries out what the core wants done. None of it waits.
func (n *Replica) dispatch() error {
	out := n.core.takeEffects()
	if len(out.messages) > 0 {
		n.transport.Send(out.messages)
	}
	for _, m := range out.snapshots {
		n.sendSnapshot(m)
	}
	for _, m := range out.appends {
		n.appendWork.put(appendJob{message: m})
	}
	n.notePacked(out.packed)
	for _, w := range out.applies {
		w.notePassed()
		n.applyWork.put(w)
	}
	for _, b := range out.reads {
		b.notePassed()
		n.waiters.wait(b)
	}
	if out.membership != nil {
		n.follow(out.membership)
	}
	if out.campaignIn != 0 {
		n.campaign.Reset(out.campaignIn)
	}
	n.publish()
	return out.fatal
}

func (n *Replica) sendSnapshot(m *raftpb.Message) {
	select {
	case n.sendC <- m:
	default: // too many transfers wait; raft tries again
		n.events.put(event{snapshotTo: m.GetTo()})
	}
}

// follow publishes a membership and lets the connections follow it.
func (n *Replica) follow(m *Membership) {
	n.membership.Store(m)
	select {
	case <-n.peersC: // an older one that nobody took yet
	default:
	}
	n.peersC <- m
}

// publish makes the core's view visible to other goroutines.
func (n *Replica) publish() {
	p := n.core.position()
	if old := n.position.Load(); old == nil || *old != p {
		now := p // on the heap only where it is kept
		n.position.Store(&now)
		n.logPosition(old, p)
		if old == nil || old.Leader != p.Leader || old.Term != p.Term {
			n.monitor.tell(p)
		}
	}
	if n.core.heardLeader() {
		n.leaderSeen.note()
	}
	if n.core.started() {
		n.once.Do(func() { close(n.ready) })
	}
}

// logPosition logs changes of the leader for the operator. The steps between,
// roles and terms, come several times in each election: they are for debugging.
func (n *Replica) logPosition(old *Position, p Position) {
	level := zap.DebugLevel
	switch {
	case old == nil || old.Leader != p.Leader:
		level = zap.InfoLevel
	case old.Role == p.Role && old.Term == p.Term:
		return
	}
	n.lg.Log(level, "raft position", zap.Uint64("term", p.Term), zap.Uint64("leader", p.Leader), zap.Stringer("role", p.Role))
}

// watchDisk looks at the age of the save that runs. Heartbeats do not depend
// on the disk, so a leader whose disk hangs would stay in office while its
// writes hang: after two election timeouts it refuses proposals and hands
// over; after StallExit the node gives up.
func (n *Replica) watchDisk() error {
	age := n.Stalled()
	limit := 2 * time.Duration(n.cfg.ElectionTicks) * n.cfg.TickInterval
	switch {
	case age > n.cfg.StallExit:
		return fmt.Errorf("%w for %v", ErrDiskStall, age.Round(time.Second))
	case age > limit:
		if n.core.diskStalled() {
			n.lg.Error("the disk does not answer; refusing writes and handing leadership over", zap.Duration("age", age))
		}
	default:
		n.core.diskAnswers()
	}
	return nil
}

// connectLoop keeps the transport's peers equal to the membership.
func (n *Replica) connectLoop(ctx context.Context) error {
	connected := make(map[uint64][]string)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.transport.Removed():
			return ErrRemoved
		case m := <-n.peersC:
			n.connect(connected, m)
		}
	}
}

// connect makes one difference after the other.
func (n *Replica) connect(connected map[uint64][]string, m *Membership) {
	for id := range connected {
		if _, ok := m.Member(id); !ok {
			n.transport.RemovePeer(id)
			delete(connected, id)
		}
	}
	for _, mb := range m.Members {
		if mb.ID == n.cfg.ID || len(mb.PeerURLs) == 0 || slices.Equal(connected[mb.ID], mb.PeerURLs) {
			continue
		}
		connectTo := n.transport.AddPeer
		if _, ok := connected[mb.ID]; ok {
			connectTo = n.transport.UpdatePeer
		}
		if err := connectTo(mb.ID, mb.PeerURLs); err != nil {
			n.lg.Error("cannot connect to a member", zap.Uint64("member", mb.ID), zap.Error(err))
			continue
		}
		connected[mb.ID] = mb.PeerURLs
	}
}
