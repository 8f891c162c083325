package raftnode

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// situation is a corner that the simulator wants to get into: a moment at which code that
// is right most of the time has been wrong, here or elsewhere. A simulation that no longer
// reaches its corners proves nothing, so the tests count and demand them.
type situation int

// The situations of replication. Those of the contract follow.
const (
	deposedWithBatch situation = iota
	deposedWithRead
	deposedWithChange
	deposedWithHandOver
	deposedWithTransfer
	twoLeaders
	deafLeader
	stalledLeader
	removedLeader
	pausedLeader
	lostElection
	lostPreVote
	splitVote
	bareMajority
	leaderWithOldTail
	leaderBehindInApply
	leaderBack
	handOverFailed

	tailOverwritten
	batchOverwritten
	appendFromThePast
	appendRejected

	batchTwice
	batchSkipped
	batchRepeated
	batchCut
	batchBounced
	batchAtFollower
	withdrawnInTime
	withdrawnTooLate
	overloaded
	refusedForDisk
	outcomeUnknown

	readAcrossLeaders
	readRepeated
	readByAnother
	readAnsweredLate
	readAtNewLeader

	crashInSave
	crashOfCandidate
	crashBeforeAnswer
	crashInApply
	crashInInstall
	crashInCheckpoint
	crashOfAll
	crashTearsSave
	crashTakesUnsynced
	diskFailsInSave
	diskFailsInSnapshot
	diskFullInSave

	startRaisesTerm
	startAheadOfCommit
	startFromBody
	startWithTail
	startWithoutEntries
	startSuperseded
	startOnFullDisk

	installDuringChange
	promotedInTransfer
	removedInTransfer
	removedWhileDown
	removedWhileCutOff
	replacedAtOnce
	wipedRefused
	changeUnknown
	changeUnsafe
	changeRepeated
	changesQueued
	lateChange

	bodyDamaged
	bodyOutdated
	bodyBehindSaves
	bodyAgain
	bodyOfDeposed
	bodyWithoutSender
	bodyWithoutRoom
	buildFails
	spoolFails
	spoolRead
	intakeLimited

	rotScrubbed
	rotRead
	rotOfLeader
	rotReplaced
	bodyRotten
	rebuildWaits
	rebuildFromOther
	rebuildAhead
	crashInRebuild
	storeRebuilt
	storeRefused
	logRefused

	replicationSituations // the first of the contract

	keepAliveAcrossEnd
	keepAliveTooLate
	keepAliveUnproven
	expiryOfDeposed
	expiryOfEarlierGrant
	tickOfDeposed
	leaseTaken
	leaseEndsWithKeys
	leaseEndsWithLocks
	lockOfDeadLease
	lockQueued
	lockPassedOn
	lockDelayed
	tokenStale
	compactionInResume
	compactionInStream
	resumeAhead
	watchFromDisk
	watchAcrossInstall
	watchAcrossCrash
	eventsInOne
	onceReplayed
	onceAcrossInstall
	onceInOneEntry
	compactRefused
	txnElse
	txnInTxn
	txnRefused
	installWithLeases
	installWithLocks
	installWithRights
	crashOfPebble
	rotOfPebble
	revokedInFlight
	rightsStale
	clockJumps
	etcdUserMissing
	etcdRevokedInFlight
	etcdLeaseKept
	etcdNestedDiffers
	etcdDuplicate
	etcdTimeWithKeys
	etcdStaleRead
	etcdFutureRead
	etcdPastRead
	etcdProgress
	etcdPutBack
	etcdCompactedAlone

	situations // their number
)

// corner describes a situation. Of a thousand seeds about perMille reach it.
type corner struct {
	text     string
	perMille int
}

