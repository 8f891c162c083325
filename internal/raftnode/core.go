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
)

// coreConfig is what a core needs to know; durations are in ticks.
type coreConfig struct {
	id             uint64
	start          start // presents this process to the replicas
	electionTicks  int
	heartbeatTicks int
	maxBatchBytes  int // of one packed entry; one larger command goes alone
	maxQueueBytes  int // of the commands waiting to be packed
	log            raft.Storage
	applied        uint64 // index the state machine already contains
	membership     *Membership
	logger         raft.Logger
	// electionTimeout bounds the pauses between campaigns.
	electionTimeout time.Duration
	// random returns a number from 0 up to below n.
	random func(n int64) int64
}

// Limits of raft's own buffers. Its defaults are "no limit".
const (
	maxMessageBytes     = 1 << 20  // of entries in one append message
	maxInflightMessages = 256      // appends to a follower not yet acknowledged
	maxInflightBytes    = 8 << 20  // of the same
	maxUncommittedBytes = 64 << 20 // of a leader's log; beyond it proposals wait
	maxApplyingBytes    = 16 << 20 // handed to the apply loop and not yet answered
	maxQueuedProposals  = 16 << 10 // waiting to be packed
	maxWaitingReads     = 16 << 10 // waiting for a ReadIndex
	maxPendingStarts    = 64       // admissions asked of this node
	maxPendingChanges   = 64       // membership changes asked of this node
)

// core is the deterministic heart of a node: it owns raft's state machine, the
// proposals that wait for a place in the log, the reads that wait for an
// index, and the membership changes under way. It has no goroutine, clock,
// file or socket. Events go in by method calls; what is to be done about them
// comes out of takeEffects. The shell (replica.go) and the simulator drive the
// same core.
//
// Writing goes like this:
//
//	propose → queue → pack → flight → (raft: append, replicate, commit) →
//	takeEffects hands the batch's proposals to the apply loop → answer
//
// Invariants:
//
//	C1  at most one batch of this node is uncommitted (flight); packing waits
//	    for it, so that batches grow with the load
//	C2  a batch keeps its (member, incarnation, sequence) until the apply loop
//	    has run or skipped it; so it may be proposed any number of times
//	C3  every ReadIndex attempt has a context of its own; an answer to an
//	    older attempt is ignored (re-using contexts gave etcd stale reads)
//	C4  a proposal is answered exactly once
//
// A core is owned by one goroutine, the node loop.
type core struct {
	cfg        coreConfig
	rn         *raft.RawNode
	ticks      uint64
	membership *Membership

	// What raft last said of itself.
	term uint64
	lead uint64
	role raft.StateType
	lost uint64 // the leader before, while there is none

	heard map[uint64]uint64 // member → tick of its last message
	// last is the index of the last entry raft has, on disk or not yet, as of
	// the last Ready; bound is at most that of raft's log after the messages
	// stepped since.
	last, bound uint64
	// readAsked is the greatest read position that a heartbeat of this term
	// asked to confirm.
	readAsked uint64

	// restoring is the index of the last snapshot that raft took. Entries before
	// it may still be on their way through the apply loop.
	restoring uint64
	leaveTick uint64 // when this node ends, because it was removed; 0: it was not

	proposals proposalState
	reads     readState
	changes   changeState
	transfers []*transferRequest
	seeking   seekState

	// refused stops new work with the reason: the disk hangs, or the node
	// stops.
	refused error

	counts counts
	out    effects
}

// effects is what the owner of a core has to do, in the order of the fields.
type effects struct {
	// messages go to peers, in order, at once.
	messages []*raftpb.Message
	// snapshots are MsgSnap messages; each needs its body, and a
	// reportSnapshot at the end whatever happens.
	snapshots []*raftpb.Message
	// appends are MsgStorageAppend messages for the append loop, in order.
	appends []*raftpb.Message
	// packed are batches that raft was given for the first time.
	packed []*batch
	// applies go to the apply loop, in order.
	applies []applyWork
	// reads may be answered once the state machine has applied their index.
	reads []readRound
	// membership is set when it changed: connections must follow.
	membership *Membership
	// campaignIn, where not zero, asks for campaignDue after that time, and
	// takes back what was asked for before.
	campaignIn time.Duration
	// fatal ends the node: it was removed, or its start was refused.
	fatal error
}

