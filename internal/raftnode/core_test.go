package raftnode

import (
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/roster"
)

// rig is a core alone, with its loops done by hand.
type rig struct {
	t       testing.TB
	core    *core
	applier *applier
	log     *raftlog.Store
	machine *machine
	sent    []*raftpb.Message
	due     time.Duration // of the next campaign
	reads   []readRound
	applies []applyWork // held back while hold is set
	hold    bool
}

// newRig makes member 1 of a cluster with the given number of voters.
func newRig(t testing.TB, members int, limits func(*coreConfig)) *rig {
	t.Helper()
	var initial []roster.Member
	for id := uint64(1); id <= uint64(members); id++ {
		initial = append(initial, simMember(id))
	}
	r := roster.New(simCluster, initial)
	g := &rig{t: t, machine: newMachine(false)}
	g.machine.violation = t.Errorf
	g.machine.observe = func(*Entry, uint64) {}
	g.applier = &applier{self: 1, sm: g.machine, roster: r, index: InitialIndex}
	first := roster.NewSnapshot(InitialIndex, initialTerm, r.Membership())
	hs := &raftpb.HardState{Term: new(uint64(initialTerm)), Commit: new(uint64(InitialIndex))}
	g.log = raftlog.New(first, hs, nil, r.Membership().ConfState())
	if err := g.machine.Apply([]Entry{{Index: InitialIndex, Term: initialTerm, Records: r.Records()}}); err != nil {
		t.Fatal(err)
	}
	cfg := coreConfig{
		id: 1, start: roster.Start{Member: 1, Nonce: "dir", Boot: "boot", Version: roster.PayloadVersion},
		electionTicks: simElection, heartbeatTicks: 1, maxBatchBytes: 64, maxQueueBytes: 1 << 10,
		log: g.log, applied: InitialIndex, membership: r.Membership(), logger: quietLogger{},
		electionTimeout: time.Second, random: func(n int64) int64 { return n / 2 },
	}
	if limits != nil {
		limits(&cfg)
	}
	c, err := newCore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.core = c
	return g
}

// work carries out effects until there are none, and collects messages.
func (g *rig) work() {
	g.t.Helper()
	for {
		out := g.core.takeEffects()
		if out.fatal != nil {
			g.t.Fatal(out.fatal)
		}
		g.sent = append(g.sent, out.messages...)
		if out.campaignIn != 0 {
			g.due = out.campaignIn
		}
		g.reads = append(g.reads, out.reads...)
		g.applies = append(g.applies, out.applies...)
		if len(out.appends) == 0 && (len(g.applies) == 0 || g.hold) {
			return
		}
		g.append(out.appends)
		if !g.hold {
			g.apply()
		}
	}
}

func (g *rig) append(jobs []*raftpb.Message) {
	a := raftlog.Appender{Disk: noDisk{}, Log: g.log, Install: func(*raftpb.Snapshot) error { return nil }}
	responses, err := a.Append(jobs)
	if err != nil {
		g.t.Fatal(err)
	}
	var own []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == 1 {
			own = append(own, m)
		} else {
			g.sent = append(g.sent, m)
		}
	}
	g.core.storageDone(own)
}

func (g *rig) apply() {
	work := g.applies
	g.applies = nil
	if len(work) == 0 {
		return
	}
	out, err := g.applier.apply(work)
	if err != nil {
		g.t.Fatal(err)
	}
	g.core.applied(out)
}

// lone is a rig that leads alone and has introduced itself.
func lone(t testing.TB, limits func(*coreConfig)) *rig {
	g := newRig(t, 1, limits)
	g.work()
	if !g.core.isLeader() || g.core.proposals.incarnation == 0 {
		t.Fatal("a single member does not lead at once")
	}
	return g
}

// following is a rig that follows member 2 of three, in term 5.
func following(t *testing.T) *rig {
	g := newRig(t, 3, nil)
	g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Commit: new(uint64(InitialIndex))})
	return g
}

// step hands the core a message of term 5.
func (g *rig) step(m *raftpb.Message) {
	m.To = new(uint64(1))
	if m.Term == nil {
		m.Term = new(uint64(5))
	}
	g.core.step(m)
	g.work()
}

