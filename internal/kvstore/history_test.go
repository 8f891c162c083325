package kvstore

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/timeline"
)

func tick(millis int64) Command { return Command{Op: OpTick, Term: 1, ElapsedMillis: millis} }

func TestCompactionTarget(t *testing.T) {
	s := newStore(t, "pebble")
	settings := DefaultSettings()
	settings.RetentionMillis, settings.RetentionRevisions, settings.QuotaBytes = 1000, 5, 1<<20
	do(t, s, Command{Op: OpSettings, Settings: settings.Change()})
	for i := range int64(20) { // revision 2+i at 100·i milliseconds
		do(t, s, put("a", fmt.Sprint(i)), tick(min(i, 1)*100))
	}
	want := func(now int64, want uint64) {
		t.Helper()
		if got := targetAt(s, now); got != want {
			t.Errorf("at %d ms: %d, want %d", now, got, want)
		}
	}
	want(900, 0)
	want(1000, 2)
	want(1099, 2)
	want(1950, 11)
	want(1<<40, 21-5)
	do(t, s, Command{Op: OpCompact, Revision: 11})
	maintainAll(t, s)
	want(1950, 0)
	want(2050, 12)
	do(t, s, put("b", strings.Repeat("v", 200<<10)), put("b", strings.Repeat("v", 200<<10)), put("b", ""))
	want(1950, 11+(24-11+1)/2) // 400 KiB of history are more than a quarter
	for steps := 0; targetAt(s, 1950) != 0; steps++ {
		if steps == 10 {
			t.Fatalf("the target never stops moving: %+v", s.Stats())
		}
		do(t, s, Command{Op: OpCompact, Revision: targetAt(s, 1950)})
		maintainAll(t, s)
		checkCounters(t, s)
	}
	if n := s.Stats().HistoryBytes; n > 1<<18 {
		t.Errorf("%d bytes of history are left", n)
	}
}

// TestSamplesAreBounded: samples are thinned out, and the same ones are there after a
// restart.
func TestSamplesAreBounded(t *testing.T) {
	e := newEngine(t, "memory")
	s := openStore(t, e, Options{})
	const ticks = 3 * timeline.MaxSamples
	for range ticks {
		do(t, s, put("a", ""), tick(1), tick(1)) // the second one changes nothing
	}
	n := len(s.timeline.Samples())
	if n > timeline.MaxSamples || n < timeline.MaxSamples/2 || s.timeline.Samples()[n-1] != (timeline.Sample{Revision: ticks + 1, Millis: 2*ticks - 1}) || s.timeline.Samples()[0].Millis != 1 {
		t.Fatalf("%d samples, %v to %v", n, s.timeline.Samples()[0], s.timeline.Samples()[n-1])
	}
	checkSamples(t, openStore(t, e, Options{}), s)
	do(t, s, Command{Op: OpCompact, Revision: ticks / 2})
	maintainAll(t, s)
	if first := s.timeline.Samples()[:2]; first[0].Revision > ticks/2 || first[1].Revision <= ticks/2 {
		t.Errorf("samples begin with %v at a compact revision of %d", first, ticks/2)
	}
	checkSamples(t, openStore(t, e, Options{}), s)
}

// TestMaintainIsBounded: one call does a bounded part of the work, for many small
// revisions and for a few large ones.
func TestMaintainIsBounded(t *testing.T) {
	s := newStore(t, "memory")
	const keys, ranges = maintainChanges + 100, 3
	for i := range ranges {
		e := Entry{Index: uint64(i) + 1, Term: 1}
		for j := range keys {
			c := put(fmt.Sprintf("%d/%05d", i, j), "")
			e.Commands = append(e.Commands, EncodeCommand(nil, &c))
		}
		must(t, s.Apply([]Entry{e}))
	}
	clean := func() (calls int) {
		do(t, s, Command{Op: OpCompact, Revision: s.Revision()})
		for more := true; more; calls++ {
			var err error
			more, err = s.Maintain()
			must(t, err)
			checkCountersOf(t, s, calls%16 == 0 || !more)
		}
		return calls
	}
	const most = maintainChanges + changelog.MaxBytes/8 // with the record that reaches the bound
	if got := clean(); got < ranges*keys/most {
		t.Errorf("%d calls for the puts", got)
	}
	// Records of one change each.
	for range 2 * maintainRecords {
		do(t, s, put("a", ""))
	}
	if got := clean(); got < 2 {
		t.Errorf("%d calls for many records", got)
	}
	for i := range ranges {
		do(t, s, Command{Op: OpDeleteRange, Key: fmt.Append(nil, i, "/"), End: fmt.Append(nil, i, "0")})
	}
	do(t, s, remove("a"))
	do(t, s, put("a", ""))
	if got := clean(); got < ranges*keys/most {
		t.Errorf("%d calls for the deletes", got)
	}
	if st := s.Stats(); st.Keys != 1 || st.HistoryVersions != 0 {
		t.Errorf("left: %+v", st)
	}
}

func checkCountersOf(t *testing.T, s *Store, now bool) {
	t.Helper()
	if now {
		checkCounters(t, s)
	}
}

