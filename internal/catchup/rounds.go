package catchup

import (
	"cmp"
	"time"

	"go.uber.org/zap"
)

const (
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

// round is a stretch of catching up.
//
// A member that is slower than the clients never catches up, and the disk that
// keeps the log for it is not endless. Every roundTime the leader looks at what a
// member still lacks. If that has not shrunk by a quarter, the round is lost; so
// is a body after which the member needed another. After maxLostRounds in a row,
// the leader limits its intake to a little less than what the member replicates,
// so that the rest is gone within catchUpTarget, and lifts the limit when the
// member has caught up. It is the argument of section 4.2.1 of Ongaro's
// dissertation, where a new server gets a bounded number of rounds, except that
// the server is not given up: the operator asked for it.
type round struct {
	begin  time.Duration
	match  uint64
	behind int64
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
		d.lg.Warn("member is not catching up; its log is no longer kept", zap.Uint64("member", x.to), zap.Duration("silent", now-x.moved))
		d.end(x)
	}
}

// endRound judges a round. A round that is won while the intake is limited does not
// make up for those lost before: it was won because of the limit, and a limit that
// is lifted too early lets the member fall behind again.
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
	// A paused one cannot be reached: it may be dead, and a limit would not help it.
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
