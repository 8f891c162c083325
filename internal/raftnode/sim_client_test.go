package raftnode

import (
	"errors"
	"slices"

	"github.com/kvd-io/kvd/internal/roster"
)

type opKind int

const (
	opWrite opKind = iota
	opRead
	opChange
	opTransfer
)

// outcome is how an operation ended for its requester.
type outcome int

const (
	open outcome = iota
	succeeded
	refused // surely without effect
	unknown
)

// op is an operation of a client.
type op struct {
	kind    opKind
	node    *simNode
	begin   int64
	outcome outcome
	err     error
	// withdrawn ops read no answer; one may come when the member stops.
	withdrawn bool

	id       uint64 // of a write
	proposal *proposal
	index    uint64 // of the entry of a write
	result   machineResult
	minIndex uint64   // what it must see (S8)
	under    uint64   // the leader at its beginning
	then     []func() // called when it has ended

	read     *readRequest
	change   *changeRequest
	transfer *transferRequest
}

// write asks the member to replicate a new command of the given size.
func (s *sim) write(n *simNode, size int) *op {
	return s.propose(n, s.opts.command(s.nextCommand+1, size))
}

// propose asks the member to replicate the next command.
func (s *sim) propose(n *simNode, cmd []byte) *op {
	s.nextCommand++
	o := &op{kind: opWrite, node: n, id: s.nextCommand, minIndex: s.known.acked}
	// Room for two answers, so that a second one shows.
	o.proposal = newProposal(cmd)
	o.proposal.done = make(chan answer, 2)
	return s.begin(o, func(c *core) {
		if err := c.propose(o.proposal); err != nil {
			o.proposal.done <- answer{err: err}
		}
	})
}

// linearizable asks the member for a linearizable read.
func (s *sim) linearizable(n *simNode) *op {
	o := &op{kind: opRead, node: n, minIndex: s.known.acked, read: &readRequest{done: make(chan error, 2)}}
	return s.begin(o, func(c *core) {
		if s.opts.bug == bugLocalReads {
			n.waiters.wait(readRound{requests: []*readRequest{o.read}})
			return
		}
		if err := c.read(o.read); err != nil {
			o.read.done <- err
		}
	})
}

func (s *sim) reconfigure(n *simNode, ch roster.Change) *op {
	o := &op{kind: opChange, node: n, change: &changeRequest{change: ch, done: make(chan error, 2)}}
	return s.begin(o, func(c *core) { c.change(o.change) })
}

func (s *sim) handOver(n *simNode, to uint64) *op {
	o := &op{kind: opTransfer, node: n, transfer: &transferRequest{to: to, done: make(chan error, 2)}}
	return s.begin(o, func(c *core) { c.transfer(o.transfer) })
}

func (s *sim) begin(o *op, do func(*core)) *op {
	o.begin = s.now
	s.known.ops = append(s.known.ops, o)
	if !o.node.up {
		o.outcome = refused
		o.err = errors.New("the member is down")
		return o
	}
	o.under = o.node.core.lead
	o.node.ops = append(o.node.ops, o)
	o.node.post(do)
	return o
}

// poll takes the answers that have arrived.
func (n *simNode) poll() {
	n.ops = removeIf(n.ops, func(o *op) bool { return o.poll() })
}

// dropOps gives up the requests of a dead process, which cannot answer them.
func (n *simNode) dropOps() {
	n.poll()
	for _, o := range n.ops {
		o.end(unknown, errors.New("the member crashed"))
	}
	n.ops = nil
}

// poll reports whether the operation has ended.
func (o *op) poll() bool {
	var err error
	select {
	case a := <-o.answers():
		err = a.err
		if a.results != nil {
			o.result = a.results[0].(machineResult)
			o.index = o.result.index
		}
	case err = <-o.errors():
	default:
		return false
	}
	switch {
	case err == nil:
		o.succeed()
		o.end(succeeded, nil)
	case errors.Is(err, ErrUnknown):
		o.end(unknown, err)
	default:
		o.end(refused, err)
	}
	return true
}

// end ends the operation.
func (o *op) end(outcome outcome, err error) {
	o.outcome, o.err = outcome, err
	o.node.s.observeEnd(o)
	for _, f := range o.then {
		f()
	}
	o.then = nil
}

func (o *op) answers() chan answer {
	if o.kind == opWrite {
		return o.proposal.done
	}
	return nil
}

func (o *op) errors() chan error {
	switch o.kind {
	case opRead:
		return o.read.done
	case opChange:
		return o.change.done
	case opTransfer:
		return o.transfer.done
	}
	return nil
}

// succeed checks S8.
func (o *op) succeed() {
	s := o.node.s
	known := &s.known
	switch o.kind {
	case opWrite:
		known.writes++
		if o.index <= o.minIndex {
			s.violate("S8: command %d ran in entry %d, and began after one in entry %d was acknowledged", o.id, o.index, o.minIndex)
		}
		known.acked = max(known.acked, o.index)
	case opRead:
		known.reads++
		if at := o.node.applier.index; at < o.minIndex {
			s.violate("S8: a read at member %d saw entry %d, and began after entry %d was acknowledged", o.node.id, at, o.minIndex)
		}
	case opChange:
		known.changes++
	case opTransfer:
		known.transfers++
	}
}

