package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// Store reads the replicated state of this node.
func (n *Node) Store() *kvstore.Store { return n.store }

// Do replicates a command and returns its result: it is then on the disks of a
// quorum and applied here. It reports to note, unless that is nil, how long
// each stage of the request took. Errors are *api.Error; only api.Timeout and
// api.Internal leave the outcome open.
func (n *Node) Do(ctx context.Context, cmd *kvstore.Command, note func(stage string, took time.Duration)) (kvstore.Result, error) {
	r, err := n.running()
	if err != nil {
		return kvstore.Result{}, err
	}
	w := beginStages(note, writeStages)
	command := kvstore.EncodeCommand(make([]byte, 0, len(cmd.Key)+len(cmd.Value)+encodedBytes), cmd)
	result, err := r.ProposeTimed(ctx, command, w.timing)
	w.end()
	if err != nil {
		n.counts.proposalsFailed.Add(1)
		return kvstore.Result{}, writeError(err)
	}
	return *result.(*kvstore.Result), nil
}

// encodedBytes is what an encoded command has beside its key and value, most
// often.
const encodedBytes = 32

// Encode appends the command in the form that DoGroup takes.
func (n *Node) Encode(dst []byte, cmd *kvstore.Command) []byte {
	return kvstore.EncodeCommand(dst, cmd)
}

// DoGroup is Do for several commands.
// They take effect in their order with nothing in between, or all have the
// fate that the error tells. They must not be changed any more after an error.
func (n *Node) DoGroup(ctx context.Context, commands [][]byte, note func(stage string, took time.Duration)) ([]*kvstore.Result, error) {
	r, err := n.running()
	if err != nil {
		return nil, err
	}
	w := beginStages(note, writeStages)
	results, err := r.ProposeGroup(ctx, commands, w.timing)
	w.end()
	if err != nil {
		if !errors.Is(err, raftnode.ErrOverloaded) { // the caller tries again
			n.counts.proposalsFailed.Add(uint64(len(commands)))
		}
		return nil, writeError(err)
	}
	out := make([]*kvstore.Result, len(results))
	for i, result := range results {
		out[i] = result.(*kvstore.Result)
	}
	return out, nil
}

// Barrier returns once this node has applied everything that was committed
// when it was called: a read that follows is linearizable. It reports to note
// as Do does.
func (n *Node) Barrier(ctx context.Context, note func(stage string, took time.Duration)) error {
	r, err := n.running()
	if err != nil {
		return err
	}
	w := beginStages(note, readStages)
	err = r.BarrierTimed(ctx, w.timing)
	w.end()
	if err != nil {
		n.counts.readsFailed.Add(1)
		return readError(err)
	}
	return nil
}

// CheckStaleness returns an error if this node last heard from a leader longer
// ago than limit; 0 means no limit. A stale read follows it.
func (n *Node) CheckStaleness(limit time.Duration) error {
	r, err := n.running()
	if err != nil {
		return err
	}
	return freshness{r.Freshness()}.within(limit)
}

// running returns the replication layer once it serves.
func (n *Node) running() (*raftnode.Replica, error) {
	if n.draining.Load() {
		return nil, retryable(api.Stopping, "this node is stopping; ask another one")
	}
	select {
	case <-n.ready:
		return n.raft.Load(), nil
	default:
		return nil, retryable(api.Starting, "this node is starting and has not caught up yet; try again soon or ask another one")
	}
}

func retryable(code api.Code, format string, args ...any) *api.Error {
	e := api.Errorf(code, format, args...)
	e.RetryAfter = time.Second
	return e
}

// writeError tells a client what became of its change.
func writeError(err error) error {
	switch {
	case errors.Is(err, raftnode.ErrUnknown):
		return api.Errorf(api.Timeout, "the change was proposed, but not seen applied in time: it may still take effect; read before you repeat it")
	case errors.Is(err, raftnode.ErrNoLeader):
		return retryable(api.NoLeader, "the cluster has no leader that this node knows of; nothing was changed; try again")
	case errors.Is(err, raftnode.ErrOverloaded):
		return retryable(api.Overloaded, "too many requests wait on this node; nothing was changed; slow down and try again")
	case errors.Is(err, raftnode.ErrStopping):
		return retryable(api.Stopping, "this node is stopping; nothing was changed; ask another one")
	case errors.Is(err, raftnode.ErrDiskStall):
		return retryable(api.NoLeader, "the disk of this node does not answer; nothing was changed; ask another one")
	case errors.Is(err, errIdentity):
		return api.Errorf(api.NoLeader, "the leader refuses this node (%v); nothing was changed; ask another node", err)
	case errors.Is(err, raftnode.ErrNotLeader):
		return retryable(api.NoLeader, "the leader changed; nothing was changed; try again")
	}
	return memberError(err)
}

// memberError covers the refusals of membership changes.
func memberError(err error) error {
	for _, c := range []struct {
		is   error
		code api.Code
	}{
		{raftnode.ErrMemberExists, api.MemberExists},
		{raftnode.ErrMemberRemoved, api.MemberRemoved},
		{raftnode.ErrMemberNotFound, api.MemberNotFound},
		{raftnode.ErrUnsafeChange, api.UnsafeChange},
		{raftnode.ErrNotHandedOver, api.UnsafeChange},
		{raftnode.ErrBadMember, api.BadRequest},
	} {
		if errors.Is(err, c.is) {
			return api.Errorf(c.code, "%v", err)
		}
	}
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	return api.Errorf(api.Internal, "%v", err)
}

// readError tells a client why a read could not be proved fresh. A read that
// runs out of time with a leader in office is a read_timeout.
func readError(err error) error {
	if errors.Is(err, raftnode.ErrOverloaded) {
		return retryable(api.ReadTimeout, "no quorum confirmed the read in time; try again, or read with consistency=stale")
	}
	if errors.Is(err, raftnode.ErrNoLeader) {
		return retryable(api.NoLeader, "the cluster has no leader that this node knows of; try again, or read with consistency=stale")
	}
	return writeError(err)
}

// Snapshot streams a consistent backup of the whole state.
func (n *Node) Snapshot(ctx context.Context, w io.Writer) error {
	if err := n.Barrier(ctx, nil); err != nil {
		return err
	}
	v, err := n.store.View()
	if err != nil {
		return fmt.Errorf("pin a view: %w", err)
	}
	defer v.Close()
	if _, err := v.WriteTo(&politeWriter{w: w, applied: n.raft.Load().Applied}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}
