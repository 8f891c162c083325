package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/roster"
)

const simCluster = 0xc1

// simNode is one member: the parts of a Replica without its goroutines. Its
// loops are events: a turn of the node loop takes the inbox, an append job the
// append queue, an apply job the apply queue.
type simNode struct {
	s  *sim
	id uint64

	// What survives a crash.
	disk    *modelDisk
	machine simMachine
	bodies  map[uint64][]byte // of received snapshots and checkpoints
	nonce   string
	boots   int
	// unsynced bodies are lost in a crash, in a control.
	unsynced map[uint64]bool
	// promised is the hard state that left the node in an answer.
	promised promise
	store    storeDamage

	// What does not survive one.
	up          bool
	life        int // events of an earlier life do nothing
	ended       error
	core        *core
	applier     *applier
	appender    *raftlog.Appender
	log         *raftlog.Store
	waiters     *indexWaiters
	inbox       []inboxItem
	turning     bool
	unreachable []uint64
	appendQueue []*raftpb.Message
	appendJob   []*raftpb.Message // under way
	applyQueue  []applyWork
	applying    bool
	deliveries  *catchup.Deliveries
	outgoing    map[*catchup.Body][]byte // the files of the bodies
	slowed      bool                     // a fault limits the intake
	checkpoint  uint64
	fresh       *recency
	opened      time.Time
	committed   uint64   // last commit index seen
	voters      []uint64 // of raft's configuration, as of the last turn
	installing  bool     // raft has taken a snapshot that is not installed yet
	ops         []*op

	last      glimpse
	restored  uint64 // the index of the last snapshot that was installed
	monitor   simMonitor
	campaigns int // timers set

	clockAt     int64         // what the clock shows at the beginning
	clockSet    time.Duration // how far its time of day was set forward
	pausedUntil int64         // nothing runs before that
	slowDisk    int64         // how much longer than usual saves take
	stalled     bool          // the disk hangs
	hangs       int           // so far
	slow        bool          // the apply loop does not get on
}

type promise struct{ term, vote uint64 }

// inboxItem is one thing for the node loop.
type inboxItem struct {
	do      func(*core)
	applied *appliedWork
}

func newSimNode(s *sim, id uint64) *simNode {
	n := &simNode{s: s, id: id, bodies: make(map[uint64][]byte), nonce: fmt.Sprintf("dir%d-%d", id, len(s.order))}
	n.disk = newModelDisk(n)
	n.machine = s.opts.machine(n)
	return n
}

// newModelDisk returns the empty disk of a member.
func newModelDisk(n *simNode) *modelDisk {
	return &modelDisk{
		last:     new(raftpb.HardState),
		lies:     n.s.opts.bug == bugFsyncOff,
		noVote:   n.s.opts.bug == bugVoteNotPersisted,
		noRepair: n.s.opts.bug == bugNoRepair,
		noGuard:  n.s.opts.bug == bugGuardOff,
		observed: func(hs *raftpb.HardState, ents []*raftpb.Entry) {
			n.noteSave(hs, ents)
			n.s.observeAppend(n, ents)
		},
	}
}

// bootstrap gives the disk the first snapshot, as Open does.
func (n *simNode) bootstrap(initial []roster.Member) {
	m := roster.New(simCluster, initial).Membership()
	hs := &raftpb.HardState{Term: new(uint64(initialTerm)), Commit: new(uint64(InitialIndex))}
	if err := errors.Join(n.disk.SaveSnapshot(roster.NewSnapshot(InitialIndex, initialTerm, m)), n.disk.Save(hs, nil)); err != nil {
		n.s.violate("bootstrap: %v", err)
	}
}

