package raftnode

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/roster"
)

// fault is one kind of thing that goes wrong, or is requested, at random.
type fault struct {
	name string
	do   func(s *sim)
	rate float64 // relative to the others
}

// nemesis does random things to a cluster while random clients use it. Which things, and
// when, is a choice of its own: whatever else happens does not change it.
type nemesis struct {
	rng    *rand.Rand
	faults []fault
	pause  span // between two things
	done   int
	harms  int
	text   []string
}

// plague chooses the faults of a seed and starts them.
func (s *sim) plague() {
	v := &nemesis{rng: s.source(unit{kind: unitFault, number: -1}), pause: span{20 * milli, 1 + s.rng.Int64N(900)*milli}}
	if v.pause.max < v.pause.min {
		v.pause.max = v.pause.min + milli
	}
	for _, f := range allFaults() {
		chosen, rate := s.chance(0.5), 0.1+s.rng.Float64()
		if chosen && !slices.Contains(s.opts.without, f.name) {
			f.rate = rate * max(f.rate, 1)
			v.faults = append(v.faults, f)
			v.text = append(v.text, fmt.Sprintf("%s %.2f", f.name, f.rate))
		}
	}
	own := s.source(unit{kind: unitFault, number: -2})
	for _, f := range newerFaults() {
		chosen, rate := own.Float64() < 0.5, 0.1+own.Float64()
		if slices.Contains(s.opts.often, f.name) {
			chosen, rate = true, 5*rate
		}
		if chosen && !slices.Contains(s.opts.without, f.name) {
			f.rate = rate
			v.faults = append(v.faults, f)
			v.text = append(v.text, fmt.Sprintf("%s %.2f", f.name, f.rate))
		}
	}
	s.badNetwork(v)
	s.nemesis, s.ailments = v, strings.Join(v.text, ", ")
	s.torment(v)
}

// badNetwork chooses the rates at which messages and files are harmed.
func (s *sim) badNetwork(v *nemesis) {
	rate := func(what string, p *float64, limit float64) {
		chosen, r := s.chance(0.4), s.rng.Float64()
		s.harm(v, chosen, fmt.Sprintf("%s %.3f", what, limit*r), func() { *p = limit * r })
	}
	rate("loss", &s.net.loss, 0.2)
	rate("duplicate", &s.net.duplicate, 0.2)
	rate("reorder", &s.net.reorder, 0.3)
	rate("refuses", &s.net.refuses, 1)
	rate("damaged bodies", &s.net.damages, 0.5)
	rate("builds fail", &s.net.buildFails, 0.5)
	rate("spools fail", &s.net.spoolFails, 0.3)
	slow := func(what string, d *span, least, most int64) {
		chosen, longest := s.chance(0.3), least+s.rng.Int64N(most)*milli
		s.harm(v, chosen, fmt.Sprintf("%s up to %d ms", what, longest/milli), func() { d.max = longest })
	}
	slow("delay", &s.net.delay, 5*milli, 150)
	slow("builds", &s.opts.build, 100*milli, 3000)
	slow("disk", &s.opts.disk, 5*milli, 200)
	slow("apply", &s.opts.apply, 5*milli, 200)
	slow("transfers", &s.net.transfer, 100*milli, 8000)
	drift := 0.1 * s.rng.Float64()
	s.harm(v, s.chance(0.3), fmt.Sprintf("clocks drift by up to %.3f", drift), func() { s.opts.drift = drift })
	s.harm(v, s.chance(0.3), "deaf", func() { s.opts.deaf = true })
}

// harm does what a seed has chosen, unless the plan leaves it out.
func (s *sim) harm(v *nemesis, chosen bool, what string, do func()) {
	v.harms++
	if chosen && s.happens(unit{kind: unitHarm, number: v.harms}) {
		v.text = append(v.text, what)
		do()
	}
}