// corners has a line for each situation.
var corners = map[situation]corner{
	deposedWithBatch:    {"a leader is deposed with a batch in flight", 246},
	deposedWithRead:     {"a leader is deposed with a read round in flight", 249},
	deposedWithChange:   {"a leader is deposed with a membership change proposed", 93},
	deposedWithHandOver: {"another member leads than the one that a leader chose", 35},
	deposedWithTransfer: {"a leader is deposed while it sends a snapshot", 48},
	twoLeaders:          {"two members lead at once, in different terms", 75},
	deafLeader:          {"a leader is heard by a member that it does not hear", 131},
	stalledLeader:       {"a leader notices that its disk hangs", 53},
	removedLeader:       {"a leader is removed while it leads", 13},
	pausedLeader:        {"a process is stopped, another takes over, and the first still believes that it leads", 30},
	lostElection:        {"a candidate loses", 352},
	lostPreVote:         {"a pre-candidate loses", 718},
	splitVote:           {"two candidates ask for votes in one term", 332},
	bareMajority:        {"a leader is elected by the smallest majority that there is", 507},
	leaderWithOldTail:   {"a leader begins with entries of older terms that are not known to be committed", 768},
	leaderBehindInApply: {"a leader begins with committed entries that it has not applied", 128},
	leaderBack:          {"a leader restarts before the others have noticed", 228},
	handOverFailed:      {"a hand-over fails after the target was told", 136},

	tailOverwritten:   {"a new leader overwrites entries of a follower", 232},
	batchOverwritten:  {"the batch that is overwritten is in flight at its own member", 44},
	appendFromThePast: {"an append of an older term arrives", 245},
	appendRejected:    {"a follower lacks the entry before an append", 728},

	batchTwice:       {"a batch is committed twice, and the second copy suppressed", 588},
	batchSkipped:     {"a batch is committed in vain, because its incarnation had ended", 124},
	batchRepeated:    {"a batch that vanished is proposed again", 640},
	batchCut:         {"more commands wait than fit into a batch", 264},
	batchBounced:     {"a proposal is forwarded back to where it came from", 16},
	batchAtFollower:  {"a proposal arrives at a member that does not lead anymore", 190},
	withdrawnInTime:  {"a requester withdraws its command before it is proposed", 772},
	withdrawnTooLate: {"a requester wants to withdraw its command when it has been proposed", 526},
	overloaded:       {"a command is refused because too many wait", 70},
	refusedForDisk:   {"a command is refused because the disk hangs", 221},
	outcomeUnknown:   {"the outcome of a command is unknown to its requester", 780},

	readAcrossLeaders: {"a read begins under one leader and is answered under another", 396},
	readRepeated:      {"a read round that vanished is asked again", 692},
	readByAnother:     {"a member that a read round asked is silent, and another confirms it", 44},
	readAnsweredLate:  {"the answer to a read round arrives that was given up", 517},
	readAtNewLeader:   {"a read arrives at a leader that has committed nothing in its term", 708},

	crashInSave:         {"a crash during a save", 608},
	crashOfCandidate:    {"a crash of a candidate that saves its vote", 252},
	crashBeforeAnswer:   {"a crash after a save, before raft learns of it", 325},
	crashInApply:        {"a crash while entries are applied", 187},
	crashInInstall:      {"a crash between the arrival of a snapshot and its installation", 124},
	crashInCheckpoint:   {"a crash after the state became durable, before the log says so", 403},
	crashOfAll:          {"all members are down at once", 523},
	crashTearsSave:      {"a crash tears a save between its entries and its hard state", 102},
	crashTakesUnsynced:  {"a crash takes what was written and not synced", 400},
	diskFailsInSave:     {"a save of entries fails", 281},
	diskFailsInSnapshot: {"the save of a received snapshot fails", 21},
	diskFullInSave:      {"a save finds the disk full", 365},

	startRaisesTerm:     {"a start raises the term of a torn save", 44},
	startAheadOfCommit:  {"a start finds the state ahead of the commit index", 52},
	startFromBody:       {"a start restores a snapshot body", 142},
	startWithTail:       {"a start finds entries that are not known to be committed", 756},
	startWithoutEntries: {"a start finds a snapshot and no entries", 232},
	startSuperseded:     {"a late start of an earlier process ends the incarnation of its successor", 206},
	startOnFullDisk:     {"a start finds the disk full", 347},

	installDuringChange: {"a snapshot is installed while a membership change is uncommitted", 52},
	promotedInTransfer:  {"a learner is promoted while a snapshot is on its way to it", 11},
	removedInTransfer:   {"a member is removed while a snapshot is on its way to it", 22},
	removedWhileDown:    {"a member is removed while it is down", 157},
	removedWhileCutOff:  {"a member is removed while it runs and hears nobody", 19},
	replacedAtOnce:      {"a member whose disk is lost is replaced in one step", 20},
	wipedRefused:        {"an empty disk is refused the id of a member that has taken part", 135},
	changeUnknown:       {"the outcome of a membership change is unknown", 92},
	changeUnsafe:        {"a membership change is refused because it would cost the quorum", 129},
	changeRepeated:      {"a membership change is proposed again", 105},
	changesQueued:       {"a membership change waits for another", 236},
	lateChange:          {"a membership change comes out of the apply loop after a snapshot that has it", 4},

	bodyDamaged:       {"a snapshot arrives damaged", 69},
	bodyOutdated:      {"a snapshot arrives at a member that has applied more", 24},
	bodyBehindSaves:   {"a snapshot arrives while saves are under way", 27},
	bodyAgain:         {"a second snapshot is installed, and nothing was applied since the first", 12},
	bodyOfDeposed:     {"a snapshot arrives whose sender does not lead anymore", 84},
	bodyWithoutSender: {"the sender of a snapshot restarts before it learns how the transfer ended", 105},
	bodyWithoutRoom:   {"a snapshot arrives at a full disk", 50},
	buildFails:        {"a snapshot body cannot be written", 94},
	spoolFails:        {"the log for a transfer cannot be written or read", 24},
	spoolRead:         {"a member catches up from log that has left the memory", 96},
	intakeLimited:     {"a leader holds forwarded batches back", 177},

	rotScrubbed:      {"the scrub finds a rotten block", 66},
	rotRead:          {"a request meets a rotten block before the scrub", 20},
	rotOfLeader:      {"a block rots in the store of a leader", 23},
	rotReplaced:      {"a snapshot replaces a store with a rotten block", 9},
	bodyRotten:       {"a start finds the body that it needs rotten", 6},
	rebuildWaits:     {"a store with a rotten block has to serve, because the quorum needs the member", 28},
	rebuildFromOther: {"a store is filled with what another member sends", 68},
	rebuildAhead:     {"what another member sends is ahead of the log, and takes its place", 35},
	crashInRebuild:   {"the power fails before a rebuild has ended", 13},
	storeRebuilt:     {"a store was rebuilt", 79},
	storeRefused:     {"a damaged store is left to an operator", 10},
	logRefused:       {"a start refuses a log with a damaged sector in the middle", 159},

	keepAliveAcrossEnd:   {"a lease ends while its keep-alive is under way", 98},
	keepAliveTooLate:     {"a keep-alive arrives after the end of its lease was proposed", 542},
	keepAliveUnproven:    {"a keep-alive is not answered, because its leader cannot prove to lead", 460},
	expiryOfDeposed:      {"the expiry that a deposed leader proposed is committed, and ignored", 106},
	expiryOfEarlierGrant: {"an expiry is about an earlier grant of the same id", 266},
	tickOfDeposed:        {"the time step that a deposed leader proposed is committed, and ignored", 172},
	leaseTaken:           {"a lease id is granted again before the earlier lease has ended", 132},
	leaseEndsWithKeys:    {"a lease ends that has keys", 760},
	leaseEndsWithLocks:   {"a lease ends that holds or awaits a lock", 772},
	lockOfDeadLease:      {"a lock is asked for with a lease that has ended", 232},
	lockQueued:           {"a lock is held, and its requester queues", 746},
	lockPassedOn:         {"a lock passes to the next in its queue", 752},
	lockDelayed:          {"a lock stays closed, because the lease of its holder ended", 640},
	tokenStale:           {"a holder writes with a token after a later holder did", 140},
	compactionInResume:   {"a watch resumes at a revision that was compacted since it left", 500},
	compactionInStream:   {"a watch that lags is overtaken by a compaction", 246},
	resumeAhead:          {"a watch resumes at a member that does not have its revision yet", 706},
	watchFromDisk:        {"a watch reads what has left the window of its hub", 766},
	watchAcrossInstall:   {"a snapshot is installed under a watch", 340},
	watchAcrossCrash:     {"the member of a watch crashes", 746},
	eventsInOne:          {"a revision has several events for one watch", 786},
	onceReplayed:         {"a request with an idempotency key is answered from the record", 800},
	onceAcrossInstall:    {"such a request is answered by a member that got the record in a snapshot", 300},
	onceInOneEntry:       {"two attempts of one request are in one log entry", 632},
	compactRefused:       {"a compaction comes after a later one", 346},
	txnElse:              {"the comparisons of a random transaction do not hold", 732},
	txnInTxn:             {"a transaction runs in a transaction", 546},
	txnRefused:           {"a transaction is refused as a whole", 680},
	installWithLeases:    {"a snapshot is installed that has leases", 520},
	installWithLocks:     {"a snapshot is installed that has locks", 472},
	installWithRights:    {"a snapshot is installed that has rights", 226},
	crashOfPebble:        {"the power of a member is cut whose store is in files", 280},
	rotOfPebble:          {"a block of Pebble's files has rotted, and is found", 128},
	revokedInFlight:      {"a command was let in, and its user loses the right before it runs", 352},
	rightsStale:          {"a change of rights was made against rights that have changed", 280},
	clockJumps:           {"the clock of a leader with leases is set forward", 320},

	etcdUserMissing:     {"a client of etcd was let in before there were rights, and its request runs when there are", 360},
	etcdRevokedInFlight: {"a guest of the etcd face loses the right before its request runs", 120},
	etcdLeaseKept:       {"a put with ignore_lease keeps a lease", 456},
	etcdNestedDiffers:   {"a nested transaction takes another branch than it would by what was changed before it", 493},
	etcdDuplicate:       {"a transaction of etcd would write a key twice on some path", 850},
	etcdTimeWithKeys:    {"a client of etcd asks for the time of a lease that has keys", 550},
	etcdStaleRead:       {"a serializable range is older than what was answered before", 586},
	etcdFutureRead:      {"a range of etcd asks for a revision that is not there yet", 376},
	etcdPastRead:        {"a range of etcd asks for a revision that is compacted", 333},
	etcdProgress:        {"a stream of etcd tells progress to all of its watches", 990},
	etcdPutBack:         {"a stream of etcd puts back what it has no room for", 803},
	etcdCompactedAlone:  {"one watch of a stream ends by a compaction, and others go on", 403},
}

