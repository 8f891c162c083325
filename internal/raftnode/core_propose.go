package raftnode

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/roster"
)

// How a request can end without a result. After one of the errors of the first
// group it certainly changed nothing.
var (
	ErrNoLeader   = errors.New("no leader")
	ErrOverloaded = errors.New("too many requests are waiting")
	ErrTooLarge   = errors.New("the proposal is larger than a log entry may be")
	ErrStopping   = errors.New("the node is stopping")
	ErrDiskStall  = errors.New("the disk is not responding")
	ErrNotLeader  = errors.New("this node is not the leader")
	// ErrNotHandedOver means that no other member took over the leadership.
	ErrNotHandedOver = errors.New("leadership was not handed over")

	// ErrUnknown means that the proposal may or may not take effect.
	ErrUnknown = errors.New("outcome unknown")

	// ErrRemoved stops a node that is not a member anymore.
	ErrRemoved = errors.New("this member was removed from the cluster")
	// ErrRefused stops a node whose directory may not act as the member.
	ErrRefused = errors.New("the cluster refuses this data directory")
)

// proposalStage is how far a proposal has come. The requester and the core
// race for it: the one that moves it out of stageQueued wins.
type proposalStage = int32

const (
	stageQueued    proposalStage = iota // nothing was proposed yet
	stageProposed                       // may be in the log
	stageWithdrawn                      // its requester gave up before it was proposed
)

// proposal is one command on its way through the log, or a group of commands
// that stays together: in one entry, in order, with nothing in between.
type proposal struct {
	// commands belong to the requester until the core moves the stage, and to the core
	// from then on. size and count do not change, so the core may read them before.
	commands [][]byte
	size     int     // bytes of the commands
	count    int     // number of the commands
	timing   *Timing // nil if nobody asked for it
	stage    atomic.Int32
	done     chan answer // capacity 1: the sender never waits
	one      [1][]byte   // backs commands if there is only one

	before, after *proposal // in the waiting room, whose lock guards these three
	waits         bool      // in the waiting room
}

// answer is how a proposal ended.
type answer struct {
	results []any // one for each command; stays valid
	err     error
}

// proposals recycles proposals and their channels.
var proposals = sync.Pool{New: func() any { return &proposal{done: make(chan answer, 1)} }}

func newProposal(command []byte) *proposal {
	p := proposals.Get().(*proposal)
	p.size, p.count = len(command), 1
	p.one[0] = command
	p.commands = p.one[:]
	return p
}

func newGroup(commands [][]byte) *proposal {
	p := proposals.Get().(*proposal)
	p.commands, p.count = commands, len(commands)
	for _, c := range commands {
		p.size += len(c)
	}
	return p
}

// release recycles a proposal. It must have been answered with results: only
// then is it certain that the loops hold no reference to it. One that was
// answered with ErrUnknown may still be answered, or packed, a second time.
func (p *proposal) release() {
	p.commands, p.one[0], p.size, p.count, p.timing = nil, nil, 0, 0, nil
	p.stage.Store(stageQueued)
	proposals.Put(p)
}

// withdraw takes the proposal back. It returns false if the proposal was
// already proposed, so that its outcome is open.
//
// The commands are released at once, although the proposer keeps the empty
// proposal until the next tick: it reads commands only after it has moved the
// stage itself. The size stays, for its account of what it holds.
func (p *proposal) withdraw() bool {
	if !p.stage.CompareAndSwap(stageQueued, stageWithdrawn) {
		return false
	}
	p.commands, p.one[0] = nil, nil
	return true
}

// batch is the commands of one log entry.
type batch struct {
	id        roster.BatchID
	data      []byte
	proposals []*proposal
	commands  int    // in all proposals together
	sent      bool   // handed to raft, and not known to be lost
	sentTerm  uint64 // term in which it was handed over
	asLeader  bool   // handed over while this node led: it cannot vanish within the term
	sentTick  uint64
	retries   int
	timed     bool // some of the proposals carry a Timing
}

// proposer is the core's side of writing: it packs the commands that wait into
// one entry at a time and sees to it that the entry is committed.
//
// Retrying is safe because of C2. It is needed because a follower forwards its
// batch to the leader, and neither raft nor the connection says whether the
// batch arrived.
type proposer struct {
	*coreState

	sequence   uint64 // of the last batch that was packed
	queue      []*proposal
	queueBytes int
	flight     *batch // C1
}

func (p *proposer) add(pr *proposal) error {
	switch {
	case p.refused != nil:
		return p.refused
	// The followers would refuse its entry, and nothing behind it would commit.
	case pr.size > limits.MaxProposalBytes || pr.count > limits.MaxGroupCommands:
		return ErrTooLarge
	// A proposal above the limit is accepted if the queue is empty; otherwise
	// it could never be.
	case len(p.queue) >= maxQueuedProposals || p.queueBytes+pr.size > p.cfg.maxQueueBytes && len(p.queue) > 0:
		return ErrOverloaded
	}
	p.queue = append(p.queue, pr)
	p.queueBytes += pr.size
	return nil
}