// start boots the member from its disk.
func (n *simNode) start() {
	if n.cannotStart() {
		return
	}
	n.life++
	n.boots++
	n.s.trace(1, n.id, uint64(n.boots))
	n.s.note("%x starts for the %d. time", n.id, n.boots)
	switch err := n.boot(); {
	case errors.Is(err, errLogDamaged):
		n.s.reach(logRefused)
		n.ended = errLostDisk
		return
	case errors.Is(err, errStoreRefused):
		n.refuseStore()
		return
	case errors.Is(err, errRebuilding), err == nil && n.store.rebuilding && n.crashesInRebuild():
		n.startLater(errRebuilding)
		return
	case err != nil:
		n.s.violate("member %d cannot start: %v", n.id, err)
		return
	}
	n.up, n.ended = true, nil
	n.endRebuild()
	n.observeBoot()
	n.dispatch()
	n.every(span{simTick, simTick}, n.tick)
	n.every(span{150 * milli, 250 * milli}, n.snapshotTurn)
	if n.s.opts.started != nil {
		n.s.opts.started(n)
	}
}

func (n *simNode) boot() error {
	st, err := n.disk.load()
	if err != nil {
		return err
	}
	n.makeWay()
	if err := n.recover(&st); err != nil {
		return err
	}
	n.log = raftlog.New(st.snapshot, raisedCommit(st.hs, n.applier.index), st.entries, n.applier.roster.Membership().ConfState())
	n.startDeliveries()
	n.appender = &raftlog.Appender{Disk: n.disk, Log: n.log, Install: n.install}
	n.waiters = new(indexWaiters)
	n.fresh, n.opened = new(recency), n.time()
	n.waiters.advance(n.applier.index)
	n.checkpoint = st.snapshot.GetMetadata().GetIndex()
	n.core, err = newCore(coreConfig{
		id: n.id,
		start: roster.Start{
			Member: n.id, Nonce: n.nonce, Boot: fmt.Sprintf("boot%d-%d", n.id, n.boots), Starts: uint64(n.boots),
			PeerURLs: simMember(n.id).PeerURLs, Version: roster.PayloadVersion,
		},
		electionTicks: n.s.opts.electionTicks, heartbeatTicks: 1,
		replaceTicks: uint64(2 * n.s.opts.electionTicks), removeDeadTicks: n.s.opts.removeDead,
		maxBatchBytes: n.s.opts.maxBatch, maxQueueBytes: n.s.opts.maxQueue,
		log: n.log, applied: n.applier.index, membership: n.applier.roster.Membership(),
		logger:          quietLogger{},
		electionTimeout: time.Duration(simElection*simTick) * time.Microsecond, random: n.s.rng.Int64N,
	})
	if err == nil {
		n.s.observeStart(n, &st)
	}
	if err == nil && n.s.opts.bug == bugConfChangeTwice {
		n.replayChanges()
	}
	return err
}

// recover brings the machine at least to where the log begins, as Open does.
func (n *simNode) recover(st *diskState) error {
	a := &applier{self: n.id, sm: n.machine, roster: roster.New(simCluster, nil)}
	n.applier = a
	meta := st.snapshot.GetMetadata()
	if n.machine.failed() != nil {
		return errStoreRefused // opening it met a rotten block
	}
	index, term := n.machine.position()
	last := meta.GetIndex() + uint64(len(st.entries))
	switch {
	case index > last:
		return fmt.Errorf("the machine contains entry %d, but the log ends at %d", index, last)
	case index == 0 && st.snapshot == nil:
		return nil
	case index >= meta.GetIndex():
		return a.load(index, term)
	case meta.GetIndex() == InitialIndex:
		data, err := roster.DecodeSnapshotData(st.snapshot.GetData())
		if err != nil {
			return err
		}
		a.roster = roster.New(data.ClusterID, data.Members)
		a.roster.Membership()
		a.index = InitialIndex
		return n.machine.Apply([]Entry{{Index: InitialIndex, Term: initialTerm, Records: a.roster.Records()}})
	}
	body, ok := n.bodies[meta.GetIndex()]
	whole := ok && n.machine.verify(bytes.NewReader(body)) == nil
	switch {
	case !whole && n.store.rebuilding:
		return n.fetchBody(st)
	case !whole && n.store.rotten:
		n.s.reach(bodyRotten)
		return errStoreRefused
	case !ok:
		return fmt.Errorf("the log begins after %d, and there is no body", meta.GetIndex())
	}
	n.s.reach(startFromBody)
	if err := n.machine.Restore(bytes.NewReader(body)); err != nil {
		return err
	}
	return a.load(meta.GetIndex(), meta.GetTerm())
}

