package catchup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

// rig is a leader's deliveries with a hand on everything around it.
type rig struct {
	t   *testing.T
	now time.Duration
	d   *Deliveries
	log *raftlog.Store

	builds   int
	sends    []uint64
	reports  []string
	removed  int
	limit    int64
	matches  map[uint64]uint64
	position Place
}

func newRig(t *testing.T, members int) *rig {
	r := &rig{t: t, matches: make(map[uint64]uint64)}
	var initial []roster.Member
	for id := uint64(1); id <= uint64(members); id++ {
		initial = append(initial, testMember(id))
	}
	r.log = raftlog.New(nil, nil, nil, new(raftpb.ConfState))
	r.log.MaxEntries, r.log.NewSpoolFile = 10, func() (raftlog.SpoolFile, error) { return os.CreateTemp(t.TempDir(), "spool") }
	r.d = New(zap.NewNop(), r.log, r, 1<<20)
	r.position = Place{Leads: true, Term: 1, Members: roster.New(testCluster, initial).Membership()}
	r.grow(100)
	r.tick(0)
	return r
}

func (r *rig) Build()                           { r.builds++ }
func (r *rig) Send(m *raftpb.Message, _ *Body)  { r.sends = append(r.sends, m.GetTo()) }
func (r *rig) Report(to uint64, ok bool)        { r.reports = append(r.reports, fmt.Sprint(to, ok)) }
func (r *rig) Remove(*Body)                     { r.removed++ }
func (r *rig) LimitIntake(bytesPerSecond int64) { r.limit = bytesPerSecond }
func (r *rig) snapshot(index uint64) *Body {
	s := roster.NewSnapshot(index, 1, r.position.Members)
	return &Body{Snapshot: s, Size: 1000}
}

// rigData is what each entry holds.
var rigData = make([]byte, 20<<10)