// torment does one thing after the other.
func (s *sim) torment(v *nemesis) {
	var pause int64
	s.within(v.rng, func() { pause = s.between(v.pause) })
	s.after(pause, "nemesis", func() {
		if s.nemesis != v {
			return
		}
		v.done++
		f := v.choose()
		if u := (unit{kind: unitFault, number: v.done}); f != nil && s.happens(u) {
			s.note("-- %s: %s", u, f.name)
			s.within(s.source(u), func() { f.do(s) })
		}
		s.torment(v)
	})
}

// choose returns one of the faults; nil if there are none.
func (v *nemesis) choose() *fault {
	total := 0.0
	for _, f := range v.faults {
		total += f.rate
	}
	at := v.rng.Float64() * total
	for i := range v.faults {
		if at -= v.faults[i].rate; at < 0 {
			return &v.faults[i]
		}
	}
	return nil
}

func allFaults() []fault {
	return []fault{
		{name: "crash", do: (*sim).faultCrash},
		{name: "crash all", do: (*sim).faultCrashAll},
		{name: "crash leader", do: (*sim).faultCrashLeader},
		{name: "isolate", do: (*sim).faultIsolate},
		{name: "split", do: (*sim).faultSplit},
		{name: "one-way", do: (*sim).faultOneWay},
		{name: "disk error", do: (*sim).faultDiskError},
		{name: "disk hangs", do: (*sim).faultDiskHangs},
		{name: "glitch", do: (*sim).faultGlitch},
		{name: "false suspicion", do: (*sim).faultSuspicion},
		{name: "transfer", do: (*sim).faultTransfer},
		{name: "add", do: (*sim).faultAdd},
		{name: "remove", do: (*sim).faultRemove},
		{name: "update", do: (*sim).faultUpdate},
		{name: "replace", do: (*sim).faultReplace},
		{name: "late start", do: (*sim).faultLateStart},
		{name: "slow intake", do: (*sim).faultSlowIntake},
		{name: "apply hangs", do: (*sim).faultApplyHangs},
		{name: "pause", do: (*sim).faultPause},
		{name: "trap", do: (*sim).faultTrap, rate: 3},
	}
}

func (s *sim) anyNode() *simNode { return s.nodes[s.order[s.rng.IntN(len(s.order))]] }

// restartLater brings a member back after a while.
func (s *sim) restartLater(n *simNode) {
	s.after(s.between(span{10 * milli, 3 * second}), "restart", func() {
		if !n.up && !errors.Is(n.ended, ErrRemoved) {
			n.start()
		}
	})
}

func (s *sim) faultCrash() {
	n := s.anyNode()
	n.crash()
	s.restartLater(n)
}

func (s *sim) faultCrashLeader() {
	if l := s.leader(); l != nil {
		l.crash()
		s.restartLater(l)
	}
}

func (s *sim) faultCrashAll() {
	for _, id := range s.order {
		s.nodes[id].crash()
		s.restartLater(s.nodes[id])
	}
}

// healLater opens all links after a while.
func (s *sim) healLater() {
	s.after(s.between(span{100 * milli, 4 * second}), "heal", s.heal)
}

func (s *sim) faultIsolate() {
	s.isolate(s.anyNode().id)
	s.healLater()
}

func (s *sim) faultSplit() {
	var a, b []uint64
	for _, id := range s.order {
		if s.chance(0.5) {
			a = append(a, id)
		} else {
			b = append(b, id)
		}
	}
	s.partition(a, b)
	s.healLater()
}

func (s *sim) faultOneWay() {
	s.net.blocked[link{s.anyNode().id, s.anyNode().id}] = true
	s.healLater()
}

func (s *sim) faultDiskError() {
	n := s.anyNode()
	n.disk.failing, n.disk.half = true, s.chance(0.5)
	s.restartLater(n)
	s.after(3*second, "restart", func() {
		n.disk.failing = false
		s.restartLater(n)
	})
}

// faultDiskHangs makes saves wait. As in the shell, a leader then refuses work
// and hands over.
func (s *sim) faultDiskHangs() {
	if n := s.anyNode(); n.up && !n.stalled {
		n.hangDisk(span{50 * milli, 5 * second})
	}
}