// replayChanges is a planted bug: changes that the machine already contains
// reach raft again, as from a log that is replayed from its beginning.
func (n *simNode) replayChanges() {
	for _, r := range n.disk.records {
		for _, e := range r.entries {
			if e.GetType() != raftpb.EntryConfChangeV2 || e.GetIndex() > n.applier.index {
				continue
			}
			cc := new(raftpb.ConfChangeV2)
			if err := proto.Unmarshal(e.GetData(), cc); err == nil && len(cc.GetContext()) > 0 {
				n.core.rn.ApplyConfChange(cc)
			}
		}
	}
}

// crash is a power cut.
func (n *simNode) crash() {
	if !n.up {
		return
	}
	n.s.trace(2, n.id)
	n.s.note("%x crashes", n.id)
	n.s.observeCrash(n)
	if len(n.appendJob) > 0 && n.s.chance(0.5) {
		n.writePart() // the save under way may have got somewhere
	}
	n.down(errors.New("crashed"))
	lost, torn := n.disk.crash(n.s.rng)
	n.s.reachIf(crashTakesUnsynced, lost)
	n.s.reachIf(crashTearsSave, torn)
	n.machine.crash()
	n.loseBodies()
	n.dropOps()
}

func (n *simNode) down(why error) {
	n.up, n.ended = false, why
	n.life++
	n.inbox, n.turning, n.unreachable = nil, false, nil
	n.appendQueue, n.appendJob, n.applyQueue, n.applying = nil, nil, nil, false
	n.deliveries, n.outgoing, n.installing, n.stalled, n.slowed, n.slow = nil, nil, false, false, false, false
	n.committed, n.restored, n.pausedUntil = 0, 0, 0
	n.last, n.monitor = glimpse{}, simMonitor{}
	n.s.breakMonitors(n.id)
}

// writePart puts the running save on the disk, unsynced: like the appender, all of its
// entries and then its last hard state.
func (n *simNode) writePart() {
	var hs *raftpb.HardState
	var entries []*raftpb.Entry
	for _, m := range n.appendJob {
		if !raft.IsEmptySnap(m.GetSnapshot()) {
			return
		}
		if now := raftlog.HardStateOf(m); now != nil {
			hs = now
		}
		entries = append(entries, m.GetEntries()...)
	}
	n.disk.write(hs, entries)
}

// stop stops the member in an orderly way, with every request answered.
func (n *simNode) stop(why error) {
	n.core.fail(ErrStopping)
	n.waiters.close(ErrStopping)
	for _, w := range n.applyQueue {
		for _, own := range w.own {
			answerAll(own.batch.proposals, ErrUnknown)
		}
	}
	for _, it := range n.inbox {
		if it.applied != nil {
			for _, b := range it.applied.skipped {
				answerAll(b.proposals, ErrUnknown)
			}
		}
	}
	n.poll()
	n.down(why)
	n.disk.crash(n.s.rng)
	n.machine.crash()
	n.dropOps()
}

// later schedules something in this life of the member.
func (n *simNode) later(delay int64, name string, do func()) {
	life := n.life
	n.s.after(delay, name, func() {
		switch {
		case n.life != life:
		case n.s.now < n.pausedUntil:
			n.later(n.pausedUntil-n.s.now, name, do)
		default:
			do()
			n.noteDamage()
		}
	})
}

func (n *simNode) every(d span, do func()) {
	life := n.life
	n.later(n.s.between(d), "timer", func() {
		do()
		if n.life == life { // it may have ended the member
			n.every(d, do)
		}
	})
}

