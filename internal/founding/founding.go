// Package founding lets several members begin a cluster.
//
// They agree on a charter (datadir.Charter) by single-decree Paxos, before any of them
// has a log. The charter names the directories that found the cluster, by their nonces.
// ADR 12 tells why two histories can never mix under one charter, even if disks are lost
// meanwhile.
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
//	F5  A guarded acceptor supports no new charter before it has listened for a while, nor
//	    while a member of a cluster calls: that cluster has this node's address, and its
//	    members may just not be in the list of those that found another one (ADR 18).
package founding

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/datadir"
)

// ErrNotFounding is the answer of a member that takes no part in a founding,
// because it has its place or does not know yet whether it has one.
var ErrNotFounding = errors.New("this member is not founding a cluster")

// Step is what a founder asks for.
type Step string

// The steps, in their order.
const (
	Prepare Step = "prepare"
	Accept  Step = "accept"
	Adopt   Step = "adopt"
)

// Request is one message of a founder.
type Request struct {
	Rendezvous uint64           `json:"rendezvous_id"`
	Seed       string           `json:"seed,omitempty"` // of the founder
	Step       Step             `json:"step"`
	Ballot     datadir.Ballot   `json:"ballot"`
	Charter    *datadir.Charter `json:"charter,omitempty"` // of accept and adopt
}

// Answer is the acceptor's answer. Founding is its state after the step.
type Answer struct {
	Granted  bool             `json:"granted"`
	Nonce    string           `json:"nonce"`
	Founding datadir.Founding `json:"founding"`
}

// Dir is the part of datadir.Dir that an acceptor needs.
type Dir interface {
	Nonce() string
	Seed() string
	Founding() datadir.Founding
	KeepFounding(member, rendezvous uint64, name string, f datadir.Founding) error
	Adopt(member, rendezvous uint64, name string, c *datadir.Charter) error
}

// Acceptor is one directory's part in a founding. The joiner creates it for a
// directory without a log and without a cluster, and closes it before it uses
// the directory in any other way.
type Acceptor struct {
	member, rendezvous uint64
	name               string
	// adopted is closed when the directory has adopted a charter.
	adopted chan struct{}

	// mu is held while a step is carried out: by a handler of the peer port, or by
	// the joiner as a founder. It owns the directory until the acceptor is closed.
	mu struct {
		sync.Mutex
		dir     Dir              // nil once the acceptor is closed
		charter *datadir.Charter // nil until the directory has adopted one
		// Guard set these: how long no member of a cluster must have called (F5), and
		// since when it is so. other is the id of the cluster of the last one that did.
		silence time.Duration
		since   time.Time
		other   string
	}
}

// NewAcceptor returns the acceptor of a member under the rendezvous that its settings yield.
func NewAcceptor(member, rendezvous uint64, name string, dir Dir) *Acceptor {
	a := &Acceptor{member: member, rendezvous: rendezvous, name: name, adopted: make(chan struct{})}
	a.mu.dir = dir
	return a
}

// Guard makes the acceptor support a new charter only after so long a time without a call
// by a member of a cluster. It is called before the acceptor is visible to others.
func (a *Acceptor) Guard(silence time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.silence, a.mu.since = silence, time.Now()
}

// Heard notes that a member of a cluster has called this node.
func (a *Acceptor) Heard(cluster string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.other, a.mu.since = cluster, time.Now()
}

// Other returns the cluster that keeps a guarded acceptor from founding another one, or "".
func (a *Acceptor) Other() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.silentLocked() {
		return ""
	}
	return a.mu.other
}

func (a *Acceptor) silentLocked() bool { return time.Since(a.mu.since) >= a.mu.silence }

// Handle carries out one step.
func (a *Acceptor) Handle(r Request) (Answer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.dir == nil || r.Rendezvous != a.rendezvous || r.Seed != a.mu.dir.Seed() {
		return Answer{}, ErrNotFounding
	}
	granted, err := a.stepLocked(r)
	if err != nil {
		return Answer{}, fmt.Errorf("found a cluster: %s: %w", r.Step, err)
	}
	return Answer{Granted: granted, Nonce: a.mu.dir.Nonce(), Founding: a.mu.dir.Founding()}, nil
}

func (a *Acceptor) stepLocked(r Request) (granted bool, err error) {
	f := a.mu.dir.Founding()
	switch {
	case r.Step == Adopt && r.Charter != nil:
		return a.adoptLocked(r.Charter)
	case a.mu.charter != nil:
		return false, nil // it cannot support another charter
	case !a.silentLocked():
		return false, nil // F5
	case r.Step == Prepare && f.Promised.Less(r.Ballot):
		f.Promised = r.Ballot
	case r.Step == Accept && r.Charter != nil && !r.Ballot.Less(f.Promised):
		f.Promised, f.Accepted, f.Charter = r.Ballot, r.Ballot, r.Charter
	default:
		return false, nil
	}
	return true, a.mu.dir.KeepFounding(a.member, a.rendezvous, a.name, f) // F1
}

