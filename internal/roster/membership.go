package roster

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/limits"
)

// Why a membership change is refused, before it is proposed and again when it is
// applied.
var (
	ErrMemberExists   = errors.New("member already exists")
	ErrMemberRemoved  = errors.New("member was removed")
	ErrMemberNotFound = errors.New("member not found")
	ErrUnsafeChange   = errors.New("unsafe membership change")
	ErrBadMember      = errors.New("invalid member")
	// ErrTooManyLearners refuses a member that would stay a learner.
	ErrTooManyLearners = errors.New("too many learners")
	// ErrRepeated means that the change was made already, for the same request.
	ErrRepeated = errors.New("the change was made already")
	// ErrOtherRequest means that the idempotency key belongs to another request.
	ErrOtherRequest = errors.New("the idempotency key belongs to another request")
	// ErrStaleDirectory refuses a start, not a change.
	ErrStaleDirectory = errors.New("the data directory is an older copy, or one of two copies")
)

// The names of faces in Member.Faces.
const (
	FaceEtcd = "etcd"
)

// Member is one member of the cluster in the replicated state.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls,omitempty"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Faces has the URLs for clients of other protocols that the process of the member
	// has announced, by the name of the face.
	Faces map[string][]string `json:"faces,omitempty"`
	// Learner members receive the log but do not vote.
	Learner bool `json:"learner,omitempty"`
	// KeepLearner keeps the leader from promoting a learner automatically.
	KeepLearner bool `json:"keep_learner,omitempty"`
	// Nonce identifies the data directory that claimed the member. No other
	// directory can ever act as it. Empty until the first start.
	Nonce string `json:"nonce,omitempty"`
	// Version is the highest payload version that its binary announced.
	Version int `json:"version,omitempty"`
}

// Membership is an immutable picture of the members at one moment.
type Membership struct {
	ClusterID uint64
	Members   []Member // in ascending order of id
	Removed   map[uint64]bool
	// HighestID is the highest id ever used. Ids are never used again.
	HighestID uint64
	// Made are the last changes whose requests have an idempotency key, oldest first.
	Made []Made
}

// MadeBy returns the change that was made for a request with the idempotency key.
func (m *Membership) MadeBy(key string) (Made, bool) {
	i := slices.IndexFunc(m.Made, func(d Made) bool { return d.Key == key })
	if key == "" || i < 0 {
		return Made{}, false
	}
	return m.Made[i], true
}