// tally counts how often situations were reached, and in how many runs.
type tally struct {
	runs  int
	time  int64         // virtual
	since time.Duration // CPU time at the beginning
	times map[situation]int
	in    map[situation]int
}

func newTally() *tally {
	return &tally{since: cpuTime(), times: make(map[situation]int), in: make(map[situation]int)}
}

// cpuTime is what this process has used so far, where the system tells.
var cpuTime = func() time.Duration { return 0 }

// speed tells how much was simulated, and how fast.
func (a *tally) speed() string {
	hours, used := float64(a.time)/float64(3600*second), cpuTime()-a.since
	if used <= 0 {
		return fmt.Sprintf("%.1f simulated hours", hours)
	}
	return fmt.Sprintf("%.1f simulated hours, %.1f in a minute of CPU time", hours, hours/used.Minutes())
}

// add adds a run.
func (a *tally) add(s *sim) {
	a.runs++
	a.time += s.now
	for x, n := range s.known.reached {
		a.times[x] += n
		a.in[x]++
	}
}

// String lists the situations between two of them, the rarest first.
func (a *tally) list(from, to situation) string {
	var all []situation
	for x := from; x < to; x++ {
		if x != replicationSituations {
			all = append(all, x)
		}
	}
	slices.SortStableFunc(all, func(x, y situation) int { return cmp.Compare(a.in[x], a.in[y]) })
	var b strings.Builder
	for _, x := range all {
		fmt.Fprintf(&b, "\n%6d times, in %4d ‰ of the runs: %s", a.times[x], 1000*a.in[x]/max(a.runs, 1), corners[x].text)
	}
	return b.String()
}

