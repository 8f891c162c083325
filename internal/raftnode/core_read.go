package raftnode

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"

	"go.etcd.io/raft/v3"
)

// readRequest waits until this node's state is as new as any write that was
// acknowledged before the request was made.
type readRequest struct {
	cancelled atomic.Bool // its requester left
	done      chan error  // capacity 1
	timing    *Timing     // nil: nobody asked
}

func newReadRequest() *readRequest { return &readRequest{done: make(chan error, 1)} }

// readRound is the requests that one ReadIndex serves.
type readRound struct {
	index    uint64 // the state machine must have applied it; 0 while unknown
	requests []*readRequest
}

// readState is the core's side of linearizable reading (raft dissertation,
// section 6.4). One ReadIndex serves all requests that came before it was
// issued; those that come later wait for the next one, because an earlier
// index may miss writes they must see.
type readState struct {
	prefix  []byte
	counter uint64
	waiting []*readRequest
	// flight is the attempt under way; its requests wait for context.
	flight  []*readRequest
	context []byte
	tick    uint64
}

// read queues a request.
func (c *core) read(r *readRequest) error {
	switch {
	case c.refused != nil:
		return c.refused
	case len(c.reads.waiting) >= maxWaitingReads:
		return ErrOverloaded
	}
	c.reads.waiting = append(c.reads.waiting, r)
	return nil
}

// takesReads reports whether a read could be served by an attempt issued now,
// or has to be refused.
func (c *core) takesReads() bool { return c.reads.flight == nil || c.refused != nil }

// issueRead begins an attempt for all that wait.
func (c *core) issueRead() {
	s := &c.reads
	if s.flight != nil || len(s.waiting) == 0 || !c.knowsCommit() {
		return
	}
	s.flight, s.waiting = s.waiting, nil
	s.counter++ // C3
	c.counts.readRounds++
	s.context = binary.BigEndian.AppendUint64(bytes.Clone(s.prefix), s.counter)
	s.tick = c.ticks
	c.rn.ReadIndex(s.context)
}

// knowsCommit reports whether a ReadIndex that reaches this node is answered
// with everything that was ever acknowledged. A leader knows that once it has
// committed an entry of its term; raft waits for it, but not where the leader
// is the only voter: after a restart that lost the last commit index (saves of
// it alone are not synced) it would answer with the one before.
func (c *core) knowsCommit() bool {
	st := c.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || len(c.membership.Voters()) > 1 {
		return true
	}
	t, err := c.cfg.log.Term(st.GetCommit())
	return err == nil && t == st.GetTerm()
}

// readConfirmed takes raft's answer to an attempt.
func (c *core) readConfirmed(rs raft.ReadState) {
	s := &c.reads
	if s.flight == nil || !bytes.Equal(rs.RequestCtx, s.context) {
		return // an attempt that was given up
	}
	c.counts.readRequests += uint64(len(s.flight))
	c.out.reads = append(c.out.reads, readRound{index: rs.Index, requests: s.flight})
	s.flight = nil
}

// readAgain gives the attempt under way up; its requests join the next one.
func (c *core) readAgain() {
	s := &c.reads
	s.waiting = append(s.flight, s.waiting...)
	s.flight = nil
}

// retryReads repeats an attempt that got no answer: raft drops a ReadIndex
// when there is no leader, and messages get lost.
func (c *core) retryReads() {
	s := &c.reads
	s.waiting = removeIf(s.waiting, func(r *readRequest) bool { return r.cancelled.Load() })
	if s.flight != nil && c.ticks-s.tick >= uint64(2*c.cfg.heartbeatTicks+1) {
		c.counts.readRetries++
		c.readAgain()
	}
}

func (c *core) failReads(err error) {
	c.readAgain()
	for _, r := range c.reads.waiting {
		r.done <- err
	}
	c.reads.waiting = nil
}
