package raftnode

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/roster"
	"github.com/kvd-io/kvd/internal/scrub"
)

// Damage that nobody causes: a block of a store rots, and a sector in the middle of a log
// is zeroed. The first is repaired from the other members, as in package node; the second
// ends the member, because nobody knows what it has promised.

var (
	errRotten = fmt.Errorf("model store: %w", engine.ErrDamaged)
	// errStoreRefused ends a member whose damaged store an operator has to look at.
	errStoreRefused = errors.New("the store is damaged, and is not rebuilt without an operator")
	// errRebuilding ends a start that found nobody to send the state.
	errRebuilding = errors.New("the store cannot be rebuilt yet")
	errLogDamaged = errors.New("model disk: a record is damaged, and there are whole ones after it")
)

// maxSimRebuilds is how often a store is rebuilt without an operator (datadir.CanRebuild).
const maxSimRebuilds = 2

// storeDamage is what has become of a member's store. It survives crashes.
type storeDamage struct {
	rotten     bool // a block has rotted, and has not been replaced
	rebuilding bool // the next start fills a new store
	again      bool // an attempt to start is due
	refused    bool // until an operator orders a rebuild
	rebuilds   int  // without an operator
}

// damaged reports whether a member's store is not whole. The faults wait for its repair
// before they take away for good what the repair may need.
func (s *sim) damaged() bool {
	return slices.ContainsFunc(s.order, func(id uint64) bool {
		n := s.nodes[id]
		return !errors.Is(n.ended, ErrRemoved) && (n.store.rotten || n.store.rebuilding || n.store.refused)
	})
}

// faultRot lets a block of a member's store rot. Nobody notices that before the block is read.
func (s *sim) faultRot() {
	n := s.anyNode()
	_, member := s.members().Member(n.id)
	if !member || s.lost() != 0 || !s.mayShrink() || !s.knownWithout(n.id) || !n.rot() {
		return
	}
	s.note("-- a block of %x's store rots", n.id)
	n.store.rotten = true
	s.reachIf(rotOfLeader, n.up && n.core.isLeader())
	n.scrubLater()
}

// rot damages what a member has stored: a block of its store, or, for an engine in memory,
// the body that it would start from.
func (n *simNode) rot() bool {
	if !n.s.opts.memory {
		return n.machine.rot(n.s.rng)
	}
	body := n.bodies[n.checkpoint]
	if len(body) == 0 {
		return false
	}
	body = slices.Clone(body)
	body[n.s.rng.IntN(len(body))] ^= 1 << n.s.rng.IntN(8)
	n.bodies[n.checkpoint] = body
	return true
}

// scrubLater lets the scrub get to the rotten block. An engine in memory has none.
func (n *simNode) scrubLater() {
	if !n.store.rotten || n.s.opts.memory || n.s.opts.bug == bugRotNotMended {
		return
	}
	n.later(n.s.between(span{100 * milli, 5 * second}), "scrub", func() {
		err := n.machine.scrub()
		n.store.rotten = err != nil
		if err != nil {
			n.s.reach(rotScrubbed)
			n.rebuildWhenPossible(err)
		}
	})
}

// rebuildWhenPossible is what scrub.Health and package node do about damage that no request
// has met.
func (n *simNode) rebuildWhenPossible(damage error) {
	if o := n.obstacle(); o.Rebuild != nil || o.Quorum != nil {
		n.s.reachIf(rebuildWaits, o.Quorum != nil)
		n.later(second, "look again", func() { n.rebuildWhenPossible(damage) })
		return
	}
	if n.core.isLeader() {
		n.s.handOver(n, 0)
	}
	n.later(n.s.between(span{0, second}), "rebuild", func() { n.storeFails(damage) })
}

