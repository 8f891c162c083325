package raftnode

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/kvd-io/kvd/internal/memberurl"
)

// Propose replicates a command and returns the state machine's result once a
// quorum has it on disk and this node has applied it. ErrUnknown means that
// it may or may not take effect, now or later; every other error that it
// surely does not.
func (n *Replica) Propose(ctx context.Context, command []byte) (any, error) {
	return n.ProposeTimed(ctx, command, nil)
}

// ProposeTimed is Propose, and notes the stages in t where that is not nil.
func (n *Replica) ProposeTimed(ctx context.Context, command []byte, t *Timing) (any, error) {
	p := newProposal(command)
	p.timing = t
	results, err := n.propose(ctx, p)
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// ProposeGroup replicates commands as one: they take effect in their order
// with nothing in between, or none does, and an error is as for Propose. The
// commands must not be empty, and must not be changed any more after
// ErrUnknown.
func (n *Replica) ProposeGroup(ctx context.Context, commands [][]byte, t *Timing) ([]any, error) {
	p := newGroup(commands)
	p.timing = t
	return n.propose(ctx, p)
}

func (n *Replica) propose(ctx context.Context, p *proposal) ([]any, error) {
	select {
	case n.proposeC <- p:
	case <-ctx.Done():
		return nil, n.late()
	case <-n.stopped:
		return nil, ErrStopping
	}
	reason := ErrStopping
	select {
	case a := <-p.done:
		if a.err == nil {
			p.release()
		}
		return a.results, a.err
	case <-ctx.Done():
		reason = n.late()
	case <-n.stopped:
	}
	if p.withdraw() {
		return nil, reason
	}
	select { // the answer may have come meanwhile
	case a := <-p.done:
		return a.results, a.err
	default:
		return nil, ErrUnknown
	}
}

// late is why a request that was not proposed ran out of time.
func (n *Replica) late() error {
	if n.Position().Leader == raft.None {
		return ErrNoLeader
	}
	return ErrOverloaded
}

// Barrier returns when this node's state contains every write acknowledged
// anywhere before the call (a linearizable read may follow). It proves so by
// a ReadIndex; nothing is written.
func (n *Replica) Barrier(ctx context.Context) error { return n.BarrierTimed(ctx, nil) }

// BarrierTimed is Barrier, and notes the stages in t where that is not nil.
func (n *Replica) BarrierTimed(ctx context.Context, t *Timing) error {
	r := newReadRequest()
	r.timing = t
	select {
	case n.readC <- r:
	case <-ctx.Done():
		return n.late()
	case <-n.stopped:
		return ErrStopping
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		r.cancelled.Store(true)
		return n.late()
	case <-n.stopped:
		return ErrStopping
	}
}

// Change carries out a membership change and returns the member as it was
// asked for, with the id it got. Only the leader decides about changes;
// elsewhere it is ErrNotLeader.
func (n *Replica) Change(ctx context.Context, c Change) (Member, error) {
	for _, urls := range [][]string{c.Member.PeerURLs, c.Member.ClientURLs} {
		if err := memberurl.Validate(urls); len(urls) > 0 && err != nil {
			return Member{}, fmt.Errorf("%w: %w", ErrBadMember, err)
		}
	}
	r := &changeRequest{change: c, done: make(chan error, 1)}
	if err := send(ctx, n, n.confChangeC, r); err != nil {
		return Member{}, err
	}
	if err := n.await(ctx, r.done); err != nil {
		return Member{}, err
	}
	return r.change.Member, nil
}

// Admit presents another member's data directory to the replicas: nil means
// that the member is bound to this nonce and no other directory can act as it.
func (n *Replica) Admit(ctx context.Context, member uint64, nonce string) error {
	r := &startRequest{start: start{Member: member, Nonce: nonce}, done: make(chan error, 1)}
	if err := send(ctx, n, n.callC, func(c *core) { c.admit(r) }); err != nil {
		return err
	}
	return n.await(ctx, r.done)
}

// TransferLeadership hands leadership to the member, and waits until it leads;
// for 0 to the best successor, and then another new leader will do.
func (n *Replica) TransferLeadership(ctx context.Context, to uint64) error {
	t := &transferRequest{to: to, done: make(chan error, 1)}
	if err := send(ctx, n, n.callC, func(c *core) { c.transfer(t) }); err != nil {
		return err
	}
	return n.await(ctx, t.done)
}

// Progress is what the leader knows of a member.
type Progress struct {
	Behind uint64 // log entries it lacks
	Known  bool   // whether Behind is: only to a leader, and only of those that follow
	Heard  bool   // whether it sent anything within an election timeout
}

// Progress returns what this node knows of each member.
func (n *Replica) Progress(ctx context.Context) (map[uint64]Progress, error) {
	done := make(chan error, 1)
	var members map[uint64]Progress
	err := send(ctx, n, n.callC, func(c *core) {
		members = c.progress()
		done <- nil
	})
	if err == nil {
		err = n.await(ctx, done)
	}
	if err != nil {
		return nil, err
	}
	return members, nil
}

// Stalled returns for how long the write to the log that runs now has been
// running; zero when none does.
func (n *Replica) Stalled() time.Duration {
	age, _ := n.appending.age()
	return age
}

// send hands a request to the node loop.
func send[T any](ctx context.Context, n *Replica, c chan<- T, request T) error {
	select {
	case c <- request:
		return nil
	case <-ctx.Done():
		return n.late()
	case <-n.stopped:
		return ErrStopping
	}
}

// await waits for the answer to a request that may have been proposed.
func (n *Replica) await(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ErrUnknown
	case <-n.stopped:
	}
	select {
	case err := <-done:
		return err
	default:
		return ErrUnknown
	}
}