// post gives the node loop something to do.
func (n *simNode) post(do func(*core)) { n.put(inboxItem{do: do}) }

func (n *simNode) put(it inboxItem) {
	n.inbox = append(n.inbox, it)
	if !n.turning {
		n.turning = true
		n.later(n.s.between(n.s.opts.turn), "turn", n.turn)
	}
}

// turn is one round of the node loop.
func (n *simNode) turn() {
	n.turning = false
	items := n.inbox
	n.inbox = nil
	for _, it := range items {
		if it.applied != nil {
			n.takeApplied(it.applied)
		} else {
			it.do(n.core)
		}
	}
	n.dispatch()
}

func (n *simNode) takeApplied(a *appliedWork) {
	n.s.reachIf(lateChange, n.core.restoring > a.index && len(a.confChanges) > 0)
	n.s.reachIf(batchSkipped, len(a.skipped) > 0)
	n.core.applied(a)
	if a.restored != nil && a.index >= n.core.restoring {
		n.installing = false // and no later snapshot is on its way
	}
}

func (n *simNode) tick() {
	told := n.unreachable
	n.unreachable = nil
	n.post(func(c *core) {
		c.tick()
		for _, id := range told {
			c.unreachable(id)
		}
	})
}

func (n *simNode) receive(m *raftpb.Message) { n.post(func(c *core) { c.step(m) }) }

// dispatch carries out what the core wants done.
func (n *simNode) dispatch() {
	if n.s.opts.bug == bugReadContextReused {
		n.core.reads.counter = 0
	}
	out := n.core.takeEffects()
	n.fresh.note(&out, n.time(), n.applier.index)
	if n.core.started() {
		n.fresh.confirm(n.opened)
	}
	for _, m := range out.messages {
		n.s.send(n, m)
	}
	for _, m := range out.snapshots {
		n.deliveries.Take(n.now(), m)
	}
	select {
	case <-n.log.Asked:
		n.deliveries.Asked(n.now(), n.applier.index)
	default:
	}
	if installs(out.appends) {
		n.installing = true
		if n.s.springs(trapInstall) {
			n.cutPower()
		}
	}
	n.trapApply(out.applies)
	n.appendQueue = append(n.appendQueue, out.appends...)
	n.applyQueue = append(n.applyQueue, out.applies...)
	for _, b := range out.reads {
		n.waiters.wait(b)
	}
	if out.campaignIn != 0 {
		n.campaignIn(out.campaignIn.Microseconds())
	}
	n.follow()
	n.s.observe(n, out.membership != nil)
	n.s.observeTurn(n, &out)
	n.s.observeFreshness(n)
	if out.fatal != nil {
		n.s.trace(3, n.id)
		n.stop(out.fatal)
		return
	}
	n.startAppend()
	n.startApply()
	n.poll()
}

// startAppend begins a save of everything queued.
func (n *simNode) startAppend() {
	if len(n.appendJob) > 0 || len(n.appendQueue) == 0 || n.stalled {
		return
	}
	n.appendJob, n.appendQueue = n.appendQueue, nil
	n.trapSave()
	n.leakResponses()
	n.later(n.slowDisk+n.s.between(n.s.opts.disk), "append", n.finishAppend)
}

// leakResponses is two planted bugs: answers that do not wait for the save.
func (n *simNode) leakResponses() {
	bug := n.s.opts.bug
	if bug != bugAckBeforeSave && bug != bugFollowerAnswersBeforeSave {
		return
	}
	for _, m := range n.appendJob {
		var rest []*raftpb.Message
		for _, r := range m.GetResponses() {
			switch own := r.GetTo() == n.id; {
			case own && bug == bugAckBeforeSave && r.GetType() == raftpb.MsgAppResp:
				n.post(func(c *core) { c.storageDone([]*raftpb.Message{r}) })
			case !own && bug == bugFollowerAnswersBeforeSave:
				n.s.send(n, r)
			default:
				rest = append(rest, r)
			}
		}
		m.Responses = rest
	}
}

