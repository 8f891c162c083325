package raftnode

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/roster"
)

// coreConfig is what a core needs to know. Periods are in ticks.
type coreConfig struct {
	id             uint64
	start          roster.Start // announces this process to the replicas
	electionTicks  int
	heartbeatTicks int
	// replaceTicks is how long the leader must not have heard from a member that is
	// to be replaced, and removeDeadTicks after what silence it removes a member; 0
	// means never.
	replaceTicks, removeDeadTicks uint64
	maxBatchBytes                 int // limit of one packed entry; a larger command is packed alone
	maxQueueBytes                 int // limit of the commands that wait to be packed
	log                           coreLog
	applied                       uint64 // index that the state machine already contains
	membership                    *roster.Membership
	logger                        raft.Logger
	// electionTimeout bounds the pauses between campaigns.
	electionTimeout time.Duration
	// random returns a number in [0, n).
	random func(n int64) int64
}

// coreLog is the log that raft reads. It learns how far raft knows the entries to be
// applied, because it may drop no others.
type coreLog interface {
	raft.Storage
	NoteApplied(index uint64)
}

// Limits of raft's own buffers, whose defaults are "no limit", and of the
// core's queues. What the largest write decides is in package limits.
const (
	maxInflightMessages = 256      // appends to one follower that it has not acknowledged
	maxInflightBytes    = 8 << 20  // the entries in those
	maxApplyingBytes    = 16 << 20 // entries handed to the apply loop and not yet applied
	maxQueuedProposals  = 16 << 10 // proposals that wait to be packed
	maxWaitingReads     = 16 << 10 // reads that wait for a ReadIndex
	maxPendingStarts    = 64       // admissions requested from this node
	maxPendingChanges   = 64       // membership changes requested from this node
)

// core is the deterministic heart of a replica. It owns raft's state machine,
// the proposals that wait for a place in the log, the reads that wait for an
// index, the membership changes in progress, and the search for a leader. It
// has no goroutine, clock, file or socket: events go in through method calls,
// and takeEffects returns what has to be done about them. The shell
// (replica.go) and the simulator drive the same core, so a seed replays every
// decision that a production node could make.
//
// The life of a write:
//
//	propose → queue → pack → flight → (raft: append, replicate, commit) →
//	takeEffects hands the batch's proposals to the apply loop → answer
//
// Invariants:
//
//	C1  At most one batch of this node is uncommitted (the flight). Packing
//	    waits for it, so batches grow with the load.
//	C2  A batch keeps its roster.BatchID until the apply loop has run or skipped it,
//	    so it may be proposed any number of times and runs at most once.
//	C3  Every ReadIndex attempt has a context of its own, and the answer to an
//	    older attempt is ignored. Reusing contexts gave etcd stale reads.
//	C4  Every proposal is answered exactly once.
//
// Rejected: several batches in flight. Two were as fast as one at 256 clients
// and slower at 64, because they halve the batch size; and with one there is
// nothing to reorder after a change of leader.
//
// One goroutine owns a core: the node loop.
type core struct {
	coreState

	proposals proposer
	starts    starter
	reads     reader
	changes   changer
	transfers transferer
	roll      rollCall
	fresh     witness
	seeking   seeker
	lostLog   lostLog

	// bound is the highest index that raft's log surely reaches: that of the
	// last Ready, lowered by the messages stepped since.
	bound uint64
	// readAsked is the greatest read position that a heartbeat of this term
	// asked the followers to confirm.
	readAsked uint64
	// beat is the tick of the last Ready. Heartbeats of a Ready without a new tick
	// are those of a ReadIndex.
	beat uint64
	// restoring is the index of the last snapshot that raft accepted. Entries
	// before it may still be on their way through the apply loop.
	restoring uint64
	// leaveTick is when this node stops because it was removed; 0 if it was
	// not.
	leaveTick uint64
}

// coreState is what the parts of a core share. Each part embeds a pointer to
// it, changes only its own fields, and reads the others'.
type coreState struct {
	cfg        coreConfig
	rn         *raft.RawNode
	ticks      uint64
	membership *roster.Membership

	// Raft's state when observe last looked at it.
	term uint64
	lead uint64
	role raft.StateType
	lost uint64 // the previous leader, while there is none

	heard map[uint64]uint64 // member → tick of its last message
	// last is the index of raft's last entry, on disk or not yet, as of the
	// last Ready.
	last uint64

	// incarnation is the log index of this process's start entry; 0 until that
	// is applied. Batches and changes carry it.
	incarnation uint64
	// backoff stops proposing until the next tick, because raft refused a
	// proposal: there is no leader, leadership is being handed over, or too
	// much is uncommitted.
	backoff bool
	// refused, unless nil, is why new work is refused: the disk hangs, or the
	// node is stopping.
	refused error

	intake intake
	counts counts
	out    effects
}

