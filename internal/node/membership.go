package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/memberurl"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

func (m *member) members(ctx context.Context) ([]api.Member, error) {
	behind, err := behindAt(ctx, m)
	if err != nil {
		return nil, readError(err)
	}
	ms := m.replica.Membership()
	if leader, ok := ms.Member(m.replica.Position().Leader); ok && leader.ID != m.id {
		behind = m.calls.behind(ctx, leader.PeerURLs, behind)
	}
	var out []api.Member
	for _, rm := range ms.Members {
		am := m.describe(rm)
		if lag, known := behind[rm.ID]; known {
			am.Behind = &lag
		}
		out = append(out, am)
	}
	return out, nil
}

// behindAt returns how many log entries members lack, as a member knows it: the leader of
// all, others only of themselves. Of itself, it counts what it has not applied.
func behindAt(ctx context.Context, m *member) (map[uint64]uint64, error) {
	progress, err := m.replica.Progress(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]uint64)
	for id, p := range progress {
		if p.Known {
			out[id] = p.Behind
		}
	}
	out[m.id] = m.freshness().Lag()
	return out, nil
}

func (m *member) describe(rm roster.Member) api.Member {
	return api.Member{
		ID:         rm.ID,
		Name:       rm.Name,
		PeerURLs:   orEmpty(rm.PeerURLs),
		ClientURLs: orEmpty(rm.ClientURLs),
		EtcdURLs:   rm.Faces[roster.FaceEtcd],
		Learner:    rm.Learner,
		Role:       roleOf(rm, m.replica.Position(), m.id),
		Reachable:  rm.ID == m.id || !m.replica.ActiveSince(rm.ID).IsZero(),
	}
}

// orEmpty makes a JSON array of a nil list.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func roleOf(rm roster.Member, pos raftnode.Position, self uint64) string {
	switch {
	case rm.ID == pos.Leader:
		return "leader"
	case rm.Learner:
		return "learner"
	case rm.ID == self:
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
	default: // to an operator, a pre-candidate is a candidate
		return "candidate"
	}
}

func (m *member) add(ctx context.Context, add api.NewMember) (api.AddedMember, error) {
	added, err := m.change(ctx, roster.Change{Kind: roster.AddMember, Member: roster.Member{
		ID: add.ID, Name: add.Name, PeerURLs: add.PeerURLs, ClientURLs: add.ClientURLs, KeepLearner: add.Learner,
	}, MaxLearners: add.MaxLearners})
	if err != nil {
		return api.AddedMember{}, err
	}
	ms := m.replica.Membership()
	if now, ok := ms.Member(added.ID); ok {
		added = now
	} else { // not applied here yet, or, of a repeat, removed since
		added = roster.Member{ID: added.ID, Name: add.Name, PeerURLs: add.PeerURLs, ClientURLs: add.ClientURLs, Learner: true}
	}
	return api.AddedMember{Member: m.describe(added), Command: joinCommand(ms, added)}, nil
}

// joinCommand is the shell command that starts the new member.
func joinCommand(ms *roster.Membership, added roster.Member) string {
	for _, m := range ms.Members {
		if m.ID != added.ID && len(m.PeerURLs) > 0 {
			line := fmt.Sprintf("kvd --id %d --listen-peer %s --listen-client http://HOST:PORT --join %s",
				added.ID, strings.Join(added.PeerURLs, ","), m.PeerURLs[0])
			if added.Name != "" {
				line += " --name " + shellWord(added.Name)
			}
			if strings.HasPrefix(m.PeerURLs[0], "https:") {
				line += " --peer-cert-file CERT --peer-key-file KEY --peer-ca-file CA"
			}
			// The cluster accepts such URLs only if its members run with this flag.
			if slices.ContainsFunc(append([]string{m.PeerURLs[0]}, added.PeerURLs...), clearBeyondThisMachine) {
				line += " --insecure-peers"
			}
			return line
		}
	}
	return ""
}

// shellWord returns a text as a shell reads it as one word.
func shellWord(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
	}
	if strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// clearBeyondThisMachine reports whether a member URL makes peer traffic leave
// this machine without TLS.
func clearBeyondThisMachine(url string) bool {
	return !strings.HasPrefix(url, "https:") && !memberurl.OnThisMachine(url)
}

func (m *member) update(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error) {
	return m.changeOne(ctx, roster.Change{Kind: roster.UpdateMember, Member: roster.Member{ID: id, PeerURLs: peerURLs, ClientURLs: clientURLs}})
}

func (m *member) promote(ctx context.Context, id uint64) (api.Member, error) {
	return m.changeOne(ctx, roster.Change{Kind: roster.PromoteMember, Member: roster.Member{ID: id}})
}

func (m *member) changeOne(ctx context.Context, c roster.Change) (api.Member, error) {
	if _, err := m.change(ctx, c); err != nil {
		return api.Member{}, err
	}
	changed, ok := m.replica.Membership().Member(c.Member.ID)
	if once := api.OnceOf(ctx); !ok && once != nil && once.Replayed {
		return m.describe(c.Member), nil // removed since; an error would deny what was done
	}
	if !ok {
		return api.Member{}, api.Errorf(api.MemberNotFound, "member %d was removed meanwhile", c.Member.ID)
	}
	return m.describe(changed), nil
}

func (m *member) remove(ctx context.Context, id uint64) error {
	_, err := m.change(ctx, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: id}})
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.MemberRemoved {
		return api.Errorf(api.MemberNotFound, "member %d was already removed", id)
	}
	return err
}