// propose hands the flight to raft if raft does not have it, or packs a new
// one.
func (p *proposer) propose() {
	if p.backoff || p.incarnation == 0 || p.intake.empty() {
		return
	}
	if p.flight == nil {
		if p.flight = p.pack(); p.flight == nil {
			return
		}
	}
	f := p.flight
	if f.sent {
		return
	}
	if err := p.rn.Propose(f.data); err != nil {
		p.backoff = true
		return
	}
	if f.sentTerm == 0 {
		p.out.packed = append(p.out.packed, f)
	}
	p.intake.take(len(f.data))
	f.sent, f.sentTick, f.sentTerm, f.asLeader = true, p.ticks, p.term, p.isLeader()
}

// pack makes a batch of the proposals that wait, up to the limit in bytes.
func (p *proposer) pack() *batch {
	if len(p.queue) == 0 {
		return nil
	}
	b := &batch{proposals: make([]*proposal, 0, len(p.queue))}
	commands := make([][]byte, 0, len(p.queue))
	taken, size := 0, 0
	for _, pr := range p.queue {
		if size > 0 && size+pr.size > p.cfg.maxBatchBytes {
			break
		}
		taken++
		p.queueBytes -= pr.size
		// A proposal that was requeued is in stageProposed already: it can no
		// longer be withdrawn, and is packed again.
		if !pr.stage.CompareAndSwap(stageQueued, stageProposed) && pr.stage.Load() == stageWithdrawn {
			continue
		}
		size += pr.size
		commands = append(commands, pr.commands...)
		b.proposals = append(b.proposals, pr)
		b.timed = b.timed || pr.timing != nil
	}
	p.queue = append(p.queue[:0], p.queue[taken:]...)
	clear(p.queue[len(p.queue):cap(p.queue)]) // release the memory of what was packed
	if len(commands) == 0 {
		return nil
	}
	p.sequence++
	b.id = roster.BatchID{Member: p.cfg.id, Incarnation: p.incarnation, Sequence: p.sequence}
	b.commands, b.data = len(commands), roster.EncodeBatch(b.id, commands)
	return b
}

// requeue returns the proposals of skipped batches to the front of the queue.
// They certainly did not run, and get a new sequence.
func (p *proposer) requeue(skipped []*batch) {
	for _, b := range skipped {
		for _, pr := range b.proposals {
			p.queueBytes += pr.size
		}
		p.queue = append(append([]*proposal(nil), b.proposals...), p.queue...)
	}
}

// again proposes the flight once more after a change of leader or term: the
// old leader may have lost it. If it did not, the copy is harmless (C2).
func (p *proposer) again() {
	if p.flight != nil {
		p.flight.sent = false
	}
}

// lostTicks is the number of ticks after which a forwarded batch or start that
// was not seen committed is taken for lost with a broken connection, and made
// again. It doubles with each retry, because the leader may only be slow.
func lostTicks(retries int) uint64 { return 3 << min(retries, 8) }

// retry notices a flight that vanished on its way to the leader, and drops
// proposals whose requesters gave up.
func (p *proposer) retry() {
	if f := p.flight; f != nil && f.sent && !(f.asLeader && f.sentTerm == p.term) &&
		p.ticks-f.sentTick >= lostTicks(f.retries) {
		f.sent = false
		f.retries++
	}
	p.queue = removeIf(p.queue, func(pr *proposal) bool {
		gone := pr.stage.Load() == stageWithdrawn
		if gone {
			p.queueBytes -= pr.size
		}
		return gone
	})
}

// settle decides about the flight after a snapshot replaced the entries that it
// may have been among. own is what the snapshot says about this member.
func (p *proposer) settle(own roster.Origin) {
	f := p.flight
	if f == nil {
		return
	}
	if own.Incarnation != f.id.Incarnation {
		// Its incarnation ended. Whether it ran before that cannot be told.
		p.flight = nil
		answerAll(f.proposals, ErrUnknown)
	} else if own.LastBatch >= f.id.Sequence {
		p.flight = nil // it ran, and its results are lost
		answerAll(f.proposals, ErrUnknown)
	}
}

func (p *proposer) fail(err error) {
	if p.flight != nil {
		answerAll(p.flight.proposals, ErrUnknown)
		p.flight = nil
	}
	for _, pr := range p.queue {
		if pr.stage.Load() == stageProposed { // requeued: an older copy may still commit
			pr.done <- answer{err: ErrUnknown}
		} else {
			pr.done <- answer{err: err}
		}
	}
	p.queue, p.queueBytes = nil, 0
}

func answerAll(ps []*proposal, err error) {
	for _, p := range ps {
		p.done <- answer{err: err}
	}
}
