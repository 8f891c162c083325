package raftnode

import (
	"maps"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// witness finds out how current this node's state is, by heartbeats that raft
// sends anyway. A node asks one question after another: up to which index was
// anything committed when I asked? The answer, and the time of the question,
// make a proof: once the state machine has applied that index, it lacks nothing
// that was committed at that time. What counts is the time of the question, not
// that of the answer. A node that was paused may find old answers in its
// buffers; they prove as little as they should.
//
// A leader asks the quorum whether it still leads. Its heartbeats are the
// question, and the answer is its commit index as of then, under the same rule
// as a ReadIndex: an entry of its own term must be committed.
//
// A follower asks its leader with a number in its heartbeat response, and
// repeats the number until it is answered. The leader notes the numbers that it
// has before it asks the quorum. Once the quorum has answered, its next
// heartbeats tell each follower its number and the index. So a question that is
// older than the leader's own gets an answer that was confirmed after it was
// asked, and a leader that a partition has deposed answers nobody.
//
// Where the numbers travel: RejectHint, in both directions, and Index, in fields
// that raft does not use in these messages. The commit index of a heartbeat
// would not do: raft lowers it to what the follower has acknowledged.
//
// Rejected: the time of the last message from a leader. A follower that applies
// slowly, or that gets heartbeats and no entries, hears from its leader all the
// time, and a leader that is cut off hears itself.
type witness struct {
	*coreState
	roll *rollCall

	// question is the number of the question in progress; 0 if there is none.
	// Numbers of one process grow from a random one, so that an answer to the
	// previous process is not taken for one to this.
	question uint64
	last     uint64

	// commit is the highest index that this node has heard to be committed. Its
	// own log may not reach that far.
	commit uint64

	// Of a leader: the question to the quorum.
	round    uint64          // of the roll call; 0 while no question is in progress
	index    uint64          // committed when it began
	position uint64          // the greatest read position that was asked before it
	acks     map[uint64]bool // who has confirmed a later position
	// asked are the newest numbers of the followers, noted those as of the
	// beginning of the question, and granted those that index answers.
	asked, noted map[uint64]uint64
	granted      map[uint64]uint64
	grantedIndex uint64
	// first is the quorum that answered the last question first, with this node;
	// nil if that is not known of these members in this term.
	first map[uint64]bool
}

func newWitness(state *coreState, roll *rollCall) witness {
	return witness{coreState: state, roll: roll, last: uint64(state.cfg.random(1 << 60)), asked: make(map[uint64]uint64)}
}

// again gives up all questions after a change of leader or term.
func (w *witness) again() {
	w.question, w.round, w.acks, w.noted, w.granted, w.first = 0, 0, nil, nil, nil, nil
	clear(w.asked)
}

// spares reports whether a message that raft sends for a ReadIndex need not be
// sent. Raft asks all members, and a quorum that answered the last question
// suffices. Should one of them stay silent this time, the next regular
// heartbeat asks all again, for the same reads, and whoever answers that first is
// asked from then on. So a dead member delays reads once, for one interval.
func (w *witness) spares(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgHeartbeat && w.first != nil && !w.first[m.GetTo()]
}

// tick lets a leader that is a quorum by itself answer its own question: it
// sends no heartbeats.
func (w *witness) tick() {
	if !w.isLeader() {
		return
	}
	w.settle()
	if v := w.membership.Voters(); len(v) == 1 && v[0] == w.cfg.id {
		w.ask(0)
	}
}

// outgoing adds to a message that leaves this node. readAsked is the greatest
// read position that was asked before it.
func (w *witness) outgoing(m *raftpb.Message, readAsked uint64) {
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		w.ask(readAsked)
		if w.round != 0 && len(m.GetContext()) == 0 { // raft's own contexts serve as well
			m.Context = w.roll.context()
		}
		if number := w.granted[m.GetTo()]; number != 0 {
			m.Index, m.RejectHint = new(w.grantedIndex), new(number)
		}
	case raftpb.MsgHeartbeatResp:
		if w.question == 0 {
			w.begin()
		}
		m.RejectHint = new(w.question)
	}
}

// begin begins a question. The owner of the core notes the time.
func (w *witness) begin() {
	w.last++
	w.question = w.last
	w.out.asks = true
}

// ask asks the quorum, unless a question is in progress.
func (w *witness) ask(readAsked uint64) {
	if w.round != 0 || !w.isLeader() {
		return
	}
	commit, ok := w.committedInTerm()
	if !ok {
		return
	}
	w.begin()
	w.round, w.index, w.position = w.roll.begin(), commit, readAsked
	w.acks, w.noted = make(map[uint64]bool), maps.Clone(w.asked)
}

// take takes what a message tells: a follower's number and confirmation, or a
// leader's answer.
func (w *witness) take(m *raftpb.Message) {
	switch {
	case m.GetType() == raftpb.MsgHeartbeat && m.GetRejectHint() != 0:
		w.commit = max(w.commit, m.GetIndex())
		if m.GetRejectHint() == w.question && !w.isLeader() {
			w.prove(m.GetIndex())
		}
	case m.GetType() == raftpb.MsgHeartbeatResp && w.isLeader() && m.GetTerm() == w.term:
		if m.GetRejectHint() != 0 {
			w.asked[m.GetFrom()] = m.GetRejectHint()
		}
		if w.round != 0 && readAckOf(m) > w.position {
			w.acks[m.GetFrom()] = true
		}
		w.settle()
	}
}

// settle ends the question to the quorum once that has answered.
func (w *witness) settle() {
	if w.round == 0 {
		return
	}
	voters, answered := w.membership.Voters(), make(map[uint64]bool)
	for _, id := range voters {
		if w.acks[id] || w.roll.present(id, w.round) {
			answered[id] = true
		}
	}
	if len(answered) < len(voters)/2+1 {
		return
	}
	w.first, w.granted, w.grantedIndex = answered, w.noted, w.index
	w.round, w.noted = 0, nil
	w.prove(w.index)
}

// prove ends the question in progress with the index that answers it.
func (w *witness) prove(index uint64) {
	w.question = 0
	w.out.proved = index
}

// known returns the highest index that this node knows to be committed.
func (w *witness) known(st raft.BasicStatus) uint64 { return max(w.commit, st.GetCommit()) }