// command is a new proposal for the machine.
func (g *rig) command(id byte, size int) *proposal {
	b := make([]byte, max(size, 8))
	b[7] = id
	return newProposal(b)
}

func (g *rig) propose(id byte, size int) *proposal {
	g.t.Helper()
	p := g.command(id, size)
	if err := g.core.propose(p); err != nil {
		g.t.Fatal(err)
	}
	return p
}

func (p *proposal) answered() (answer, bool) {
	select {
	case a := <-p.done:
		return a, true
	default:
		return answer{}, false
	}
}

func (g *rig) sentOf(typ raftpb.MessageType) (out []*raftpb.Message) {
	for _, m := range g.sent {
		if m.GetType() == typ {
			out = append(out, m)
		}
	}
	return out
}

// proposedBatches returns the batches among the forwarded proposals.
func (g *rig) proposedBatches() (out []roster.BatchID) {
	for _, m := range g.sentOf(raftpb.MsgProp) {
		if o, ok := roster.PeekBatch(m.GetEntries()[0].GetData()); ok {
			out = append(out, o)
		}
	}
	return out
}

// TestOneBatchInFlight is invariant C1, on a follower: commands that arrive
// while a batch is uncommitted wait and form the next one.
func TestOneBatchInFlight(t *testing.T) {
	g := following(t)
	g.admitSelf()
	g.propose(1, 8)
	g.work()
	for id := byte(2); id < 6; id++ {
		g.propose(id, 8)
		g.work()
	}
	got := g.proposedBatches()
	if len(got) != 1 || len(g.core.proposals.queue) != 4 {
		t.Fatalf("%d batches proposed, %d commands wait", len(got), len(g.core.proposals.queue))
	}
	g.commitFlight()
	if got = g.proposedBatches(); len(got) != 2 || got[1].Sequence != 2 || len(g.core.proposals.flight.proposals) != 4 {
		t.Fatalf("after the commit: batches %v", got)
	}
}

// replicate lets the leader, member 2, send and commit entries.
func (g *rig) replicate(datas ...[]byte) {
	g.t.Helper()
	last, _ := g.log.LastIndex()
	prev, _ := g.log.Term(last)
	var ents []*raftpb.Entry
	for i, d := range datas {
		ents = append(ents, &raftpb.Entry{Index: new(last + 1 + uint64(i)), Term: new(uint64(5)), Data: d})
	}
	commit := last + uint64(len(datas))
	g.step(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(2)),
		Index: new(last), LogTerm: new(prev), Commit: new(commit), Entries: ents})
}

// admitSelf commits the start entry of the core.
func (g *rig) admitSelf() {
	g.t.Helper()
	g.work()
	g.replicate(roster.EncodeStart(&g.core.cfg.start))
	if g.core.proposals.incarnation == 0 {
		g.t.Fatal("the start was not applied")
	}
}

func (g *rig) commitFlight() {
	g.t.Helper()
	g.replicate(g.core.proposals.flight.data)
}

// TestLostForwardIsProposedAgain: a forwarded proposal that vanishes is made
// again with the same id, at growing intervals, and two copies run once.
func TestLostForwardIsProposedAgain(t *testing.T) {
	g := following(t)
	g.admitSelf()
	p := g.propose(1, 8)
	g.work()
	for range 3 + 6 + 12 + 1 {
		g.core.tick()
		g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Commit: new(uint64(0))})
	}
	got := g.proposedBatches()
	if len(got) != 4 || got[0] != got[1] || got[0] != got[3] {
		t.Fatalf("proposed as %v", got)
	}
	data := g.core.proposals.flight.data
	g.replicate(data, data)
	if a, ok := p.answered(); !ok || a.err != nil {
		t.Fatalf("answer %v %v", a, ok)
	}
	if len(g.machine.cur.IDs) != 1 {
		t.Fatalf("ran %d times", len(g.machine.cur.IDs))
	}
}

