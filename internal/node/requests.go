package node

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/pace"
	"github.com/kvd-io/kvd/internal/watch"
)

// This file is the door to the member: what the HTTP front may ask of a node
// at any time. Each request is refused while the node does not serve (N3).

// serving returns the member if it can carry out requests now.
func (n *Node) serving() (*member, error) {
	if err := n.life.serves(); err != nil {
		return nil, err
	}
	return n.member.Load(), nil
}

// placed returns the member if the node has found its place. It may not have
// caught up yet, and may be stopping.
func (n *Node) placed() (*member, error) {
	m := n.member.Load()
	if m == nil {
		return nil, retryable(api.Starting, "this node is looking for its place in the cluster")
	}
	return m, nil
}

// ID returns the member's id; 0 while a joining node has not been given one.
func (n *Node) ID() uint64 { return n.identity.Load().Member }

// ClusterID returns the cluster's id as 16 hexadecimal digits, or an empty string
// until the node has a cluster.
func (n *Node) ClusterID() string {
	if m := n.member.Load(); m != nil {
		return m.cluster
	}
	if id := n.identity.Load().Cluster; id != 0 {
		return hex(id)
	}
	return ""
}

// Store reads the replicated state of this node.
func (n *Node) Store() *kvstore.Store { return n.store }

// Do replicates a command and returns its result: the command is then on the
// disks of a quorum and applied here. It reports to note, unless that is nil,
// how long each stage of the request took. Errors are *api.Error; only
// api.Timeout and api.Internal leave the outcome open.
func (n *Node) Do(ctx context.Context, cmd *kvstore.Command, note func(stage string, took time.Duration)) (kvstore.Result, error) {
	m, err := n.serving()
	if err != nil {
		return kvstore.Result{}, err
	}
	return m.do(ctx, cmd, note)
}

// Encode appends the command in the form that DoGroup takes.
func (n *Node) Encode(dst []byte, cmd *kvstore.Command) []byte {
	if m := n.member.Load(); m != nil {
		cmd.RaiseTTL(m.leases.minTTLMillis())
	}
	return kvstore.EncodeCommand(dst, cmd)
}

// DoGroup is Do for several commands. They take effect in order with nothing
// in between, or an error applies to all of them. The caller must not modify
// the commands after an error: they may still be on their way.
func (n *Node) DoGroup(ctx context.Context, commands [][]byte, note func(stage string, took time.Duration)) ([]*kvstore.Result, error) {
	m, err := n.serving()
	if err != nil {
		return nil, err
	}
	return m.doGroup(ctx, commands, note)
}

// Barrier returns once this node has applied everything that was committed
// when it was called: a read that follows is linearizable. It reports to note
// as Do does.
func (n *Node) Barrier(ctx context.Context, note func(stage string, took time.Duration)) error {
	m, err := n.serving()
	if err != nil {
		return err
	}
	return m.barrier(ctx, note)
}

// AskLease returns how long a lease lives on, which only the leader knows. If renew is
// set, it is a keep-alive: the lease has its full time to live again. Without a proof
// that the leader led after that, it is an error, and nothing is promised.
func (n *Node) AskLease(ctx context.Context, lease uint64, renew bool) (api.LeaseTime, error) {
	m, err := n.serving()
	if err != nil {
		return api.LeaseTime{}, err
	}
	return m.leases.ask(ctx, lease, renew)
}

// CheckStaleness returns an error if the state of this node may be older than
// limit; 0 means no limit. A stale read follows it.
func (n *Node) CheckStaleness(limit time.Duration) error {
	m, err := n.serving()
	if err != nil {
		return err
	}
	return m.freshness().within(limit)
}

