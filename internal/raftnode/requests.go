package raftnode

import (
	"context"
	"fmt"

	"go.etcd.io/raft/v3"

	"github.com/kvd-io/kvd/internal/memberurl"
	"github.com/kvd-io/kvd/internal/roster"
)

// Propose replicates a command and returns the state machine's result once a
// quorum has the command on disk and this node has applied it. ErrUnknown means
// that it may or may not take effect, now or later; every other error means
// that it certainly does not.
func (r *Replica) Propose(ctx context.Context, command []byte) (any, error) {
	return r.ProposeTimed(ctx, command, nil)
}

// ProposeTimed is Propose, and notes the stages in t unless that is nil.
func (r *Replica) ProposeTimed(ctx context.Context, command []byte, t *Timing) (any, error) {
	p := newProposal(command)
	p.timing = t
	results, err := r.propose(ctx, p)
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// ProposeGroup replicates commands as one: they take effect in order with
// nothing in between, or none does. Errors mean the same as for Propose. There
// must be at least one command, and after ErrUnknown the caller must not modify
// the commands.
func (r *Replica) ProposeGroup(ctx context.Context, commands [][]byte, t *Timing) ([]any, error) {
	p := newGroup(commands)
	p.timing = t
	return r.propose(ctx, p)
}

func (r *Replica) propose(ctx context.Context, p *proposal) ([]any, error) {
	if err := r.waiting.put(p); err != nil {
		return nil, err
	}
	reason := ErrStopping
	select {
	case a := <-p.done:
		if a.err == nil {
			p.release()
		}
		return a.results, a.err
	case <-ctx.Done():
		reason = r.late()
	case <-r.stopped:
	}
	if p.withdraw() { // it was not proposed, and never will be
		r.waiting.remove(p)
		return nil, reason
	}
	select { // the answer may have arrived meanwhile
	case a := <-p.done:
		return a.results, a.err
	default:
		return nil, ErrUnknown
	}
}

// late is why a request that was not proposed ran out of time.
func (r *Replica) late() error {
	if r.Position().Leader == raft.None {
		return ErrNoLeader
	}
	return ErrOverloaded
}

// Barrier returns once this node's state contains every write that was
// acknowledged anywhere before the call, so that a linearizable read may follow.
// A ReadIndex proves it; nothing is written.
func (r *Replica) Barrier(ctx context.Context) error { return r.BarrierTimed(ctx, nil) }

// BarrierTimed is Barrier, and notes the stages in t unless that is nil.
func (r *Replica) BarrierTimed(ctx context.Context, t *Timing) error {
	read := newReadRequest()
	read.timing = t
	if err := send(ctx, r, r.readC, read); err != nil {
		return err
	}
	select {
	case err := <-read.done:
		return err
	case <-ctx.Done():
		read.cancelled.Store(true) // a round for nobody would cost the others an answer
		return r.late()
	case <-r.stopped:
		return ErrStopping
	}
}

// Change makes a membership change and returns the member as it was asked for,
// with the id that it got. Only the leader decides about changes; other nodes
// return ErrNotLeader.
func (r *Replica) Change(ctx context.Context, c roster.Change) (roster.Member, error) {
	for _, urls := range [][]string{c.Member.PeerURLs, c.Member.ClientURLs} {
		if err := memberurl.Validate(urls); len(urls) > 0 && err != nil {
			return roster.Member{}, fmt.Errorf("%w: %w", roster.ErrBadMember, err)
		}
	}
	c.By = c.By.Clipped()
	req := &changeRequest{change: c, done: make(chan error, 1)}
	if err := send(ctx, r, r.confChangeC, req); err != nil {
		return roster.Member{}, err
	}
	if err := r.await(ctx, req.done); err != nil {
		return roster.Member{}, err
	}
	return req.change.Member, nil
}

// Admit presents another member's data directory to the replicas. nil means that
// the member is bound to this nonce, and no other directory can act as it.
func (r *Replica) Admit(ctx context.Context, member uint64, nonce string) error {
	req := &startRequest{start: roster.Start{Member: member, Nonce: nonce}, done: make(chan error, 1)}
	if err := send(ctx, r, r.callC, func(c *core) { c.admit(req) }); err != nil {
		return err
	}
	return r.await(ctx, req.done)
}

// TransferLeadership hands leadership to the member and waits until it leads. 0
// means the best successor; then any other new leader will do as well.
func (r *Replica) TransferLeadership(ctx context.Context, to uint64) error {
	t := &transferRequest{to: to, done: make(chan error, 1)}
	if err := send(ctx, r, r.callC, func(c *core) { c.transfer(t) }); err != nil {
		return err
	}
	return r.await(ctx, t.done)
}

// tell has the node loop do something, unless it is too busy to be asked.
func (r *Replica) tell(f func(*core)) bool {
	select {
	case r.callC <- f:
		return true
	default:
		return false
	}
}

// send hands a request to the node loop.
func send[T any](ctx context.Context, r *Replica, c chan<- T, request T) error {
	select {
	case c <- request:
		return nil
	case <-ctx.Done():
		return r.late()
	case <-r.stopped:
		return ErrStopping
	}
}

// await waits for the answer to a request that may have been proposed.
func (r *Replica) await(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ErrUnknown
	case <-r.stopped:
	}
	// The loops answer what they can before they end, and a select with two ready
	// cases picks either.
	select {
	case err := <-done:
		return err
	default:
		return ErrUnknown
	}
}
