package raftnode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
)

// MaxMemberID is the largest id a member may have.
const MaxMemberID = limits.MaxMemberID

// The reasons for which a membership change is refused, before it is proposed
// and again when it is applied.
var (
	ErrMemberExists   = errors.New("member exists")
	ErrMemberRemoved  = errors.New("member was removed")
	ErrMemberNotFound = errors.New("member not found")
	ErrUnsafeChange   = errors.New("unsafe membership change")
	ErrBadMember      = errors.New("bad member")
)

// Member is one member of the cluster in the replicated state.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls,omitempty"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Learner members get the log but do not vote.
	Learner bool `json:"learner,omitempty"`
	// KeepLearner stops the leader from promoting a learner by itself.
	KeepLearner bool `json:"keep_learner,omitempty"`
	// Nonce is that of the data directory which claimed the member; another
	// directory can never act as it. Empty until the first start.
	Nonce string `json:"nonce,omitempty"`
	// Version is the highest payload version its binary announced.
	Version int `json:"version,omitempty"`
}

// Membership is an immutable picture of the members at one moment.
type Membership struct {
	ClusterID uint64
	Members   []Member // by ascending id
	Removed   map[uint64]bool
	// HighestID is the greatest id ever used; ids are never given out again.
	HighestID uint64
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

// confState is raft's form of the membership. kvd changes one member at a
// time, so that there is never a joint configuration.
func (m *Membership) confState() *raftpb.ConfState {
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

// originState is what the replicas remember of a member's process: which
// incarnation is current and which of its batches and changes ran last.
type originState struct {
	boot        string // of the process that began the incarnation
	incarnation uint64 // log index of its start entry; 0 before the first
	lastBatch   uint64
	lastChange  uint64
}

// roster is the part of the replicated state that raftnode owns: the members,
// the removed ids, and for each member its origin. It decides, the same on
// every replica, which batches run and which changes are legal.
//
// Invariants:
//
//	I1  an id is in at most one of members and removed, and never leaves removed
//	I2  there is always at least one voter
//	I3  a batch runs only if its incarnation is its member's current one and
//	    its sequence is above the last that ran; so none runs twice
//	I4  a member's nonce, once set, never changes
//
// It is owned by the apply loop. Other goroutines see Membership pictures.
type roster struct {
	clusterID uint64
	members   map[uint64]*Member
	removed   map[uint64]bool
	highestID uint64
	origins   map[uint64]*originState
	// picture is the last published Membership; rebuilt after a change.
	picture *Membership
}

// newRoster returns the roster of a cluster before its first entry.
func newRoster(clusterID uint64, initial []Member) *roster {
	r := &roster{
		clusterID: clusterID,
		members:   make(map[uint64]*Member),
		removed:   make(map[uint64]bool),
		origins:   make(map[uint64]*originState),
	}
	for _, m := range initial {
		r.members[m.ID] = &m
		r.highestID = max(r.highestID, m.ID)
	}
	return r
}

// membership returns the current picture.
func (r *roster) membership() *Membership {
	if r.picture == nil {
		p := &Membership{ClusterID: r.clusterID, Removed: maps.Clone(r.removed), HighestID: r.highestID}
		for _, id := range slices.Sorted(maps.Keys(r.members)) {
			p.Members = append(p.Members, *r.members[id])
		}
		r.picture = p
	}
	return r.picture
}

// verdict is what one committed entry means to the replicated state.
type verdict struct {
	commands [][]byte
	records  []Record
	// confChange is to be handed to raft before the entry is acknowledged;
	// nil where the entry changes no configuration.
	confChange *raftpb.ConfChangeV2

	kind   payloadKind
	id     batchID // of a batch or change
	ran    bool    // the batch's commands run, the change was new
	start  *start
	change *Change
	err    error // why a start or change was refused; the same on every replica
}

// apply works out what a committed entry does and updates the roster. An
// error means that the entry can not be understood: the node must stop.
func (r *roster) apply(e *raftpb.Entry) (verdict, error) {
	data := e.GetData()
	var cc *raftpb.ConfChangeV2
	if e.GetType() != raftpb.EntryNormal {
		var err error
		if cc, err = confChangeOf(e); err != nil {
			return verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		data = cc.GetContext()
	}
	if len(data) == 0 {
		return verdict{}, nil // a new leader's empty entry, or a change that raft emptied
	}
	kind, body, err := openPayload(data)
	if err != nil {
		return verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	s := verdict{kind: kind}
	switch {
	case kind == kindBatch && cc == nil:
		err = r.applyBatch(&s, body)
	case kind == kindStart && cc == nil:
		err = r.applyStart(&s, body, e.GetIndex())
	case kind == kindChange && cc != nil:
		err = r.applyChange(&s, body, cc)
	default:
		err = fmt.Errorf("%w: %v in an entry of type %v", errPayloadShape, kind, e.GetType())
	}
	if err != nil {
		return verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	return s, nil
}

func confChangeOf(e *raftpb.Entry) (*raftpb.ConfChangeV2, error) {
	if e.GetType() != raftpb.EntryConfChangeV2 {
		return nil, fmt.Errorf("%w: entry type %v", errPayloadShape, e.GetType())
	}
	cc := new(raftpb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, fmt.Errorf("%w: %v", errPayloadShape, err)
	}
	return cc, nil
}

func (r *roster) applyBatch(s *verdict, body []byte) error {
	o, commands, err := decodeBatch(body)
	if err != nil {
		return err
	}
	s.id = o
	state := r.origins[o.member]
	if state == nil || state.incarnation != o.incarnation || o.sequence <= state.lastBatch {
		return nil // I3: an older process, or a copy of one that ran
	}
	state.lastBatch = o.sequence
	s.ran, s.commands = true, commands
	s.records = append(s.records, r.originRecord(o.member))
	return nil
}

func (r *roster) applyStart(s *verdict, body []byte, index uint64) error {
	st, err := decodeStart(body)
	if err != nil {
		return err
	}
	s.start = st
	m := r.members[st.Member]
	switch {
	case r.removed[st.Member]:
		s.err = fmt.Errorf("%w: %d", ErrMemberRemoved, st.Member)
		return nil
	case m == nil:
		s.err = fmt.Errorf("%w: %d", ErrMemberNotFound, st.Member)
		return nil
	case m.Nonce != "" && m.Nonce != st.Nonce: // I4
		s.err = fmt.Errorf("%w: member %d belongs to another data directory", ErrMemberExists, st.Member)
		return nil
	}
	r.claim(m, st)
	s.records = append(s.records, memberRecord(m))
	if st.Boot == "" {
		return nil
	}
	state := r.origins[st.Member]
	if state != nil && state.boot == st.Boot {
		return nil // the same process, proposed twice
	}
	r.origins[st.Member] = &originState{boot: st.Boot, incarnation: index}
	s.ran = true
	s.records = append(s.records, r.originRecord(st.Member))
	return nil
}

// claim binds the member to the directory and takes over what its process
// says of itself. Peer URLs that the cluster already knows win: they may have
// been changed on purpose while the process was down.
func (r *roster) claim(m *Member, st *start) {
	m.Nonce = st.Nonce
	if st.Version > 0 {
		m.Version = st.Version
	}
	if st.Name != "" {
		m.Name = st.Name
	}
	if len(m.PeerURLs) == 0 {
		m.PeerURLs = st.PeerURLs
	}
	if len(st.ClientURLs) > 0 {
		m.ClientURLs = st.ClientURLs
	}
	r.picture = nil
}

func (r *roster) applyChange(s *verdict, body []byte, cc *raftpb.ConfChangeV2) error {
	o, c, err := decodeChange(body)
	if err != nil {
		return err
	}
	s.id, s.change = o, c
	state := r.origins[o.member]
	if state == nil || state.incarnation != o.incarnation || o.sequence <= state.lastChange {
		return nil
	}
	state.lastChange = o.sequence
	s.ran = true
	s.records = append(s.records, r.originRecord(o.member))
	if s.err = r.membership().check(c); s.err != nil {
		return nil
	}
	if err := matchesConfChange(c, cc); err != nil {
		return err
	}
	s.confChange = cc
	s.records = append(s.records, r.execute(c)...)
	return nil
}

// execute carries out a change that check allowed.
func (r *roster) execute(c *Change) []Record {
	id := c.Member.ID
	r.picture = nil
	switch c.Kind {
	case AddMember:
		m := c.Member
		m.Learner, m.Nonce = true, ""
		r.members[id] = &m
		r.highestID = max(r.highestID, id)
		return []Record{memberRecord(&m)}
	case PromoteMember:
		r.members[id].Learner = false
	case UpdateMember:
		if c.Member.PeerURLs != nil {
			r.members[id].PeerURLs = c.Member.PeerURLs
		}
		if c.Member.ClientURLs != nil {
			r.members[id].ClientURLs = c.Member.ClientURLs
		}
	case RemoveMember:
		delete(r.members, id)
		delete(r.origins, id)
		r.removed[id] = true
		return []Record{
			{Key: recordKey(recordMember, id)},
			{Key: recordKey(recordOrigin, id)},
			{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}},
		}
	}
	return []Record{memberRecord(r.members[id])}
}

// check says whether the change is legal in this membership. It is asked
// before a change is proposed and again when it is applied.
func (m *Membership) check(c *Change) error {
	id := c.Member.ID
	if id == 0 || id > MaxMemberID {
		return fmt.Errorf("%w: id %d is not between 1 and 2^53-1", ErrBadMember, id)
	}
	if m.Removed[id] {
		return fmt.Errorf("%w: id %d can not come back; add the machine under a new id", ErrMemberRemoved, id)
	}
	existing, exists := m.Member(id)
	if c.Kind == AddMember {
		return m.checkAdd(c, exists)
	}
	if !exists {
		return fmt.Errorf("%w: %d", ErrMemberNotFound, id)
	}
	switch c.Kind {
	case PromoteMember:
		if !existing.Learner {
			return fmt.Errorf("%w: member %d votes already", ErrMemberExists, id)
		}
	case UpdateMember:
		return m.checkURLs(c)
	case RemoveMember:
		if !existing.Learner && len(m.Voters()) == 1 {
			return fmt.Errorf("%w: member %d is the last one that votes", ErrUnsafeChange, id)
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
		return fmt.Errorf("%w: the cluster has its limit of %d members", ErrUnsafeChange, limits.MaxMembers)
	}
	if len(c.Member.PeerURLs) == 0 {
		return fmt.Errorf("%w: a new member needs a peer URL", ErrBadMember)
	}
	return m.checkURLs(c)
}

// checkURLs refuses a peer URL that another member has: two members behind
// one address would take each other's messages.
func (m *Membership) checkURLs(c *Change) error {
	for _, other := range m.Members {
		if other.ID == c.Member.ID {
			continue
		}
		for _, u := range c.Member.PeerURLs {
			if slices.Contains(other.PeerURLs, u) {
				return fmt.Errorf("%w: %s is the peer URL of member %d", ErrMemberExists, u, other.ID)
			}
		}
	}
	return nil
}

// confChange is raft's form of the change.
func (c *Change) confChange(context []byte) *raftpb.ConfChangeV2 {
	kind := raftpb.ConfChangeUpdateNode
	switch c.Kind {
	case AddMember:
		kind = raftpb.ConfChangeAddLearnerNode
	case PromoteMember:
		kind = raftpb.ConfChangeAddNode
	case RemoveMember:
		kind = raftpb.ConfChangeRemoveNode
	}
	return &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: new(c.Member.ID)}},
		Context: context,
	}
}

// matchesConfChange guards against an entry whose two halves disagree.
func matchesConfChange(c *Change, cc *raftpb.ConfChangeV2) error {
	want := c.confChange(nil).GetChanges()[0]
	if len(cc.GetChanges()) != 1 || cc.GetChanges()[0].GetType() != want.GetType() ||
		cc.GetChanges()[0].GetNodeId() != want.GetNodeId() {
		return fmt.Errorf("%w: raft's change does not match the member change", errPayloadShape)
	}
	return nil
}

// The records of the roster. Their keys are a letter and, where there is one
// a member, its id in big-endian order.
const (
	recordVersion = 1

	recordCluster = 'c'
	recordMember  = 'm'
	recordOrigin  = 'o'
	recordRemoved = 'r'
)

func recordKey(table byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{table}, id)
}

func memberRecord(m *Member) Record {
	b, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("raftnode: encode member %d: %v", m.ID, err)) // plain data always encodes
	}
	return Record{Key: recordKey(recordMember, m.ID), Value: append([]byte{recordVersion}, b...)}
}

