package node

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
	"github.com/kvd-io/kvd/internal/scrub"
	"github.com/kvd-io/kvd/internal/watch"
)

// member is a node that has its place in a cluster: it carries out requests,
// changes the membership, does a leader's duties and reports its status. Its
// fields are set once; what changes is in the replica and the store, which
// have their own owners, and in the counters and alarms.
//
// Its methods do not ask whether the node serves: Node does (N3).
type member struct {
	id      uint64
	cluster string // its id, as 16 hexadecimal digits
	cfg     *Config
	lg      *zap.Logger
	life    *lifecycle
	store   *kvstore.Store
	watches *watch.Hub
	replica *raftnode.Replica
	calls   *peerCaller
	peering peering
	leases  *leases
	// counting has a token for the request that counts keys before it is proposed. More of
	// them at once would leave no processor to the others.
	counting chan struct{}

	alarms alarms
	counts counts
	health scrub.Health
}

func newMember(n *Node, r *raftnode.Replica) *member {
	self := n.identity.Load()
	m := &member{
		id:      self.Member,
		cluster: hex(self.Cluster),
		cfg:     &n.cfg,
		lg:      n.lg,
		life:    &n.life,
		store:   n.store,
		watches: n.watches,
		replica: r,
		calls:   n.calls,
		peering: n.peering,

		counting: make(chan struct{}, 1),
	}
	m.leases = newLeases(m)
	return m
}

// leads reports whether this member leads.
func (m *member) leads() bool { return m.replica.Position().Leader == m.id }

// encodedBytes is the usual size of an encoded command beside its key and
// value.
const encodedBytes = 32

func (m *member) do(ctx context.Context, cmd *kvstore.Command, note func(stage string, took time.Duration)) (kvstore.Result, error) {
	cmd.RaiseTTL(m.leases.minTTLMillis())
	if r, err := m.refusal(ctx, cmd); r != nil || err != nil {
		return *cmp.Or(r, new(kvstore.Result)), err
	}
	w := beginStages(note, writeStages)
	command := kvstore.EncodeCommand(make([]byte, 0, len(cmd.Key)+len(cmd.Value)+encodedBytes), cmd)
	result, err := m.replica.ProposeTimed(ctx, command, w.timing)
	w.end()
	if err != nil {
		m.counts.proposalsFailed.Add(1)
		return kvstore.Result{}, writeError(err)
	}
	return *result.(*kvstore.Result), nil
}

// refusal returns the result of a command that would be refused when it is applied, so that
// it need not be proposed. This member may be behind: the command may be a repeat, or what
// is in its way may be gone by now. So a refusal is checked once more after a barrier.
func (m *member) refusal(ctx context.Context, cmd *kvstore.Command) (*kvstore.Result, error) {
	if kvstore.CountsKeys(cmd) {
		select {
		case m.counting <- struct{}{}:
			defer func() { <-m.counting }()
		case <-ctx.Done():
			return nil, writeError(raftnode.ErrOverloaded)
		}
	}
	r, err := kvstore.Refusal(ctx, m.store, cmd)
	if r == nil || err != nil {
		return nil, doorError(err)
	}
	if err := m.replica.Barrier(ctx); err != nil {
		return nil, readError(err)
	}
	r, err = kvstore.Refusal(ctx, m.store, cmd)
	return r, doorError(err)
}

// doorError is why a command was not judged. Nothing was proposed.
func doorError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return retryable(api.Overloaded, "the keys that the transaction would delete could not be counted in time; delete them in parts, or set a longer timeout")
	}
	return err
}

func (m *member) doGroup(ctx context.Context, commands [][]byte, note func(stage string, took time.Duration)) ([]*kvstore.Result, error) {
	w := beginStages(note, writeStages)
	results, err := m.replica.ProposeGroup(ctx, commands, w.timing)
	w.end()
	if err != nil {
		if !errors.Is(err, raftnode.ErrOverloaded) { // the caller retries it
			m.counts.proposalsFailed.Add(uint64(len(commands)))
		}
		return nil, writeError(err)
	}
	out := make([]*kvstore.Result, len(results))
	for i, result := range results {
		out[i] = result.(*kvstore.Result)
	}
	return out, nil
}

