package raftnode

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// How a proposal can end without a result. The first group surely changed
// nothing.
var (
	ErrNoLeader   = errors.New("no leader")
	ErrOverloaded = errors.New("too many requests waiting")
	ErrStopping   = errors.New("node is stopping")
	ErrDiskStall  = errors.New("the disk does not answer")
	ErrNotLeader  = errors.New("not the leader")
	// ErrNotHandedOver says that another member did not take the leadership.
	ErrNotHandedOver = errors.New("leadership was not handed over")

	// ErrUnknown says that the proposal may or may not take effect.
	ErrUnknown = errors.New("outcome unknown")

	// ErrRemoved ends a node that is no longer a member.
	ErrRemoved = errors.New("this member was removed from the cluster")
	// ErrRefused ends a node whose directory may not act as the member.
	ErrRefused = errors.New("the cluster refuses this data directory")
)

type proposalStage = int32

const (
	stageQueued    proposalStage = iota // nothing was proposed yet
	stageProposed                       // may be in the log
	stageWithdrawn                      // its requester gave up before it was proposed
)

// proposal is one command on its way through the log, or a group of them that
// stays together: in one entry, in order, with nothing in between.
type proposal struct {
	commands [][]byte
	size     int     // of the commands, in bytes
	timing   *Timing // nil: nobody asked
	stage    atomic.Int32
	done     chan answer // capacity 1
	one      [1][]byte   // backs commands where there is one
}

// answer is how a proposal ended.
type answer struct {
	results []any // one for each command; valid for good
	err     error
}

// proposals are kept for the next request.
var proposals = sync.Pool{New: func() any { return &proposal{done: make(chan answer, 1)} }}

func newProposal(command []byte) *proposal {
	p := proposals.Get().(*proposal)
	p.size = len(command)
	p.one[0] = command
	p.commands = p.one[:]
	return p
}

// release lets another request use the proposal, which was answered with
// results: from then on nobody in the loops knows it.
func (p *proposal) release() {
	p.commands, p.one[0], p.size, p.timing = nil, nil, 0, nil
	p.stage.Store(stageQueued)
	proposals.Put(p)
}

func newGroup(commands [][]byte) *proposal {
	p := proposals.Get().(*proposal)
	p.commands = commands
	for _, c := range commands {
		p.size += len(c)
	}
	return p
}

// withdraw takes the proposal back; false means that it was proposed already
// and its outcome is open.
func (p *proposal) withdraw() bool {
	return p.stage.CompareAndSwap(stageQueued, stageWithdrawn)
}

// batch is the commands of one log entry.
type batch struct {
	id        batchID
	data      []byte
	proposals []*proposal
	commands  int    // of all proposals
	sent      bool   // handed to raft, and not known to be lost
	sentTerm  uint64 // term it was handed over in
	asLeader  bool   // while this node led: then it can not vanish within the term
	sentTick  uint64
	retries   int
	timed     bool // some of the proposals are
}

// proposalState is the core's side of writing.
type proposalState struct {
	incarnation uint64 // 0 until this process's start entry was applied
	sequence    uint64 // of the last batch packed
	startSent   bool
	startTick   uint64
	// startRetries counts starts that were not seen in time.
	startRetries int

	queue      []*proposal
	queueBytes int
	flight     *batch // C1
	// dropped stops trying until the next tick: raft refused for now.
	dropped bool

	admissions []*startRequest
}

// startRequest asks for a start entry of another member (its admission).
type startRequest struct {
	start start
	sent  bool
	tick  uint64
	age   int // ticks since it was asked
	done  chan error
}

// propose queues a command. An error says that nothing was proposed.
func (c *core) propose(p *proposal) error {
	switch s := &c.proposals; {
	case c.refused != nil:
		return c.refused
	case len(s.queue) >= maxQueuedProposals || s.queueBytes+p.size > c.cfg.maxQueueBytes && len(s.queue) > 0:
		return ErrOverloaded
	}
	c.proposals.queue = append(c.proposals.queue, p)
	c.proposals.queueBytes += p.size
	return nil
}