// surely is how many runs must have been expected to reach a situation before its absence
// is a failure: with 20, chance alone does that once in 500 million times.
const surely = 20

// demand fails a test whose runs no longer reach what such runs used to reach.
func (a *tally) demand(t *testing.T, from, to situation) {
	t.Helper()
	for _, x := range a.missing(from, to) {
		t.Errorf("%d runs did not reach this situation, which %d of 1000 used to reach: %s", a.runs, corners[x].perMille, corners[x].text)
	}
}

// missing returns the situations that the runs should have reached.
func (a *tally) missing(from, to situation) (out []situation) {
	for x := from; x < to; x++ {
		if a.in[x] == 0 && a.runs*corners[x].perMille >= 1000*surely {
			out = append(out, x)
		}
	}
	return out
}

// TestSituationsAreDescribed: each one has a text of its own, and was reached when they
// were counted. At least 60 are for the seeds of one run of CI.
func TestSituationsAreDescribed(t *testing.T) {
	texts, demanded := make(map[string]bool), 0
	for x := range situations {
		c := corners[x]
		if x == replicationSituations {
			continue
		}
		if c.text == "" || texts[c.text] || c.perMille == 0 {
			t.Errorf("situation %d: %+v", x, c)
		}
		texts[c.text] = true
		runs := 2000
		if x > replicationSituations {
			runs = 280
		}
		if runs*c.perMille >= 1000*surely {
			demanded++
		}
	}
	if demanded < 60 {
		t.Errorf("CI must reach %d situations, want at least 60", demanded)
	}
	t.Logf("%d situations, %d of which 2000 runs and 280 of the contract must reach", len(texts), demanded)
}

// TestMissedSituationsAreNoticed leaves out the faults that crash members, and looks for
// what depends on them.
func TestMissedSituationsAreNoticed(t *testing.T) {
	a := newTally()
	for seed := uint64(1); seed <= 40; seed++ {
		s := simulate(t, seed, plan{}, nil, append([]string{"crash", "crash all", "crash leader", "disk error", "replace", "trap"}, newerNames...)...)
		a.add(s)
	}
	missing := a.missing(0, replicationSituations)
	for _, want := range []situation{crashInSave, crashOfAll} {
		if !slices.Contains(missing, want) {
			t.Errorf("without crashes nobody misses this: %s", corners[want].text)
		}
	}
	if slices.Contains(missing, twoLeaders) || slices.Contains(missing, deposedWithBatch) {
		t.Error("what needs no crash is missed, too")
	}
}

// reach notes that a run has got into a situation.
func (s *sim) reach(x situation) { s.known.reached[x]++ }

// reachIf notes it on a condition.
func (s *sim) reachIf(x situation, reached bool) {
	if reached {
		s.reach(x)
	}
}