// obstacle is what prevents a rebuild now, as node.member sees it.
func (n *simNode) obstacle() scrub.Obstacle {
	self, member := n.core.membership.Member(n.id)
	o := scrub.Others{Votes: member && !self.Learner}
	for _, id := range n.core.membership.Voters() {
		o.Voters++
		if id == n.id {
			continue
		}
		o.Others++
		if n.s.reachable(n.id, id) {
			o.Reached++
		}
	}
	return scrub.Judge(o, func() error {
		switch {
		case n.disk.full:
			return errNoRoom
		case n.store.rebuilds >= maxSimRebuilds:
			return errors.New("the store was rebuilt too often")
		}
		return nil
	})
}

// reachable reports whether two members hear each other.
func (s *sim) reachable(a, b uint64) bool {
	n := s.nodes[b]
	return n != nil && n.up && !s.net.blocked[link{a, b}] && !s.net.blocked[link{b, a}]
}

// noteDamage ends a member whose store has met a rotten block.
func (n *simNode) noteDamage() {
	if !n.up {
		return
	}
	if err := n.machine.failed(); err != nil {
		n.s.reach(rotRead)
		n.storeFails(err)
	}
}

// storeFails ends a member whose store is damaged, and plans what its next start does.
func (n *simNode) storeFails(damage error) {
	if !n.up {
		return
	}
	o := n.obstacle()
	n.s.note("%x ends: %v", n.id, damage)
	n.stop(damage)
	if o.Rebuild != nil {
		n.refuseStore()
		return
	}
	n.store.rebuilding = true
	n.store.rebuilds++
	n.s.restartLater(n)
}

// refuseStore is the end of a process that needs an operator, who comes after a while.
func (n *simNode) refuseStore() {
	n.s.reach(storeRefused)
	n.ended, n.store.refused = errStoreRefused, true
	n.s.after(n.s.between(span{second, 5 * second}), "operator", n.orderRebuild)
}

// orderRebuild is an operator who starts the process with --rebuild-store.
func (n *simNode) orderRebuild() {
	if n.store.refused {
		n.store = storeDamage{rotten: n.store.rotten, rebuilding: true}
		n.start()
	}
}

// makeWay begins a rebuild: the damaged store is moved aside.
func (n *simNode) makeWay() {
	if n.store.rebuilding {
		n.machine.close()
		n.machine = n.s.opts.machine(n)
	}
}

// fetchBody fills an empty store from another member, as applier.fetchBody does.
func (n *simNode) fetchBody(st *diskState) error {
	meta := st.snapshot.GetMetadata()
	data, err := roster.DecodeSnapshotData(st.snapshot.GetData())
	if err != nil {
		return err
	}
	snapshot, body := n.askForBody(append(data.Members, roster.Named(st.entries)...), meta.GetIndex())
	if body == nil {
		return errRebuilding
	}
	n.s.reach(rebuildFromOther)
	if err := n.machine.Restore(bytes.NewReader(body)); err != nil {
		return err
	}
	index, term := n.machine.position()
	if err := n.applier.load(index, term); err != nil {
		return err
	}
	at := index - meta.GetIndex()
	n.s.reachIf(rebuildAhead, at > 0 && (at > uint64(len(st.entries)) || st.entries[at-1].GetTerm() != term))
	n.bodies[index] = body
	if n.disk.failing {
		return errRebuilding
	}
	if err := n.disk.SaveSnapshot(snapshot); err != nil {
		return fmt.Errorf("%w: %w", errRebuilding, err)
	}
	*st, err = n.disk.load()
	return err
}

// askForBody asks the members for their state, which must contain an entry.
func (n *simNode) askForBody(members []roster.Member, after uint64) (*raftpb.Snapshot, []byte) {
	for _, m := range members {
		if m.ID == n.id || !n.s.reachable(n.id, m.ID) || n.s.nodes[m.ID].applier.index < after {
			continue
		}
		if s, body := n.s.nodes[m.ID].body(); body != nil {
			return s, body
		}
	}
	return nil, nil
}