// effects is what the owner of a core has to do, in the order of the fields.
type effects struct {
	// messages go to peers, in order, at once.
	messages []*raftpb.Message
	// snapshots are MsgSnap messages. Each needs its body, and ends in a
	// reportSnapshot whatever happens: raft sends nothing else to that
	// follower until then.
	snapshots []*raftpb.Message
	// appends are MsgStorageAppend messages for the append loop, in order.
	appends []*raftpb.Message
	// packed are batches that raft was given for the first time.
	packed []*batch
	// applies go to the apply loop, in order.
	applies []applyWork
	// reads may be answered once the state machine has applied their index.
	reads []readRound
	// membership is set if it changed. Connections must follow it.
	membership *roster.Membership
	// proved, unless zero, answers the question that was in progress before
	// these effects: nothing after this index was committed when it began.
	proved uint64
	// asks means that a question begins now, before the messages are sent.
	asks bool
	// campaignIn, unless zero, asks for a call of campaignDue after that time
	// and replaces an earlier request.
	campaignIn time.Duration
	// fatal stops the node: it was removed, or its start was refused.
	fatal error
}

// applyWork is a run of committed entries on its way to the state machine.
type applyWork struct {
	entries   []*raftpb.Entry
	responses []*raftpb.Message
	own       []ownBatch // this process's batches among the entries
	// restore, unless nil, is a received snapshot to install instead.
	restore *restoreWork
}

// ownBatch is a batch of this process and the index it was committed at.
type ownBatch struct {
	index uint64
	batch *batch
}

func newCore(cfg coreConfig) (*core, error) {
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.id,
		ElectionTick:              cfg.electionTicks,
		HeartbeatTick:             cfg.heartbeatTicks,
		Storage:                   cfg.log,
		Applied:                   cfg.applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             limits.MaxAppendBytes,
		MaxCommittedSizePerReady:  maxApplyingBytes,
		MaxUncommittedEntriesSize: limits.MaxUncommittedBytes,
		MaxInflightMsgs:           maxInflightMessages,
		MaxInflightBytes:          maxInflightBytes,
		CheckQuorum:               true,
		PreVote:                   true,
		StepDownOnRemoval:         true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    cfg.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	c := &core{coreState: coreState{cfg: cfg, rn: rn, membership: cfg.membership, heard: make(map[uint64]uint64)}}
	shared := &c.coreState
	c.proposals = proposer{coreState: shared}
	c.starts = starter{coreState: shared}
	c.reads = reader{coreState: shared, prefix: readPrefix(cfg.id)}
	c.roll = newRollCall(shared, c.reads.prefix)
	c.fresh = newWitness(shared, &c.roll)
	c.transfers = transferer{coreState: shared, roll: &c.roll}
	c.changes = changer{coreState: shared, transfers: &c.transfers, roll: &c.roll, arrived: make(map[uint64]uint64)}
	c.seeking = seeker{coreState: shared}
	if c.last, err = cfg.log.LastIndex(); err != nil {
		return nil, fmt.Errorf("read the last index of the log: %w", err)
	}
	c.bound = c.last
	cfg.log.NoteApplied(cfg.applied)
	c.observe()
	c.seeking.reset() // the term it starts in is not a new one
	c.seeking.follow(false)
	c.noteRemoval()
	// A single voter has nobody to wait for.
	if v := cfg.membership.Voters(); len(v) == 1 && v[0] == cfg.id {
		if err := rn.Campaign(); err != nil {
			return nil, fmt.Errorf("campaign as the only voter: %w", err)
		}
	}
	return c, nil
}

// readPrefix returns the prefix of the contexts of this process's ReadIndex
// calls. It is random because a leader may still hold a context of the
// previous process (C3).
func readPrefix(id uint64) []byte {
	p := binary.BigEndian.AppendUint64(nil, id)
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // crypto/rand never fails
	return append(p, salt[:]...)
}