func (m *member) barrier(ctx context.Context, note func(stage string, took time.Duration)) error {
	w := beginStages(note, readStages)
	err := m.replica.BarrierTimed(ctx, w.timing)
	w.end()
	if err != nil {
		m.counts.readsFailed.Add(1)
		return readError(err)
	}
	return nil
}

// retryable returns an error that asks the client to try again soon.
func retryable(code api.Code, format string, args ...any) *api.Error {
	e := api.Errorf(code, format, args...)
	e.RetryAfter = time.Second
	return e
}

// repeatAdvice says what to do about a change whose outcome is unknown.
const repeatAdvice = "if it had an Idempotency-Key, repeat it with the same one, which gives its outcome; otherwise look before you repeat it"

// writeError tells a client what became of its change.
func writeError(err error) error {
	switch failed := new(failedCall); {
	case errors.As(err, &failed) && failed.is == raftnode.ErrNoLeader:
		return retryable(api.NoLeader, "the leader cannot be reached (%v); nothing was changed; try again", failed)
	case errors.As(err, &failed):
		return api.Errorf(api.Timeout, "the leader was asked and did not answer (%v): the change may still take effect; "+repeatAdvice, failed)
	case errors.Is(err, raftnode.ErrUnknown):
		return api.Errorf(api.Timeout, "the change was proposed but not seen applied in time: it may still take effect; "+repeatAdvice)
	case errors.Is(err, raftnode.ErrNoLeader):
		return retryable(api.NoLeader, "this node does not know of a leader; nothing was changed; try again")
	case errors.Is(err, raftnode.ErrOverloaded):
		return retryable(api.Overloaded, "too many requests are waiting on this node; nothing was changed; slow down and try again")
	case errors.Is(err, raftnode.ErrTooLarge):
		return api.Errorf(api.TooLarge, "the change has more than %d bytes or %d commands, the limits of one log entry; nothing was changed; send it in parts", limits.MaxProposalBytes, limits.MaxGroupCommands)
	case errors.Is(err, raftnode.ErrStopping):
		return retryable(api.Stopping, "this node is stopping; nothing was changed; ask another node")
	case errors.Is(err, raftnode.ErrDiskStall):
		return retryable(api.NoLeader, "the disk of this node is not responding; nothing was changed; ask another node")
	case errors.Is(err, errIdentity), errors.Is(err, errSender):
		return api.Errorf(api.NoLeader, "the leader refuses this node (%v); nothing was changed; ask another node", err)
	case errors.Is(err, raftnode.ErrNotLeader):
		return retryable(api.NoLeader, "the leader changed; nothing was changed; try again")
	}
	return memberError(err)
}

// memberError translates the refusals of membership changes.
func memberError(err error) error {
	if errors.Is(err, roster.ErrTooManyLearners) {
		e := api.Errorf(api.UnsafeChange, "%v", err)
		e.Fields = map[string]any{api.LimitField: api.MaxLearners}
		return e
	}
	for _, c := range []struct {
		is   error
		code api.Code
	}{
		{roster.ErrMemberExists, api.MemberExists},
		{roster.ErrMemberRemoved, api.MemberRemoved},
		{roster.ErrMemberNotFound, api.MemberNotFound},
		{roster.ErrOtherRequest, api.IdempotencyMismatch},
		{roster.ErrUnsafeChange, api.UnsafeChange},
		{raftnode.ErrNotHandedOver, api.UnsafeChange},
		{roster.ErrBadMember, api.BadRequest},
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
// runs out of time while there is a leader is a read_timeout.
func readError(err error) error {
	if errors.Is(err, raftnode.ErrOverloaded) {
		return retryable(api.ReadTimeout, "no quorum confirmed the read in time; try again, or read with consistency=stale")
	}
	if errors.Is(err, raftnode.ErrNoLeader) {
		return retryable(api.NoLeader, "this node does not know of a leader; try again, or read with consistency=stale")
	}
	return writeError(err)
}
