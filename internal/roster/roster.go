package roster

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
	"github.com/kvd-io/kvd/internal/statemachine"
)

// Why a membership change is refused, before it is proposed and again when it is
// applied.
var (
	ErrMemberExists   = errors.New("member already exists")
	ErrMemberRemoved  = errors.New("member was removed")
	ErrMemberNotFound = errors.New("member not found")
	ErrUnsafeChange   = errors.New("unsafe membership change")
	ErrBadMember      = errors.New("invalid member")
	// ErrStaleDirectory refuses a start, not a change.
	ErrStaleDirectory = errors.New("the data directory is an older copy, or one of two copies")
)

// Member is one member of the cluster in the replicated state.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls,omitempty"`
	ClientURLs []string `json:"client_urls,omitempty"`
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

// Origin is what the replicas remember about the process of a member, the
// origin of its batches and changes: which incarnation is current, and which
// batch and change of it ran last.
type Origin struct {
	Boot        string // random id of the process that began the incarnation
	Starts      uint64 // of the data directory, as that process counted them
	Incarnation uint64 // log index of its start entry; 0 before the first
	LastBatch   uint64 // sequence of the last batch that ran
	LastChange  uint64 // sequence of the last change, counted separately
}

// Roster is the part of the replicated state that this package owns: the members,
// the removed ids, and an Origin for each member. Every committed entry
// passes through it, and it decides, the same on every replica, which batches run
// and which changes are legal. It reads nothing but the entry and itself: a clock
// or a flag here would make replicas diverge.
//
// How a batch runs exactly once. A process may propose its batch many times,
// since it cannot tell a lost proposal from a slow one, and copies may commit
// after a change of leader, after a restart, or after a snapshot. A start entry
// makes its own index the incarnation of a process. A batch carries its member,
// that incarnation and a sequence number, and runs only if the incarnation is
// current and the sequence is higher than the last that ran (I3). So a batch of
// an older process never runs once a newer process has started, and a second
// copy finds its sequence used up. Sequences may have gaps.
//
// How a directory is bound to a member. A start entry also carries the nonce of
// the data directory. The first one to be applied claims the member; from then
// on no other directory can act as it (I4). A directory without a log is admitted
// in this way before it may vote, so a member whose disk was lost cannot come
// back empty and vote again in a term in which it has voted.
//
// Invariants:
//
//	I1  An id is in at most one of members and removed, and never leaves
//	    removed.
//	I2  There is always at least one voter.
//	I3  A batch runs only if its incarnation is the current one of its member
//	    and its sequence is above the last that ran. So none runs twice.
//	I4  The nonce of a member, once set, never changes.
//	I5  The processes of a member follow each other in the order of its
//	    directory's starts. An older copy of the directory, and the second of two
//	    copies, count a start that has been begun already.
//
// Rejected: deciding on the proposing node which copies are superfluous. Only
// the log knows the order in which they commit.
//
// The apply loop owns it. Other goroutines see Membership pictures.
type Roster struct {
	clusterID uint64
	members   map[uint64]*Member
	removed   map[uint64]bool
	highestID uint64
	origins   map[uint64]*Origin // by member; none before its first start
	// picture is the current Membership, nil if it must be rebuilt.
	picture *Membership
}

// New returns the roster of a cluster before its first entry.
func New(clusterID uint64, initial []Member) *Roster {
	r := &Roster{
		clusterID: clusterID,
		members:   make(map[uint64]*Member),
		removed:   make(map[uint64]bool),
		origins:   make(map[uint64]*Origin),
	}
	for _, m := range initial {
		r.members[m.ID] = &m
		r.highestID = max(r.highestID, m.ID)
	}
	return r
}

// Membership returns the current picture.
func (r *Roster) Membership() *Membership {
	if r.picture == nil {
		p := &Membership{ClusterID: r.clusterID, Removed: maps.Clone(r.removed), HighestID: r.highestID}
		for _, id := range slices.Sorted(maps.Keys(r.members)) {
			p.Members = append(p.Members, *r.members[id])
		}
		r.picture = p
	}
	return r.picture
}

// Origin returns what is remembered about the process of a member.
func (r *Roster) Origin(id uint64) Origin {
	if o := r.origins[id]; o != nil {
		return *o
	}
	return Origin{}
}

// Alone returns the roster of a new cluster whose only member is survivor. The
// ids of all others count as removed: a member that still runs with the old data
// must not come back.
func (r *Roster) Alone(clusterID uint64, survivor Member) *Roster {
	next := New(clusterID, []Member{survivor})
	next.highestID = r.highestID
	maps.Copy(next.removed, r.removed)
	for id := range r.members {
		if id != survivor.ID {
			next.removed[id] = true
		}
	}
	return next
}