// propose queues a command. An error means that nothing was proposed.
func (c *core) propose(p *proposal) error { return c.proposals.add(p) }

// takesProposals reports whether a command could be proposed, or would be
// refused, now. Otherwise it may as well stay where it is.
func (c *core) takesProposals() bool { return c.proposals.flight == nil || c.refused != nil }

// read queues a linearizable read. An error means that it was refused.
func (c *core) read(r *readRequest) error { return c.reads.add(r) }

// takesReads reports whether a read could be served by an attempt issued now,
// or would be refused.
func (c *core) takesReads() bool { return c.reads.flight == nil || c.refused != nil }

// change queues a membership change, or answers why not.
func (c *core) change(r *changeRequest) { c.changes.add(r) }

// admit proposes the start of another member's directory.
func (c *core) admit(r *startRequest) { c.starts.admit(r) }

// transfer begins to hand leadership over, or answers why not.
func (c *core) transfer(t *transferRequest) { c.transfers.begin(t) }

// tick advances logical time by one.
func (c *core) tick() {
	c.ticks++
	c.rn.Tick()
	c.backoff = false
	c.intake.fill()
	c.releaseHeld()
	c.proposals.retry()
	c.starts.retry()
	c.reads.retry()
	c.changes.retry()
	c.transfers.retry()
	c.transfers.expire()
	c.fresh.tick()
	c.changes.promoteLearner()
	c.changes.removeDead()
	c.leaveWhenDue()
}

// step takes a peer's message, which the transport has validated as far as
// that is possible without the log.
func (c *core) step(m *raftpb.Message) {
	if c.membership.Removed[m.GetFrom()] || raft.IsLocalMsgTarget(m.GetFrom()) {
		return
	}
	c.roll.take(m)
	if err := c.lostLog.note(m, c.term, c.last, c.cfg.electionTicks); err != nil {
		c.out.fatal = err
		return
	}
	// Some messages that no correct member sends make raft panic: a commit
	// index beyond the log, an acknowledgment of something never sent.
	if !c.plausible(m) {
		return
	}
	c.heard[m.GetFrom()] = c.ticks
	c.fresh.take(m)
	if m.GetType() == raftpb.MsgReadIndex && !c.reads.knowsCommit() {
		return // the sender repeats it
	}
	c.deposed(m)
	if c.holdBack(m) {
		return
	}
	// An error means that the message does not matter (the answer of a peer
	// that raft does not know), or that it was a proposal that raft dropped,
	// which its sender repeats.
	_ = c.rn.Step(m)
	c.bound = lastIndexAfter(m, c.bound)
	if m.GetType() == raftpb.MsgSnap {
		c.advance() // learn whether raft accepted it (restoring) before applied is called
	}
}

func (c *core) plausible(m *raftpb.Message) bool {
	return validateAgainst(m, c.bound) == nil && validateReadAck(m, c.readAsked) == nil
}

// unreachable notes that a message to the peer failed.
func (c *core) unreachable(id uint64) { c.rn.ReportUnreachable(id) }

// reportSnapshot ends a snapshot transfer.
func (c *core) reportSnapshot(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	c.rn.ReportSnapshot(id, status)
}

// storageDone delivers the responses of finished storage work to raft.
func (c *core) storageDone(responses []*raftpb.Message) {
	for _, m := range responses {
		if err := c.rn.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			panic(fmt.Sprintf("raftnode: raft refused its own storage response %v: %v", m.GetType(), err))
		}
	}
}

// applied takes the report of the apply loop. Configuration changes reach raft
// before the acknowledgment of their entries does: a leader that acknowledged
// first could propose the next change against the old configuration.
func (c *core) applied(a *appliedWork) {
	c.reconfigure(a)
	if a.membership != nil {
		c.setMembership(a.membership)
	}
	for _, s := range a.starts {
		c.startApplied(s)
	}
	for _, ch := range a.changes {
		c.changes.applied(ch)
	}
	c.proposals.requeue(a.skipped)
	if a.restored != nil {
		c.restored(a.restored)
	}
	c.storageDone(a.responses)
	c.cfg.log.NoteApplied(a.index)
}