func (n *simNode) hangDisk(d span) {
	n.stalled = true
	n.hangs++
	hang := n.hangs
	n.later(2*electionTimeout, "watchdog", func() {
		if n.stalled && n.hangs == hang {
			n.post(func(c *core) {
				n.s.reachIf(stalledLeader, c.isLeader())
				c.diskStalled()
			})
		}
	})
	n.later(n.s.between(d), "disk resumes", func() {
		n.post(func(c *core) { c.diskAnswers() })
		n.resume()
	})
}

func (s *sim) faultTransfer() {
	if l := s.leader(); l != nil {
		to := uint64(0)
		if s.chance(0.7) {
			to = s.anyNode().id
		}
		s.handOver(l, to)
	}
}

// maxSimMembers keeps random additions affordable.
const maxSimMembers = 6

func (s *sim) faultAdd() {
	l := s.leader()
	if l == nil || len(s.members().Members) >= maxSimMembers {
		return
	}
	url := fmt.Sprintf("http://x%d:1", len(s.known.ops))
	o := s.reconfigure(l, roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{url}, KeepLearner: s.chance(0.2)}})
	s.startWhenAdded(o)
}

// startWhenAdded starts the process of a new member once its id is known.
func (s *sim) startWhenAdded(o *op) {
	s.after(100*milli, "join", func() {
		id := o.change.change.Member.ID
		switch {
		case o.outcome == open:
			s.startWhenAdded(o)
		case o.outcome == succeeded && s.nodes[id] == nil:
			s.addNode(id, nil)
		}
	})
}

func (s *sim) faultRemove() {
	id := s.anyNode().id
	if lost := s.lost(); lost != 0 {
		id = lost // another could cost the quorum
	}
	if l := s.leader(); l != nil && s.mayShrink() {
		s.remove(l, id)
	}
}

func (s *sim) remove(l *simNode, id uint64) {
	if l.id != id && s.springs(trapRemoved) {
		s.isolate(id)
		s.healLater()
	}
	s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: id}})
}

// mayShrink keeps two voters. From two to one, raft needs the removed member's
// vote until the other knows that the removal is committed, so faults at that
// moment can stop the cluster for good (TestShrinkToOne has none).
func (s *sim) mayShrink() bool {
	if s.damaged() {
		return false // what is left may be needed to mend a store
	}
	for _, o := range s.known.ops {
		if o.kind == opChange && (o.outcome == open || o.outcome == unknown) {
			return false
		}
	}
	for _, n := range s.alive() {
		if len(n.core.changes.queue) > 0 {
			return false
		}
	}
	return len(s.members().Voters()) > 2
}

// lost returns a member whose disk is lost, or 0.
func (s *sim) lost() uint64 {
	for _, mb := range s.members().Members {
		if n := s.nodes[mb.ID]; n != nil && !n.up && n.ended == errLostDisk {
			return mb.ID
		}
	}
	return 0
}

func (s *sim) faultUpdate() {
	if l := s.leader(); l != nil {
		n := s.anyNode()
		url := fmt.Sprintf("http://u%d-%d:1", n.id, len(s.known.ops))
		s.reconfigure(l, roster.Change{Kind: roster.UpdateMember, Member: roster.Member{ID: n.id, PeerURLs: []string{url}}})
	}
}

// faultReplace loses a member's disk for good: it is removed, and another
// takes its place under a new id.
func (s *sim) faultReplace() {
	l := s.leader()
	n := s.anyNode()
	if l == nil || l == n {
		return
	}
	_, member := s.members().Member(n.id)
	if !member || s.lost() != 0 || !s.mayShrink() || !s.knownWithout(n.id) {
		return
	}
	n.crash()
	n.ended = errLostDisk
	if s.chance(0.7) {
		s.after(5*electionTimeout, "come back without a disk", func() { s.comeBackLater(n.id) })
		return
	}
	s.reconfigure(l, roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: n.id}})
	s.faultAdd()
}

// comeBackLater has a machine ask for its place until it has one.
func (s *sim) comeBackLater(lost uint64) {
	if s.nemesis != nil && s.lost() == lost {
		s.comeBack(lost)
		s.after(2*second, "come back without a disk", func() { s.comeBackLater(lost) })
	}
}

