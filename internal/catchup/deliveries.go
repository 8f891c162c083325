package catchup

import (
	"cmp"
	"fmt"
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
// go in through method calls with the time, and the work goes out through
// Work. A loop drives it in production, and the simulator drives the
// same code.
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
// That alone does not end: a member that is slower than the clients never catches
// up, and the disk is not endless. Every roundTime the leader looks at what a
// member still lacks. If that has not shrunk by a quarter, the round is lost; so
// is a body after which the member needed another. After maxLostRounds in a row,
// the leader limits its intake to a little less than what the member replicates,
// so that the rest is gone within catchUpTarget, and lifts the limit when the
// member has caught up. It is the argument of section 4.2.1 of Ongaro's
// dissertation, where a new server gets a bounded number of rounds, except that
// the server is not given up: the operator asked for it.
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
	Remove(b *Body)
	// LimitIntake limits what the leader takes, in bytes per second; 0: no limit.
	LimitIntake(bytesPerSecond int64)
}

// Body is a complete state file.
type Body struct {
	Snapshot *raftpb.Snapshot
	Path     string
	Size     int64
	used     time.Duration // when it was last of use
}

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

// round is a stretch of catching up.
type round struct {
	begin  time.Duration
	match  uint64
	behind int64
}

const (
	// bodyLifetime is how long a body that nobody uses waits for another member.
	bodyLifetime = 30 * time.Second
	// staleBytes is how much log after a body makes a new one the better choice for
	// whoever asks next, unless the body is larger.
	staleBytes = 64 << 20
	// maxSends is the number of transfers at the same time, as the transport allows.
	maxSends = 2
	// catchUpPatience is how long a member may make no progress, or install a body,
	// before the log is no longer kept for it.
	catchUpPatience = 2 * time.Minute
	// installRate is how fast a member surely installs a body, in bytes per second.
	installRate = 4 << 20
	// roundTime is how often the leader judges whether a member comes closer.
	roundTime     = 5 * time.Second
	maxLostRounds = 3
	// catchUpTarget is how long a member may take for the rest once the intake is
	// limited.
	catchUpTarget = time.Minute
	// minIntake is the lowest limit: a cluster under load stays usable.
	minIntake = 1 << 20
	// unknownIntake is the limit for a member whose rate is not known: it lost the
	// log after each body before it could replicate any of it.
	unknownIntake = 8 << 20
)

func New(lg *zap.Logger, log *raftlog.Store, work Work, catchUpBytes int64) *Deliveries {
	return &Deliveries{lg: lg, log: log, work: work, catchUpBytes: catchUpBytes, members: make(map[uint64]*delivery)}
}