func (n *simNode) finishAppend() {
	job := n.appendJob
	responses, err := n.appender.Append(job)
	if err != nil {
		for _, m := range job {
			n.s.reachIf(diskFailsInSave, len(m.GetEntries()) > 0)
			n.s.reachIf(diskFailsInSnapshot, !raft.IsEmptySnap(m.GetSnapshot()))
			n.s.reachIf(diskFullInSave, errors.Is(err, errNoRoom))
		}
		n.s.trace(4, n.id)
		n.crash() // answers nobody
		n.ended = err
		return
	}
	n.appendJob = nil
	for _, m := range job {
		if hs := raftlog.HardStateOf(m); hs != nil {
			n.promised = promise{hs.GetTerm(), hs.GetVote()}
		}
	}
	var own []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == n.id {
			own = append(own, m)
		} else {
			n.s.send(n, m)
		}
	}
	if len(own) > 0 {
		n.last.unheard = true
		if n.s.springs(trapUnheardSave) {
			n.cutPower()
		}
		n.post(func(c *core) {
			n.last.unheard = false
			c.storageDone(own)
		})
	}
	n.startAppend()
}

// install is called by the appender: the queue before the snapshot is applied
// first, then the snapshot.
func (n *simNode) install(s *raftpb.Snapshot) error {
	n.applyNow(n.applyQueue)
	n.applyQueue = nil
	index := s.GetMetadata().GetIndex()
	n.s.observeInstall(n)
	out, err := n.applier.restore(&restoreWork{
		index: index, term: s.GetMetadata().GetTerm(),
		open: func() (io.ReadCloser, error) {
			b, ok := n.bodies[index]
			if !ok {
				return nil, errors.New("no such body")
			}
			return io.NopCloser(bytes.NewReader(b)), nil
		},
	})
	if err != nil {
		return err
	}
	if n.s.opts.bug == bugOriginsNotInSnapshot {
		n.forgetBatches()
	}
	n.restored = out.index
	n.s.reachIf(rotReplaced, n.store.rotten)
	n.store.rotten = false
	n.s.observeRestore(n)
	n.s.noteMembership(n)
	n.waiters.advance(out.index)
	n.put(inboxItem{applied: out})
	n.poll()
	return nil
}

// forgetBatches is a planted bug: the roster no longer knows which batches ran.
// It is planted in the records, after the incarnation of each origin.
func (n *simNode) forgetBatches() {
	records := n.applier.roster.Records()
	for i, rec := range records {
		if rec.Key[0] != 'o' {
			continue
		}
		_, incarnation := binary.Uvarint(rec.Value[1:])
		at := 1 + incarnation
		_, lastBatch := binary.Uvarint(rec.Value[at:])
		records[i].Value = slices.Concat(rec.Value[:at], []byte{0}, rec.Value[at+lastBatch:])
	}
	r, err := roster.Load(records)
	if err != nil {
		n.s.violate("plant a bug: %v", err)
		return
	}
	r.Membership()
	n.applier.roster = r
}

func (n *simNode) startApply() {
	if n.applying || len(n.applyQueue) == 0 || n.slow {
		return
	}
	n.applying = true
	n.later(n.s.between(n.s.opts.apply), "apply", func() {
		n.applying = false
		work := n.applyQueue
		n.applyQueue = nil
		n.applyNow(work)
		n.startApply()
	})
}

func (n *simNode) applyNow(work []applyWork) {
	if len(work) == 0 {
		return
	}
	if n.s.opts.bug == bugNoDedupe {
		n.forgetBatches()
	}
	out, err := n.applier.apply(work)
	if engine.IsDamage(err) {
		n.applyQueue = append(work, n.applyQueue...) // whose requests are answered at the end
		return
	}
	if err != nil {
		n.s.violate("member %d: %v", n.id, err)
		return
	}
	n.s.noteMembership(n)
	n.waiters.advance(out.index)
	n.put(inboxItem{applied: out})
	n.poll()
}