// takesProposals reports whether a command could be proposed, or has to be
// refused, now.
func (c *core) takesProposals() bool { return c.proposals.flight == nil || c.refused != nil }

// proposeBatch proposes the flight if raft does not have it, or packs a new
// one.
func (c *core) proposeBatch() {
	s := &c.proposals
	if s.dropped || s.incarnation == 0 {
		return
	}
	if s.flight == nil {
		if s.flight = c.pack(); s.flight == nil {
			return
		}
	}
	if f := s.flight; !f.sent {
		if err := c.rn.Propose(f.data); err != nil {
			s.dropped = true // no leader, a transfer, or too much uncommitted
			return
		}
		if f.sentTerm == 0 {
			c.out.packed = append(c.out.packed, f)
		}
		f.sent, f.sentTick, f.sentTerm, f.asLeader = true, c.ticks, c.term, c.isLeader()
	}
}

// pack makes a batch of what waits, up to its limit in bytes.
func (c *core) pack() *batch {
	s := &c.proposals
	if len(s.queue) == 0 {
		return nil
	}
	b := &batch{proposals: make([]*proposal, 0, len(s.queue))}
	commands := make([][]byte, 0, len(s.queue))
	taken, size := 0, 0
	for _, p := range s.queue {
		if size > 0 && size+p.size > c.cfg.maxBatchBytes {
			break
		}
		taken++
		s.queueBytes -= p.size
		if !p.stage.CompareAndSwap(stageQueued, stageProposed) && p.stage.Load() == stageWithdrawn {
			continue
		}
		size += p.size
		commands = append(commands, p.commands...)
		b.proposals = append(b.proposals, p)
		b.timed = b.timed || p.timing != nil
	}
	s.queue = append(s.queue[:0], s.queue[taken:]...)
	clear(s.queue[len(s.queue):cap(s.queue)])
	if len(commands) == 0 {
		return nil
	}
	s.sequence++
	b.id = batchID{member: c.cfg.id, incarnation: s.incarnation, sequence: s.sequence}
	b.commands, b.data = len(commands), encodeBatch(b.id, commands)
	return b
}

// requeue puts the commands of skipped batches back to the front: they surely
// did not run, and get a new sequence.
func (c *core) requeue(skipped []*batch) {
	s := &c.proposals
	for _, b := range skipped {
		for _, p := range b.proposals {
			s.queueBytes += p.size
		}
		s.queue = append(append([]*proposal(nil), b.proposals...), s.queue...)
	}
}

// proposeAgain follows a change of leader or term: what was handed over
// before may be lost. The copy does no harm (C2).
func (c *core) proposeAgain() {
	s := &c.proposals
	s.dropped, s.startSent = false, false
	if s.flight != nil {
		s.flight.sent = false
	}
	for _, a := range s.admissions {
		a.sent = false
	}
}

// lostTicks is how long a forwarded batch or start may stay unseen before it
// is taken for lost with a connection that broke, and made again. It doubles
// with each retry, because the leader may only be slow.
func lostTicks(retries int) uint64 { return 3 << min(retries, 8) }

// retryTicks is the same for what changes the membership: copies of that are
// dearer.
func (c *core) retryTicks(retries int) uint64 {
	return uint64(c.cfg.electionTicks) << min(retries, 5)
}

