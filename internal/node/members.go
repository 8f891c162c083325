package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// Members returns the membership with what this node observes of it.
func (n *Node) Members(ctx context.Context) ([]api.Member, error) {
	r, err := n.running()
	if err != nil {
		return nil, err
	}
	progress, err := r.Progress(ctx)
	if err != nil {
		return nil, readError(err)
	}
	var out []api.Member
	for _, m := range r.Membership().Members {
		am := n.describe(r, m)
		if p := progress[m.ID]; p.Known {
			am.Behind = &p.Behind
		}
		out = append(out, am)
	}
	return out, nil
}

func (n *Node) describe(r *raftnode.Replica, m raftnode.Member) api.Member {
	pos := r.Position()
	return api.Member{
		ID:         m.ID,
		Name:       m.Name,
		PeerURLs:   orEmpty(m.PeerURLs),
		ClientURLs: orEmpty(m.ClientURLs),
		Learner:    m.Learner,
		Role:       roleOf(m, pos, n.id),
		Reachable:  m.ID == n.id || !r.ActiveSince(m.ID).IsZero(),
	}
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func roleOf(m raftnode.Member, pos raftnode.Position, self uint64) string {
	switch {
	case m.ID == pos.Leader:
		return "leader"
	case m.Learner:
		return "learner"
	case m.ID == self:
		return roleName(pos.Role)
	case pos.Leader == raft.None:
		return "unknown"
	}
	return "follower"
}

func roleName(role raft.StateType) string {
	switch role {
	case raft.StateLeader:
		return "leader"
	case raft.StateFollower:
		return "follower"
	default: // a pre-candidate is a candidate to an operator
		return "candidate"
	}
}

// AddMember adds a learner, which the leader promotes once it has caught up.
func (n *Node) AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error) {
	added, err := n.change(ctx, raftnode.Change{Kind: raftnode.AddMember, Member: raftnode.Member{
		ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, KeepLearner: m.Learner,
	}})
	if err != nil {
		return api.AddedMember{}, err
	}
	r := n.raft.Load()
	if now, ok := r.Membership().Member(added.ID); ok {
		added = now
	} else {
		added.Learner = true
	}
	return api.AddedMember{Member: n.describe(r, added), Command: joinCommand(r.Membership(), added)}, nil
}

// joinCommand is the line that starts the new member.
func joinCommand(ms *raftnode.Membership, added raftnode.Member) string {
	for _, m := range ms.Members {
		if m.ID != added.ID && len(m.PeerURLs) > 0 {
			line := fmt.Sprintf("kvd --id %d --listen-peer %s --listen-client http://HOST:PORT --join %s",
				added.ID, strings.Join(added.PeerURLs, ","), m.PeerURLs[0])
			if strings.HasPrefix(m.PeerURLs[0], "https:") {
				line += " --peer-cert-file CERT --peer-key-file KEY --peer-ca-file CA"
			}
			return line
		}
	}
	return ""
}

// UpdateMember changes the URLs of a member; nil lists stay as they are.
func (n *Node) UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error) {
	return n.changeOne(ctx, raftnode.Change{Kind: raftnode.UpdateMember, Member: raftnode.Member{ID: id, PeerURLs: peerURLs, ClientURLs: clientURLs}})
}

// PromoteMember makes a learner that has caught up a voter.
func (n *Node) PromoteMember(ctx context.Context, id uint64) (api.Member, error) {
	return n.changeOne(ctx, raftnode.Change{Kind: raftnode.PromoteMember, Member: raftnode.Member{ID: id}})
}

func (n *Node) changeOne(ctx context.Context, c raftnode.Change) (api.Member, error) {
	if _, err := n.change(ctx, c); err != nil {
		return api.Member{}, err
	}
	r := n.raft.Load()
	m, ok := r.Membership().Member(c.Member.ID)
	if !ok {
		return api.Member{}, api.Errorf(api.MemberNotFound, "member %d was removed meanwhile", c.Member.ID)
	}
	return n.describe(r, m), nil
}

