package raftnode

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"
	"testing/cryptotest"

	"go.etcd.io/raft/v3"

	"github.com/kvd-io/kvd/internal/roster"
)

// sim runs a cluster in one goroutine and virtual time. Everything that
// happens is an event of its queue, and every choice comes from its seed, so
// that a seed always gives the same run.
//
// Real: core, applier, appender, raftlog.Store, indexWaiters, roster, payloads.
// Modelled: disk, network, state machine, clock, and the goroutines of the
// shell, whose queues and turns simNode imitates.
type sim struct {
	t    testing.TB
	seed uint64
	rng  *rand.Rand
	opts simOptions

	now    int64
	queue  eventQueue
	serial uint64

	net   *network
	nodes map[uint64]*simNode
	order []uint64 // the keys of nodes, in order of creation

	nextCommand uint64
	transfers   map[uint64]int // bodies on their way, by receiver
	initial     []roster.Member
	nemesis     *nemesis // nil: nothing goes wrong by itself
	ailments    string   // what goes wrong, in words
	traps       map[trap]bool
	silentUntil int64 // until then nobody hears that it should lead
	plan        plan
	units       []unit // those whose time came
	known       knowledge
	traced      uint64
	journal     *journal // nil: nobody reads it
	violation   error
}

// simOptions shape a cluster. The zero value of each means a healthy default.
type simOptions struct {
	members int
	disk    span
	apply   span
	build   span // how long a body takes
	// turn is how long a mailbox waits for its loop.
	turn span
	// catchUp is the number of applied entries that stay in a log; 0: all.
	catchUp int
	// memory engines recover from snapshot bodies and the log alone.
	memory bool
	// onDisk stores have files, with Pebble; others have a model of that.
	onDisk bool
	// checkpoints is how often durable states are recorded; 0: never.
	checkpoints int64
	maxBatch    int
	maxQueue    int
	// drift bounds how much faster or slower than time clocks run.
	drift   float64
	bug     plantedBug
	without []string // faults and harms that are left out
	often   []string // newer faults that always happen, and often
	plan    plan
	journal *journal
	// deaf members do not monitor the connection to their leader.
	deaf bool
	// electionTicks of raft; 0: simElection.
	electionTicks int
	// removeDead is the silence, in ticks, after which leaders remove a member; 0: never.
	removeDead uint64
	// blind leaves out S5 and S6, so that a control shows the damage itself.
	blind bool

	// machine makes the state machine of a member, and command a command for it with
	// a number and about a size. By default they are those of machine.
	machine func(n *simNode) simMachine
	command func(id uint64, size int) []byte
	// started is called with a member whenever it has started.
	started func(n *simNode)
}

// plantedBug is what a control does wrong.
type plantedBug int

const (
	noBug plantedBug = iota
	bugFsyncOff
	bugAckBeforeSave
	bugFollowerAnswersBeforeSave
	bugVoteNotPersisted
	bugLocalReads
	bugReadContextReused
	bugNoDedupe
	bugNonDeterministicApply
	bugConfChangeTwice
	bugOriginsNotInSnapshot
	bugSuspectEveryBreak
	bugCampaignWithoutPreVote
	bugBodyNotVerified
	bugFreshByContact
	bugReleasedEarly
	bugStoreNotFlushed
	bugRecordBeforeBody
	bugIDReused
	bugNoRepair
	bugGuardOff
	bugRotNotMended
	bugRotServed

	// The next ones are planted in the contract.
	bugWatchBeforeCommit
	bugResumeOffByOne
	bugSlowWatcherSkipped
	bugLeaseEndedByDeposed
	bugLockWithoutLease
	bugOnceNotInSnapshot
	bugOnceBySequence
	bugRightsAtTheDoor
	bugCompareByValue
	bugKeepAliveUnproven
	bugFastClock
	bugWallClock
	bugIgnoreLeaseDropsIt
	bugNestedJudgedLate
	bugProgressAhead
)