// TestWithdraw: a proposal can be withdrawn before it is packed, and then
// never runs. After that its outcome is open.
func TestWithdraw(t *testing.T) {
	g := lone(t, nil)
	early, late := g.propose(1, 8), g.propose(2, 8)
	if !early.withdraw() || early.withdraw() {
		t.Error("a queued proposal can be withdrawn, once")
	}
	g.work()
	if late.withdraw() {
		t.Error("a packed proposal was withdrawn")
	}
	if _, ok := late.answered(); !ok || g.machine.seen[1] || !g.machine.seen[2] {
		t.Errorf("ran: %v", g.machine.cur.IDs)
	}
	if g.core.proposals.queueBytes != 0 {
		t.Errorf("%d bytes still counted", g.core.proposals.queueBytes)
	}
}

// TestWithdrawnProposalsLeaveTheQueue: also while there is no leader.
func TestWithdrawnProposalsLeaveTheQueue(t *testing.T) {
	g := newRig(t, 3, nil)
	p := g.propose(1, 100)
	p.withdraw()
	g.core.tick()
	if s := &g.core.proposals; len(s.queue) != 0 || s.queueBytes != 0 {
		t.Errorf("%d proposals, %d bytes", len(s.queue), s.queueBytes)
	}
}

func TestBatchLimits(t *testing.T) {
	g := lone(t, nil) // 64 bytes a batch
	before := g.applier.index
	for id := byte(1); id <= 5; id++ {
		g.propose(id, 30)
	}
	big := g.propose(6, 500)
	g.work()
	if _, ok := big.answered(); !ok {
		t.Fatal("a command larger than a batch never ran")
	}
	if got := g.applier.index - before; got != 4 { // 2, 2, 1, the large one
		t.Errorf("%d entries, want 4", got)
	}
}

