package lessor

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotLeader is returned by Serve if this node does not lead, does not lead
// anymore, or has only begun to. Another node, or a later call, may answer.
var ErrNotLeader = errors.New("this node does not track leases")

const (
	// pace is the least time between two looks for due leases, so that those that are due
	// at nearly the same time end together. Leases end up to that much late.
	pace = 100 * time.Millisecond
	// longestPause is the most while there is a deadline: of the time between two looks,
	// only maxStep counts.
	longestPause = maxStep / 2
	// rest is the pause while there is none.
	rest = time.Hour
	// pageLeases is how many leases a new leader reads under one lock.
	pageLeases = 1000
	// maxExpireLeases and maxExpireKeys bound what one log entry ends. The entry
	// holds up every entry after it: about 10 ms for that many keys. A single lease
	// may have more.
	maxExpireLeases = 256
	maxExpireKeys   = 1000
)

// Lease is what the Lessor needs to know about a lease.
type Lease struct {
	ID  uint64
	TTL time.Duration // 0: it ends only by being revoked
	// Seq numbers all grants of a cluster in the order of the log.
	Seq uint64
}

// Change is a grant, or the end of a lease.
type Change struct {
	Lease
	Ended bool
}

// Table is the replicated table of leases, as far as this node has applied it.
type Table interface {
	// Leases returns up to limit leases with ids above after, in the order of ids.
	Leases(after uint64, limit int) ([]Lease, error)
	// LeaseKeys returns how many keys a lease has, 0 if there is no such lease.
	LeaseKeys(id uint64) (int, error)
}

// Cluster is this node's part in the cluster.
type Cluster interface {
	// Tenure returns the term in which this node leads, once the node has applied an
	// entry of that term; otherwise 0.
	Tenure() uint64
	// Prove returns nil if this node led in the term at a time after the call began,
	// and has applied everything that was committed when it began.
	Prove(ctx context.Context, term uint64) error
	// Expire proposes the end of leases whose grants have a Seq up to asOf. It
	// returns nil once the entry has been applied here.
	Expire(ctx context.Context, term, asOf uint64, leases []uint64) error
}

// Request asks about one lease.
type Request struct {
	ID uint64 `json:"id"`
	// Renew gives the lease its full TTL again.
	Renew bool `json:"renew,omitempty"`
}

// State is what became of a lease.
type State uint8

// The states of a lease.
const (
	Unknown State = 0 // no such lease
	Alive   State = 1
	// Ending means that the lease cannot be renewed, but has not ended yet.
	Ending State = 2
)

// Answer is the answer to a Request.
type Answer struct {
	State     State         `json:"state"`
	TTL       time.Duration `json:"ttl_ns"` // as granted; 0: the lease has no end of its own
	Remaining time.Duration `json:"remaining_ns"`
}

// Lessor keeps the deadlines of all leases while this node leads; otherwise it
// keeps nothing. Its methods may be called from any goroutine.
type Lessor struct {
	table   Table
	cluster Cluster
	clock   func() time.Time
	report  func(error) // of proposals and reads that failed; they are repeated

	expired atomic.Uint64
	term    atomic.Uint64 // of the office, for Applied
	wake    chan struct{} // capacity 1: Run has to look

	// mu is held for a few instructions a lease, and never while waiting.
	mu struct {
		sync.Mutex
		office office
		watch  stopwatch
	}
}

// office is what a leader knows. A new term begins with an empty one.
type office struct {
	term    uint64 // 0: this node does not lead
	since   time.Duration
	loading bool // until all leases of the table are known
	leases  map[uint64]*entry
	due     deadlines
	// ended has the leases that ended while the table was being read: what was
	// read may be older. nil after loading.
	ended map[uint64]bool
}

// entry is one lease with its deadline.
type entry struct {
	Lease
	deadline time.Duration // by the stopwatch
	place    int           // in the heap; -1: not in it
	ending   bool          // its expiry has been proposed (T3)
}

// New returns a Lessor. The report is called with errors that the Lessor deals with
// itself.
func New(t Table, c Cluster, clock func() time.Time, report func(error)) *Lessor {
	l := &Lessor{table: t, cluster: c, clock: clock, report: report, wake: make(chan struct{}, 1)}
	l.mu.watch.read = clock()
	return l
}

// Expired returns how many leases this node has ended since it started.
func (l *Lessor) Expired() uint64 { return l.expired.Load() }

