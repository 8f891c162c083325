package catchup

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

// Deliveries decides what happens to snapshots for members that lag: which body
// is built and when, who gets it, what is retried, what of the log must stay, and
// whether the leader has to slow down. It has no goroutine, clock or file: events
// go in through method calls with the time, and the work goes out through Work.
// raftnode's snapshotter owns it in production, and the simulator drives the same
// code.
//
// The life of a delivery:
//
//	raft asks → a body is built → raft sends MsgSnap → waiting → sending
//	  → catching up → done
//	  ↘ failed: paused → raft is told, and asks again
//
// One body serves everyone who asks while it is built, or while it is kept. raft
// is told of a failed transfer only when its pause is over: until then it leaves
// the member alone. The pauses grow.
//
// A member has its state with the body, and then needs the log after it. So the
// log stays readable (raftlog.Store.SetPin) from the moment a build begins until the
// member has caught up with what is in memory. A pin costs disk, not memory.
//
// A member that is slower than the clients would never catch up that way, so the
// leader counts rounds and limits its intake; see round.
//
// Invariants:
//
//	V1  Every MsgSnap that raft emits is reported to raft once (T1 continues it).
//	V2  A failure of a build, a transfer or a spool never ends the replica.
//	V3  A body's file is kept while it is offered, waits, or is sent; no longer.
//	V4  One build runs at a time, and maxSends transfers.
type Deliveries struct {
	lg   *zap.Logger
	log  *raftlog.Store
	work Work
	// catchUpBytes is what memory keeps of the log: a member that lacks less than
	// half of it has caught up.
	catchUpBytes int64

	leads    bool
	term     uint64
	wanted   bool // raft asked, and no build has begun since
	building bool
	from     uint64 // the log after this stays for the body that is being built
	builds   repeat.Attempts
	offered  *Body   // what raft may send
	bodies   []*Body // all that are kept
	members  map[uint64]*delivery
	limit    int64 // of the intake, bytes per second; 0: none
}

// Work is what the owner of Deliveries does for it. No method waits.
type Work interface {
	// Build makes a body; its end arrives at Built.
	Build()
	// Send begins a transfer; its end arrives at Sent.
	Send(m *raftpb.Message, b *Body)
	// Report tells raft how the delivery to a member ended.
	Report(to uint64, ok bool)
	// Remove removes the file of a body that nobody needs.
	Remove(b *Body)
	// LimitIntake limits what the leader takes, in bytes per second; 0: no limit.
	LimitIntake(bytesPerSecond int64)
}

// ErrBodyLost is wrapped by the error of a transfer that could not read its body.
var ErrBodyLost = errors.New("the snapshot body cannot be read")

// Body is a complete state file. No two bodies have the same file, even if they have the
// same state: each is removed by itself.
type Body struct {
	Snapshot *raftpb.Snapshot // raft's description of it
	Path     string           // of its file; Deliveries does not open it
	Size     int64            // bytes
	used     time.Duration    // when it was last of use
}

// Index returns the log index of the state.
func (b *Body) Index() uint64 { return b.Snapshot.GetMetadata().GetIndex() }

// state is how far a delivery is.
type state int

const (
	idle       state = iota // kept only to remember failures
	waiting                 // for another transfer to end
	sending                 // its body is on the way
	paused                  // failed; raft is told when the pause is over
	catchingUp              // installs the body, then replicates the log after it
)

func (s state) String() string {
	return [...]string{"idle", "waiting", "sending", "paused", "catching_up"}[s]
}

// delivery is a snapshot on its way to one member.
type delivery struct {
	to      uint64
	state   state
	message *raftpb.Message
	body    *Body
	since   time.Duration // when the state began
	fails   repeat.Attempts
	reason  string // of the last failure
	// stale says that the message was sent in an earlier term, or that raft has
	// emitted another one since.
	stale bool

	// While it catches up.
	match uint64
	moved time.Duration // when match last grew
	round round
	// lostBodies and lostRounds are in a row: they did not bring it closer.
	lostBodies, lostRounds int
	rate                   int64 // bytes per second that it replicated in the last round
	behind                 int64 // bytes that it lacks
}

const (
	// bodyLifetime is how long a body that nobody uses waits for another member.
	bodyLifetime = 30 * time.Second
	// staleBytes is how much log after a body makes a new one the better choice for
	// the next member that asks, unless the body is larger.
	staleBytes = 64 << 20
	// maxSends is the number of transfers at the same time, as the transport allows.
	maxSends = 2
)