// TestProposalBeyondAnEntry: what the followers would refuse never gets into the log.
func TestProposalBeyondAnEntry(t *testing.T) {
	g := lone(t, nil)
	largest := g.propose(1, limits.MaxProposalBytes)
	if err := g.core.propose(g.command(2, limits.MaxProposalBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
	if err := g.core.propose(newGroup(make([][]byte, limits.MaxGroupCommands+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one command more: %v", err)
	}
	g.work()
	if a, ok := largest.answered(); !ok || a.err != nil {
		t.Errorf("the largest one: %v %v", a.err, ok)
	}
}

// TestGroupStaysTogether: the commands of a group are in one entry, even if
// they exceed the limit of a batch.
func TestGroupStaysTogether(t *testing.T) {
	g := lone(t, nil) // 64 bytes a batch
	before := g.applier.index
	group := newGroup([][]byte{g.command(2, 100).commands[0], g.command(3, 100).commands[0]})
	for _, p := range []*proposal{g.command(1, 30), group, g.command(4, 30)} {
		if err := g.core.propose(p); err != nil {
			t.Fatal(err)
		}
	}
	g.work()
	a, ok := group.answered()
	if !ok || a.err != nil || len(a.results) != 2 || a.results[0] != a.results[1] {
		t.Errorf("answer %+v %v, want two results of one entry", a, ok)
	}
	if got := g.applier.index - before; got != 3 {
		t.Errorf("%d entries, want 3", got)
	}
}

func TestOverload(t *testing.T) {
	g := newRig(t, 3, nil)
	for id := byte(1); id <= 10; id++ {
		g.propose(id, 100)
	}
	if err := g.core.propose(g.command(11, 100)); !errors.Is(err, ErrOverloaded) {
		t.Errorf("beyond the limit in bytes: %v", err)
	}
	empty := newRig(t, 3, nil)
	if err := empty.core.propose(empty.command(1, 5000)); err != nil {
		t.Errorf("one larger than the queue, alone: %v", err)
	}
	for range maxWaitingReads {
		if err := g.core.read(newReadRequest()); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.core.read(newReadRequest()); !errors.Is(err, ErrOverloaded) {
		t.Errorf("reads beyond the limit: %v", err)
	}
	g.core.diskStalled()
	if err := g.core.propose(g.command(12, 8)); !errors.Is(err, ErrDiskStall) {
		t.Errorf("while the disk hangs: %v", err)
	}
	if err := g.core.read(newReadRequest()); !errors.Is(err, ErrDiskStall) {
		t.Errorf("read while the disk hangs: %v", err)
	}
}

// TestQueueLimitInNumber bounds tiny commands.
func TestQueueLimitInNumber(t *testing.T) {
	g := newRig(t, 3, func(c *coreConfig) { c.maxQueueBytes = 1 << 30 })
	for range maxQueuedProposals {
		g.propose(1, 8)
	}
	if err := g.core.propose(g.command(1, 8)); !errors.Is(err, ErrOverloaded) {
		t.Errorf("%v", err)
	}
}

// TestReadBatching: one ReadIndex serves all requests that came before it.
// Later ones wait for the next, which has a context of its own.
func TestReadBatching(t *testing.T) {
	g := following(t)
	early := []*readRequest{newReadRequest(), newReadRequest()}
	for _, r := range early {
		_ = g.core.read(r)
	}
	g.work()
	late := newReadRequest()
	_ = g.core.read(late)
	g.work()
	asked := g.sentOf(raftpb.MsgReadIndex)
	if len(asked) != 1 {
		t.Fatalf("%d ReadIndex messages, want 1", len(asked))
	}
	first := asked[0].GetEntries()[0].GetData()
	g.confirm(first, 7)
	if len(g.reads) != 1 || len(g.reads[0].requests) != 2 || g.reads[0].index != 7 {
		t.Fatalf("confirmed: %+v", g.reads)
	}
	asked = g.sentOf(raftpb.MsgReadIndex)
	if len(asked) != 2 {
		t.Fatalf("%d ReadIndex messages, want 2", len(asked))
	}
	g.confirm(first, 7) // the old answer, once more
	if len(g.reads) != 1 {
		t.Fatal("an answer to an older attempt was taken for a later one")
	}
	g.confirm(asked[1].GetEntries()[0].GetData(), 9)
	if len(g.reads) != 2 || g.reads[1].requests[0] != late {
		t.Fatalf("confirmed: %+v", g.reads)
	}
}

func (g *rig) confirm(context []byte, index uint64) {
	g.step(&raftpb.Message{Type: raftpb.MsgReadIndexResp.Enum(), From: new(uint64(2)), Index: new(index),
		Entries: []*raftpb.Entry{{Data: context}}})
}

// TestReadRetry: an attempt without an answer is repeated with a new context,
// and the answer to the old one no longer counts.
func TestReadRetry(t *testing.T) {
	g := following(t)
	_ = g.core.read(newReadRequest())
	g.work()
	for range 4 {
		g.core.tick()
	}
	_ = g.core.read(newReadRequest())
	g.work()
	asked := g.sentOf(raftpb.MsgReadIndex)
	if len(asked) < 2 {
		t.Fatal("the read was not tried again")
	}
	old, now := asked[0].GetEntries()[0].GetData(), asked[len(asked)-1].GetEntries()[0].GetData()
	g.confirm(old, 7)
	if len(g.reads) != 0 {
		t.Fatal("the answer to the attempt that was given up counted")
	}
	g.confirm(now, 8)
	if len(g.reads) != 1 || len(g.reads[0].requests) != 2 {
		t.Fatalf("%+v", g.reads)
	}
}

// TestRestartedSingleLeaderDoesNotReadStale: raft answers a lone voter's
// ReadIndex from its commit index, which a power cut may have set back.
func TestRestartedSingleLeaderDoesNotReadStale(t *testing.T) {
	g := lone(t, nil)
	p := g.propose(1, 8)
	g.work()
	a, _ := p.answered()
	written := a.results[0].(machineResult).index

	last, _ := g.log.LastIndex()
	ents, err := g.log.Entries(InitialIndex+1, last+1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	again := newRig(t, 1, nil)
	hs := &raftpb.HardState{Term: new(g.core.term), Vote: new(uint64(1)), Commit: new(uint64(InitialIndex))}
	first := roster.NewSnapshot(InitialIndex, initialTerm, again.core.membership)
	again.log = raftlog.New(first, hs, ents, again.core.membership.ConfState())
	cfg := again.core.cfg
	cfg.log = again.log
	if again.core, err = newCore(cfg); err != nil {
		t.Fatal(err)
	}
	r := newReadRequest()
	_ = again.core.read(r)
	again.work()
	if len(again.reads) != 1 || again.reads[0].index < written {
		t.Fatalf("reads %+v, the write was acknowledged at %d", again.reads, written)
	}
}

// TestSkippedBatchIsRequeued: if a late start of an earlier process took the
// incarnation, the batch did not run. Its commands go first again.
func TestSkippedBatchIsRequeued(t *testing.T) {
	g := following(t)
	g.admitSelf()
	p := g.propose(1, 8)
	g.work()
	flight := g.core.proposals.flight
	late := g.core.cfg.start
	late.Boot = "earlier"
	g.replicate(roster.EncodeStart(&late), flight.data)
	if _, ok := p.answered(); ok || len(g.machine.cur.IDs) > 0 {
		t.Fatal("the skipped batch was answered or ran")
	}
	g.admitSelf() // it presents itself again
	if f := g.core.proposals.flight; f == nil || f.proposals[0] != p || f.id == flight.id {
		t.Fatalf("flight %+v", g.core.proposals.flight)
	}
	if p.withdraw() {
		t.Error("a requeued proposal was withdrawn: an older copy is in the log")
	}
	g.commitFlight()
	if a, ok := p.answered(); !ok || a.err != nil || len(g.machine.cur.IDs) != 1 {
		t.Fatalf("answer %+v, ran %v", a, g.machine.cur.IDs)
	}
}

// TestSettleFlightAfterSnapshot: what an installed snapshot says about the
// batch in flight.
func TestSettleFlightAfterSnapshot(t *testing.T) {
	for _, c := range []struct {
		name    string
		state   func(o roster.BatchID) roster.Origin
		unknown bool
		kept    bool
	}{
		{"it ran", func(o roster.BatchID) roster.Origin {
			return roster.Origin{Boot: "boot", Incarnation: o.Incarnation, LastBatch: o.Sequence}
		}, true, false},
		{"it did not run yet", func(o roster.BatchID) roster.Origin {
			return roster.Origin{Boot: "boot", Incarnation: o.Incarnation, LastBatch: o.Sequence - 1}
		}, false, true},
		{"its incarnation ended", func(o roster.BatchID) roster.Origin {
			return roster.Origin{Boot: "other", Incarnation: o.Incarnation + 5}
		}, true, false},
		{"this process began again", func(o roster.BatchID) roster.Origin {
			return roster.Origin{Boot: "boot", Incarnation: o.Incarnation + 5, LastBatch: 9}
		}, true, false},
	} {
		g := following(t)
		g.admitSelf()
		p := g.propose(1, 8)
		g.work()
		f := g.core.proposals.flight
		g.core.restored(&restoredState{membership: g.core.membership, origin: c.state(f.id)})
		a, answered := p.answered()
		if answered != c.unknown || answered && !errors.Is(a.err, ErrUnknown) || (g.core.proposals.flight == f) != c.kept {
			t.Errorf("%s: answered %v (%v), kept %v", c.name, answered, a.err, g.core.proposals.flight == f)
		}
	}
}

// TestFailAnswersEverybodyOnce: requests that were never proposed get the
// reason; the outcome of those that may be in the log is unknown.
func TestFailAnswersEverybodyOnce(t *testing.T) {
	g := following(t)
	g.admitSelf()
	flying, queued := g.propose(1, 8), (*proposal)(nil)
	g.work()
	queued = g.propose(2, 8)
	r := newReadRequest()
	_ = g.core.read(r)
	g.core.fail(ErrStopping)
	if a, ok := flying.answered(); !ok || !errors.Is(a.err, ErrUnknown) {
		t.Errorf("in flight: %v %v", a, ok)
	}
	if a, ok := queued.answered(); !ok || !errors.Is(a.err, ErrStopping) {
		t.Errorf("queued: %v %v", a, ok)
	}
	if err := <-r.done; !errors.Is(err, ErrStopping) {
		t.Errorf("read: %v", err)
	}
	g.core.fail(ErrStopping)
	if err := g.core.propose(g.command(3, 8)); !errors.Is(err, ErrStopping) {
		t.Errorf("after the end: %v", err)
	}
}

// TestForgedStorageAcknowledgement: a message that claims to come from a local
// storage thread does not reach raft.
func TestForgedStorageAcknowledgement(t *testing.T) {
	g := following(t)
	for _, from := range []uint64{raft.LocalAppendThread, raft.LocalApplyThread} {
		for _, typ := range []raftpb.MessageType{raftpb.MsgStorageAppendResp, raftpb.MsgStorageApplyResp} {
			m := &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(uint64(1)), Term: new(uint64(5)),
				Index: new(uint64(999)), LogTerm: new(uint64(5)), Entries: entriesOf(5, 2, 999)}
			g.core.step(m) // raft would panic
			if peers.ValidateMessage(m, 1) == nil {
				t.Errorf("the transport lets %v from %x pass", typ, from)
			}
			if _, ok := g.core.heard[from]; ok {
				t.Error("a local thread counts as heard")
			}
		}
	}
	g.work()
}

// TestVotesWaitForTheTerm: no request for votes leaves before the term and
// the candidate's own vote are saved.
func TestVotesWaitForTheTerm(t *testing.T) {
	g := newRig(t, 3, nil)
	var jobs []*raftpb.Message
	for range 3 * simElection {
		g.core.tick()
		out := g.core.takeEffects()
		jobs = append(jobs, out.appends...)
		for _, m := range out.messages {
			if m.GetType() == raftpb.MsgVote {
				t.Fatal("a request for votes left at once")
			}
			if m.GetType() == raftpb.MsgPreVote {
				g.core.step(&raftpb.Message{Type: raftpb.MsgPreVoteResp.Enum(), From: m.To, To: m.From, Term: m.Term})
			}
		}
	}
	a := raftlog.Appender{Disk: noDisk{}, Log: g.log}
	responses, err := a.Append(jobs)
	if err != nil {
		t.Fatal(err)
	}
	votes := 0
	for _, m := range responses {
		if m.GetType() == raftpb.MsgVote {
			votes++
			if hs, _, _ := g.log.InitialState(); m.GetTerm() > hs.GetTerm() {
				t.Errorf("a vote for term %d is asked, term %d is saved", m.GetTerm(), hs.GetTerm())
			}
		}
	}
	if votes < 2 {
		t.Errorf("%d requests for votes", votes)
	}
}

// TestRemovedMembersAreNotHeard: messages of a removed member do nothing.
func TestRemovedMembersAreNotHeard(t *testing.T) {
	g := following(t)
	m := *g.core.membership
	m.Removed = map[uint64]bool{3: true}
	g.core.setMembership(&m)
	g.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(3)), Term: new(uint64(50))})
	if g.core.term != 5 || g.core.recentlyHeard(3) {
		t.Errorf("term %d", g.core.term)
	}
}

// TestRemovedMemberStaysForAWhile: a member that was removed still votes for three election
// timeouts, and ends.
func TestRemovedMemberStaysForAWhile(t *testing.T) {
	g := following(t)
	m := *g.core.membership
	m.Removed = map[uint64]bool{1: true}
	g.core.setMembership(&m)
	for tick := 1; tick <= removalTimeouts*simElection; tick++ {
		if err := g.core.takeEffects().fatal; err != nil {
			t.Fatalf("%v before tick %d", err, tick)
		}
		g.core.tick()
	}
	if err := g.core.takeEffects().fatal; !errors.Is(err, ErrRemoved) {
		t.Errorf("it ends with %v", err)
	}
}

// TestMatchesAreTheLeaders: how far others are is known to the leader alone.
func TestMatchesAreTheLeaders(t *testing.T) {
	if m := lone(t, nil).core.matches(); m == nil || len(m) > 0 {
		t.Errorf("a leader without others: %v", m)
	}
	if m := following(t).core.matches(); m != nil {
		t.Errorf("a follower: %v", m)
	}
}

// TestUnreachableInsideSend: a report that the transport makes from within
// Send reaches the core between effects, also for unknown members.
func TestUnreachableInsideSend(t *testing.T) {
	g := lone(t, nil)
	g.propose(1, 8)
	out := g.core.takeEffects()
	for range out.appends {
		g.core.unreachable(2)
		g.core.unreachable(99)
	}
	g.append(out.appends)
	g.applies = out.applies
	g.work()
	if !g.machine.seen[1] {
		t.Error("the write got lost")
	}
}

// TestUnsafeChangesAreRefusedBeforeTheyAreProposed is about the leader;
// TestChangeRules is the same at apply.
func TestUnsafeChangesAreRefusedBeforeTheyAreProposed(t *testing.T) {
	g := lone(t, nil)
	url := []string{"http://n:1"}
	for _, c := range []struct {
		change roster.Change
		err    error
	}{
		{roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: 1}}, roster.ErrUnsafeChange},
		{roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: raft.LocalAppendThread, PeerURLs: url}}, roster.ErrBadMember},
		{roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: limits.MaxMemberID + 1, PeerURLs: url}}, roster.ErrBadMember},
	} {
		r := &changeRequest{change: c.change, done: make(chan error, 1)}
		g.core.change(r)
		select {
		case err := <-r.done:
			if !errors.Is(err, c.err) {
				t.Errorf("%+v: %v", c.change, err)
			}
		default:
			t.Errorf("%+v was taken", c.change)
		}
	}
	f := following(t)
	r := &changeRequest{change: roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: url}}, done: make(chan error, 1)}
	f.core.change(r)
	if err := <-r.done; !errors.Is(err, ErrNotLeader) {
		t.Errorf("on a follower: %v", err)
	}
}