// Snapshot streams a consistent backup of the whole state as this node has
// applied it, without the keys that sign logins. A Barrier before it makes it
// linearizable; without one it needs no quorum.
func (n *Node) Snapshot(ctx context.Context, w io.Writer) error {
	m, err := n.serving()
	if err != nil {
		return err
	}
	v, err := n.store.View()
	if err != nil {
		return fmt.Errorf("pin a view: %w", err)
	}
	defer v.Close()
	if _, err := v.WriteBackup(&pace.Yielding{W: w, Applied: m.replica.Applied}); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Watches is the hub that is told of every change. Run closes it at its end;
// closing it earlier sends the clients of watches to other nodes.
func (n *Node) Watches() *watch.Hub { return n.watches }

// Members returns the membership as this node has applied it, with what it observes of
// it. That needs no quorum.
func (n *Node) Members(ctx context.Context) ([]api.Member, error) {
	m, err := n.serving()
	if err != nil {
		return nil, err
	}
	return m.members(ctx)
}

// AddMember adds a learner, which the leader promotes once it has caught up.
func (n *Node) AddMember(ctx context.Context, add api.NewMember) (api.AddedMember, error) {
	m, err := n.serving()
	if err != nil {
		return api.AddedMember{}, err
	}
	return m.add(ctx, add)
}

// UpdateMember changes the URLs of a member. A nil list keeps the current ones.
func (n *Node) UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error) {
	m, err := n.serving()
	if err != nil {
		return api.Member{}, err
	}
	return m.update(ctx, id, peerURLs, clientURLs)
}

// PromoteMember makes a voter of a learner that has caught up.
func (n *Node) PromoteMember(ctx context.Context, id uint64) (api.Member, error) {
	m, err := n.serving()
	if err != nil {
		return api.Member{}, err
	}
	return m.promote(ctx, id)
}

// RemoveMember removes a member for good; its id is never used again. A leader
// that is removed hands its leadership over first.
func (n *Node) RemoveMember(ctx context.Context, id uint64) error {
	m, err := n.serving()
	if err != nil {
		return err
	}
	return m.remove(ctx, id)
}

// Leader returns the current leader.
func (n *Node) Leader() (api.Leader, error) {
	m, err := n.serving()
	if err != nil {
		return api.Leader{}, err
	}
	return m.leader()
}

// TransferLeader hands leadership to the member.
func (n *Node) TransferLeader(ctx context.Context, to uint64) error {
	m, err := n.serving()
	if err != nil {
		return err
	}
	return m.transferLeader(ctx, to)
}

// Status describes this node, also before it serves and while it stops.
func (n *Node) Status(context.Context) (api.Status, error) {
	m, err := n.placed()
	if err != nil {
		return api.Status{}, err
	}
	return m.status(), nil
}

// ClusterStatus asks every member for its status.
func (n *Node) ClusterStatus(ctx context.Context) (api.ClusterStatus, error) {
	m, err := n.serving()
	if err != nil {
		return api.ClusterStatus{}, err
	}
	return m.clusterStatus(ctx), nil
}

// Figures returns the figures of a node that has its place in a cluster.
func (n *Node) Figures(ctx context.Context) (Figures, error) {
	m, err := n.placed()
	if err != nil {
		return Figures{}, err
	}
	return m.figures(ctx)
}

// Checks yields the readiness checks by name, with nil for those that pass.
func (n *Node) Checks(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if !yield("started", n.life.checkStarted()) || !yield("not-draining", n.life.checkDraining()) {
			return
		}
		if m := n.member.Load(); m != nil {
			m.checks(yield)
		}
	}
}

// IsLeader reports whether this node leads.
func (n *Node) IsLeader() bool {
	m := n.member.Load()
	return m != nil && m.leads()
}

// HasLeader reports whether this node knows a leader.
func (n *Node) HasLeader() bool {
	m := n.member.Load()
	return m != nil && m.freshness().checkLeader() == nil
}

// Responsive reports whether the loop that everything waits for still turns. A
// node that is starting or has ended has none, and counts as responsive.
func (n *Node) Responsive() bool {
	m := n.member.Load()
	return m == nil || n.life.closing.Load() || m.replica.Responsive()
}
