package roster

import (
	"encoding/json"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// ChangeKind is what a Change does to the membership.
type ChangeKind string

// The kinds of membership changes.
const (
	AddMember     ChangeKind = "add"
	PromoteMember ChangeKind = "promote"
	UpdateMember  ChangeKind = "update"
	RemoveMember  ChangeKind = "remove"
	// ReplaceMember removes a member whose directory is lost, and adds one with the
	// same URL under a new id, in one step.
	ReplaceMember ChangeKind = "replace"
)

// Change is a membership change.
type Change struct {
	Kind ChangeKind `json:"kind"`
	// Member is the member to add or to change. PromoteMember and RemoveMember
	// need only its ID. UpdateMember replaces the URL lists that are not nil.
	Member Member `json:"member"`
	// Replaces is the member that ReplaceMember removes.
	Replaces uint64 `json:"replaces,omitempty"`
	// MaxLearners refuses AddMember of a member that stays a learner if that many are
	// there already; 0 means no limit.
	MaxLearners int `json:"max_learners,omitempty"`
	// Once identifies the request, if a repeat of it must not change anything again.
	Once Once `json:"once,omitzero"`
	// By tells the logs of all members who asked for the change. It has no
	// effect.
	By Requester `json:"by,omitzero"`
}

// Once is the idempotency key of a request, and a fingerprint of it in hexadecimal
// digits, by which another request under the same key is told from a repeat.
type Once struct {
	Key         string `json:"key"`
	Fingerprint string `json:"fingerprint"`
}

// Made is a change that was made, for repeats of its request.
type Made struct {
	Once
	Member uint64 `json:"member"` // the id of the member that was added or changed
}

// maxMade bounds the changes that are remembered. The roster has no clock; a client would
// have to make that many other changes before it repeats one whose answer it lost.
const maxMade = 512

// Requester names a client's request in the logs of all members. It is empty
// if the leader acted on its own behalf.
type Requester struct {
	RequestID string `json:"request_id,omitempty"`
	Client    string `json:"client,omitempty"`    // its address
	Principal string `json:"principal,omitempty"` // the user; empty while rights are disabled
}

// maxRequesterBytes bounds what is kept of each field of a Requester.
const maxRequesterBytes = 128

// Clipped returns the requester with each field cut to its bound: the fields come
// from a client, and the entry goes to all members.
func (r Requester) Clipped() Requester {
	clip := func(s string) string { return s[:min(len(s), maxRequesterBytes)] }
	return Requester{RequestID: clip(r.RequestID), Client: clip(r.Client), Principal: clip(r.Principal)}
}

// Fields returns the requester as fields of a log line.
func (r Requester) Fields() []zap.Field {
	if r == (Requester{}) {
		return []zap.Field{zap.Bool("automatic", true)}
	}
	fields := []zap.Field{zap.String("request_id", r.RequestID), zap.String("client", r.Client)}
	if r.Principal != "" {
		fields = append(fields, zap.String("principal", r.Principal))
	}
	return fields
}

// ConfChange returns raft's form of the change, for its entry. An added member is a
// learner: a voter without the log would count for the quorum and could not
// acknowledge anything yet.
func (c *Change) ConfChange(context []byte) *raftpb.ConfChangeV2 {
	kind, id := raftpb.ConfChangeUpdateNode, c.Member.ID
	switch c.Kind {
	case AddMember:
		kind = raftpb.ConfChangeAddLearnerNode
	case PromoteMember:
		kind = raftpb.ConfChangeAddNode
	case RemoveMember:
		kind = raftpb.ConfChangeRemoveNode
	case ReplaceMember:
		kind, id = raftpb.ConfChangeRemoveNode, c.Replaces
	}
	return single(kind, id, context)
}

func single(kind raftpb.ConfChangeType, id uint64, context []byte) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: new(id)}},
		Context: context,
	}
}

// confChanges returns what raft is told when the change is applied, in order. The entry
// of a replacement has the removal alone: raft takes two changes in one entry for a
// joint configuration, whose end would be a second entry. Adding a learner changes no
// quorum, so raft may as well learn of it beside the entry, as every replica does at the
// same index.
func (c *Change) confChanges(entry *raftpb.ConfChangeV2) []*raftpb.ConfChangeV2 {
	if c.Kind == ReplaceMember {
		return []*raftpb.ConfChangeV2{entry, single(raftpb.ConfChangeAddLearnerNode, c.Member.ID, nil)}
	}
	return []*raftpb.ConfChangeV2{entry}
}

// Removed returns the id of the member that the change removes, or 0.
func (c *Change) Removed() uint64 {
	switch c.Kind {
	case RemoveMember:
		return c.Member.ID
	case ReplaceMember:
		return c.Replaces
	}
	return 0
}

// Adds reports whether the change adds a member, under an id that may be chosen late.
func (c *Change) Adds() bool { return c.Kind == AddMember || c.Kind == ReplaceMember }

// matchesConfChange refuses an entry whose two halves disagree: raft would follow
// the one, and the roster the other.
func matchesConfChange(c *Change, cc *raftpb.ConfChangeV2) error {
	want := c.ConfChange(nil).GetChanges()[0]
	if len(cc.GetChanges()) != 1 || cc.GetChanges()[0].GetType() != want.GetType() ||
		cc.GetChanges()[0].GetNodeId() != want.GetNodeId() {
		return fmt.Errorf("%w: raft's change and the member change differ", errMalformed)
	}
	return nil
}

// EncodeChange returns the payload of a change, for the context of its
// ConfChange.
func EncodeChange(id BatchID, c *Change) []byte {
	return encodeJSON(appendBatchID(beginPayload(nil, kindChange), id), c)
}

func decodeChange(body []byte) (BatchID, *Change, error) {
	id, b, err := takeBatchID(body)
	if err != nil {
		return BatchID{}, nil, err
	}
	c := new(Change)
	if err := json.Unmarshal(b, c); err != nil {
		return BatchID{}, nil, fmt.Errorf("%w: change: %v", errMalformed, err)
	}
	return id, c, nil
}

// Named returns the members whose URLs are in changes among entries of the log, committed
// or not: whom a member may ask that has lost its state, and whose snapshot is older than
// they are.
func Named(entries []*raftpb.Entry) (members []Member) {
	for _, e := range entries {
		cc, err := confChangeOf(e)
		if err != nil {
			continue
		}
		kind, body, err := openPayload(cc.GetContext())
		if err != nil || kind != kindChange {
			continue
		}
		if _, c, err := decodeChange(body); err == nil && len(c.Member.PeerURLs) > 0 {
			members = append(members, c.Member)
		}
	}
	return members
}