// changePause is how long a change that no leader took waits before the next
// attempt: about what a hand-over or an election takes.
const changePause = 50 * time.Millisecond

// change takes a membership change to the leader, wherever that is, and waits
// until this node has applied it too. Raft could forward the proposal, but not
// the leader's judgment: only the leader knows which members are alive and which
// ids are taken. It tries again only if certainly nothing was proposed (N4); after
// raftnode.ErrUnknown a second attempt could, for example, add a second member.
func (m *member) change(ctx context.Context, c roster.Change) (roster.Member, error) {
	c.By = requester(ctx)
	once := api.OnceOf(ctx)
	if once != nil {
		c.Once = roster.Once{Key: once.Key, Fingerprint: fmt.Sprintf("%x", once.Fingerprint)}
	}
	for {
		changed, err := m.changeAtLeader(ctx, c)
		if errors.Is(err, roster.ErrRepeated) {
			return m.repeated(ctx, once)
		}
		if err == nil {
			_ = m.replica.Barrier(ctx) // it is made, even if it is not seen here in time
			return changed, nil
		}
		if !errors.Is(err, raftnode.ErrNotLeader) && !errors.Is(err, raftnode.ErrNoLeader) {
			return roster.Member{}, writeError(err)
		}
		if pause(ctx, changePause) != nil {
			return roster.Member{}, writeError(err) // why the last attempt failed
		}
	}
}

// repeated returns the member that the first request with the key has added or changed.
// It is answered as it is now, or, if it was removed since, as the request has it.
func (m *member) repeated(ctx context.Context, once *api.Once) (roster.Member, error) {
	if err := m.replica.Barrier(ctx); err != nil {
		return roster.Member{}, readError(err)
	}
	ms := m.replica.Membership()
	made, ok := ms.MadeBy(once.Key)
	if !ok { // many changes were made meanwhile
		return roster.Member{}, api.Errorf(api.MemberExists, "the change was made, but is no longer remembered; see GET /v1/members")
	}
	once.Replayed = true
	changed, ok := ms.Member(made.Member)
	if !ok {
		changed.ID = made.Member
	}
	return changed, nil
}

// requester is who asks for the change that the context belongs to.
func requester(ctx context.Context) roster.Requester {
	return roster.Requester(api.RequesterOf(ctx))
}

// changeAtLeader makes one attempt. ErrNotLeader and ErrNoLeader mean that
// nothing was proposed. A leader that is to remove itself hands over first and
// answers ErrNotLeader: the next attempt goes to its successor.
func (m *member) changeAtLeader(ctx context.Context, c roster.Change) (roster.Member, error) {
	at := m.replica.Position().Leader
	if at == m.id {
		return m.proposeChange(ctx, c)
	}
	leader, ok := m.replica.Membership().Member(at)
	if !ok { // none, or one that this node has not heard of yet
		return roster.Member{}, raftnode.ErrNoLeader
	}
	return m.calls.change(ctx, leader.PeerURLs, c)
}

// proposeChange changes the membership at this node, which leads.
func (m *member) proposeChange(ctx context.Context, c roster.Change) (roster.Member, error) {
	if err := m.peering.checkURLs(c.Member.PeerURLs); err != nil {
		return roster.Member{}, err
	}
	return m.replica.Change(ctx, c)
}

func (m *member) leader() (api.Leader, error) {
	pos := m.replica.Position()
	l, ok := m.replica.Membership().Member(pos.Leader)
	if !ok {
		return api.Leader{}, retryable(api.NoLeader, "this node does not know of a leader")
	}
	return api.Leader{ID: l.ID, Name: l.Name, Term: pos.Term, ClientURLs: orEmpty(l.ClientURLs)}, nil
}

func (m *member) transferLeader(ctx context.Context, to uint64) error {
	var err error
	switch l, ok := m.replica.Membership().Member(m.replica.Position().Leader); {
	case !ok:
		err = raftnode.ErrNoLeader
	case l.ID == m.id:
		err = m.handOver(ctx, to, requester(ctx))
	default:
		err = m.calls.transfer(ctx, l.PeerURLs, handover{To: to, By: requester(ctx)})
	}
	if err != nil {
		return writeError(err)
	}
	return nil
}

// handOver hands leadership over from this node, which leads. All members log the
// change of leader itself; this tells who asked for it.
func (m *member) handOver(ctx context.Context, to uint64, by roster.Requester) error {
	err := m.replica.TransferLeadership(ctx, to)
	if lg := m.lg.With(append(by.Fields(), zap.Uint64("from", m.id), zap.Uint64("to", to))...); err != nil {
		lg.Warn("leadership was not handed over", zap.Error(err))
	} else {
		lg.Info("leadership handed over")
	}
	return err
}

// lookup finds the URLs of a member that this node has not heard of yet, by
// asking the members that it knows. A follower that slept through a change of
// members must still be able to hear its new leader.
func (m *member) lookup(ctx context.Context, id uint64) ([]string, bool) {
	ms := m.replica.Membership()
	for _, known := range ms.Members {
		if known.ID == m.id {
			continue
		}
		for _, u := range known.PeerURLs {
			in, err := m.calls.info(ctx, u)
			if err != nil || in.ClusterID != ms.ClusterID {
				continue
			}
			for _, found := range in.Members {
				if found.ID == id && len(found.PeerURLs) > 0 {
					return found.PeerURLs, true
				}
			}
		}
	}
	return nil, false
}