// crashesInRebuild is a power cut before the directory says that the rebuild has ended. The
// next start begins anew.
func (n *simNode) crashesInRebuild() bool {
	if n.s.nemesis == nil || !n.s.chance(0.2) {
		return false
	}
	n.s.reach(crashInRebuild)
	n.disk.crash(n.s.rng)
	n.machine.crash()
	return true
}

// startLater is the next attempt of a start that could not rebuild the store.
func (n *simNode) startLater(why error) {
	n.ended = why
	if n.store.again {
		return // others start it, too: each failure would double the attempts
	}
	n.store.again = true
	n.s.after(n.s.between(span{500 * milli, 1500 * milli}), "start again", func() {
		n.store.again = false
		if !n.up && errors.Is(n.ended, errRebuilding) {
			n.start()
		}
	})
}

// endRebuild records that the store fits the log, and that nobody will start from a rotten
// body anymore.
func (n *simNode) endRebuild() {
	n.s.reachIf(storeRebuilt, n.store.rebuilding)
	if n.store.rebuilding || n.s.opts.memory {
		n.store.rotten, n.store.rebuilding = false, false
	}
	n.scrubLater()
}

// whole reports whether every store is whole. Of an engine in memory only a start would tell.
func (s *sim) whole() bool {
	for _, id := range s.order {
		n := s.nodes[id]
		rotten := n.store.rotten && !s.opts.memory
		if !errors.Is(n.ended, ErrRemoved) && (rotten || n.store.rebuilding || n.store.refused) {
			return false
		}
	}
	return true
}

// mended waits until every store is whole (S12).
func (s *sim) mended(patience int64) bool {
	ok := s.until(patience, s.whole)
	if !ok && s.violation == nil {
		s.violate("S12: a rotten block was not mended within %d ms", patience/milli)
	}
	return ok
}

// makeRoom is an operator who deletes the damaged stores, so that others may be rebuilt, and
// orders what is waiting for that.
func (s *sim) makeRoom() {
	for _, id := range s.order {
		n := s.nodes[id]
		n.store.rebuilds = 0
		n.orderRebuild()
	}
}

// faultSector zeroes a sector in the middle of a member's log, which is then read. The
// member refuses to start, and another takes its place.
func (s *sim) faultSector() {
	n := s.anyNode()
	if s.opts.bug == bugGuardOff {
		n.crash()
		n.disk.zero(s.rng)
		s.restartLater(n)
		return
	}
	_, member := s.members().Member(n.id)
	if s.leader() == n || !s.knownWithout(n.id) || !member || s.lost() != 0 || !s.mayShrink() || !n.up || n.disk.full {
		return // a process that finds no room does not get to the damage, and another member's disk may be lost meanwhile
	}
	n.crash()
	if n.disk.zero(s.rng); n.disk.zeroed == 0 {
		s.restartLater(n)
		return
	}
	n.start()
	if s.lost() == n.id {
		s.after(5*electionTimeout, "come back without a disk", func() { s.comeBackLater(n.id) })
	}
}

// zero damages a record with entries that others follow, if there is one.
func (d *modelDisk) zero(rng *rand.Rand) {
	var middle []int
	for i := range max(len(d.records)-1, 0) {
		if i > 0 && len(d.records[i].entries) > 0 {
			middle = append(middle, i)
		}
	}
	if len(middle) > 0 {
		d.zeroed = middle[rng.IntN(len(middle))]
	}
}

// guard judges the log before it is read. Without it, the log ends silently where it is
// damaged.
func (d *modelDisk) guard() error {
	if d.torn() && d.noRepair {
		return errors.New("model disk: the last record is torn")
	}
	if d.zeroed == 0 {
		return nil
	}
	if !d.noGuard {
		return errLogDamaged
	}
	d.cut(d.zeroed, 0)
	d.zeroed = 0
	return nil
}

// torn reports whether the last record lacks its hard state.
func (d *modelDisk) torn() bool {
	return len(d.records) > 0 && d.records[len(d.records)-1].hs == nil && d.records[len(d.records)-1].snapshot == nil
}