// TestIDsAreGivenOutOnce: also while additions are in progress.
func TestIDsAreGivenOutOnce(t *testing.T) {
	g := lone(t, nil)
	var rs []*changeRequest
	for _, u := range []string{"http://a:1", "http://b:1"} {
		r := &changeRequest{change: roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{u}, KeepLearner: true}}, done: make(chan error, 1)}
		g.core.change(r)
		rs = append(rs, r)
	}
	g.work()
	for i, r := range rs {
		if err := <-r.done; err != nil || r.change.Member.ID != uint64(i+2) {
			t.Errorf("id %d, %v", r.change.Member.ID, err)
		}
	}
	remove := &changeRequest{change: roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: 3}}, done: make(chan error, 1)}
	g.core.change(remove)
	g.work()
	if err := <-remove.done; err != nil {
		t.Fatal(err)
	}
	if id := g.core.changes.nextID(); id != 4 {
		t.Errorf("the id of a removed member comes back: %d", id)
	}
}

// TestOtherDirectoryIsRefused: the process whose start is refused stops, and
// an admission with another nonce gets the reason.
func TestOtherDirectoryIsRefused(t *testing.T) {
	g := lone(t, nil)
	r := &startRequest{start: roster.Start{Member: 1, Nonce: "emptied"}, done: make(chan error, 1)}
	g.core.admit(r)
	g.work()
	if err := <-r.done; !errors.Is(err, roster.ErrMemberExists) {
		t.Errorf("admission: %v", err)
	}
	st := g.core.cfg.start
	g.core.startApplied(startApplied{start: &st, err: roster.ErrMemberExists})
	if !errors.Is(g.core.out.fatal, ErrRefused) {
		t.Errorf("fatal %v", g.core.out.fatal)
	}
	g.core.startApplied(startApplied{start: &st, err: roster.ErrMemberRemoved})
	if !errors.Is(g.core.out.fatal, ErrRemoved) {
		t.Errorf("fatal %v", g.core.out.fatal)
	}
}

// TestIDsAreGivenAfterTheLargest: somebody chose the largest id, even for a
// member that is gone again. Automatic ids continue with those never used.
func TestIDsAreGivenAfterTheLargest(t *testing.T) {
	g := lone(t, nil)
	change := func(c roster.Change) uint64 {
		t.Helper()
		r := &changeRequest{change: c, done: make(chan error, 1)}
		g.core.change(r)
		g.work()
		if err := <-r.done; err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		return r.change.Member.ID
	}
	add := func(id uint64, url string) uint64 {
		return change(roster.Change{Kind: roster.AddMember, Member: roster.Member{ID: id, PeerURLs: []string{url}, KeepLearner: true}})
	}
	add(limits.MaxMemberID, "http://a:1")
	change(roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: limits.MaxMemberID}})
	add(3, "http://b:1")
	change(roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: 3}})
	if id := add(0, "http://c:1"); id != 2 {
		t.Errorf("id %d, want 2", id)
	}
	if id := add(0, "http://d:1"); id != 4 {
		t.Errorf("id %d, want 4: 3 was removed", id)
	}
}
