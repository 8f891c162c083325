package raftnode

import (
	"encoding/binary"

	"go.etcd.io/raft/v3/raftpb"
)

// rollCall asks members whether they are alive now. What was heard within the
// last election timeout proves nothing: a member that died a moment ago was
// heard recently, and removing a second one then costs the quorum for good.
//
// The question is one of raft's heartbeats, with a context that raft's own
// never have. Every member that follows this leader answers it with the same
// context, learners included, and an answer needs neither the disk nor a
// commit. The core takes the context off before raft sees the answer: raft
// would read it as a position in its queue of reads.
//
// Rejected: ReadIndex, which proves a round trip too. Raft answers it without
// a message if there is a single voter, so it could not tell whether the
// learner that is about to become the second one is alive.
type rollCall struct {
	*coreState
	salt     uint64            // distinguishes the questions of this process
	round    uint64            // of the last question
	answered map[uint64]uint64 // member → latest round that it answered
}

// The context of a question is rollCallMark, a salt and a round in 8 bytes, the
// size of raft's own contexts. Raft counts the reads of one term from zero and
// never reaches the mark.
const (
	rollCallMark   = 1 << 63
	roundBits      = 40 // a round for each heartbeat lasts for centuries
	roundMask      = 1<<roundBits - 1
	rollCallPrefix = 8 // bytes of the read prefix before its salt
)

func newRollCall(state *coreState, prefix []byte) rollCall {
	salt := uint64(binary.BigEndian.Uint32(prefix[rollCallPrefix:])) << roundBits
	return rollCall{coreState: state, salt: salt | rollCallMark, answered: make(map[uint64]uint64)}
}

// begin returns a new round. An answer to it was given after this call.
func (r *rollCall) begin() uint64 {
	r.round++
	return r.round
}

// present reports whether the member has answered the round or a later one.
func (r *rollCall) present(id, round uint64) bool {
	return id == r.cfg.id || r.answered[id] >= round
}

// ask asks those of the members that have not answered the round.
func (r *rollCall) ask(round uint64, ids []uint64) {
	for _, id := range ids {
		if r.present(id, round) {
			continue
		}
		r.out.messages = append(r.out.messages, &raftpb.Message{
			Type: raftpb.MsgHeartbeat.Enum(), From: new(r.cfg.id), To: new(id), Term: new(r.term), Commit: new(uint64(0)),
			Context: r.context(),
		})
	}
}

// context returns the context of a question. It has the newest round, and so
// its answer counts for all earlier ones, too.
func (r *rollCall) context() []byte {
	return binary.LittleEndian.AppendUint64(nil, r.salt|r.round&roundMask)
}

// take notes an answer and makes an ordinary heartbeat response of it.
func (r *rollCall) take(m *raftpb.Message) {
	ack := readAckOf(m)
	if m.GetType() != raftpb.MsgHeartbeatResp || ack&rollCallMark == 0 {
		return
	}
	m.Context = nil
	// An answer to the previous process has another salt.
	if round := ack & roundMask; ack&^roundMask == r.salt && round <= r.round {
		r.answered[m.GetFrom()] = max(r.answered[m.GetFrom()], round)
	}
}