// applyWork is a run of committed entries on its way to the state machine.
type applyWork struct {
	entries   []*raftpb.Entry
	responses []*raftpb.Message
	own       []ownBatch // batches of this process among the entries
	// restore, where not nil, is a received snapshot to install instead.
	restore *restoreWork
}

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
		MaxSizePerMsg:             maxMessageBytes,
		MaxCommittedSizePerReady:  maxApplyingBytes,
		MaxUncommittedEntriesSize: maxUncommittedBytes,
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
	c := &core{cfg: cfg, rn: rn, membership: cfg.membership, heard: make(map[uint64]uint64)}
	if c.last, err = cfg.log.LastIndex(); err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	c.bound = c.last
	c.reads.prefix = readPrefix(cfg.id)
	c.observe()
	c.seeking = seekState{} // its term is no news
	c.seek(false)
	c.noteRemoval()
	// Alone, there is nobody to wait for.
	if v := cfg.membership.Voters(); len(v) == 1 && v[0] == cfg.id {
		if err := rn.Campaign(); err != nil {
			return nil, fmt.Errorf("campaign: %w", err)
		}
	}
	return c, nil
}

// readPrefix begins the contexts of this process's ReadIndex calls. It is
// random because a leader may still hold one of the process before.
func readPrefix(id uint64) []byte {
	p := binary.BigEndian.AppendUint64(nil, id)
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails (crypto/rand)
	return append(p, salt[:]...)
}

// tick advances logical time by one.
func (c *core) tick() {
	c.ticks++
	c.rn.Tick()
	c.retryProposals()
	c.retryReads()
	c.retryChanges()
	c.retryTransfers()
	c.promoteLearners()
	c.leaveWhenDue()
}

// step takes a message of a peer, already validated by itself.
func (c *core) step(m *raftpb.Message) {
	if c.membership.Removed[m.GetFrom()] || raft.IsLocalMsgTarget(m.GetFrom()) {
		return
	}
	// Some messages that no member sends make raft panic: a commit index
	// beyond the log, an acknowledgement of what was never sent.
	if !c.plausible(m) {
		return
	}
	c.heard[m.GetFrom()] = c.ticks
	if m.GetType() == raftpb.MsgReadIndex && !c.knowsCommit() {
		return // its origin asks again
	}
	c.deposed(m)
	// The errors say that the message does not matter (an unknown peer's
	// answer) or was a proposal that has to be made again; its origin does.
	_ = c.rn.Step(m)
	c.bound = lastIndexAfter(m, c.bound)
	if m.GetType() == raftpb.MsgSnap {
		c.advance() // notes whether raft took it (restoring), before applied is called
	}
}

func (c *core) plausible(m *raftpb.Message) bool {
	return validateAgainst(m, c.bound) == nil && validateReadAck(m, c.readAsked) == nil
}

// unreachable notes that messages to the peer fail.
func (c *core) unreachable(id uint64) {
	c.rn.ReportUnreachable(id)
	c.endTransfers(func(t *transferRequest) bool { return t.to == id }, "does not answer")
}

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

// applied takes what the apply loop did. Configuration changes reach raft
// before the acknowledgement of their entries does.
func (c *core) applied(a *appliedWork) {
	c.reconfigure(a)
	if a.membership != nil {
		c.setMembership(a.membership)
	}
	for _, s := range a.starts {
		c.startApplied(s)
	}
	for _, ch := range a.changes {
		c.changeApplied(ch)
	}
	c.requeue(a.skipped)
	if a.restored != nil {
		c.restored(a.restored)
	}
	c.storageDone(a.responses)
}

// reconfigure tells raft of the configuration changes, and checks that it and
// the roster came to the same members.
func (c *core) reconfigure(a *appliedWork) {
	if c.restoring > a.index {
		return // raft has a later configuration already, the snapshot's
	}
	var cs *raftpb.ConfState
	for _, cc := range a.confChanges {
		cs = c.rn.ApplyConfChange(cc)
	}
	if cs != nil && !equalConfState(cs, a.membership.confState()) {
		panic(fmt.Sprintf("raftnode: raft's members %v are not the roster's %v", cs, a.membership.confState()))
	}
}

func (c *core) setMembership(m *Membership) {
	c.membership = m
	c.out.membership = m
	c.noteRemoval()
}