// RemoveMember removes a member for good; its id never returns. A leader that
// is to go hands over first.
func (n *Node) RemoveMember(ctx context.Context, id uint64) error {
	_, err := n.change(ctx, raftnode.Change{Kind: raftnode.RemoveMember, Member: raftnode.Member{ID: id}})
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.MemberRemoved {
		return api.Errorf(api.MemberNotFound, "member %d was removed already", id)
	}
	return err
}

// changePause is how long a change that no leader took waits before it is
// tried again.
const changePause = 50 * time.Millisecond

// change brings a membership change to the leader, wherever it is, and waits
// until this node has applied it too.
func (n *Node) change(ctx context.Context, c raftnode.Change) (raftnode.Member, error) {
	r, err := n.running()
	if err != nil {
		return raftnode.Member{}, err
	}
	for {
		m, err := n.changeAtLeader(ctx, r, c)
		if err == nil {
			// See it here as well; where that takes too long it is done all
			// the same.
			_ = r.Barrier(ctx)
			return m, nil
		}
		if !errors.Is(err, raftnode.ErrNotLeader) && !errors.Is(err, raftnode.ErrNoLeader) {
			return raftnode.Member{}, writeError(err)
		}
		select {
		case <-ctx.Done():
			return raftnode.Member{}, writeError(raftnode.ErrNoLeader)
		case <-time.After(changePause):
		}
	}
}

// changeAtLeader makes one attempt. ErrNotLeader and ErrNoLeader say that
// nothing was proposed.
func (n *Node) changeAtLeader(ctx context.Context, r *raftnode.Replica, c raftnode.Change) (raftnode.Member, error) {
	pos := r.Position()
	switch {
	case pos.Leader == raft.None:
		return raftnode.Member{}, raftnode.ErrNoLeader
	case pos.Leader != n.id:
		leader, ok := r.Membership().Member(pos.Leader)
		if !ok {
			return raftnode.Member{}, raftnode.ErrNoLeader
		}
		return n.peers.change(ctx, leader.PeerURLs, c)
	case c.Kind == raftnode.RemoveMember && c.Member.ID == n.id && len(r.Membership().Voters()) > 1:
		if err := r.TransferLeadership(ctx, 0); err != nil {
			return raftnode.Member{}, err
		}
		return raftnode.Member{}, raftnode.ErrNotLeader // the new one removes us
	}
	return n.proposeChange(ctx, r, c)
}

// proposeChange makes a change of the membership at this node, which leads.
func (n *Node) proposeChange(ctx context.Context, r *raftnode.Replica, c raftnode.Change) (raftnode.Member, error) {
	if err := n.checkPeerURLs(c.Member.PeerURLs); err != nil {
		return raftnode.Member{}, err
	}
	return r.Change(ctx, c)
}

// Leader names the current leader.
func (n *Node) Leader() (api.Leader, error) {
	r, err := n.running()
	if err != nil {
		return api.Leader{}, err
	}
	pos := r.Position()
	m, ok := r.Membership().Member(pos.Leader)
	if !ok {
		return api.Leader{}, retryable(api.NoLeader, "the cluster has no leader that this node knows of")
	}
	return api.Leader{ID: m.ID, Name: m.Name, Term: pos.Term, ClientURLs: orEmpty(m.ClientURLs)}, nil
}

// TransferLeader hands leadership to the member.
func (n *Node) TransferLeader(ctx context.Context, to uint64) error {
	r, err := n.running()
	if err != nil {
		return err
	}
	pos := r.Position()
	switch leader, ok := r.Membership().Member(pos.Leader); {
	case !ok:
		return writeError(raftnode.ErrNoLeader)
	case leader.ID == n.id:
		err = r.TransferLeadership(ctx, to)
	default:
		err = n.peers.transfer(ctx, leader.PeerURLs, to)
	}
	if err != nil {
		return writeError(err)
	}
	return nil
}
