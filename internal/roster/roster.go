package roster

import (
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/statemachine"
)

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

// Roster is the replicated membership: the members, the removed ids, and an Origin
// for each member. Every committed entry passes through it, and it decides, the
// same on every replica, which batches run and which changes are legal. It reads
// nothing but the entry and itself: a clock or a flag here would make replicas
// diverge.
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
// It has one owner, raftnode's apply loop. Other goroutines see Membership
// pictures.
type Roster struct {
	clusterID uint64
	members   map[uint64]*Member
	removed   map[uint64]bool
	highestID uint64
	origins   map[uint64]*Origin // by member; none before its first start
	// made are the last changes with an idempotency key, oldest first, and madeFrom is
	// the number of the first of them since the cluster was founded.
	made     []Made
	madeFrom uint64
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
		p := &Membership{ClusterID: r.clusterID, Removed: maps.Clone(r.removed), HighestID: r.highestID, Made: slices.Clone(r.made)}
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
	// ConfChanges must be handed to raft before the entry is acknowledged. There are
	// none if the entry changes no configuration.
	ConfChanges []*raftpb.ConfChangeV2

	ID     BatchID // of a batch or change
	Ran    bool    // the batch runs, the change is new, the start began an incarnation
	Start  *Start
	Change *Change
	Err    error // why a start or change was refused; the same on every replica
}

// Apply decides what a committed entry does and updates the roster. An error means
// that this binary cannot understand the entry. The replica must stop: skipping
// what others execute would make it diverge. A start or a change that the rules
// refuse does not stop it: the reason is in the Verdict.
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
	var v Verdict
	switch {
	case kind == kindBatch && cc == nil:
		err = r.applyBatch(&v, body)
	case kind == kindStart && cc == nil:
		err = r.applyStart(&v, body, e.GetIndex())
	case kind == kindChange && cc != nil:
		err = r.applyChange(&v, body, cc)
	default:
		err = fmt.Errorf("%w: %v in an entry of type %v", errMalformed, kind, e.GetType())
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
	}
	return v, nil
}

func confChangeOf(e *raftpb.Entry) (*raftpb.ConfChangeV2, error) {
	if e.GetType() != raftpb.EntryConfChangeV2 {
		return nil, fmt.Errorf("%w: entry type %v", errMalformed, e.GetType())
	}
	cc := new(raftpb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, fmt.Errorf("%w: %v", errMalformed, err)
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
	if state != nil && state.outdates(st) {
		v.Err = fmt.Errorf("%w: member %d has begun start %d of its data directory, and this is start %d of another copy",
			ErrStaleDirectory, st.Member, state.Starts, st.Starts)
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

// outdates reports whether a start comes from another copy of the directory than
// the current process, or from a process before it (I5). A copy of the current
// process's own start does not, however late it commits. Neither does an admission,
// which begins no process, nor the start of a directory that does not count.
func (o *Origin) outdates(st *Start) bool {
	return st.Boot != "" && st.Starts != 0 && st.Boot != o.Boot && st.Starts <= o.Starts
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
	if st.Boot != "" { // an admission knows nothing of the process to come
		m.Faces = st.Faces
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
	v.ConfChanges = c.confChanges(cc)
	v.Records = append(v.Records, r.execute(c)...)
	v.Records = append(v.Records, r.remember(c)...)
	return nil
}

// remember keeps a change for repeats of its request, and returns the records that it
// changed.
func (r *Roster) remember(c *Change) (out []statemachine.Record) {
	if c.Once.Key == "" {
		return nil
	}
	r.made = append(r.made, Made{Once: c.Once, Member: c.Member.ID})
	if len(r.made) > maxMade {
		out = append(out, statemachine.Record{Key: recordKey(recordMade, r.madeFrom)})
		r.made, r.madeFrom = r.made[1:], r.madeFrom+1
	}
	return append(out, r.madeRecord(len(r.made)-1))
}

// execute makes a change that Check allowed, and returns the records that it
// changed.
func (r *Roster) execute(c *Change) []statemachine.Record {
	id := c.Member.ID
	r.picture = nil
	switch c.Kind {
	case AddMember:
		return []statemachine.Record{r.admit(c.Member)}
	case ReplaceMember:
		return append(r.forget(c.Replaces), r.admit(c.Member))
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
		return r.forget(id)
	}
	return []statemachine.Record{memberRecord(r.members[id])}
}

// admit adds a learner that no directory has claimed.
func (r *Roster) admit(m Member) statemachine.Record {
	m.Learner, m.Nonce = true, ""
	r.members[m.ID] = &m
	r.highestID = max(r.highestID, m.ID)
	return memberRecord(&m)
}

// forget removes a member for good (I1).
func (r *Roster) forget(id uint64) []statemachine.Record {
	delete(r.members, id)
	delete(r.origins, id)
	r.removed[id] = true
	return []statemachine.Record{
		{Key: recordKey(recordMember, id)},
		{Key: recordKey(recordOrigin, id)},
		{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}},
	}
}