// New returns deliveries that have nothing to do. catchUpBytes is what memory keeps
// of the log.
func New(lg *zap.Logger, log *raftlog.Store, work Work, catchUpBytes int64) *Deliveries {
	return &Deliveries{lg: lg, log: log, work: work, catchUpBytes: catchUpBytes, members: make(map[uint64]*delivery)}
}

// Asked is raft's wish for a snapshot. applied is what a body will contain, at
// least. Raft does not ask while there is an offer, so such a wish is older than the
// offer: it may arrive after the body that was built for it.
func (d *Deliveries) Asked(now time.Duration, applied uint64) {
	if d.offered != nil {
		return
	}
	d.wanted = true
	d.buildIfDue(now, applied)
}

func (d *Deliveries) buildIfDue(now time.Duration, applied uint64) {
	if !d.wanted || d.building || now < d.builds.Until || applied == 0 {
		return
	}
	d.wanted, d.building, d.from = false, true, applied
	d.pin()
	d.work.Build()
}

// Built is the end of a build.
func (d *Deliveries) Built(now time.Duration, b *Body, err error) {
	d.building = false
	if err != nil {
		pause := d.builds.Fail(now)
		d.lg.Warn("snapshot body not built; raft will ask again", zap.Error(err), zap.Duration("pause", pause))
		d.pin()
		return
	}
	d.builds = repeat.Attempts{}
	b.used = now
	d.bodies = append(d.bodies, b)
	d.offer(b)
	d.wanted = false // members that asked in the meantime get this one
}

// offer lets raft send a body from now on; nil withdraws the last one.
func (d *Deliveries) offer(b *Body) {
	d.offered = b
	if b != nil {
		d.log.OfferSnapshot(b.Snapshot)
	} else {
		d.log.WithdrawSnapshot()
	}
	d.removeUnused()
	d.pin()
}

// removeUnused removes the bodies that nobody needs (V3).
func (d *Deliveries) removeUnused() {
	d.bodies = slices.DeleteFunc(d.bodies, func(b *Body) bool {
		if b == d.offered || d.inUse(b) {
			return false
		}
		d.work.Remove(b)
		return true
	})
}

func (d *Deliveries) inUse(b *Body) bool {
	for _, m := range d.members {
		if m.body == b && (m.state == waiting || m.state == sending) {
			return true
		}
	}
	return false
}

// pin keeps the part of the log that somebody needs. What is gone already counts
// for nothing: the member that needed it gets another body.
func (d *Deliveries) pin() {
	pin := uint64(0)
	need := func(index uint64) {
		if d.log.Continues(index) && (pin == 0 || index < pin) {
			pin = index
		}
	}
	if d.building {
		need(d.from)
	}
	for _, b := range d.bodies {
		need(b.Index())
	}
	for _, m := range d.members {
		if m.state == catchingUp {
			need(max(m.match, m.body.Index()))
		}
	}
	d.log.SetPin(pin)
}

// Take is raft's MsgSnap to a member.
func (d *Deliveries) Take(now time.Duration, m *raftpb.Message) {
	to := m.GetTo()
	x := d.members[to]
	if x == nil {
		x = &delivery{to: to}
		d.members[to] = x
	}
	if x.state == sending {
		// The transfer before, of an earlier term, must end first.
		x.stale = true
		return
	}
	if x.state == catchingUp {
		x.lostBodies++
		d.lg.Warn("member fell behind the snapshot that it was sent; it gets another", zap.Uint64("member", to), zap.Int("in_a_row", x.lostBodies))
	}
	b := d.find(m.GetSnapshot().GetMetadata().GetIndex())
	if b == nil || !hasMember(b.Snapshot, to) {
		// A body from before the member was added is one that it would drop.
		// Without it raft asks for another.
		if b != nil && b == d.offered {
			d.offer(nil)
		}
		x.state = idle
		d.work.Report(to, false)
		return
	}
	x.state, x.message, x.body, x.since, x.stale = waiting, m, b, now, false
	b.used = now
	d.startSends(now)
}

func (d *Deliveries) find(index uint64) *Body {
	for _, b := range d.bodies {
		if b.Index() == index {
			return b
		}
	}
	return nil
}

func hasMember(s *raftpb.Snapshot, id uint64) bool {
	cs := s.GetMetadata().GetConfState()
	return slices.Contains(cs.GetVoters(), id) || slices.Contains(cs.GetLearners(), id)
}

// sorted returns the deliveries in an order that a seed replays.
func (d *Deliveries) sorted() []*delivery {
	return slices.SortedFunc(maps.Values(d.members), func(a, b *delivery) int {
		return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.to, b.to))
	})
}

