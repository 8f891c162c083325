package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/kvd-io/kvd/internal/datadir"
)

// A cluster of several initial members begins when they agree on a charter
// (datadir.Charter) by single-decree Paxos, before any of them has a log. The
// charter names the directories that found the cluster, by their nonces. ADR 12
// tells why two histories can never mix under one charter, even if disks are
// lost meanwhile.
//
//	founder (a joiner)                       acceptors (all fresh members)
//	prepare(ballot)       ──▶  promise, report the charter accepted so far
//	accept(ballot, charter) ─▶ accept unless a higher ballot was promised
//	adopt(charter)        ──▶  write the cluster id, for good, if named
//
// Invariants:
//
//	F1  An acceptor syncs a promise, an acceptance, or an adoption before it
//	    answers.
//	F2  A directory adopts at most one charter, and only one that names it and
//	    begins with the state that the directory has (its seed; ADR 14).
//	F3  A charter's id is drawn with the charter and never used for another one.
//	F4  While no directory is lost, all that adopt a charter adopt the same one.

// errNotFounding is the answer of a member that takes no part in a founding,
// because it has its place or does not know yet whether it has one.
var errNotFounding = errors.New("this member is not founding a cluster")

// foundingStep is what a founder asks for.
type foundingStep string

const (
	stepPrepare foundingStep = "prepare"
	stepAccept  foundingStep = "accept"
	stepAdopt   foundingStep = "adopt"
)

// foundingRequest is one message of a founder.
type foundingRequest struct {
	Rendezvous uint64           `json:"rendezvous_id"`
	Seed       string           `json:"seed,omitempty"` // of the founder
	Step       foundingStep     `json:"step"`
	Ballot     datadir.Ballot   `json:"ballot"`
	Charter    *datadir.Charter `json:"charter,omitempty"` // of accept and adopt
}

// foundingAnswer is the acceptor's answer. Founding is its state after the step.
type foundingAnswer struct {
	Granted  bool             `json:"granted"`
	Nonce    string           `json:"nonce"`
	Founding datadir.Founding `json:"founding"`
}

// foundingDir is the part of datadir.Dir that an acceptor needs.
type foundingDir interface {
	Nonce() string
	Seed() string
	Founding() datadir.Founding
	KeepFounding(member, rendezvous uint64, name string, f datadir.Founding) error
	Adopt(member, rendezvous uint64, name string, c *datadir.Charter) error
}

// acceptor is one directory's part in a founding. The joiner creates it for a
// directory without a log and without a cluster, and closes it before it uses
// the directory in any other way.
type acceptor struct {
	self identity
	name string
	// adopted is closed when the directory has adopted a charter.
	adopted chan struct{}

	// mu is held by whoever carries out a step: a handler of the peer port, or
	// the joiner as a founder. It owns the directory until the acceptor is closed.
	mu struct {
		sync.Mutex
		dir     foundingDir      // nil once the acceptor is closed
		charter *datadir.Charter // nil until the directory has adopted one
	}
}

func newAcceptor(self identity, name string, dir foundingDir) *acceptor {
	a := &acceptor{self: self, name: name, adopted: make(chan struct{})}
	a.mu.dir = dir
	return a
}

// handle carries out one step.
func (a *acceptor) handle(r foundingRequest) (foundingAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.dir == nil || r.Rendezvous != a.self.Rendezvous || r.Seed != a.mu.dir.Seed() {
		return foundingAnswer{}, errNotFounding
	}
	granted, err := a.stepLocked(r)
	if err != nil {
		return foundingAnswer{}, fmt.Errorf("found a cluster: %s: %w", r.Step, err)
	}
	return foundingAnswer{Granted: granted, Nonce: a.mu.dir.Nonce(), Founding: a.mu.dir.Founding()}, nil
}

func (a *acceptor) stepLocked(r foundingRequest) (granted bool, err error) {
	f := a.mu.dir.Founding()
	switch {
	case r.Step == stepAdopt && r.Charter != nil:
		return a.adoptLocked(r.Charter)
	case a.mu.charter != nil:
		return false, nil // it cannot support another charter
	case r.Step == stepPrepare && f.Promised.Less(r.Ballot):
		f.Promised = r.Ballot
	case r.Step == stepAccept && r.Charter != nil && !r.Ballot.Less(f.Promised):
		f.Promised, f.Accepted, f.Charter = r.Ballot, r.Ballot, r.Charter
	default:
		return false, nil
	}
	return true, a.mu.dir.KeepFounding(a.self.Member, a.self.Rendezvous, a.name, f) // F1
}