func (a *Acceptor) adoptLocked(c *datadir.Charter) (bool, error) {
	if !c.Names(a.member, a.mu.dir.Nonce()) || c.Seed != a.mu.dir.Seed() || a.mu.charter != nil && a.mu.charter.ClusterID != c.ClusterID {
		return false, nil // F2
	}
	if err := a.mu.dir.Adopt(a.member, a.rendezvous, a.name, c); err != nil {
		return false, err
	}
	if a.mu.charter == nil {
		a.mu.charter = c
		close(a.adopted)
	}
	return true, nil
}

// Names reports whether the charter gives this member to this directory.
func (a *Acceptor) Names(c *datadir.Charter) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return c != nil && a.mu.dir != nil && c.Names(a.member, a.mu.dir.Nonce())
}

// Chosen returns the charter that the directory has adopted, or nil.
func (a *Acceptor) Chosen() *datadir.Charter {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.charter
}

// Done is closed when the directory has adopted a charter. It is nil for a
// directory that takes no part in a founding.
func (a *Acceptor) Done() <-chan struct{} {
	if a == nil {
		return nil
	}
	return a.adopted
}

// Fresh reports whether the directory may found a cluster, and with which seed. A guarded
// one may not while it has to listen (F5), so that no other node counts on it.
func (a *Acceptor) Fresh() (fresh bool, seed string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.dir == nil || a.mu.charter != nil || !a.silentLocked() {
		return false, ""
	}
	return true, a.mu.dir.Seed()
}

// Close ends the acceptor's use of the directory. It returns the charter that the
// directory has adopted by then, or nil.
func (a *Acceptor) Close() *datadir.Charter {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.dir = nil
	return a.mu.charter
}

// Ask sends a request to other members and returns the answers that came.
type Ask func(ctx context.Context, members []uint64, r Request) map[uint64]Answer

// Founder makes attempts to found a cluster.
type Founder struct {
	self     *Acceptor
	initial  []datadir.Founder // the initial members, without nonces
	seed     string            // the state to begin with, as of this directory
	ask      Ask
	draw     func() uint64 // the id of a new cluster
	highest  uint64        // round of the highest ballot seen
	patience int           // rounds to leave to a founder with a lower id
}

// NewFounder returns the founder at an acceptor's member. The initial members have no
// nonces yet, and the seed is the state to begin with, as of this directory.
func NewFounder(self *Acceptor, initial []datadir.Founder, seed string, ask Ask) *Founder {
	return &Founder{self: self, initial: initial, seed: seed, ask: ask, draw: datadir.NewClusterID, patience: somePatience()}
}

// quorum returns the number of acceptors that decide.
func (f *Founder) quorum() int { return len(f.initial)/2 + 1 }

// Turn reports whether this member should make an attempt, given the other fresh
// members. One with a lower id goes first, but not forever: it may see other
// members than this one does.
func (f *Founder) Turn(others []uint64) bool {
	if len(others)+1 < f.quorum() {
		return false
	}
	if slices.Min(others) > f.self.member {
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

// Attempt tries to have a charter chosen by the fresh members, and adopted by
// those that it names. If another founder is faster, or too few members answer, it
// has no effect that matters. An error is one of this member's own disk.
func (f *Founder) Attempt(ctx context.Context, others []uint64) error {
	f.highest++
	r := Request{Rendezvous: f.self.rendezvous, Seed: f.seed, Step: Prepare, Ballot: datadir.Ballot{Round: f.highest, Member: f.self.member}}
	promises, err := f.askAll(ctx, others, r)
	if err != nil || len(promises) < f.quorum() {
		return err
	}
	r.Step, r.Charter = Accept, f.choose(promises)
	accepted, err := f.askAll(ctx, others, r)
	if err != nil || len(accepted) < f.quorum() {
		return err
	}
	r.Step = Adopt
	_, err = f.askAll(ctx, others, r) // a member that this does not reach will ask
	return err
}

// choose returns the charter of the highest ballot that a promise reports, or a
// new one that names the directories whose promises these are.
func (f *Founder) choose(promises map[uint64]Answer) *datadir.Charter {
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
func (f *Founder) askAll(ctx context.Context, others []uint64, r Request) (map[uint64]Answer, error) {
	own, err := f.self.Handle(r)
	if err != nil {
		return nil, err
	}
	granted := make(map[uint64]Answer)
	note := func(from uint64, a Answer) {
		f.highest = max(f.highest, a.Founding.Promised.Round)
		if a.Granted {
			granted[from] = a
		}
	}
	note(f.self.member, own)
	for from, a := range f.ask(ctx, others, r) {
		note(from, a)
	}
	return granted, nil
}
