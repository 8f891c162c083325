package raftnode

import (
	"hash/fnv"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/roster"
)

// knowledge is what an observer of all members remembers, to judge what they
// do next. The invariants:
//
//	S1  a term has one leader
//	S2  an entry of one index and term is the same, and follows the same
//	    entry, in every log (log matching)
//	S3  a leader's log contains every entry known to be committed (leader
//	    completeness), and no two members commit different entries
//	S4  members that applied the same index have the same state
//	S5  an entry that a leader commits is durable on a majority of the voters
//	S6  a restart brings back the term and vote that answers were given with
//	S7  a command runs once (machine), is answered once, runs if it was
//	    acknowledged, and does not if it was surely refused (op.judge)
//	S8  a read, and a write, sees every write acknowledged before it began
//	S9  raft's configuration is the membership's
//	S10 a member that claims to be as fresh as of some time has applied all that
//	    was committed before that
//	S11 an empty directory never gets the id of a member that has taken part (sim.askForPlace)
//	S12 a block of a store that has rotted is mended (sim.mended)
type knowledge struct {
	leaders   map[uint64]tenure // by term
	logged    map[entryKey]loggedEntry
	committed []uint64 // term by index
	since     []int64  // when a member first knew it to be committed, by index
	under     []uint64 // the term of that member then, by index
	applied   map[uint64]appliedEntry
	acked     uint64 // greatest index of an acknowledged write
	ops       []*op

	membership      *roster.Membership
	membershipIndex uint64
	votersIndex     uint64 // where its voters last changed

	writes, reads, changes, transfers int // that succeeded
	snapshotsSent, snapshotsInstalled int
	bodiesRefused                     int
	elections, restarts               int

	reached   map[situation]int
	batches   map[roster.BatchID]bool // that were committed
	batchesTo uint64                  // up to this index
}

// tenure identifies a leader, including its restarts: one that forgot its term
// would write other entries in it.
type tenure struct {
	member uint64
	life   int
}

type entryKey struct{ index, term uint64 }

type loggedEntry struct {
	hash     uint64
	prevTerm uint64
}

type appliedEntry struct{ term, hash uint64 }

func newKnowledge() knowledge {
	return knowledge{
		leaders:   make(map[uint64]tenure),
		logged:    make(map[entryKey]loggedEntry),
		committed: make([]uint64, InitialIndex+1),
		since:     make([]int64, InitialIndex+1),
		under:     make([]uint64, InitialIndex+1),
		applied:   make(map[uint64]appliedEntry),
		reached:   make(map[situation]int),
		batches:   make(map[roster.BatchID]bool),
	}
}

// observeAppend checks S2 for entries about to be written.
func (s *sim) observeAppend(n *simNode, ents []*raftpb.Entry) {
	s.observeOverwriting(n, ents)
	for i, e := range ents {
		b, err := proto.Marshal(e)
		if err != nil {
			s.violate("marshal entry: %v", err)
			return
		}
		h := fnv.New64a()
		h.Write(b)
		now := loggedEntry{hash: h.Sum64()}
		if i > 0 {
			now.prevTerm = ents[i-1].GetTerm()
		} else if now.prevTerm, err = n.log.Term(e.GetIndex() - 1); err != nil {
			now.prevTerm = n.pendingTerm(e.GetIndex() - 1)
		}
		key := entryKey{e.GetIndex(), e.GetTerm()}
		before, ok := s.known.logged[key]
		if !ok {
			s.known.logged[key] = now
		} else if before.hash != now.hash || before.prevTerm != now.prevTerm && now.prevTerm != 0 && before.prevTerm != 0 {
			s.violate("S2: member %d has another entry at index %d term %d (after one of term %d, not %d)",
				n.id, key.index, key.term, now.prevTerm, before.prevTerm)
		}
	}
}

// pendingTerm is the term of an entry in the save that is running.
func (n *simNode) pendingTerm(index uint64) uint64 {
	for _, m := range n.appendJob {
		if meta := m.GetSnapshot().GetMetadata(); meta.GetIndex() == index {
			return meta.GetTerm()
		}
	}
	return 0
}

// termAt is the term of an entry in the member's view of its log, saved or
// not; 0 if it has none.
func (n *simNode) termAt(index uint64) uint64 {
	for _, queue := range [][]*raftpb.Message{n.appendQueue, n.appendJob} {
		for i := len(queue) - 1; i >= 0; i-- {
			if t, ok := termIn(queue[i], index); ok {
				return t
			}
		}
	}
	t, err := n.log.Term(index)
	if err != nil {
		return 0
	}
	return t
}

// termIn looks up an index in what a message writes. ok means that the message
// decides, even that there is no such entry anymore.
func termIn(m *raftpb.Message, index uint64) (term uint64, ok bool) {
	ents := m.GetEntries()
	if len(ents) > 0 && index >= ents[0].GetIndex() {
		if at := index - ents[0].GetIndex(); at < uint64(len(ents)) {
			return ents[at].GetTerm(), true
		}
		return 0, true
	}
	meta := m.GetSnapshot().GetMetadata()
	if index == meta.GetIndex() {
		return meta.GetTerm(), true
	}
	return 0, meta.GetIndex() != 0 // a snapshot replaces the whole log
}

// observe checks a member after a turn of its node loop.
func (s *sim) observe(n *simNode, membershipChanged bool) {
	st := n.core.rn.BasicStatus()
	if n.core.isLeader() {
		s.observeLeader(n, st.GetTerm())
	}
	if st.GetCommit() > n.committed {
		s.observeCommit(n, st.GetCommit())
	}
	if membershipChanged {
		n.voters = n.raftVoters()
		s.observeConfig(n)
	}
}