func (r *roster) originRecord(id uint64) Record {
	o := r.origins[id]
	b := []byte{recordVersion}
	b = binary.AppendUvarint(b, o.incarnation)
	b = binary.AppendUvarint(b, o.lastBatch)
	b = binary.AppendUvarint(b, o.lastChange)
	return Record{Key: recordKey(recordOrigin, id), Value: append(b, o.boot...)}
}

func (r *roster) clusterRecord() Record {
	b := binary.BigEndian.AppendUint64([]byte{recordVersion}, r.clusterID)
	return Record{Key: []byte{recordCluster}, Value: b}
}

// records returns the whole roster in its stored form.
func (r *roster) records() []Record {
	out := []Record{r.clusterRecord()}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		out = append(out, memberRecord(r.members[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(r.origins)) {
		out = append(out, r.originRecord(id))
	}
	for _, id := range slices.Sorted(maps.Keys(r.removed)) {
		out = append(out, Record{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}})
	}
	return out
}

// loadRoster rebuilds a roster from its records.
func loadRoster(records []Record) (*roster, error) {
	r := newRoster(0, nil)
	for _, rec := range records {
		if err := r.load(rec); err != nil {
			return nil, fmt.Errorf("membership record %x: %w", rec.Key, err)
		}
	}
	for id := range r.removed {
		r.highestID = max(r.highestID, id)
	}
	return r, nil
}

func (r *roster) load(rec Record) error {
	if len(rec.Key) == 0 || len(rec.Value) == 0 || rec.Value[0] != recordVersion {
		return fmt.Errorf("%w: no key, or unknown record version", errPayloadShape)
	}
	value := rec.Value[1:]
	if rec.Key[0] == recordCluster && len(value) == 8 {
		r.clusterID = binary.BigEndian.Uint64(value)
		return nil
	}
	if len(rec.Key) != 9 {
		return errPayloadShape
	}
	id := binary.BigEndian.Uint64(rec.Key[1:])
	switch rec.Key[0] {
	case recordMember:
		m := new(Member)
		if err := json.Unmarshal(value, m); err != nil || m.ID != id {
			return errors.Join(errPayloadShape, err)
		}
		r.members[id] = m
		r.highestID = max(r.highestID, id)
	case recordOrigin:
		return r.loadOrigin(id, value)
	case recordRemoved:
		r.removed[id] = true
	default:
		return errPayloadShape
	}
	return nil
}

func (r *roster) loadOrigin(id uint64, b []byte) (err error) {
	o := new(originState)
	for _, field := range []*uint64{&o.incarnation, &o.lastBatch, &o.lastChange} {
		if *field, b, err = takeUvarint(b); err != nil {
			return err
		}
	}
	o.boot = string(b)
	r.origins[id] = o
	return nil
}

// equalConfState compares the configuration that raft holds with the one the
// roster has; they differ only through a bug.
func equalConfState(a, b *raftpb.ConfState) bool {
	return slices.Equal(a.GetVoters(), b.GetVoters()) && slices.Equal(a.GetLearners(), b.GetLearners()) &&
		len(a.GetVotersOutgoing()) == 0 && len(a.GetLearnersNext()) == 0
}