// reconfigure tells raft about the configuration changes, and checks that raft
// and the roster arrived at the same members.
func (c *core) reconfigure(a *appliedWork) {
	if c.restoring > a.index {
		return // raft already has a later configuration, the snapshot's
	}
	var cs *raftpb.ConfState
	for _, cc := range a.confChanges {
		cs = c.rn.ApplyConfChange(cc)
	}
	if cs != nil && !a.membership.Matches(cs) {
		panic(fmt.Sprintf("raftnode: raft's members %v are not the roster's %v", cs, a.membership.ConfState()))
	}
}

// startApplied takes the outcome of any member's start entry. A new
// incarnation of this process numbers its batches and changes from 1.
func (c *core) startApplied(a startApplied) {
	if c.starts.applied(a) {
		c.proposals.sequence, c.changes.sequence = 0, 0
	}
}

func (c *core) setMembership(m *roster.Membership) {
	c.changes.welcome(m)
	c.membership, c.fresh.first = m, nil
	c.out.membership = m
	c.noteRemoval()
}

// removalTimeouts is the number of election timeouts that a removed member
// stays. The others may not know yet that its removal is committed, and until
// they do they need its vote: of two voters, the remaining one cannot be
// elected without it.
const removalTimeouts = 3

func (c *core) noteRemoval() {
	if c.membership.Removed[c.cfg.id] && c.leaveTick == 0 {
		c.leaveTick = c.ticks + uint64(removalTimeouts*c.cfg.electionTicks)
	}
}

func (c *core) leaveWhenDue() {
	if c.leaveTick != 0 && c.ticks >= c.leaveTick {
		c.out.fatal = ErrRemoved
	}
}

// restored resumes after a snapshot was installed in place of log entries,
// among which may have been this process's start, its flight and its change.
func (c *core) restored(r *restoredState) {
	c.setMembership(r.membership)
	own := r.origin
	if own.Boot == c.cfg.start.Boot {
		c.incarnation = own.Incarnation
	} else {
		c.incarnation = 0
	}
	c.proposals.settle(own)
	c.changes.settle(own)
}

// takeEffects advances raft and returns what has to be done. The caller owns
// the returned slices.
func (c *core) takeEffects() effects {
	c.advance()
	out := c.out
	c.out = effects{}
	return out
}

func (c *core) advance() {
	c.pump()
	for c.rn.HasReady() {
		c.accept(c.rn.Ready())
		c.pump()
	}
}

// accept sorts the contents of one Ready. It never calls Advance: with
// asynchronous storage writes the responses of the two loops play its part.
func (c *core) accept(rd raft.Ready) {
	c.observe()
	defer func() { c.bound = c.last }()
	for _, rs := range rd.ReadStates {
		c.reads.confirmed(rs)
	}
	regular := c.beat != c.ticks
	c.beat = c.ticks
	for _, m := range holdVotes(rd.Messages) {
		if !regular && c.fresh.spares(m) {
			continue
		}
		c.fresh.outgoing(m, c.readAsked)
		if m.GetType() == raftpb.MsgHeartbeat {
			c.readAsked = max(c.readAsked, readAckOf(m))
		}
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			c.noteLast(m)
			c.seeking.yield(m)
			c.out.appends = append(c.out.appends, m)
		case m.GetTo() == raft.LocalApplyThread:
			c.out.applies = append(c.out.applies, c.committed(m))
		case m.GetType() == raftpb.MsgSnap:
			c.out.snapshots = append(c.out.snapshots, m)
		default:
			c.out.messages = append(c.out.messages, m)
		}
	}
}

// holdVotes makes vote requests wait for the save of their term, as responses
// do. Raft would send them at once and rely on the candidate's own vote to
// wait. But the votes of the others may elect the candidate before its own
// save ends. If it crashes then, it does not know the term anymore, asks for
// the same votes again, gets them again, and leads a second time in one term,
// with different entries under the same index and term.
func holdVotes(messages []*raftpb.Message) []*raftpb.Message {
	at := slices.IndexFunc(messages, func(m *raftpb.Message) bool { return m.GetTo() == raft.LocalAppendThread })
	if at < 0 {
		return messages // nothing to save, so the term is not new and there are no vote requests
	}
	save := messages[at]
	return removeIf(messages, func(m *raftpb.Message) bool {
		vote := m.GetType() == raftpb.MsgVote
		if vote {
			save.Responses = append(save.Responses, m)
		}
		return vote
	})
}