// retryProposals notices proposals that vanished on their way to the leader.
func (c *core) retryProposals() {
	s := &c.proposals
	s.dropped = false
	if f := s.flight; f != nil && f.sent && !(f.asLeader && f.sentTerm == c.term) &&
		c.ticks-f.sentTick >= lostTicks(f.retries) {
		f.sent = false
		f.retries++
	}
	if s.startSent && c.ticks-s.startTick >= lostTicks(s.startRetries) {
		s.startSent = false
		s.startRetries++
	}
	s.queue = removeIf(s.queue, func(p *proposal) bool {
		gone := p.stage.Load() == stageWithdrawn
		if gone {
			s.queueBytes -= p.size
		}
		return gone
	})
	s.admissions = removeIf(s.admissions, func(a *startRequest) bool {
		if a.sent && c.ticks-a.tick >= c.retryTicks(0) {
			a.sent = false
		}
		if a.age++; a.age <= admissionTimeouts*c.cfg.electionTicks {
			return false
		}
		a.done <- ErrUnknown
		return true
	})
}

// admissionTimeouts is for how many election timeouts an admission is tried.
const admissionTimeouts = 10

// admit proposes another member's start.
func (c *core) admit(r *startRequest) {
	switch {
	case c.refused != nil:
		r.done <- c.refused
	case len(c.proposals.admissions) >= maxPendingStarts:
		r.done <- ErrOverloaded
	default:
		c.proposals.admissions = append(c.proposals.admissions, r)
	}
}

// proposeStarts presents this process, and others that asked, to the replicas.
func (c *core) proposeStarts() {
	s := &c.proposals
	if s.dropped {
		return
	}
	if s.incarnation == 0 && !s.startSent {
		if c.rn.Propose(encodeStart(&c.cfg.start)) != nil {
			s.dropped = true
			return
		}
		s.startSent, s.startTick = true, c.ticks
	}
	for _, a := range s.admissions {
		if a.sent {
			continue
		}
		if c.rn.Propose(encodeStart(&a.start)) != nil {
			s.dropped = true
			return
		}
		a.sent, a.tick = true, c.ticks
	}
}

// startApplied hears of any member's start entry.
func (c *core) startApplied(a startApplied) {
	s := &c.proposals
	if a.start.Member == c.cfg.id && a.start.Boot != "" {
		switch {
		case a.start.Boot == c.cfg.start.Boot && a.err != nil:
			c.out.fatal = startRefusal(a.err)
		case a.start.Boot == c.cfg.start.Boot && a.began:
			s.incarnation, s.sequence = a.index, 0
			c.changes.sequence = 0
		case a.began:
			// A start of the process before this one arrived late and took
			// the incarnation: batches of ours are skipped until we present
			// ourselves again.
			s.incarnation, s.startSent = 0, false
		}
	}
	s.admissions = removeIf(s.admissions, func(r *startRequest) bool {
		if r.start.Member != a.start.Member || r.start.Nonce != a.start.Nonce {
			return false
		}
		r.done <- a.err
		return true
	})
}

func startRefusal(err error) error {
	if errors.Is(err, ErrMemberRemoved) {
		return ErrRemoved
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}

// settleFlight decides about the flight after a snapshot replaced the entries
// in which it may have been.
func (c *core) settleFlight(own originState) {
	f := c.proposals.flight
	if f == nil {
		return
	}
	if own.incarnation != f.id.incarnation {
		// Whether it ran before its incarnation ended can not be told.
		c.proposals.flight = nil
		answerAll(f.proposals, ErrUnknown)
	} else if own.lastBatch >= f.id.sequence {
		c.proposals.flight = nil // it ran, and its results are lost
		answerAll(f.proposals, ErrUnknown)
	}
}

func (c *core) failProposals(err error) {
	s := &c.proposals
	if s.flight != nil {
		answerAll(s.flight.proposals, ErrUnknown)
		s.flight = nil
	}
	for _, p := range s.queue {
		if p.stage.Load() == stageProposed { // requeued: an older copy may be about
			p.done <- answer{err: ErrUnknown}
		} else {
			p.done <- answer{err: err}
		}
	}
	for _, a := range s.admissions {
		a.done <- err
	}
	s.queue, s.queueBytes, s.admissions = nil, 0, nil
}

func answerAll(ps []*proposal, err error) {
	for _, p := range ps {
		p.done <- answer{err: err}
	}
}