// Run keeps the office until the context ends. Looking for a change of office must
// not wait for a proposal that hangs because of that change, so proposals have a
// goroutine of their own. It sleeps until something is due: an idle node should wake up
// as seldom as possible.
//
// Run and Serve wait for the cluster between steps that do not wait: TakeOffice;
// TakeDue and Settle; Renew and Confirm. Who has an event loop instead of goroutines,
// like the simulator, calls the steps.
func (l *Lessor) Run(ctx context.Context) {
	due := make(chan struct{}, 1)
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-due:
				l.endDue(ctx)
			}
		}
	})
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-look.C:
		}
		l.TakeOffice(ctx)
		found, pause := l.next()
		look.Reset(pause)
		if !found {
			continue
		}
		select {
		case due <- struct{}{}:
		default: // it is at work, and looks again after the pause
		}
	}
}

// next reports whether TakeDue would find a lease, and returns the time until the next look.
func (l *Lessor) next() (found bool, pause time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, now := &l.mu.office, l.nowLocked()
	switch {
	case o.loading:
		return false, pace // the table could not be read
	case len(o.due) == 0:
		return false, rest
	}
	left := o.due[0].deadline - now
	return left <= 0, min(max(left, pace), longestPause)
}

// TakeOffice follows the leadership. On a new term it reads all leases. Changes
// are noted from before the first read, so that none falls in between: what was
// applied before is in the table, and what is applied later is reported.
func (l *Lessor) TakeOffice(ctx context.Context) {
	term := l.cluster.Tenure()
	if !l.enter(term) {
		return
	}
	for after, more := uint64(0), true; more && ctx.Err() == nil; {
		page, err := l.table.Leases(after, pageLeases)
		if err != nil {
			l.report(err)
			return // the next look tries again
		}
		if more = len(page) == pageLeases; more {
			after = page[len(page)-1].ID
		}
		if !l.load(term, page, !more) {
			return
		}
	}
}

// enter starts the office of a term, or ends it if the term is 0. It returns whether
// the table has to be read.
func (l *Lessor) enter(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.nowLocked() // also keeps the stopwatch running
	l.term.Store(term)
	if term == l.mu.office.term && !l.mu.office.loading {
		return false
	}
	l.mu.office = office{}
	if term == 0 {
		return false
	}
	l.mu.office = office{term: term, since: now, loading: true, leases: make(map[uint64]*entry), ended: make(map[uint64]bool)}
	return true
}

// load adds a page of the table. It returns false if the office has ended.
func (l *Lessor) load(term uint64, page []Lease, last bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.mu.office
	if o.term != term {
		return false
	}
	for _, lease := range page {
		if o.leases[lease.ID] == nil && !o.ended[lease.ID] {
			o.add(lease, o.since+lease.TTL)
		}
	}
	if last {
		o.loading, o.ended = false, nil
	}
	return true
}

// Changed notes what an entry of the log did to leases. The goroutine that applies
// calls it after the change can be read.
func (l *Lessor) Changed(changes []Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.mu.office
	if o.term == 0 {
		return // the table will tell when this node leads
	}
	now := l.nowLocked()
	for _, c := range changes {
		o.remove(c.ID)
		if !c.Ended {
			if o.add(c.Lease, now+c.TTL) {
				l.look()
			}
		} else if o.loading {
			o.ended[c.ID] = true
		}
	}
}

// Applied has Run look at its office if it has begun or ended. It is called after entries
// were applied, and does not wait: an office begins with the first entry of its term, and
// the first one of the next term ends it.
func (l *Lessor) Applied() {
	if l.cluster.Tenure() != l.term.Load() {
		l.look()
	}
}

// look has Run look soon.
func (l *Lessor) look() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Reset forgets everything, because the whole state was replaced.
func (l *Lessor) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.office = office{}
	l.look()
}

// add adds a lease, and reports whether it is the next to end.
func (o *office) add(lease Lease, deadline time.Duration) (first bool) {
	e := &entry{Lease: lease, deadline: deadline, place: -1}
	o.leases[lease.ID] = e
	if lease.TTL > 0 {
		heap.Push(&o.due, e)
	}
	return e.place == 0
}

func (o *office) remove(id uint64) {
	e := o.leases[id]
	if e == nil {
		return
	}
	if e.place >= 0 {
		heap.Remove(&o.due, e.place)
	}
	delete(o.leases, id)
}

// Serve answers for the leader. Renewals come first and the proof afterwards: then a
// successor takes office after the deadlines were moved, and gives at least as much.
// The other way round, a successor could have been in office for a while, and the
// answer would promise more time than the successor gives (T1).
func (l *Lessor) Serve(ctx context.Context, requests []Request) ([]Answer, error) {
	r, err := l.Renew(requests)
	if err != nil {
		return nil, err
	}
	if err := l.cluster.Prove(ctx, r.Term); err != nil {
		return nil, err
	}
	return l.Confirm(r)
}

// Renewal is what Renew did. Confirm answers it once it is proved that this node led in
// the term afterwards.
type Renewal struct {
	Term     uint64
	at       time.Duration
	requests []Request
}