// removalTimeouts is for how many election timeouts a removed member stays.
// The others may not know yet that its removal is committed, and until they
// do they need its vote: with two voters there is no leader without it.
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

// restored resumes after a snapshot was installed in place of log entries.
func (c *core) restored(r *restoredState) {
	c.setMembership(r.membership)
	own := r.origin
	if own.boot == c.cfg.start.Boot {
		c.proposals.incarnation = own.incarnation
	} else {
		c.proposals.incarnation = 0
	}
	c.settleFlight(own)
	c.settleChange(own)
}

// takeEffects moves raft on and returns what is to be done. The returned
// slices are the caller's.
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

// accept sorts one Ready. There is no Advance: with asynchronous storage
// writes the responses of the two loops play its part.
func (c *core) accept(rd raft.Ready) {
	c.observe()
	defer func() { c.bound = c.last }()
	for _, rs := range rd.ReadStates {
		c.readConfirmed(rs)
	}
	for _, m := range holdVotes(rd.Messages) {
		if m.GetType() == raftpb.MsgHeartbeat {
			c.readAsked = max(c.readAsked, readAckOf(m))
		}
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			c.noteLast(m)
			c.yield(m)
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

// holdVotes lets requests for votes wait for the save of the term they are
// for, like a response. raft would send them at once, counting on the
// candidate's own vote to wait. But the votes of others may elect it before:
// after a crash it does not know the term, asks for it again, is given the
// same votes again, and leads twice in one term, with other entries under the
// same index and term.
func holdVotes(messages []*raftpb.Message) []*raftpb.Message {
	at := slices.IndexFunc(messages, func(m *raftpb.Message) bool { return m.GetTo() == raft.LocalAppendThread })
	if at < 0 {
		return messages // it asks for no votes: its term did not change
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

func (c *core) noteLast(m *raftpb.Message) {
	c.restoring = max(c.restoring, m.GetSnapshot().GetMetadata().GetIndex())
	if ents := m.GetEntries(); len(ents) > 0 {
		c.last = ents[len(ents)-1].GetIndex()
	} else if !raft.IsEmptySnap(m.GetSnapshot()) {
		c.last = m.GetSnapshot().GetMetadata().GetIndex()
	}
}

// observe compares raft's own state with what was last seen of it.
func (c *core) observe() {
	st := c.rn.BasicStatus()
	newTerm := st.GetTerm() != c.term
	if newTerm {
		c.readAsked = 0
	}
	changed := st.Lead != c.lead || newTerm || st.RaftState != c.role
	if changed {
		c.noteLeader(st)
	}
	if st.Lead != c.lead {
		c.lost = c.lead
	}
	c.lead, c.term, c.role = st.Lead, st.GetTerm(), st.RaftState
	if changed {
		c.proposeAgain()
		c.readAgain()
		c.changeAgain()
		c.settleTransfers()
		c.seek(newTerm)
	}
}

// committed finds this process's own batches among committed entries, frees
// the place they held, and sends them along with the entries to be answered.
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
		if o, ok := peekBatch(e.GetData()); ok && o == f.id {
			w.own = append(w.own, ownBatch{index: e.GetIndex(), batch: f})
			c.proposals.flight = nil
			c.counts.committed += uint64(f.commands)
			break // C1: there is no other
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
	c.proposeStarts()
	c.proposeBatch()
	c.proposeChange()
	c.issueRead()
}

// isLeader reports whether this node leads.
func (c *core) isLeader() bool { return c.role == raft.StateLeader }

// recentlyHeard reports whether the member sent anything within an election
// timeout.
func (c *core) recentlyHeard(id uint64) bool {
	at, ok := c.heard[id]
	return id == c.cfg.id || ok && c.ticks-at <= uint64(c.cfg.electionTicks)
}

// fail ends the core: whatever waits is answered, and nothing is taken any
// more. Proposals that may be in the log have an unknown outcome.
func (c *core) fail(err error) {
	c.refused = err
	c.failProposals(err)
	c.failReads(err)
	c.failChanges(err)
	for _, t := range c.transfers {
		t.answer(err)
	}
	c.transfers = nil
}

// removeIf drops the elements for which drop is true, in place.
func removeIf[T any](list []T, drop func(T) bool) []T { return slices.DeleteFunc(list, drop) }
