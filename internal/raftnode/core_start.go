package raftnode

import (
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

// startRequest asks for the start entry of another member's data directory:
// its admission.
type startRequest struct {
	start roster.Start
	sent  bool
	tick  uint64     // when it was last proposed
	age   int        // ticks since it was requested
	done  chan error // capacity 1; the node loop answers once
}

// starter introduces processes to the replicas. A start entry binds a member
// to a data directory (its nonce), and the index at which it is applied becomes
// the incarnation of the process that it names. This process's own start is the
// first thing it proposes. It also proposes, on request, the start of a
// directory that has no log and therefore may not vote for itself.
type starter struct {
	*coreState

	sent    bool // this process's own start was proposed
	tick    uint64
	retries int

	admissions []*startRequest
}

// admissionTimeouts is the number of election timeouts for which an admission
// is tried.
const admissionTimeouts = 10

func (s *starter) admit(r *startRequest) {
	switch {
	case s.refused != nil:
		r.done <- s.refused
	case len(s.admissions) >= maxPendingStarts:
		r.done <- ErrOverloaded
	default:
		s.admissions = append(s.admissions, r)
	}
}

// propose proposes this process's own start until it has an incarnation, and
// the admissions that are due.
func (s *starter) propose() {
	if s.backoff {
		return
	}
	if s.incarnation == 0 && !s.sent {
		if s.rn.Propose(roster.EncodeStart(&s.cfg.start)) != nil {
			s.backoff = true
			return
		}
		s.sent, s.tick = true, s.ticks
	}
	for _, a := range s.admissions {
		if a.sent {
			continue
		}
		if s.rn.Propose(roster.EncodeStart(&a.start)) != nil {
			s.backoff = true
			return
		}
		a.sent, a.tick = true, s.ticks
	}
}

// again proposes everything once more after a change of leader or term.
func (s *starter) again() {
	s.sent = false
	for _, a := range s.admissions {
		a.sent = false
	}
}

// retry repeats what vanished on its way to the leader, and gives up
// admissions that take too long.
func (s *starter) retry() {
	if s.sent && s.ticks-s.tick >= lostTicks(s.retries) {
		s.sent = false
		s.retries++
	}
	s.admissions = removeIf(s.admissions, func(a *startRequest) bool {
		if a.sent && s.ticks-a.tick >= s.retryTicks(0) {
			a.sent = false
		}
		if a.age++; a.age <= admissionTimeouts*s.cfg.electionTicks {
			return false
		}
		a.done <- ErrUnknown
		return true
	})
}

// applied takes the outcome of any member's start entry. It reports whether
// the entry began a new incarnation of this process.
func (s *starter) applied(a startApplied) (begun bool) {
	if a.start.Member == s.cfg.id && a.start.Boot != "" {
		switch mine := a.start.Boot == s.cfg.start.Boot; {
		case mine && a.err != nil:
			s.out.fatal = startRefusal(a.err)
		case mine && a.began:
			s.incarnation, begun = a.index, true
		case a.began:
			s.succeeded(a)
		}
	}
	s.admissions = removeIf(s.admissions, func(r *startRequest) bool {
		if r.start.Member != a.start.Member || r.start.Nonce != a.start.Nonce {
			return false
		}
		r.done <- a.err
		return true
	})
	return begun
}

// succeeded takes the start of another process of this member. Before this process
// has begun, that may be its predecessor, whose start was committed late: this
// process's own start follows. A successor, however, would need the directory that
// this process has locked, so it has a copy.
func (s *starter) succeeded(a startApplied) {
	if own := s.cfg.start.Starts; s.incarnation != 0 && own != 0 && a.start.Starts > own {
		s.out.fatal = fmt.Errorf("%w: another process has begun start %d of a copy of this data directory, and this is start %d; %s", ErrRefused, a.start.Starts, own, oneDirectory)
		return
	}
	// This process's batches are skipped until it has introduced itself again.
	s.incarnation, s.sent = 0, false
}

// startRefusal turns the replicas' refusal of this process into the error that
// stops it.
func startRefusal(err error) error {
	if errors.Is(err, roster.ErrMemberRemoved) {
		return ErrRemoved
	}
	if errors.Is(err, roster.ErrStaleDirectory) {
		return fmt.Errorf("%w: %w: this directory is not accepted any more; if another process runs with a copy, keep that one; otherwise entries that this member has acknowledged may be missing here: %s",
			ErrRefused, err, datadir.RemoveAndReAdd)
	}
	return fmt.Errorf("%w: %w; %s", ErrRefused, err, datadir.RemoveAndReAdd)
}

func (s *starter) fail(err error) {
	for _, a := range s.admissions {
		a.done <- err
	}
	s.admissions = nil
}