// noteLast follows the end of raft's log, and snapshots that replace it.
func (c *core) noteLast(m *raftpb.Message) {
	c.restoring = max(c.restoring, m.GetSnapshot().GetMetadata().GetIndex())
	if ents := m.GetEntries(); len(ents) > 0 {
		c.last = ents[len(ents)-1].GetIndex()
	} else if !raft.IsEmptySnap(m.GetSnapshot()) {
		c.last = m.GetSnapshot().GetMetadata().GetIndex()
	}
}

// observe compares raft's state with what was last seen of it. After a change
// of leader, term or role everything that was handed to the old leader may be
// lost, so all parts begin again.
func (c *core) observe() {
	st := c.rn.BasicStatus()
	newTerm := st.GetTerm() != c.term
	if newTerm {
		c.readAsked = 0
	}
	changed := st.Lead != c.lead || newTerm || st.RaftState != c.role
	if changed {
		c.countLeader(st)
	}
	if st.Lead != c.lead {
		c.lost = c.lead
	}
	c.lead, c.term, c.role = st.Lead, st.GetTerm(), st.RaftState
	if changed {
		c.backoff = false
		c.endIntake()
		c.proposals.again()
		c.starts.again()
		c.reads.again()
		c.changes.again()
		c.transfers.settle()
		c.fresh.again()
		c.seeking.follow(newTerm)
	}
}

// countLeader counts elections and changes of leader, before observe takes
// over raft's new state.
func (c *core) countLeader(st raft.BasicStatus) {
	if st.Lead != raft.None && st.Lead != c.lead {
		c.counts.leaderChanges++
	}
	if campaigning(st.RaftState) && !campaigning(c.role) {
		c.counts.campaigns++
	}
}

func campaigning(s raft.StateType) bool {
	return s == raft.StatePreCandidate || s == raft.StateCandidate
}

// committed looks for this process's own batch among committed entries. If it
// is there, its place is free for the next one, and its proposals travel with
// the entries to be answered.
func (c *core) committed(m *raftpb.Message) applyWork {
	w := applyWork{entries: m.GetEntries(), responses: m.GetResponses()}
	f := c.proposals.flight
	if f == nil {
		return w
	}
	for _, e := range w.entries {
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		if id, ok := roster.PeekBatch(e.GetData()); ok && id == f.id {
			w.own = append(w.own, ownBatch{index: e.GetIndex(), batch: f})
			c.proposals.flight = nil
			c.counts.committed += uint64(f.commands)
			break // C1: no other one can be in flight
		}
	}
	return w
}

// pump proposes whatever can be proposed now.
func (c *core) pump() {
	c.observe()
	if c.lead == raft.None {
		return
	}
	c.starts.propose()
	c.proposals.propose()
	c.changes.propose()
	c.transfers.hand()
	c.reads.issue()
}

// fail ends the core: everything that waits is answered, and nothing more is
// accepted. Proposals that may be in the log have an unknown outcome.
func (c *core) fail(err error) {
	c.refused = err
	c.proposals.fail(err)
	c.starts.fail(err)
	c.reads.fail(err)
	c.changes.fail(err)
	c.transfers.fail(err)
}

// isLeader reports whether this node leads.
func (s *coreState) isLeader() bool { return s.role == raft.StateLeader }

// committedInTerm returns the commit index if an entry of this term is committed.
// Until then, a new leader may not know of everything that its predecessor
// committed.
func (s *coreState) committedInTerm() (index uint64, ok bool) {
	index = s.rn.BasicStatus().GetCommit()
	term, err := s.cfg.log.Term(index)
	return index, err == nil && term == s.term
}

// recentlyHeard reports whether the member sent anything within an election
// timeout. A node always hears itself.
func (s *coreState) recentlyHeard(id uint64) bool {
	at, ok := s.heard[id]
	return id == s.cfg.id || ok && s.ticks-at <= uint64(s.cfg.electionTicks)
}

// retryTicks is the number of ticks after which a proposal that concerns the
// membership is repeated. It starts at an election timeout, because copies of
// these cost more than copies of a batch, and doubles with each retry.
func (s *coreState) retryTicks(retries int) uint64 {
	return uint64(s.cfg.electionTicks) << min(retries, 5)
}

// random returns a duration in [0, below).
func (s *coreState) random(below time.Duration) time.Duration {
	return time.Duration(s.cfg.random(int64(below)))
}

// removeIf drops, in place, the elements for which drop returns true.
func removeIf[T any](list []T, drop func(T) bool) []T { return slices.DeleteFunc(list, drop) }
