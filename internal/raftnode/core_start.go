package raftnode

import (
	"errors"
	"fmt"
)

// startRequest asks for the start entry of another member's data directory:
// its admission.
type startRequest struct {
	start start
	sent  bool
	tick  uint64 // when it was last proposed
	age   int    // ticks since it was requested
	done  chan error
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
		if s.rn.Propose(encodeStart(&s.cfg.start)) != nil {
			s.backoff = true
			return
		}
		s.sent, s.tick = true, s.ticks
	}
	for _, a := range s.admissions {
		if a.sent {
			continue
		}
		if s.rn.Propose(encodeStart(&a.start)) != nil {
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
			// The start of the previous process was committed late and took
			// over the incarnation. This process's batches are skipped until
			// it has introduced itself again.
			s.incarnation, s.sent = 0, false
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

// startRefusal turns the replicas' refusal of this process into the error that
// stops it.
func startRefusal(err error) error {
	if errors.Is(err, ErrMemberRemoved) {
		return ErrRemoved
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}

func (s *starter) fail(err error) {
	for _, a := range s.admissions {
		a.done <- err
	}
	s.admissions = nil
}