func (a *acceptor) adoptLocked(c *datadir.Charter) (bool, error) {
	if !c.Names(a.self.Member, a.mu.dir.Nonce()) || c.Seed != a.mu.dir.Seed() || a.mu.charter != nil && a.mu.charter.ClusterID != c.ClusterID {
		return false, nil // F2
	}
	if err := a.mu.dir.Adopt(a.self.Member, a.self.Rendezvous, a.name, c); err != nil {
		return false, err
	}
	if a.mu.charter == nil {
		a.mu.charter = c
		close(a.adopted)
	}
	return true, nil
}

// names reports whether the charter gives this member to this directory.
func (a *acceptor) names(c *datadir.Charter) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return c != nil && a.mu.dir != nil && c.Names(a.self.Member, a.mu.dir.Nonce())
}

// chosen returns the charter that the directory has adopted, or nil.
func (a *acceptor) chosen() *datadir.Charter {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.charter
}

// done is closed when the directory has adopted a charter. It is nil for a
// directory that takes no part in a founding.
func (a *acceptor) done() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.adopted
}

// fresh reports whether the directory may still found a cluster, and with which seed.
func (a *acceptor) fresh() (fresh bool, seed string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.dir == nil || a.mu.charter != nil {
		return false, ""
	}
	return true, a.mu.dir.Seed()
}

// close ends the acceptor's use of the directory. It returns the charter that the
// directory has adopted by then, or nil.
func (a *acceptor) close() *datadir.Charter {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.dir = nil
	return a.mu.charter
}

// founder makes attempts to found a cluster.
type founder struct {
	self    *acceptor
	initial []datadir.Founder // the initial members, without nonces
	seed    string            // the state to begin with, as of this directory
	// ask sends a request to other members and returns the answers that came.
	ask      func(ctx context.Context, members []uint64, r foundingRequest) map[uint64]foundingAnswer
	draw     func() uint64 // the id of a new cluster
	highest  uint64        // round of the highest ballot seen
	patience int           // rounds to leave to a founder with a lower id
}

// quorum returns the number of acceptors that decide.
func (f *founder) quorum() int { return len(f.initial)/2 + 1 }

// turn reports whether this member should make an attempt, given the other fresh
// members. One with a lower id goes first, but not forever: it may see other
// members than this one does.
func (f *founder) turn(others []uint64) bool {
	if len(others)+1 < f.quorum() {
		return false
	}
	if slices.Min(others) > f.self.self.Member {
		return true
	}
	if f.patience > 0 {
		f.patience--
		return false
	}
	f.patience = somePatience()
	return true
}

// somePatience is random, so that two impatient founders do not keep step.
func somePatience() int { return 3 + rand.IntN(5) }

// attempt tries to have a charter chosen by the fresh members, and adopted by
// those that it names. If another founder is faster, or too few members answer, it
// has no effect that matters. An error is one of this member's own disk.
func (f *founder) attempt(ctx context.Context, others []uint64) error {
	f.highest++
	r := foundingRequest{Rendezvous: f.self.self.Rendezvous, Seed: f.seed, Step: stepPrepare, Ballot: datadir.Ballot{Round: f.highest, Member: f.self.self.Member}}
	promises, err := f.askAll(ctx, others, r)
	if err != nil || len(promises) < f.quorum() {
		return err
	}
	r.Step, r.Charter = stepAccept, f.choose(promises)
	accepted, err := f.askAll(ctx, others, r)
	if err != nil || len(accepted) < f.quorum() {
		return err
	}
	r.Step = stepAdopt
	_, err = f.askAll(ctx, others, r) // a member that this does not reach will ask
	return err
}

// choose returns the charter of the highest ballot that a promise reports, or a
// new one that names the directories whose promises these are.
func (f *founder) choose(promises map[uint64]foundingAnswer) *datadir.Charter {
	var last datadir.Founding
	for _, p := range promises {
		if p.Founding.Charter != nil && last.Accepted.Less(p.Founding.Accepted) {
			last = p.Founding
		}
	}
	if last.Charter != nil {
		return last.Charter
	}
	c := &datadir.Charter{ClusterID: f.draw(), Members: slices.Clone(f.initial), Seed: f.seed}
	slices.SortFunc(c.Members, func(a, b datadir.Founder) int { return cmp.Compare(a.ID, b.ID) })
	for i, m := range c.Members {
		c.Members[i].Nonce = promises[m.ID].Nonce
	}
	return c
}

// askAll carries out a step at this member and then at the others, and returns
// the answers that grant it. An error is one of this member's own disk.
func (f *founder) askAll(ctx context.Context, others []uint64, r foundingRequest) (map[uint64]foundingAnswer, error) {
	own, err := f.self.handle(r)
	if err != nil {
		return nil, err
	}
	granted := make(map[uint64]foundingAnswer)
	note := func(from uint64, a foundingAnswer) {
		f.highest = max(f.highest, a.Founding.Promised.Round)
		if a.Granted {
			granted[from] = a
		}
	}
	note(f.self.self.Member, own)
	for from, a := range f.ask(ctx, others, r) {
		note(from, a)
	}
	return granted, nil
}