// comeBack has the machine of a member whose disk is lost ask for its place, in one step.
func (s *sim) comeBack(lost uint64) *op {
	l := s.leader()
	old, known := s.members().Member(lost)
	if l == nil || !known || !s.mayShrink() {
		return nil
	}
	o := s.reconfigure(l, roster.Change{Kind: roster.ReplaceMember, Replaces: lost, Member: roster.Member{Name: old.Name, PeerURLs: old.PeerURLs}})
	s.startWhenAdded(o)
	return o
}

// errLostDisk marks a member whose process never comes back.
var errLostDisk = fmt.Errorf("%w: its disk is lost", ErrRemoved)

// faultLateStart delivers a start of a member's earlier process, as a slow
// network might.
func (s *sim) faultLateStart() {
	n := s.anyNode()
	if l := s.leader(); l != nil && n.boots > 1 {
		old := roster.Start{Member: n.id, Nonce: n.nonce, Boot: fmt.Sprintf("boot%d-%d", n.id, n.boots-1), Version: roster.PayloadVersion}
		l.post(func(c *core) { _ = c.rn.Propose(roster.EncodeStart(&old)) })
	}
}

// faultPause stops a process, as SIGSTOP does, or a whole machine with its clock. It goes
// on as if nothing had happened.
func (s *sim) faultPause() {
	n := s.anyNode()
	if !n.up || n.pausedUntil > s.now {
		return
	}
	d := s.between(span{50 * milli, 5 * second})
	n.pausedUntil = s.now + d
	leads, stopped := n.core.isLeader(), s.chance(0.5)
	n.later(d, "goes on", func() {
		if stopped {
			n.clockAt -= d
		}
		s.reachIf(pausedLeader, leads && n.core.isLeader() && s.leader() != n)
	})
}

// faultSlowIntake has the leader take less for a while, as for a member that
// cannot keep up.
func (s *sim) faultSlowIntake() {
	l := s.leader()
	if l == nil || l.slowed {
		return
	}
	l.slowed = true
	limit := 1 + s.rng.Int64N(2000)
	l.post(func(c *core) { c.limitIntake(limit) })
	l.later(s.between(span{100 * milli, 3 * second}), "intake", func() {
		l.slowed = false
		l.post(func(c *core) { c.limitIntake(0) })
	})
}

// load makes clients send requests to random members.
func (s *sim) load(clients int, think span) {
	for i := range clients {
		s.client(i, think)
	}
}

// client does one thing after the other. What it does, and when, is a choice of its own.
func (s *sim) client(number int, think span) {
	rng := s.source(unit{kind: unitAct, client: number, number: -1})
	done := 0
	var next func()
	next = func() {
		var pause int64
		s.within(rng, func() { pause = s.between(think) })
		s.after(pause, "client", func() {
			if s.nemesis == nil {
				return
			}
			done++
			if u := (unit{kind: unitAct, client: number, number: done}); s.happens(u) {
				s.within(s.source(u), s.act)
			}
			next()
		})
	}
	next()
}

// act is a request to a random member.
func (s *sim) act() {
	n := s.anyNode()
	switch {
	case s.chance(0.3):
		s.linearizable(n)
	default:
		o := s.write(n, 8+s.rng.IntN(64))
		if s.chance(0.1) {
			s.withdrawLater(o)
		}
	}
}

// withdrawLater is a requester that gives up. If the withdrawal succeeds, the
// command certainly does not run.
func (s *sim) withdrawLater(o *op) {
	s.after(s.between(span{0, second}), "withdraw", func() {
		if o.outcome != open {
			return
		}
		inTime := o.proposal.withdraw()
		s.reachIf(withdrawnInTime, inTime)
		s.reachIf(withdrawnTooLate, !inTime)
		if inTime {
			o.outcome, o.withdrawn = refused, true
			o.err = errors.New("withdrawn")
			o.node.ops = slices.DeleteFunc(o.node.ops, func(other *op) bool { return other == o })
		}
	})
}