// Verdict is what the roster decided about one committed entry.
type Verdict struct {
	Commands [][]byte
	Records  []statemachine.Record
	// confChange must be handed to raft before the entry is acknowledged. It is
	// nil if the entry changes no configuration.
	ConfChange *raftpb.ConfChangeV2

	kind   payloadKind
	ID     BatchID // of a batch or change
	Ran    bool    // the batch runs, the change is new, the start began an incarnation
	Start  *Start
	Change *Change
	Err    error // why a start or change was refused; the same on every replica
}

// Apply decides what a committed entry does and updates the roster. An error means
// that this binary cannot understand the entry. The replica must stop: skipping
// what others execute would make it diverge.
func (r *Roster) Apply(e *raftpb.Entry) (Verdict, error) {
	data := e.GetData()
	var cc *raftpb.ConfChangeV2
	if e.GetType() != raftpb.EntryNormal {
		var err error
		if cc, err = confChangeOf(e); err != nil {
			return Verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		data = cc.GetContext()
	}
	if len(data) == 0 {
		return Verdict{}, nil // a new leader's empty entry, or a change that raft emptied
	}
	kind, body, err := openPayload(data)
	if err != nil {
		return Verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	v := Verdict{kind: kind}
	switch {
	case kind == kindBatch && cc == nil:
		err = r.applyBatch(&v, body)
	case kind == kindStart && cc == nil:
		err = r.applyStart(&v, body, e.GetIndex())
	case kind == kindChange && cc != nil:
		err = r.applyChange(&v, body, cc)
	default:
		err = fmt.Errorf("%w: %v in an entry of type %v", errPayloadShape, kind, e.GetType())
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	return v, nil
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

func (r *Roster) applyBatch(v *Verdict, body []byte) error {
	id, commands, err := decodeBatch(body)
	if err != nil {
		return err
	}
	v.ID = id
	state := r.origins[id.Member]
	if state == nil || state.Incarnation != id.Incarnation || id.Sequence <= state.LastBatch {
		return nil // I3: of an older process, or a copy of one that ran
	}
	state.LastBatch = id.Sequence
	v.Ran, v.Commands = true, commands
	v.Records = append(v.Records, r.originRecord(id.Member))
	return nil
}

func (r *Roster) applyStart(v *Verdict, body []byte, index uint64) error {
	st, err := decodeStart(body)
	if err != nil {
		return err
	}
	v.Start = st
	m := r.members[st.Member]
	switch {
	case r.removed[st.Member]:
		v.Err = fmt.Errorf("%w: %d", ErrMemberRemoved, st.Member)
		return nil
	case m == nil:
		v.Err = fmt.Errorf("%w: %d", ErrMemberNotFound, st.Member)
		return nil
	case m.Nonce != "" && m.Nonce != st.Nonce: // I4
		v.Err = fmt.Errorf("%w: member %d belongs to another data directory", ErrMemberExists, st.Member)
		return nil
	}
	state := r.origins[st.Member]
	if st.Boot != "" && st.Starts != 0 && state != nil && state.Boot != st.Boot && st.Starts <= state.Starts { // I5
		v.Err = fmt.Errorf("%w: member %d has begun start %d of its data directory, and this is start %d of another copy", ErrStaleDirectory, st.Member, state.Starts, st.Starts)
		return nil
	}
	r.claim(m, st)
	v.Records = append(v.Records, memberRecord(m))
	if st.Boot == "" {
		return nil // an admission: the directory has no running process yet
	}
	if state != nil && state.Boot == st.Boot {
		return nil // a copy of the start of the current process
	}
	r.origins[st.Member] = &Origin{Boot: st.Boot, Starts: st.Starts, Incarnation: index}
	v.Ran = true
	v.Records = append(v.Records, r.originRecord(st.Member))
	return nil
}

// claim binds the member to the directory and takes over what its process says
// about it. Peer URLs that the cluster already knows win: they may have been
// changed on purpose while the process was down.
func (r *Roster) claim(m *Member, st *Start) {
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

func (r *Roster) applyChange(v *Verdict, body []byte, cc *raftpb.ConfChangeV2) error {
	id, c, err := decodeChange(body)
	if err != nil {
		return err
	}
	v.ID, v.Change = id, c
	state := r.origins[id.Member]
	if state == nil || state.Incarnation != id.Incarnation || id.Sequence <= state.LastChange {
		return nil // as for a batch
	}
	state.LastChange = id.Sequence
	v.Ran = true
	v.Records = append(v.Records, r.originRecord(id.Member))
	// It was legal when it was proposed. Others may have been applied since.
	if v.Err = r.Membership().Check(c); v.Err != nil {
		return nil
	}
	if err := matchesConfChange(c, cc); err != nil {
		return err
	}
	v.ConfChange = cc
	v.Records = append(v.Records, r.execute(c)...)
	return nil
}

// execute makes a change that check allowed, and returns the records that it
// changed.
func (r *Roster) execute(c *Change) []statemachine.Record {
	id := c.Member.ID
	r.picture = nil
	switch c.Kind {
	case AddMember:
		m := c.Member
		m.Learner, m.Nonce = true, ""
		r.members[id] = &m
		r.highestID = max(r.highestID, id)
		return []statemachine.Record{memberRecord(&m)}
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
		return []statemachine.Record{
			{Key: recordKey(recordMember, id)},
			{Key: recordKey(recordOrigin, id)},
			{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}},
		}
	}
	return []statemachine.Record{memberRecord(r.members[id])}
}

// Check returns why the change is illegal in this membership. It is called before
// a change is proposed, and again when it is applied.
func (m *Membership) Check(c *Change) error {
	id := c.Member.ID
	if id == 0 || id > limits.MaxMemberID {
		return fmt.Errorf("%w: id %d is not between 1 and 2^53-1", ErrBadMember, id)
	}
	if m.Removed[id] {
		return fmt.Errorf("%w: id %d cannot be used again; add the machine under a new id", ErrMemberRemoved, id)
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
	return m.checkURLs(c)
}

// checkURLs refuses a peer URL that another member has: two members behind one
// address would get each other's messages.
func (m *Membership) checkURLs(c *Change) error {
	for _, other := range m.Members {
		if other.ID == c.Member.ID {
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

// ConfChange returns raft's form of the change.
func (c *Change) ConfChange(context []byte) *raftpb.ConfChangeV2 {
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

// matchesConfChange refuses an entry whose two halves disagree: raft would follow
// the one, and the roster the other.
func matchesConfChange(c *Change, cc *raftpb.ConfChangeV2) error {
	want := c.ConfChange(nil).GetChanges()[0]
	if len(cc.GetChanges()) != 1 || cc.GetChanges()[0].GetType() != want.GetType() ||
		cc.GetChanges()[0].GetNodeId() != want.GetNodeId() {
		return fmt.Errorf("%w: raft's change and the member change differ", errPayloadShape)
	}
	return nil
}

// The records in which the state machine stores the roster. A key is a letter
// and, except for that of the cluster, a member's id in big-endian order.
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

func memberRecord(m *Member) statemachine.Record {
	b, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("roster: encode member %d: %v", m.ID, err)) // plain data always encodes
	}
	return statemachine.Record{Key: recordKey(recordMember, m.ID), Value: append([]byte{recordVersion}, b...)}
}

func (r *Roster) originRecord(id uint64) statemachine.Record {
	o := r.origins[id]
	b := []byte{recordVersion}
	b = binary.AppendUvarint(b, o.Incarnation)
	b = binary.AppendUvarint(b, o.LastBatch)
	b = binary.AppendUvarint(b, o.LastChange)
	b = binary.AppendUvarint(b, o.Starts)
	return statemachine.Record{Key: recordKey(recordOrigin, id), Value: append(b, o.Boot...)}
}

func (r *Roster) clusterRecord() statemachine.Record {
	b := binary.BigEndian.AppendUint64([]byte{recordVersion}, r.clusterID)
	return statemachine.Record{Key: []byte{recordCluster}, Value: b}
}

// Records returns the whole roster in its stored form, sorted within each table.
func (r *Roster) Records() []statemachine.Record {
	out := []statemachine.Record{r.clusterRecord()}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		out = append(out, memberRecord(r.members[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(r.origins)) {
		out = append(out, r.originRecord(id))
	}
	for _, id := range slices.Sorted(maps.Keys(r.removed)) {
		out = append(out, statemachine.Record{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}})
	}
	return out
}

// RecordsFor returns the changes that turn the records of this roster into those
// of next.
func (r *Roster) RecordsFor(next *Roster) []statemachine.Record {
	out := next.Records()
	stays := make(map[string]bool)
	for _, rec := range out {
		stays[string(rec.Key)] = true
	}
	for _, rec := range r.Records() {
		if !stays[string(rec.Key)] {
			out = append(out, statemachine.Record{Key: rec.Key})
		}
	}
	return out
}

// Load rebuilds a roster from its records.
func Load(records []statemachine.Record) (*Roster, error) {
	r := New(0, nil)
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

func (r *Roster) load(rec statemachine.Record) error {
	if len(rec.Key) == 0 || len(rec.Value) == 0 || rec.Value[0] != recordVersion {
		return fmt.Errorf("%w: the key is missing, or the record version unknown", errPayloadShape)
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

func (r *Roster) loadOrigin(id uint64, b []byte) (err error) {
	o := new(Origin)
	for _, field := range []*uint64{&o.Incarnation, &o.LastBatch, &o.LastChange, &o.Starts} {
		if *field, b, err = takeUvarint(b); err != nil {
			return err
		}
	}
	o.Boot = string(b)
	r.origins[id] = o
	return nil
}