// startSends begins transfers, those that have waited longest first.
func (d *Deliveries) startSends(now time.Duration) {
	busy := 0
	for _, x := range d.members {
		if x.state == sending {
			busy++
		}
	}
	for _, x := range d.sorted() {
		if x.state == waiting && busy < maxSends {
			busy++
			x.state, x.since, x.body.used = sending, now, now
			d.work.Send(x.message, x.body)
		}
	}
	d.pin()
}

// Sent is the end of a transfer.
func (d *Deliveries) Sent(now time.Duration, to uint64, err error) {
	x := d.members[to]
	if x == nil || x.state != sending {
		return
	}
	x.body.used = now
	if errors.Is(err, ErrBodyLost) && x.body == d.offered {
		d.offer(nil) // sending it again would fail again
	}
	switch {
	case err == nil:
		d.lg.Info("snapshot sent", zap.Uint64("to", to), zap.Uint64("index", x.body.Index()), zap.Duration("took", now-x.since))
		x.state, x.since, x.fails, x.reason = catchingUp, now, repeat.Attempts{}, ""
		x.match, x.moved, x.round = 0, now, round{begin: now}
		// Of a stale one raft has forgotten the message. It would take success for
		// the fate of the message that it has emitted since, and that one was not
		// sent.
		d.work.Report(to, !x.stale)
	case x.stale || !d.leads:
		x.state = idle
		d.work.Report(to, false)
	default:
		x.state, x.since, x.reason = paused, now, err.Error()
		pause := x.fails.Fail(now)
		d.lg.Warn("snapshot not sent", zap.Uint64("to", to), zap.Error(err), zap.Duration("pause", pause))
	}
	d.removeUnused()
	d.startSends(now)
}

// Idle reports whether there is nothing to be told about any member.
func (d *Deliveries) Idle() bool { return len(d.members) == 0 }

// Resting reports whether nothing will depend on time until something else happens.
func (d *Deliveries) Resting() bool {
	return d.Idle() && len(d.bodies) == 0 && !d.wanted && !d.building && d.limit == 0
}

// Sending returns the body that is on the way to a member, or nil.
func (d *Deliveries) Sending(to uint64) *Body {
	if x := d.members[to]; x != nil && x.state == sending {
		return x.body
	}
	return nil
}

// Place is what Tick needs to know of the replica.
type Place struct {
	Leads   bool
	Term    uint64
	Applied uint64
	Members *roster.Membership
	// Matches is what the leader knows of the other members' logs; nil if it was
	// not asked.
	Matches map[uint64]uint64
}

// Tick looks at everything that depends on time.
func (d *Deliveries) Tick(now time.Duration, at Place) {
	if at.Leads != d.leads || at.Term != d.term {
		d.leads, d.term = at.Leads, at.Term
		d.newTerm()
	}
	for _, x := range d.sorted() {
		// A transfer to a removed member runs to its end, which reports it (V1).
		if _, ok := at.Members.Member(x.to); !ok && x.state != sending {
			d.end(x)
			continue
		}
		switch x.state {
		case paused:
			if now >= x.fails.Until {
				x.state = idle
				d.work.Report(x.to, false)
			}
		case catchingUp:
			if match, ok := at.Matches[x.to]; ok {
				d.follow(now, x, match)
			}
		}
	}
	if d.offered != nil && (now-d.offered.used > bodyLifetime && !d.inUse(d.offered) || d.outdated(d.offered)) {
		d.offer(nil)
	}
	d.startSends(now)
	d.buildIfDue(now, at.Applied)
	d.adjustIntake()
}

// outdated reports whether a new body is the better choice for the next member that asks.
func (d *Deliveries) outdated(b *Body) bool {
	return !d.log.Continues(b.Index()) || d.log.BytesAfter(b.Index()) > max(staleBytes, b.Size)
}

// newTerm ends what an earlier term began: raft does not wait for it anymore. A
// transfer under way runs to its end, which may still be of use to its receiver. A
// member that catches up goes on if this node still leads.
func (d *Deliveries) newTerm() {
	d.wanted = d.wanted && d.leads
	for _, x := range d.sorted() {
		old := !d.leads || x.message.GetTerm() != d.term
		switch {
		case x.state == sending:
			x.stale = x.stale || old
		case x.state == catchingUp && d.leads:
		case old:
			d.end(x)
		}
	}
	d.removeUnused()
	d.pin()
}

// end forgets a delivery (V1).
func (d *Deliveries) end(x *delivery) {
	if x.state == waiting || x.state == paused {
		d.work.Report(x.to, false)
	}
	delete(d.members, x.to)
}