// bugTexts are the names of the bugs in docs/testing.md.
var bugTexts = map[plantedBug]string{
	noBug:                        "none",
	bugFsyncOff:                  "fsync off",
	bugAckBeforeSave:             "acknowledged before the save",
	bugFollowerAnswersBeforeSave: "a follower answers before the save",
	bugVoteNotPersisted:          "vote not persisted",
	bugLocalReads:                "reads without ReadIndex",
	bugReadContextReused:         "context of a ReadIndex reused",
	bugNoDedupe:                  "batches proposed again without their identity",
	bugNonDeterministicApply:     "apply depends on the member",
	bugConfChangeTwice:           "membership change applied twice",
	bugOriginsNotInSnapshot:      "identities of batches missing from snapshots",
	bugSuspectEveryBreak:         "a broken connection is taken for the end of the leader",
	bugCampaignWithoutPreVote:    "members that suspect a leader campaign without a pre-vote",
	bugBodyNotVerified:           "snapshot bodies not verified",
	bugFreshByContact:            "freshness claimed because the leader was heard",
	bugReleasedEarly:             "entries leave the memory before raft knows them to be applied",
	bugStoreNotFlushed:           "log released before the store is on disk",
	bugRecordBeforeBody:          "snapshot in the log before its body is on disk",
	bugIDReused:                  "an empty disk runs on under its old id",
	bugNoRepair:                  "a torn save is not repaired",
	bugGuardOff:                  "the guard of the log is off, and a sector in the middle is zeroed",
	bugRotNotMended:              "rotten blocks are not looked for",
	bugRotServed:                 "a rotten block is taken for a whole one",
	bugWatchBeforeCommit:         "watch shows uncommitted changes",
	bugResumeOffByOne:            "watch resumes one revision too late",
	bugSlowWatcherSkipped:        "slow watch skipped",
	bugLeaseEndedByDeposed:       "lease ended by a deposed leader",
	bugLockWithoutLease:          "lock granted without checking the lease",
	bugOnceNotInSnapshot:         "records of idempotency keys missing from snapshots",
	bugOnceBySequence:            "records keyed by the sequence only",
	bugRightsAtTheDoor:           "rights checked only when a request arrives",
	bugCompareByValue:            "values compared instead of revisions",
	bugKeepAliveUnproven:         "keep-alive answered without a proof of leadership",
	bugFastClock:                 "clock runs twice as fast",
	bugWallClock:                 "leases measured by the time of day",
	bugIgnoreLeaseDropsIt:        "ignore_lease drops the lease",
	bugNestedJudgedLate:          "a nested transaction is judged by what was changed before it",
	bugProgressAhead:             "progress of a stream told ahead of its events",
}

func (b plantedBug) String() string { return bugTexts[b] }

func newSim(t *testing.T, seed uint64, opts simOptions) *sim {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	if opts.members == 0 {
		opts.members = 3
	}
	if opts.plan.members != 0 {
		opts.members = opts.plan.members
	}
	if opts.disk == (span{}) {
		opts.disk = span{100 * micro, 2 * milli}
	}
	if opts.apply == (span{}) {
		opts.apply = span{10 * micro, 500 * micro}
	}
	if opts.build == (span{}) {
		opts.build = span{milli, 50 * milli}
	}
	if opts.turn == (span{}) {
		opts.turn = span{1 * micro, 100 * micro}
	}
	if opts.electionTicks == 0 {
		opts.electionTicks = simElection
	}
	if opts.maxBatch == 0 {
		opts.maxBatch = 64 << 10
	}
	if opts.maxQueue == 0 {
		opts.maxQueue = 1 << 20
	}
	if opts.machine == nil {
		opts.machine, opts.command = newModelMachine, modelCommand
	}
	s := &sim{
		t: t, seed: seed, opts: opts,
		rng:   rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)),
		net:   newNetwork(),
		nodes: make(map[uint64]*simNode),
		known: newKnowledge(), transfers: make(map[uint64]int),
		plan: opts.plan, journal: opts.journal,
	}
	for id := uint64(1); id <= uint64(opts.members); id++ {
		s.initial = append(s.initial, simMember(id))
	}
	for _, m := range s.initial {
		s.addNode(m.ID, s.initial)
	}
	return s
}

func simMember(id uint64) roster.Member {
	return roster.Member{ID: id, Name: fmt.Sprintf("n%d", id), PeerURLs: []string{fmt.Sprintf("http://n%d:1", id)}}
}

// addNode creates and starts a member; one without initial members joins.
func (s *sim) addNode(id uint64, initial []roster.Member) *simNode {
	n := newSimNode(s, id)
	s.nodes[id] = n
	s.order = append(s.order, id)
	if len(initial) > 0 {
		n.bootstrap(initial)
	}
	n.start()
	return n
}

// occurrence is one thing that happens at one time.
type occurrence struct {
	at     int64
	serial uint64 // keeps the order of those at one time
	name   string
	do     func()
}

type eventQueue []occurrence

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].serial < q[j].serial
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(occurrence)) }
func (q *eventQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = occurrence{}
	*q = old[:len(old)-1]
	return last
}

// maxPending bounds the events that wait: more of them are a loop that feeds itself.
const maxPending = 200_000

// after schedules something.
func (s *sim) after(delay int64, name string, do func()) {
	if len(s.queue) > maxPending {
		s.violate("runaway: %d events wait, and the next is %q", len(s.queue), name)
		return
	}
	s.serial++
	heap.Push(&s.queue, occurrence{at: s.now + delay, serial: s.serial, name: name, do: do})
}

// step executes the next event; false once an invariant is broken.
func (s *sim) step() bool {
	if s.violation != nil || len(s.queue) == 0 {
		return false
	}
	e := heap.Pop(&s.queue).(occurrence)
	s.now = e.at
	defer func() {
		if r := recover(); r != nil {
			s.violate("panic in %q: %v\n%s", e.name, r, debug.Stack())
		}
	}()
	e.do()
	return s.violation == nil
}

// within has something done that takes its choices from a source of its own. Whether it
// happens changes no choice of anything else.
func (s *sim) within(rng *rand.Rand, do func()) {
	before := s.rng
	s.rng = rng
	defer func() { s.rng = before }()
	do()
}