// TestTargetWaitsForRemoval: compacting frees bytes only after Maintain has run. Until
// then, asking for the target again must not give up more history.
func TestTargetWaitsForRemoval(t *testing.T) {
	e := newEngine(t, "memory")
	s := openStore(t, e, Options{})
	settings := DefaultSettings()
	settings.QuotaBytes = 4 << 20
	do(t, s, Command{Op: OpSettings, Settings: settings.Change()})
	value := strings.Repeat("v", 1000)
	for range 1500 {
		do(t, s, put("a", value))
	}
	target := targetAt(s, 0)
	if want := uint64(1 + 1501/2); target != want {
		t.Fatalf("the target is %d, want %d", target, want)
	}
	do(t, s, Command{Op: OpCompact, Revision: target})
	for more := true; more; {
		if again := targetAt(s, 0); again != 0 {
			t.Fatalf("compacted to %d but not removed, the target is %d", target, again)
		}
		s = openStore(t, e, Options{}) // which finds out how far it got
		var err error
		more, err = s.Maintain()
		must(t, err)
	}
	if again := targetAt(s, 0); again != 0 {
		t.Errorf("half of the history was enough, and the target is %d", again)
	}
	for range 750 {
		do(t, s, put("a", value))
	}
	if targetAt(s, 0) <= target {
		t.Error("nothing is compacted anymore")
	}
}

// TestMaintainDividesARevision: a revision that deleted very many keys is removed in
// parts, even with a restart in between, and none of it shows in a snapshot body.
func TestMaintainDividesARevision(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		const keys = 4 * maintainChanges
		e := Entry{Index: 1, Term: 1}
		for i := range keys {
			c := put(fmt.Sprintf("%020d", i), "")
			e.Commands = append(e.Commands, EncodeCommand(nil, &c))
		}
		must(t, s.Apply([]Entry{e}))
		do(t, s, Command{Op: OpDeleteRange})
		do(t, s, put("kept", "1"))
		do(t, s, Command{Op: OpCompact, Revision: keys + 1})
		maintainAll(t, s)
		do(t, s, Command{Op: OpCompact, Revision: s.Revision()})
		body, calls := bodyOf(t, s), 0
		for more := true; more; calls++ {
			before := s.Stats().HistoryVersions
			var err error
			more, err = s.Maintain()
			must(t, err)
			if n := before - s.Stats().HistoryVersions; n > 2*(maintainChanges+changelog.MaxBytes/20) {
				t.Fatalf("one call removed %d versions", n)
			}
			checkCounters(t, s)
			if got := bodyOf(t, s); !bytes.Equal(got, body) {
				t.Fatal("removing history has changed the body")
			}
			must(t, s.load()) // as after a restart
		}
		if calls < 3 {
			t.Errorf("%d calls", calls)
		}
		if st := s.Stats(); st.Keys != 1 || st.HistoryVersions != 0 || st.HistoryBytes != 0 {
			t.Errorf("left: %+v", st)
		}
	})
}

// TestReplicatedTimeIsASumOfSteps: whatever a leader claims about the time, the next
// leaders can go on from there, and history keeps being compacted by age.
func TestReplicatedTimeIsASumOfSteps(t *testing.T) {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.QuotaBytes, settings.RetentionRevisions = 0, 100
	do(t, s, settingsOf(&settings))
	for i := range 200 {
		do(t, s, put("k", fmt.Sprint(i)))
	}
	const year = 365 * 24 * 3600_000
	do(t, s, tick(year))
	if got := s.exec.now.Clock; got != MaxTickMillis {
		t.Fatalf("one tick of a year moved the clock by %d ms", got)
	}
	for range 60 {
		for i := range 10 {
			do(t, s, put("k", fmt.Sprint(i)))
		}
		do(t, s, tick(60_000))
		if target := s.CompactionTarget(); target > s.CompactRevision() {
			do(t, s, Command{Op: OpCompact, Term: 1, Revision: target})
		}
	}
	maintainAll(t, s)
	checkCounters(t, s)
	if n := s.Stats().HistoryVersions; n > 10*11 {
		t.Errorf("%d versions are kept of 10 minutes with 10 each", n)
	}
}

// TestIdleHistoryAges: without any write, history gets old enough to go, and then
// nothing is left to wait for.
func TestIdleHistoryAges(t *testing.T) {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.RetentionRevisions = 5
	do(t, s, settingsOf(&settings))
	for i := range 20 {
		do(t, s, put("k", fmt.Sprint(i)))
	}
	for ticks := 0; s.Aging(); ticks++ {
		if ticks > 12 {
			t.Fatal("ten minutes are over, and history still waits")
		}
		do(t, s, tick(60_000))
		if target := s.CompactionTarget(); target > s.CompactRevision() {
			do(t, s, Command{Op: OpCompact, Term: 1, Revision: target})
		}
	}
	if got := s.CompactRevision(); got != 21-5 {
		t.Errorf("compacted to %d, want %d", got, 21-5)
	}
}
