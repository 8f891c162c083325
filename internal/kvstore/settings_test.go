package kvstore

import (
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

func settingsOf(s *Settings) Command { return Command{Op: OpSettings, Settings: s.Change()} }

// TestSettingsAreMergedWhenApplied: two clients that change different settings at the
// same time do not undo each other.
func TestSettingsAreMergedWhenApplied(t *testing.T) {
	s := newStore(t, "memory")
	millis, revisions := int64(1000), uint64(10)
	do(t, s, Command{Op: OpSettings, Settings: &SettingsChange{RetentionMillis: &millis}},
		Command{Op: OpSettings, Settings: &SettingsChange{RetentionRevisions: &revisions}})
	want := DefaultSettings()
	want.RetentionMillis, want.RetentionRevisions = 1000, 10
	if got := s.Settings(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	checkCounters(t, s)
}

// TestConditionsOnSettings: of two clients that read the same settings, the second
// one to change them is refused.
func TestConditionsOnSettings(t *testing.T) {
	var log []Origin
	s := openStore(t, engine.NewMemory(), Options{OnSettings: func(before, after Settings, by Origin) {
		if before == after && len(log) > 0 {
			t.Errorf("nothing changed: %+v", after)
		}
		log = append(log, by)
	}})
	read := s.Settings().Tag()
	set := func(quota int64, client string, want Outcome) {
		t.Helper()
		r := do(t, s, Command{Op: OpSettings, Settings: &SettingsChange{QuotaBytes: &quota}, Origin: Origin{Client: client},
			Conditions: conditions(Condition{Kind: IfMatch, Revisions: []uint64{read}})})[0]
		if r.Outcome != want {
			t.Errorf("outcome %d, want %d", r.Outcome, want)
		}
		if want == PreconditionFailed && r.KV.ModRevision != s.Settings().Tag() {
			t.Error("the refusal does not tell the current tag")
		}
	}
	set(1<<20, "first", OK)
	set(2<<20, "second", PreconditionFailed)
	read = s.Settings().Tag()
	set(1<<20, "third, without effect", OK)
	set(2<<20, "fourth", OK)
	if len(log) != 2 || log[0].Client != "first" || log[1].Client != "fourth" {
		t.Errorf("reported: %v", log)
	}
}

// TestLoweredKeyLimit: a stored key beyond a limit that was lowered can be read and
// deleted.
func TestLoweredKeyLimit(t *testing.T) {
	s := newStore(t, "memory")
	key := strings.Repeat("k", 2000)
	settings := DefaultSettings()
	settings.MaxKeyBytes = 1000
	do(t, s, put(key, "x"), settingsOf(&settings))
	if r := do(t, s, put(key, "y"))[0]; r.Outcome != TooLarge {
		t.Errorf("put: outcome %d", r.Outcome)
	}
	if kv, _, err := s.Get([]byte(key), 0); err != nil || string(kv.Value) != "x" {
		t.Errorf("get: %v", err)
	}
	if r := do(t, s, remove(key))[0]; r.Outcome != OK || r.Deleted != 1 {
		t.Errorf("delete: outcome %d, deleted %d", r.Outcome, r.Deleted)
	}
}

// TestSpace: puts are refused before the quota is reached to the byte, and the store
// says so until the refused put would fit.
func TestSpace(t *testing.T) {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.QuotaBytes = 1 << 20
	do(t, s, settingsOf(&settings))
	want := func(low, refused bool) {
		t.Helper()
		if sp := s.Space(); sp.Low != low || sp.Refused != refused {
			t.Errorf("%+v, want low %t and refused %t", sp, low, refused)
		}
	}
	value := strings.Repeat("v", 400_000)
	do(t, s, put("a", value))
	do(t, s, put("huge", strings.Repeat("v", 1<<20))) // would not fit an empty store
	want(false, false)
	do(t, s, put("b", value))
	do(t, s, put("c", value[:100_000]))
	want(true, false)
	do(t, s, put("d", value))
	do(t, s, put("e", ""))
	want(true, true)
	do(t, s, remove("c"))
	want(false, true)
	do(t, s, remove("b"))
	want(false, false)
	do(t, s, put("b", value), put("c", value))
	want(false, true)
	settings.QuotaBytes = 0
	do(t, s, settingsOf(&settings))
	want(false, false)
}

// TestCompactTellsTheCompactRevision: which may be above the one asked for.
func TestCompactTellsTheCompactRevision(t *testing.T) {
	s := newStore(t, "memory")
	rs := do(t, s, put("a", "1"), put("a", "2"), Command{Op: OpCompact, Revision: 3}, Command{Op: OpCompact, Revision: 2})
	if rs[2].CompactRevision != 3 || rs[3].CompactRevision != 3 {
		t.Errorf("got %d and %d, want 3 and 3", rs[2].CompactRevision, rs[3].CompactRevision)
	}
}