// Asked is raft's wish for a snapshot. applied is what a body will contain, at
// least.
func (d *Deliveries) Asked(now time.Duration, applied uint64) {
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
	d.wanted = false
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
// for nothing: whoever needed it gets another body.
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
	switch {
	case err == nil:
		d.lg.Info("snapshot sent", zap.Uint64("to", to), zap.Uint64("index", x.body.Index()), zap.Duration("took", now-x.since))
		x.state, x.since, x.fails, x.reason = catchingUp, now, repeat.Attempts{}, ""
		x.match, x.moved, x.round = 0, now, round{begin: now}
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

// outdated reports whether a new body is the better choice for whoever asks next.
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

// follow watches a member catch up with the log after its body.
func (d *Deliveries) follow(now time.Duration, x *delivery, match uint64) {
	if match > x.match {
		x.match, x.moved = match, now
	}
	x.behind = d.log.BytesAfter(max(x.match, x.body.Index()))
	switch {
	case x.match < x.body.Index(): // installs it
		x.round = round{begin: now, match: x.body.Index(), behind: x.behind}
	case d.log.InMemory(x.match) && x.behind <= d.catchUpBytes/2:
		d.lg.Info("member caught up after a snapshot", zap.Uint64("member", x.to), zap.Duration("took", now-x.since))
		d.end(x)
		return
	case now-x.round.begin >= roundTime:
		d.endRound(now, x)
	}
	if now-x.moved > catchUpPatience+time.Duration(x.body.Size/installRate)*time.Second {
		d.lg.Warn("member does not catch up; its log is no longer kept", zap.Uint64("member", x.to), zap.Duration("silent", now-x.moved))
		d.end(x)
	}
}

func (d *Deliveries) endRound(now time.Duration, x *delivery) {
	advanced := max(0, d.log.BytesAfter(x.round.match)-x.behind)
	x.rate = int64(float64(advanced) / (now - x.round.begin).Seconds())
	if x.behind > x.round.behind/4*3 {
		x.lostRounds++
	} else if d.limit == 0 {
		x.lostRounds = 0
	}
	x.round = round{begin: now, match: x.match, behind: x.behind}
}

// adjustIntake limits what the leader takes while a member has lost too many
// rounds, just enough that it catches up within catchUpTarget. A member without
// progress changes nothing: it may be dead, and must not stop the others.
func (d *Deliveries) adjustIntake() {
	limit, slowest := int64(0), uint64(0)
	for _, x := range d.sorted() {
		if own := d.intakeFor(x); own > 0 && (limit == 0 || own < limit) {
			limit, slowest = own, x.to
		}
	}
	if limit == d.limit {
		return
	}
	switch {
	case d.limit == 0:
		d.lg.Warn("slowing the intake of writes so that a member can catch up", zap.Uint64("member", slowest), zap.Int64("bytes_per_second", limit))
	case limit == 0:
		d.lg.Info("the intake of writes is no longer slowed")
	}
	d.limit = limit
	d.work.LimitIntake(limit)
}

// intakeFor returns how much the leader may take so that a member catches up; 0
// means that it need not be slowed for it.
func (d *Deliveries) intakeFor(x *delivery) int64 {
	// A paused one cannot be reached.
	if x.state == idle || x.state == paused || max(x.lostBodies, x.lostRounds) < maxLostRounds {
		return 0
	}
	switch {
	case x.state == catchingUp && x.rate > 0:
		return max(minIntake, x.rate/4, x.rate-int64(float64(x.behind)/catchUpTarget.Seconds()))
	case x.lostBodies >= maxLostRounds:
		return cmp.Or(d.limit, unknownIntake)
	}
	return d.limit
}

// DeliveryStatus is what the leader does for a member that lags too far.
type DeliveryStatus struct {
	To    uint64
	State string // waiting, sending, paused, catching_up
	// Index and BodyBytes are of the body.
	Index     uint64
	BodyBytes int64
	// BehindBytes is the log after the body that the member still lacks, kept for
	// it; 0 before the body has arrived.
	BehindBytes int64
	Since       time.Duration // how long it has been in this state
	Failures    int           // in a row
	Reason      string        // of the last failure
}

// KeptLog is what is kept for members that get a snapshot, and why.
type KeptLog struct {
	Entries    uint64 // on disk, beyond those in memory
	Bytes      int64
	Building   bool // a body is being built
	Deliveries []DeliveryStatus
	// IntakeLimit is how many bytes of writes per second the leader takes so that
	// a member can catch up; 0 means no limit.
	IntakeLimit int64
}

// View describes everything for operators.
func (d *Deliveries) View(now time.Duration) *KeptLog {
	k := &KeptLog{Building: d.building, IntakeLimit: d.limit}
	k.Entries, k.Bytes = d.log.Spooled()
	for _, x := range d.sorted() {
		if x.state == idle {
			continue
		}
		k.Deliveries = append(k.Deliveries, DeliveryStatus{
			To: x.to, State: x.state.String(), Index: x.body.Index(), BodyBytes: x.body.Size,
			BehindBytes: x.behind, Since: now - x.since, Failures: x.fails.Failures, Reason: x.reason,
		})
	}
	return k
}

// Alarm describes the limit on the intake, if there is one.
func (k *KeptLog) Alarm() string {
	if k.IntakeLimit == 0 {
		return ""
	}
	return fmt.Sprintf("catch_up: a member cannot keep up; writes are limited to %d bytes per second until it has caught up", k.IntakeLimit)
}