// judge checks S7 against the final state of a member that has everything. What began
// after the given time may still be open.
func (s *sim) judge(n *simNode, until int64) {
	for _, o := range s.known.ops {
		if unread := len(o.answers()) + len(o.errors()); unread > 1 || unread == 1 && !o.withdrawn {
			s.violate("S7: an operation of kind %d was answered twice", o.kind)
		}
		if o.kind != opWrite {
			continue
		}
		ran := n.machine.ran(o.id)
		if o.outcome == succeeded && !ran {
			s.violate("S7: command %d was acknowledged in entry %d and is lost", o.id, o.index)
		}
		if o.outcome == refused && ran {
			s.violate("S7: command %d was surely refused (%v) and ran", o.id, o.err)
		}
		if o.outcome == open && o.begin < until {
			s.violate("S7: command %d was never answered by member %d", o.id, o.node.id)
		}
	}
}

// members returns the newest membership that any member has applied.
func (s *sim) members() *roster.Membership { return s.known.membership }

// noteMembership follows what a member has applied.
func (s *sim) noteMembership(n *simNode) {
	if n.applier.index >= s.known.membershipIndex {
		if n.applier.roster.Membership() != s.known.membership {
			s.observeMembers(s.known.membership, n.applier.roster.Membership())
			if s.known.membership != nil && !slices.Equal(s.known.membership.Voters(), n.applier.roster.Membership().Voters()) {
				s.known.votersIndex = n.applier.index
			}
		}
		s.known.membership, s.known.membershipIndex = n.applier.roster.Membership(), n.applier.index
	}
}

// agreed reports whether all running members of the membership have applied
// the same and have nothing left to do.
func (s *sim) agreed() bool {
	m := s.members()
	var index uint64
	for _, mb := range m.Members {
		n := s.nodes[mb.ID]
		if n == nil || !n.up {
			continue
		}
		st := n.core.rn.BasicStatus()
		if index == 0 {
			index = st.GetCommit()
		}
		if n.applier.index != index || st.GetCommit() != index || n.machine.hash() != s.nodes[m.Members[0].ID].machine.hash() {
			return false
		}
	}
	return index > 0
}

// settle is converge, and ends the test after a violation.
func (s *sim) settle(patience int64) {
	s.t.Helper()
	if s.converge(patience); s.violation != nil {
		s.fatalf("")
	}
}

// converge ends all faults, and demands that the cluster works (L1): a write at every
// member within patience, agreement of all, every operation answered. Then it judges the
// outcomes.
func (s *sim) converge(patience int64) {
	s.calm()
	writes := make(map[uint64]*op)
	answered := s.now
	works := s.lively(patience, "a leader after the faults", func() bool { return s.leader() != nil }) &&
		s.bury(patience) &&
		s.lively(patience, "a write at every member after the faults", func() bool { return s.writeEverywhere(writes) }) &&
		s.lively(patience, "an answer to everything", func() bool {
			s.bringUp() // stops those removed meanwhile
			answered = s.now
			return !slices.ContainsFunc(s.alive(), func(n *simNode) bool { return len(n.ops) > 0 })
		}) &&
		s.mended(patience) &&
		s.lively(patience, "agreement of all", s.agreed)
	if !works {
		return
	}
	for _, n := range s.alive() {
		s.observeConfig(n)
	}
	s.judge(s.nodes[s.members().Members[0].ID], answered) // all have agreed
}

// writeEverywhere keeps a write going at each member that had none yet, and
// reports whether all have.
func (s *sim) writeEverywhere(writes map[uint64]*op) bool {
	all := true
	for _, mb := range s.members().Members {
		o := writes[mb.ID]
		if o != nil && o.outcome == succeeded {
			continue
		}
		all = false
		if n := s.nodes[mb.ID]; n == nil || !n.up {
			s.bringUp()
		} else if o == nil || o.outcome != open && s.now-o.begin > 20*milli {
			writes[mb.ID] = s.write(n, 8)
		}
	}
	return all
}

// bury removes members whose disk is lost.
func (s *sim) bury(patience int64) bool {
	s.bringUp()
	var o *op
	return s.lively(patience, "the removal of a lost member", func() bool {
		lost, l := s.lost(), s.leader()
		if lost != 0 && l != nil && (o == nil || o.outcome != open) {
			o = s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: lost}})
		}
		return lost == 0
	})
}

// calm ends faults and restarts the members that should run.
func (s *sim) calm() {
	s.nemesis = nil
	s.heal()
	s.net.loss, s.net.duplicate, s.net.reorder = 0, 0, 0
	s.net.damages, s.net.buildFails, s.net.spoolFails = 0, 0, 0
	s.opts.build = span{milli, 50 * milli}
	s.net.delay, s.net.transfer = span{100 * micro, 2 * milli}, span{}
	s.opts.disk = span{100 * micro, 2 * milli}
	for _, id := range s.order {
		n := s.nodes[id]
		n.disk.failing, n.disk.full = false, false
		if n.stalled {
			n.resume()
		}
		if n.slow {
			n.slow = false
			n.startApply()
		}
	}
	s.makeRoom()
	s.bringUp()
}

// bringUp runs exactly the members of the membership.
func (s *sim) bringUp() {
	for _, id := range slices.Clone(s.order) {
		n := s.nodes[id]
		if !n.up && !errors.Is(n.ended, ErrRemoved) {
			n.start()
		}
	}
	m := s.members()
	for _, mb := range m.Members {
		if s.nodes[mb.ID] == nil {
			s.addNode(mb.ID, nil)
		}
	}
	s.tellRemoved()
}

// tellRemoved is what the transport of a leader answers members that it knows to be
// removed (410).
func (s *sim) tellRemoved() {
	l := s.leader()
	for _, id := range s.order {
		if n := s.nodes[id]; n.up && l != nil && l.core.membership.Removed[id] {
			n.stop(ErrRemoved)
		}
	}
}

func (n *simNode) resume() {
	n.stalled = false
	n.startAppend()
}