// run lets virtual time pass.
func (s *sim) run(d int64) { s.until(d, func() bool { return false }) }

// until runs until the condition holds and reports whether it came to hold
// within d.
func (s *sim) until(d int64, cond func() bool) bool {
	end := s.now + d
	for !cond() {
		if len(s.queue) == 0 || s.queue[0].at > end {
			s.now = end
			return false
		}
		if !s.step() {
			return false
		}
	}
	return true
}

// must is until for a condition that has to become true.
func (s *sim) must(d int64, what string, cond func() bool) {
	s.t.Helper()
	if !s.until(d, cond) {
		s.fatalf("not within %v ms: %s\n%s", d/milli, what, s.describe())
	}
}

// lively is until for a condition that a cluster without faults has to reach. It reports
// whether it did; if not, that is a violation.
func (s *sim) lively(d int64, what string, cond func() bool) bool {
	ok := s.until(d, cond)
	if !ok && s.violation == nil {
		s.violate("L1: not within %d ms: %s", d/milli, what)
	}
	return ok
}

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	if s.violation != nil {
		s.t.Fatalf("seed %d, at %d ms: %v\n%s", s.seed, s.now/milli, s.violation, s.describe())
	}
	s.t.Fatalf("seed %d, at %d ms: %s", s.seed, s.now/milli, fmt.Sprintf(format, args...))
}

func (s *sim) violate(format string, args ...any) {
	if s.violation == nil {
		s.violation = fmt.Errorf(format, args...)
		s.note("%v", s.violation)
	}
}

func (s *sim) chance(p float64) bool { return p > 0 && s.rng.Float64() < p }

func (s *sim) between(d span) int64 {
	if d.max <= d.min {
		return d.min
	}
	return d.min + s.rng.Int64N(d.max-d.min)
}

// trace adds to the hash that two runs of one seed must share.
func (s *sim) trace(values ...uint64) {
	h := fnv.New64a()
	var b [8]byte
	for _, v := range append(values, s.traced, uint64(s.now)) {
		for i := range b {
			b[i] = byte(v >> (8 * i))
		}
		h.Write(b[:])
	}
	s.traced = h.Sum64()
}

// leader returns the member that leads in the highest term, if any.
func (s *sim) leader() *simNode {
	var best *simNode
	for _, id := range s.order {
		n := s.nodes[id]
		if n.up && n.core.isLeader() && (best == nil || n.core.term > best.core.term) {
			best = n
		}
	}
	return best
}

// alive returns the members that run.
func (s *sim) alive() []*simNode {
	var out []*simNode
	for _, id := range s.order {
		if s.nodes[id].up {
			out = append(out, s.nodes[id])
		}
	}
	return out
}

// settledLeader is a leader that all running members of the list follow.
func (s *sim) settledLeader(ids ...uint64) *simNode {
	l := s.leader()
	if l == nil || !slices.Contains(ids, l.id) {
		return nil
	}
	for _, id := range ids {
		if n := s.nodes[id]; n.up && (n.core.lead != l.id || n.core.term != l.core.term) {
			return nil
		}
	}
	return l
}

// elect waits until the members follow one leader and returns it.
func (s *sim) elect(ids ...uint64) *simNode {
	s.t.Helper()
	if len(ids) == 0 {
		ids = s.order
	}
	s.must(20*electionTimeout, "a leader of all", func() bool { return s.settledLeader(ids...) != nil })
	return s.settledLeader(ids...)
}

func (s *sim) describe() string {
	out := ""
	for _, id := range s.order {
		n := s.nodes[id]
		if !n.up {
			out += fmt.Sprintf("  member %d: down (%v)\n", id, n.ended)
			continue
		}
		st := n.core.rn.BasicStatus()
		last, _ := n.log.LastIndex()
		out += fmt.Sprintf("  member %d of %v: %v term %d lead %d commit %d applied %d last %d, incarnation %d, %d queued, flight %v, waiting %d appends %d applies\n",
			id, n.core.rn.Status().Config, st.RaftState, st.GetTerm(), st.Lead, st.GetCommit(), n.applier.index, last,
			n.core.proposals.incarnation, len(n.core.proposals.queue), n.core.proposals.flight != nil, len(n.appendQueue), len(n.applyQueue))
	}
	return out
}

// quietLogger drops raft's lines; raft's Fatal and Panic become panics, which
// the simulator reports.
type quietLogger struct{}

var _ raft.Logger = quietLogger{}

func (quietLogger) Debug(...any)            {}
func (quietLogger) Debugf(string, ...any)   {}
func (quietLogger) Info(...any)             {}
func (quietLogger) Infof(string, ...any)    {}
func (quietLogger) Warning(...any)          {}
func (quietLogger) Warningf(string, ...any) {}
func (quietLogger) Error(...any)            {}
func (quietLogger) Errorf(string, ...any)   {}
func (quietLogger) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (quietLogger) Panic(v ...any)          { panic(fmt.Sprint(v...)) }

func (quietLogger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (quietLogger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