// observeFreshness checks S10.
func (s *sim) observeFreshness(n *simNode) {
	if s.opts.bug == bugFreshByContact && n.core.recentlyHeard(n.core.lead) { // as if hearing a leader were enough
		n.fresh.note(&effects{proved: n.core.rn.BasicStatus().GetCommit(), asks: true}, n.time(), n.applier.index)
	}
	claimed := n.fresh.confirmed(n.applier.index).UnixMicro()
	if next := n.applier.index + 1; next < uint64(len(s.known.since)) && s.known.since[next] < claimed {
		s.violate("S10: member %d claims to be as fresh as of %d, has applied entries up to %d, and entry %d was committed at %d",
			n.id, claimed, n.applier.index, next, s.known.since[next])
	}
}

func (s *sim) observeLeader(n *simNode, term uint64) {
	now := tenure{n.id, n.boots}
	switch other, ok := s.known.leaders[term]; {
	case ok && other == now:
		return
	case ok:
		s.violate("S1: two leaders in term %d: member %d in its life %d, and member %d in its life %d",
			term, other.member, other.life, n.id, n.boots)
		return
	}
	s.known.leaders[term] = now
	s.known.elections++
	s.trace(5, n.id, term)
	last := uint64(len(s.known.committed) - 1)
	first, _ := n.log.FirstIndex()
	for i := last; i >= first && i > InitialIndex; i-- {
		if term <= s.known.under[i] {
			continue // won before, and noticed late: it can commit nothing
		}
		if t := n.termAt(i); t != s.known.committed[i] {
			s.violate("S3: member %d leads in term %d without the committed entry %d of term %d (it has term %d)",
				n.id, term, i, s.known.committed[i], t)
			return
		}
	}
}

// observeCommit checks that the member's committed entries are those of all
// others.
func (s *sim) observeCommit(n *simNode, commit uint64) {
	known := &s.known
	for i := max(n.committed, InitialIndex) + 1; i <= commit; i++ {
		t := n.termAt(i)
		if i >= uint64(len(known.committed)) {
			if t == 0 {
				s.violate("S3: member %d commits entry %d, which it does not have", n.id, i)
				return
			}
			known.committed = append(known.committed, t)
			known.since = append(known.since, s.now)
			known.under = append(known.under, n.core.term)
			continue
		}
		if t != 0 && t != known.committed[i] {
			s.violate("S3: member %d commits entry %d of term %d, others that of term %d", n.id, i, t, known.committed[i])
			return
		}
	}
	if n.core.isLeader() && n.termAt(commit) == n.core.term {
		s.observeDurable(n, commit)
	}
	n.committed = commit
}

// observeDurable checks S5. The turn may also have changed the configuration,
// so the previous one counts, too.
func (s *sim) observeDurable(n *simNode, commit uint64) {
	term := n.termAt(commit)
	if !s.opts.blind && !s.durableOn(n.voters, commit, term) && !s.durableOn(n.raftVoters(), commit, term) {
		s.violate("S5: member %d commits entry %d of term %d, which is not durable on a majority of %v", n.id, commit, term, n.voters)
	}
}

func (n *simNode) raftVoters() []uint64 { return n.core.rn.Status().Config.Voters[0].Slice() }

func (s *sim) durableOn(voters []uint64, index, term uint64) bool {
	have := 0
	for _, v := range voters {
		if m := s.nodes[v]; m != nil && m.disk.image.has(index, term) {
			have++
		}
	}
	return have > len(voters)/2
}

// observeRun checks S3 and S4 for one entry that ran.
func (s *sim) observeRun(n *simNode, e *Entry, hash uint64) {
	now := appliedEntry{e.Term, hash}
	before, ok := s.known.applied[e.Index]
	if !ok {
		s.known.applied[e.Index] = now
		s.trace(6, e.Index, hash)
	} else if before != now {
		s.violate("S4: member %d has another state after entry %d: term %d hash %x, others have term %d hash %x",
			n.id, e.Index, e.Term, hash, before.term, before.hash)
	}
}

func (s *sim) observeRestore(n *simNode) {
	s.known.snapshotsInstalled++
	index, _ := n.machine.position()
	if before, ok := s.known.applied[index]; ok && before.hash != n.machine.hash() {
		s.violate("S4: member %d restored another state at entry %d", n.id, index)
	}
}

// observeBoot checks S6 and S9.
func (n *simNode) observeBoot() {
	hs := n.core.rn.BasicStatus().HardState
	p := n.promised
	goesBack := hs.GetTerm() < p.term || hs.GetTerm() == p.term && p.vote != 0 && hs.GetVote() != p.vote
	if goesBack && !n.s.opts.blind {
		n.s.violate("S6: member %d comes back with term %d and vote %d, and had answered with term %d and vote %d",
			n.id, hs.GetTerm(), hs.GetVote(), p.term, p.vote)
	}
	if n.boots > 1 {
		n.s.known.restarts++
	}
	n.voters = n.raftVoters()
	n.s.observeConfig(n)
	n.s.noteMembership(n)
}

// observeConfig checks S9, unless raft has just accepted a snapshot whose
// membership is still on its way.
func (s *sim) observeConfig(n *simNode) {
	if n.installing {
		return
	}
	cfg := n.core.rn.Status().Config
	want := n.core.membership.ConfState()
	voters := cfg.Voters[0].Slice()
	var learners []uint64
	for id := range cfg.Learners {
		learners = append(learners, id)
	}
	slices.Sort(learners)
	if !slices.Equal(voters, want.GetVoters()) || !slices.Equal(learners, want.GetLearners()) || len(cfg.Voters[1]) > 0 {
		s.violate("S9: member %d: raft has voters %v learners %v, the membership %v and %v",
			n.id, voters, learners, want.GetVoters(), want.GetLearners())
	}
}