// Member returns the member with the id.
func (m *Membership) Member(id uint64) (Member, bool) {
	i, ok := slices.BinarySearchFunc(m.Members, id, func(a Member, id uint64) int {
		switch {
		case a.ID < id:
			return -1
		case a.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return Member{}, false
	}
	return m.Members[i], true
}

// Voters returns the ids of the members that vote.
func (m *Membership) Voters() []uint64 {
	var ids []uint64
	for _, mb := range m.Members {
		if !mb.Learner {
			ids = append(ids, mb.ID)
		}
	}
	return ids
}

// ConfState returns raft's form of the membership. kvd changes one member at a
// time, so there is never a joint configuration.
func (m *Membership) ConfState() *raftpb.ConfState {
	cs := new(raftpb.ConfState)
	for _, mb := range m.Members {
		if mb.Learner {
			cs.Learners = append(cs.Learners, mb.ID)
		} else {
			cs.Voters = append(cs.Voters, mb.ID)
		}
	}
	return cs
}

// Matches compares raft's configuration with the membership. Only a bug can make
// them differ.
func (m *Membership) Matches(cs *raftpb.ConfState) bool {
	own := m.ConfState()
	return slices.Equal(cs.GetVoters(), own.GetVoters()) && slices.Equal(cs.GetLearners(), own.GetLearners()) &&
		len(cs.GetVotersOutgoing()) == 0 && len(cs.GetLearnersNext()) == 0
}

// Check returns why the change is illegal in this membership. It is called before
// a change is proposed, and again when it is applied.
func (m *Membership) Check(c *Change) error {
	if made, ok := m.MadeBy(c.Once.Key); ok {
		if made.Fingerprint != c.Once.Fingerprint {
			return ErrOtherRequest
		}
		return ErrRepeated
	}
	id := c.Member.ID
	if id == 0 || id > limits.MaxMemberID {
		return fmt.Errorf("%w: id %d is not between 1 and 2^53-1", ErrBadMember, id)
	}
	if m.Removed[id] {
		return fmt.Errorf("%w: id %d cannot be used again; add the machine under a new id", ErrMemberRemoved, id)
	}
	existing, exists := m.Member(id)
	switch c.Kind {
	case AddMember:
		return m.checkAdd(c, exists)
	case ReplaceMember:
		return m.checkReplace(c, exists)
	}
	if !exists {
		return fmt.Errorf("%w: %d", ErrMemberNotFound, id)
	}
	switch c.Kind {
	case PromoteMember:
		if !existing.Learner {
			return fmt.Errorf("%w: member %d is already a voter", ErrMemberExists, id)
		}
	case UpdateMember:
		return m.checkURLs(c)
	case RemoveMember:
		if !existing.Learner && len(m.Voters()) == 1 {
			return fmt.Errorf("%w: member %d is the last voter", ErrUnsafeChange, id)
		}
	default:
		return fmt.Errorf("%w: unknown change %q", ErrBadMember, c.Kind)
	}
	return nil
}

func (m *Membership) checkAdd(c *Change, exists bool) error {
	if exists {
		return fmt.Errorf("%w: id %d is in use", ErrMemberExists, c.Member.ID)
	}
	if len(m.Members) >= limits.MaxMembers {
		return fmt.Errorf("%w: the cluster has reached its limit of %d members", ErrUnsafeChange, limits.MaxMembers)
	}
	if len(c.Member.PeerURLs) == 0 {
		return fmt.Errorf("%w: a new member needs a peer URL", ErrBadMember)
	}
	if err := m.checkURLs(c); err != nil {
		return err
	}
	if n := m.keptLearners(); c.Member.KeepLearner && c.MaxLearners > 0 && n >= c.MaxLearners {
		return fmt.Errorf("%w: %d members stay learners, and the limit of the request is %d (--max-learners)", ErrTooManyLearners, n, c.MaxLearners)
	}
	return nil
}

// keptLearners returns how many learners the leader does not promote.
func (m *Membership) keptLearners() (n int) {
	for i := range m.Members {
		if m.Members[i].Learner && m.Members[i].KeepLearner {
			n++
		}
	}
	return n
}

// checkReplace refuses to replace a member by anybody but the same machine: it has the
// member's name and one of its URLs. A member that never started has told no name.
func (m *Membership) checkReplace(c *Change, exists bool) error {
	old, known := m.Member(c.Replaces)
	switch {
	case m.Removed[c.Replaces]:
		return fmt.Errorf("%w: member %d is not there to be replaced", ErrMemberNotFound, c.Replaces)
	case !known:
		return fmt.Errorf("%w: %d", ErrMemberNotFound, c.Replaces)
	case exists:
		return fmt.Errorf("%w: id %d is in use", ErrMemberExists, c.Member.ID)
	case old.Name != "" && old.Name != c.Member.Name:
		return fmt.Errorf("%w: member %d is named %q, and %q cannot replace it", ErrBadMember, old.ID, old.Name, c.Member.Name)
	case !slices.ContainsFunc(c.Member.PeerURLs, func(u string) bool { return slices.Contains(old.PeerURLs, u) }):
		return fmt.Errorf("%w: member %d has other peer URLs than the member to replace it", ErrBadMember, old.ID)
	case !old.Learner && len(m.Voters()) == 1:
		return fmt.Errorf("%w: member %d is the last voter", ErrUnsafeChange, old.ID)
	}
	return m.checkURLs(c)
}

// checkURLs refuses a peer URL that another member has: two members behind one
// address would get each other's messages.
func (m *Membership) checkURLs(c *Change) error {
	for _, other := range m.Members {
		if other.ID == c.Member.ID || other.ID == c.Removed() {
			continue
		}
		for _, u := range c.Member.PeerURLs {
			if slices.Contains(other.PeerURLs, u) {
				return fmt.Errorf("%w: %s is a peer URL of member %d", ErrMemberExists, u, other.ID)
			}
		}
	}
	return nil
}