// grow appends applied entries.
func (r *rig) grow(count int) {
	r.t.Helper()
	last, _ := r.log.LastIndex()
	r.position.Applied = last + uint64(count)
	for i := last + 1; i <= r.position.Applied; i++ {
		r.log.Append([]*raftpb.Entry{{Index: new(i), Term: new(uint64(1)), Type: raftpb.EntryNormal.Enum(), Data: rigData}})
	}
	r.log.NoteApplied(r.position.Applied)
	if err := r.log.Compact(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) tick(passed time.Duration) {
	r.now += passed
	r.position.Matches = r.matches
	r.d.Tick(r.now, r.position)
}

func (r *rig) ask() {
	if _, err := r.log.Snapshot(); err == nil {
		return
	}
	<-r.log.Asked
	r.d.Asked(r.now, r.position.Applied)
}

// message is raft's MsgSnap with what the log offers.
func (r *rig) message(to uint64) {
	r.t.Helper()
	s, err := r.log.Snapshot()
	if err != nil {
		r.t.Fatal(err)
	}
	r.d.Take(r.now, &raftpb.Message{Type: raftpb.MsgSnap.Enum(), To: new(to), Term: new(r.position.Term), Snapshot: s})
}

// takeReports returns the reports since the last call.
func (r *rig) takeReports() []string {
	out := r.reports
	r.reports = nil
	return out
}

func (r *rig) first() uint64 {
	first, _ := r.log.FirstIndex()
	return first
}

// TestLateWishBuildsNothing: a wish from before the offer may arrive after it. A second
// body of the same state would push out the first, which raft may be sending.
func TestLateWishBuildsNothing(t *testing.T) {
	r := newRig(t, 3)
	r.ask()
	r.d.Built(r.now, r.snapshot(r.position.Applied), nil)
	r.d.Asked(r.now, r.position.Applied)
	r.tick(time.Second)
	if r.builds != 1 || r.removed != 0 {
		t.Errorf("%d builds, %d bodies removed", r.builds, r.removed)
	}
}

// TestLostBodyIsBuiltAgain: a body that cannot be read is not offered again.
func TestLostBodyIsBuiltAgain(t *testing.T) {
	r := newRig(t, 3)
	r.ask()
	r.d.Built(r.now, r.snapshot(r.position.Applied), nil)
	r.message(2)
	r.d.Sent(r.now, 2, fmt.Errorf("%w: no such file", ErrBodyLost))
	if _, err := r.log.Snapshot(); err == nil {
		t.Fatal("the lost body is still offered")
	}
	r.tick(time.Minute) // the pause is over
	r.ask()
	if r.builds != 2 {
		t.Errorf("%d builds", r.builds)
	}
}

// TestDeliveryKeepsTheLog: from the moment a build begins until the member has
// caught up, the log after the body stays, whatever is written meanwhile.
func TestDeliveryKeepsTheLog(t *testing.T) {
	r := newRig(t, 3)
	r.ask()
	if r.builds != 1 {
		t.Fatalf("%d builds: it must begin at once", r.builds)
	}
	r.grow(1000) // while it is built
	if r.first() != 101 {
		t.Errorf("while the body is built the log begins at %d", r.first())
	}
	r.d.Built(r.now, r.snapshot(105), nil)
	r.grow(1000)
	r.message(2)
	r.grow(1000) // while it is sent
	r.tick(time.Minute)
	r.d.Sent(r.now, 2, nil)
	r.grow(1000) // while it is installed
	r.tick(time.Minute)
	r.matches[2] = 105
	r.tick(time.Second)
	if !r.log.Continues(105) {
		t.Errorf("the log begins at %d, the member has 105", r.first())
	}
	if !slices.Equal(r.takeReports(), []string{"2 true"}) {
		t.Error("the transfer was not reported once")
	}
	r.matches[2] = r.position.Applied
	r.tick(time.Second)
	r.tick(bodyLifetime)
	r.tick(time.Second)
	r.grow(1)
	if last, _ := r.log.LastIndex(); last-r.first() > 10 {
		t.Errorf("the log still begins at %d of %d", r.first(), last)
	}
	if len(r.d.members) > 0 || r.removed != 1 {
		t.Errorf("%d deliveries are left, %d bodies were removed", len(r.d.members), r.removed)
	}
}

// TestOneBodyServesAllWhoAsk: three members at once get one body, two at a time.
func TestOneBodyServesAllWhoAsk(t *testing.T) {
	r := newRig(t, 4)
	for range 3 {
		r.ask()
	}
	r.d.Built(r.now, r.snapshot(105), nil)
	for to := uint64(2); to <= 4; to++ {
		r.message(to)
	}
	if !slices.Equal(r.sends, []uint64{2, 3}) {
		t.Errorf("sent to %v at once", r.sends)
	}
	r.tick(2 * time.Minute)
	r.d.Sent(r.now, 3, nil)
	r.d.Sent(r.now, 2, nil)
	if !slices.Equal(r.sends, []uint64{2, 3, 4}) {
		t.Errorf("sent to %v", r.sends)
	}
	r.d.Sent(r.now, 4, nil)
	if r.builds != 1 || !slices.Equal(r.takeReports(), []string{"3 true", "2 true", "4 true"}) {
		t.Errorf("%d builds", r.builds)
	}
}

// TestFailuresAreRetriedWithGrowingPauses: a build or a transfer that fails is
// tried again, ever more rarely, and never ends anything else.
func TestFailuresAreRetriedWithGrowingPauses(t *testing.T) {
	r := newRig(t, 3)
	full := errors.New("no space left")
	wait := func(what string, want time.Duration, done func() bool) {
		t.Helper()
		begin := r.now
		for !done() {
			if r.tick(100 * time.Millisecond); r.now-begin > 2*repeat.LongestRetry {
				t.Fatalf("%s: never", what)
			}
		}
		if got := r.now - begin; got < want || got > want+300*time.Millisecond {
			t.Errorf("%s after %v, want %v", what, got, want)
		}
	}
	pause := repeat.FirstRetry
	for n := range 9 {
		r.ask()
		wait(fmt.Sprint("build ", n), map[bool]time.Duration{true: 0, false: pause}[n == 0], func() bool { r.ask(); return r.builds == n+1 })
		if n > 0 {
			pause = min(2*pause, repeat.LongestRetry)
		}
		r.d.Built(r.now, nil, full)
		if r.log.Pin() != 0 {
			t.Fatal("a failed build still keeps the log")
		}
	}
	wait("the last build", repeat.LongestRetry, func() bool { r.ask(); return r.builds == 10 })
	r.d.Built(r.now, r.snapshot(r.position.Applied), nil)
	pause = repeat.FirstRetry
	for range 4 {
		r.message(2)
		r.d.Sent(r.now, 2, full)
		if len(r.takeReports()) > 0 {
			t.Fatal("raft was told before the pause was over")
		}
		wait("the report", pause, func() bool { return len(r.reports) > 0 })
		if got := r.takeReports(); !slices.Equal(got, []string{"2 false"}) {
			t.Errorf("reports %v", got)
		}
		pause *= 2
	}
	r.message(2)
	if k := r.d.View(r.now); len(k.Deliveries) != 1 || k.Deliveries[0].Failures != 4 || k.Deliveries[0].Reason != full.Error() || k.Deliveries[0].State != "sending" {
		t.Errorf("view %+v", k)
	}
}

// TestDeliveriesEndWithTheTerm: what a deposed leader had begun is reported, and
// keeps nothing.
func TestDeliveriesEndWithTheTerm(t *testing.T) {
	r := newRig(t, 6)
	r.ask()
	r.d.Built(r.now, r.snapshot(105), nil)
	for to := uint64(2); to <= 6; to++ {
		r.message(to)
		if to == 3 {
			r.d.Sent(r.now, 2, nil)                  // 2 catches up
			r.d.Sent(r.now, 3, errors.New("broken")) // 3 pauses
		}
	}
	r.takeReports()
	r.position.Leads, r.position.Term = false, 2
	r.tick(time.Second)
	got := r.takeReports()
	if slices.Sort(got); !slices.Equal(got, []string{"3 false", "6 false"}) {
		t.Errorf("reports %v", got)
	}
	r.d.Sent(r.now, 4, nil)
	r.d.Sent(r.now, 5, errors.New("broken"))
	if got := r.takeReports(); !slices.Equal(got, []string{"4 false", "5 false"}) {
		t.Errorf("reports of the transfers under way: %v", got)
	}
	r.tick(time.Second)
	r.tick(2 * bodyLifetime)
	r.tick(repeat.LongestRetry)
	r.grow(100)
	if len(r.d.bodies) > 0 || r.log.Pin() != 0 {
		t.Errorf("%d bodies, pin %d", len(r.d.bodies), r.log.Pin())
	}
}

// TestIntakeSlowsForAMemberThatCannotKeepUp: rounds that bring a member no
// closer slow the leader, a member that catches up frees it, and a dead one does
// not slow it.
func TestIntakeSlowsForAMemberThatCannotKeepUp(t *testing.T) {
	r := newRig(t, 3)
	r.log.MaxEntries = 20
	r.ask()
	r.d.Built(r.now, r.snapshot(100), nil)
	r.message(2)
	r.d.Sent(r.now, 2, nil)
	r.matches[2] = 100
	r.grow(1000)
	// Clients write 200 entries a second, and the member replicates as many.
	second := func(written, replicated int) {
		r.grow(written)
		r.matches[2] = min(r.matches[2]+uint64(replicated), r.position.Applied)
		r.tick(time.Second)
	}
	for n := range 40 {
		second(200, 200)
		if r.limit > 0 {
			if n < maxLostRounds*5-1 {
				t.Errorf("slowed after %d s", n)
			}
			break
		}
	}
	if rate := r.d.members[2].rate; r.limit == 0 || r.limit >= rate || r.limit < rate/4 {
		t.Fatalf("the limit is %d, the member replicates %d bytes per second", r.limit, rate)
	}
	if r.d.View(r.now).Alarm() == "" {
		t.Error("no alarm")
	}
	for n := 0; r.limit > 0; n++ {
		second(int(r.limit)/len(rigData), 200)
		if n > 120 {
			t.Fatalf("after %d s it still lacks %d bytes", n, r.d.members[2].behind)
		}
	}
	if r.d.View(r.now).Alarm() != "" || len(r.d.members) > 0 {
		t.Error("the alarm or the delivery is still there")
	}

	// Another member gets its body and dies.
	r.tick(bodyLifetime)
	r.tick(bodyLifetime)
	r.ask()
	r.d.Built(r.now, r.snapshot(r.position.Applied), nil)
	r.message(3)
	r.d.Sent(r.now, 3, nil)
	r.matches[3] = r.position.Applied
	for range 200 {
		r.grow(20)
		r.tick(time.Second)
		if r.limit > 0 {
			t.Fatal("a dead member slows the leader")
		}
	}
	if len(r.d.members) > 0 {
		t.Error("the log is still kept for it")
	}
}

// TestThreeBodiesInARowSlowTheIntake: so does a member whose log was lost after
// each body, as on a full disk.
func TestThreeBodiesInARowSlowTheIntake(t *testing.T) {
	r := newRig(t, 3)
	for n := range 4 {
		if r.limit > 0 {
			t.Fatalf("slowed after %d bodies", n)
		}
		r.log.SetPin(0) // as for a spool that cannot be written
		r.grow(100)
		r.tick(time.Second)
		r.ask()
		at := r.position.Applied
		r.d.Built(r.now, r.snapshot(at), nil)
		r.message(2)
		r.d.Sent(r.now, 2, nil)
		r.tick(time.Second)
	}
	if r.limit == 0 {
		t.Error("not slowed after four bodies")
	}
	// Its log stays this time, and it catches up.
	r.matches[2] = r.position.Applied
	r.tick(time.Second)
	if r.limit > 0 {
		t.Error("still slowed")
	}
}

// TestUnreachableMemberDoesNotSlowTheIntake: a member that slowed the leader and
// then cannot be sent its next body may be dead, and the others go on at full speed.
func TestUnreachableMemberDoesNotSlowTheIntake(t *testing.T) {
	r := newRig(t, 3)
	body := func(err error) {
		r.log.SetPin(0) // as for a spool that cannot be written
		r.grow(100)
		r.tick(time.Second)
		r.ask()
		r.d.Built(r.now, r.snapshot(r.position.Applied), nil)
		r.message(2)
		r.d.Sent(r.now, 2, err)
		r.tick(time.Second / 2)
	}
	for range 4 {
		body(nil)
	}
	if r.limit == 0 {
		t.Fatal("not slowed after four bodies")
	}
	body(errors.New("connection refused"))
	if r.limit > 0 {
		t.Errorf("still limited to %d bytes per second", r.limit)
	}
}

// TestMemberRemovedDuringATransfer: the transfer runs to its end, so its file stays
// until then, and raft is told once (V1, V3).
func TestMemberRemovedDuringATransfer(t *testing.T) {
	for _, err := range []error{nil, errors.New("broken")} {
		r := newRig(t, 3)
		r.ask()
		r.d.Built(r.now, r.snapshot(105), nil)
		r.message(3)
		r.position.Members = roster.New(testCluster, []roster.Member{testMember(1), testMember(2)}).Membership()
		r.tick(2 * bodyLifetime)
		if r.removed > 0 || len(r.reports) > 0 {
			t.Fatalf("while it is sent %d bodies were removed, and raft was told %v", r.removed, r.reports)
		}
		r.d.Sent(r.now, 3, err)
		r.tick(2 * bodyLifetime)
		r.tick(2 * bodyLifetime)
		if len(r.reports) != 1 || r.removed != 1 || !r.d.Idle() {
			t.Errorf("%v: reports %v, %d bodies removed, idle %v", err, r.reports, r.removed, r.d.Idle())
		}
	}
}
