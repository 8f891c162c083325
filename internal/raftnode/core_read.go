package raftnode

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"go.etcd.io/raft/v3"
)

// readRequest waits until this node's state is at least as new as any write
// that was acknowledged before the request was made.
type readRequest struct {
	cancelled atomic.Bool // its requester left
	done      chan error  // capacity 1: the sender never waits
	timing    *Timing     // nil if nobody asked for it
}

func newReadRequest() *readRequest { return &readRequest{done: make(chan error, 1)} }

// readRound is the requests that one ReadIndex serves.
type readRound struct {
	index    uint64 // the state machine must have applied it; 0 while unknown
	requests []*readRequest
}

// reader is the core's side of linearizable reading (raft dissertation,
// section 6.4). One ReadIndex serves all requests that arrived before it was
// issued. Later ones wait for the next: the index of an earlier attempt may
// miss writes that they must see.
type reader struct {
	*coreState

	prefix  []byte // of every context; see readPrefix
	counter uint64 // makes contexts unique (C3)
	waiting []*readRequest
	// flight is the requests of the attempt in progress, which raft answers
	// under context.
	flight  []*readRequest
	context []byte
	tick    uint64 // when the attempt was issued
}

func (r *reader) add(req *readRequest) error {
	switch {
	case r.refused != nil:
		return r.refused
	case len(r.waiting) >= maxWaitingReads:
		return ErrOverloaded
	}
	r.waiting = append(r.waiting, req)
	return nil
}

// issue begins an attempt for all requests that wait.
func (r *reader) issue() {
	if r.flight != nil || len(r.waiting) == 0 || !r.knowsCommit() {
		return
	}
	r.flight, r.waiting = r.waiting, nil
	r.counter++ // C3
	r.counts.readRounds++
	r.context = binary.BigEndian.AppendUint64(bytes.Clone(r.prefix), r.counter)
	r.tick = r.ticks
	r.rn.ReadIndex(r.context)
}

// knowsCommit reports whether a ReadIndex that reaches this node would be
// answered with everything that was ever acknowledged. A leader knows that once
// it has committed an entry of its own term. Raft waits for that, except if the
// leader is the only voter: after a restart that lost the last commit index
// (saves of the commit index alone are not synced) raft would answer with an
// older one.
func (r *reader) knowsCommit() bool {
	st := r.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || len(r.membership.Voters()) > 1 {
		return true
	}
	t, err := r.cfg.log.Term(st.GetCommit())
	return err == nil && t == st.GetTerm()
}

// confirmed takes raft's answer to an attempt.
func (r *reader) confirmed(rs raft.ReadState) {
	if r.flight == nil || !bytes.Equal(rs.RequestCtx, r.context) {
		return // the attempt was given up (C3)
	}
	r.counts.readRequests += uint64(len(r.flight))
	r.out.reads = append(r.out.reads, readRound{index: rs.Index, requests: r.flight})
	r.flight = nil
}

// again gives up the attempt in progress. Its requests join the next one.
func (r *reader) again() {
	r.waiting = append(r.flight, r.waiting...)
	r.flight = nil
}

// retry repeats an attempt that got no answer: raft drops a ReadIndex while
// there is no leader, and messages get lost.
func (r *reader) retry() {
	r.waiting = removeIf(r.waiting, func(req *readRequest) bool { return req.cancelled.Load() })
	if r.flight != nil && r.ticks-r.tick >= uint64(2*r.cfg.heartbeatTicks+1) {
		r.counts.readRetries++
		r.again()
	}
}

func (r *reader) fail(err error) {
	r.again()
	for _, req := range r.waiting {
		req.done <- err
	}
	r.waiting = nil
}