// Renew moves the deadlines.
func (l *Lessor) Renew(requests []Request) (Renewal, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.mu.office
	if o.term == 0 || o.loading {
		return Renewal{}, ErrNotLeader
	}
	now := l.nowLocked()
	for _, r := range requests {
		if e := o.leases[r.ID]; e != nil && r.Renew && !e.ending && e.TTL > 0 {
			e.deadline = now + e.TTL
			heap.Fix(&o.due, e.place)
		}
	}
	return Renewal{Term: o.term, at: now, requests: requests}, nil
}

// Confirm returns the answers after the proof, which has brought this node every grant
// and every end that was committed before the questions (T6). A lease that was granted on
// the way has its full TTL.
func (l *Lessor) Confirm(r Renewal) ([]Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.office.term != r.Term || l.mu.office.loading {
		return nil, ErrNotLeader
	}
	answers := make([]Answer, len(r.requests))
	for i, q := range r.requests {
		answers[i] = l.mu.office.leases[q.ID].answer(q, r.at)
	}
	return answers, nil
}

// SortByDeadline sorts leases by when they end, if this node leads. Leases that it does not
// know and those without an end come last; ties keep their order.
func (l *Lessor) SortByDeadline(ids []uint64) {
	type place struct {
		id       uint64
		deadline time.Duration
	}
	order := make([]place, len(ids))
	l.mu.Lock()
	leads := l.mu.office.term != 0 && !l.mu.office.loading
	for i, id := range ids {
		order[i] = place{id, math.MaxInt64}
		if e := l.mu.office.leases[id]; e != nil && e.TTL > 0 {
			order[i].deadline = e.deadline
		}
	}
	l.mu.Unlock()
	if !leads {
		return
	}
	slices.SortStableFunc(order, func(a, b place) int { return cmp.Compare(a.deadline, b.deadline) })
	for i := range order {
		ids[i] = order[i].id
	}
}

// answer answers a question that was asked at a time. A deadline may have moved since, for
// somebody who gets no answer because a successor is in office; that one gives the full TTL
// counted from after the question, and so no more is promised.
func (e *entry) answer(r Request, at time.Duration) Answer {
	switch {
	case e == nil:
		return Answer{}
	case e.TTL == 0:
		return Answer{State: Alive}
	case e.ending && r.Renew:
		return Answer{State: Ending, TTL: e.TTL}
	}
	return Answer{State: Alive, TTL: e.TTL, Remaining: min(max(e.deadline-at, 0), e.TTL)}
}

// Expiry is what one proposal ends: leases whose grants have a Seq up to AsOf.
type Expiry struct {
	Term, AsOf uint64
	leases     []*entry
}

// IDs returns the ids of the leases.
func (b *Expiry) IDs() []uint64 {
	ids := make([]uint64, len(b.leases))
	for i, e := range b.leases {
		ids[i] = e.ID
	}
	return ids
}

// endDue proposes the end of the leases that are due, one entry after the other, so
// that other commands get in between.
func (l *Lessor) endDue(ctx context.Context) {
	for ctx.Err() == nil {
		b := l.TakeDue()
		if len(b.leases) == 0 {
			return
		}
		err := l.cluster.Expire(ctx, b.Term, b.AsOf, b.IDs())
		if err != nil {
			l.report(err)
		}
		if l.Settle(b) > 0 {
			wait(ctx, pace)
			l.look() // they are tried again
			return
		}
	}
}

// TakeDue takes due leases out of the heap, as many as one entry may end, and marks
// them as ending.
func (l *Lessor) TakeDue() Expiry {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, now := &l.mu.office, l.nowLocked()
	b := Expiry{Term: o.term}
	if o.loading {
		return b
	}
	for keys := 0; len(o.due) > 0 && o.due[0].deadline <= now && len(b.leases) < maxExpireLeases; {
		e := o.due[0]
		n, err := l.table.LeaseKeys(e.ID)
		if err != nil {
			l.report(err) // the state machine will fail over it, if it is serious
		}
		if keys += n; keys > maxExpireKeys && len(b.leases) > 0 {
			break
		}
		heap.Pop(&o.due)
		e.ending = true
		b.AsOf = max(b.AsOf, e.Seq)
		b.leases = append(b.leases, e)
	}
	return b
}

// Settle puts the leases back that a proposal did not end, and returns their number.
// They stay marked: the proposal may still be on its way.
func (l *Lessor) Settle(b Expiry) (left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.mu.office
	for _, e := range b.leases {
		if o.term == b.Term && o.leases[e.ID] == e {
			heap.Push(&o.due, e)
			left++
		}
	}
	if o.term == b.Term {
		l.expired.Add(uint64(len(b.leases) - left))
	}
	return left
}

func (l *Lessor) nowLocked() time.Duration { return l.mu.watch.now(l.clock()) }
