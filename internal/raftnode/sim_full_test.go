package raftnode

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/kvd-io/kvd/internal/roster"
)

// newerFaults came later than some of the seeds that tests remember. A seed chooses them
// from a source of their own, so that its run without them stays what it was.
func newerFaults() []fault {
	return []fault{
		{name: "disk full", do: (*sim).faultDiskFull},
		{name: "wipe", do: (*sim).faultWipe},
		{name: "rot", do: (*sim).faultRot},
		{name: "zeroed sector", do: (*sim).faultSector},
		{name: "clock set", do: (*sim).faultClockSet},
	}
}

// newerNames leaves them out, and newestNames those that are newer still.
var (
	newerNames  = append([]string{"disk full", "wipe"}, newestNames...)
	newestNames = []string{"rot", "zeroed sector", "clock set"}
)

// errNoRoom ends what a full disk did not take.
var errNoRoom = fmt.Errorf("model disk: %w", syscall.ENOSPC)

// hasRoom reports whether a record fits on the disk. A log has some room left in its last
// segment when the disk is full already.
func (d *modelDisk) hasRoom() bool {
	if d.full && d.room > 0 {
		d.room--
		return true
	}
	return !d.full
}

// faultDiskFull fills a disk until somebody makes room. A member ends when a save does not
// fit, and its process tries to start again and again.
func (s *sim) faultDiskFull() {
	n := s.anyNode()
	if n.disk.full {
		return
	}
	n.disk.full, n.disk.room = true, s.rng.IntN(30)
	for range 3 {
		s.restartLater(n)
	}
	s.after(s.between(span{500 * milli, 6 * second}), "room again", func() {
		n.disk.full = false
		s.restartLater(n)
	})
}

// cannotStart reports whether the disk has no room for what every start writes, or the
// store waits for an operator.
func (n *simNode) cannotStart() bool {
	if n.store.refused {
		return true
	}
	if !n.disk.full || n.disk.room > 0 {
		return false
	}
	n.s.reach(startOnFullDisk)
	n.ended = errNoRoom
	return true
}

// faultWipe loses a member's disk. The machine comes back with an empty one, and asks for
// its place under its old id, which it must not get: nobody knows what it has promised.
func (s *sim) faultWipe() {
	n := s.anyNode()
	if s.opts.bug == bugIDReused {
		n.reuse()
		return
	}
	mb, member := s.members().Member(n.id)
	if s.leader() == n || !s.knownWithout(n.id) || !member || mb.Nonce == "" || s.lost() != 0 || !s.mayShrink() {
		return
	}
	n.crash()
	n.ended = errLostDisk
	s.askForPlace(n)
}

// knownWithout reports whether the newest membership is known for good to a quorum of its
// voters without one of them. Until then, the others may still count with a voter that was
// removed and has left, so that the cluster does not survive the loss of a disk, too: a
// removed voter stays for three election timeouts, and a commit index is only synced with
// the next entries (seeds 1019600023007 and 774220850340).
func (s *sim) knownWithout(lost uint64) bool {
	voters, know := s.members().Voters(), 0
	for _, id := range voters {
		if n := s.nodes[id]; n != nil && id != lost && n.disk.image.hs.GetCommit() >= s.known.votersIndex {
			know++
		}
	}
	return know > len(voters)/2
}

// askForPlace has an empty directory ask members to be admitted, as package node does
// before such a directory gets a log.
func (s *sim) askForPlace(n *simNode) {
	via := s.anyNode()
	r := &startRequest{start: roster.Start{Member: n.id, Nonce: fmt.Sprintf("wiped%d-%d", n.id, s.now)}, done: make(chan error, 1)}
	if via.up {
		via.post(func(c *core) { c.admit(r) })
	}
	s.after(s.between(span{100 * milli, 2 * second}), "asks for its place", func() {
		if s.nemesis == nil || s.lost() != n.id {
			return
		}
		select {
		case err := <-r.done:
			if err == nil {
				s.violate("S11: member %d was given to an empty directory", n.id)
			}
			if errors.Is(err, roster.ErrMemberExists) {
				s.reach(wipedRefused)
				s.comeBackLater(n.id) // under a new one
				return
			}
		default:
		}
		s.askForPlace(n)
	})
}

// reuse is a planted bug: the member runs on with an empty disk, as if nothing were lost.
func (n *simNode) reuse() {
	n.crash()
	n.disk, n.bodies = newModelDisk(n), make(map[uint64][]byte)
	n.machine = n.s.opts.machine(n)
	n.promised = promise{}
	n.s.restartLater(n)
}

// recordFirst is a planted bug: the body of a snapshot is not on disk yet when the log
// says that there is one.
func (n *simNode) recordFirst(index uint64) {
	if n.s.opts.bug != bugRecordBeforeBody {
		return
	}
	if n.unsynced == nil {
		n.unsynced = make(map[uint64]bool)
	}
	n.unsynced[index] = true
	n.later(n.s.between(span{20 * milli, 500 * milli}), "body is synced", func() { delete(n.unsynced, index) })
}

// loseBodies is what a power cut does to bodies that are not on disk.
func (n *simNode) loseBodies() {
	for index := range n.unsynced {
		delete(n.bodies, index)
	}
	n.unsynced = nil
}
