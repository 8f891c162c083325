package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/timeline"
)

func conditions(c ...Condition) []Condition { return c }

func incr(key string, delta int64) Command {
	return Command{Op: OpIncr, Key: []byte(key), Delta: delta}
}

func appendTo(key, tail string) Command {
	return Command{Op: OpAppend, Key: []byte(key), Value: []byte(tail)}
}

// outcomeCases run one command each on a store that has a = "x" since revision
// 2, n = "5" since revision 3 and max = MaxInt64 since revision 4.
var outcomeCases = []struct {
	name     string
	command  Command
	want     Outcome
	revision uint64 // after it
	mod      uint64 // KV.ModRevision
}{
	{"put of a new key", put("z", "1"), OK, 5, 5},
	{"put of the same value", put("a", "x"), OK, 5, 5},
	{"put of the longest key", put(strings.Repeat("k", MaxKeyBytes), ""), OK, 5, 5},
	{"put of a key too long", put(strings.Repeat("k", MaxKeyBytes+1), ""), TooLarge, 4, 0},
	{"put of the longest value", put("a", strings.Repeat("v", 1536<<10)), OK, 5, 5},
	{"put of a value too long", put("a", strings.Repeat("v", 1536<<10+1)), TooLarge, 4, 0},
	{"put of the empty key", put("", "1"), Invalid, 4, 0},
	{"delete", remove("a"), OK, 5, 5},
	{"delete of an absent key", remove("z"), OK, 4, 0},
	{"delete of the empty key", remove(""), Invalid, 4, 0},
	{"append", appendTo("a", "y"), OK, 5, 5},
	{"append to an absent key", appendTo("z", "y"), OK, 5, 5},
	{"append of nothing", appendTo("a", ""), OK, 5, 5},
	{"append beyond the limit", appendTo("a", strings.Repeat("v", 1536<<10)), TooLarge, 4, 0},
	{"incr", incr("n", -7), OK, 5, 5},
	{"incr of an absent key", incr("z", 1), OK, 5, 5},
	{"incr of a text", incr("a", 1), NotANumber, 4, 2},
	{"incr beyond the greatest", incr("max", 1), Overflow, 4, 4},
	{"incr to the greatest", incr("n", math.MaxInt64-5), OK, 5, 5},
	{"decr to the least", incr("z", math.MinInt64), OK, 5, 5},
	{"range delete", Command{Op: OpDeleteRange, Key: []byte("a"), End: []byte("n")}, OK, 5, 5},
	{"range delete of nothing", Command{Op: OpDeleteRange, Key: []byte("b"), End: []byte("c")}, OK, 4, 0},
	{"range delete the wrong way round", Command{Op: OpDeleteRange, Key: []byte("z"), End: []byte("a")}, OK, 4, 0},
	{"range delete up to the empty key", Command{Op: OpDeleteRange, End: []byte{}}, OK, 4, 0},
	{"range delete of everything", Command{Op: OpDeleteRange}, OK, 5, 5},
	{"compact", Command{Op: OpCompact, Revision: 4}, OK, 4, 0},
	{"compact the future", Command{Op: OpCompact, Revision: 5}, FutureRevision, 4, 0},
	{"compact of an old term", Command{Op: OpCompact, Revision: 4, Term: 2}, Ignored, 4, 0},
	{"compact of the term", Command{Op: OpCompact, Revision: 4, Term: 1}, OK, 4, 0},
	{"tick of the term", Command{Op: OpTick, Term: 1, ElapsedMillis: 5}, OK, 4, 0},
	{"tick of an old term", Command{Op: OpTick, Term: 2}, Ignored, 4, 0},
	{"tick of no term", Command{Op: OpTick}, Ignored, 4, 0},
	{"settings out of bounds", Command{Op: OpSettings, Settings: Settings{}.Change()}, Invalid, 4, 0},
	{"settings of an old term", Command{Op: OpSettings, Term: 2, Settings: Settings{MaxKeyBytes: 1}.Change()}, Ignored, 4, 0},

	{"if-match", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfMatch, Revisions: []uint64{9, 2}})}, OK, 5, 5},
	{"if-match of another", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfMatch, Revisions: []uint64{3}})}, PreconditionFailed, 4, 2},
	{"if-match of none", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfMatch})}, PreconditionFailed, 4, 2},
	{"if-match of any", Command{Op: OpDelete, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfMatch, Any: true})}, OK, 5, 5},
	{"if-match of any, absent", Command{Op: OpDelete, Key: []byte("z"), Conditions: conditions(Condition{Kind: IfMatch, Any: true})}, PreconditionFailed, 4, 0},
	{"if-none-match of any", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfNoneMatch, Any: true})}, PreconditionFailed, 4, 2},
	{"if-none-match of any, absent", Command{Op: OpPut, Key: []byte("z"), Conditions: conditions(Condition{Kind: IfNoneMatch, Any: true})}, OK, 5, 5},
	{"if-none-match", Command{Op: OpAppend, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfNoneMatch, Revisions: []uint64{2}})}, PreconditionFailed, 4, 2},
	{"if-none-match of another", Command{Op: OpIncr, Key: []byte("n"), Conditions: conditions(Condition{Kind: IfNoneMatch, Revisions: []uint64{2}})}, OK, 5, 5},
	{"if-revision", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfRevision, Revisions: []uint64{2}})}, OK, 5, 5},
	{"if-revision of another", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfRevision, Revisions: []uint64{3}})}, PreconditionFailed, 4, 2},
	{"if-revision 0", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfRevision, Revisions: []uint64{0}})}, PreconditionFailed, 4, 2},
	{"if-revision 0, absent", Command{Op: OpPut, Key: []byte("z"), Conditions: conditions(Condition{Kind: IfRevision, Revisions: []uint64{0}})}, OK, 5, 5},
	{"one of two holds", Command{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfMatch, Any: true}, Condition{Kind: IfRevision, Revisions: []uint64{3}})}, PreconditionFailed, 4, 2},
}

func TestOutcomes(t *testing.T) {
	for _, c := range outcomeCases {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, "memory")
			do(t, s, put("a", "x"), put("n", "5"), put("max", fmt.Sprint(math.MaxInt64)))
			_, before := s.StateHash()
			r := do(t, s, c.command)[0]
			if r.Outcome != c.want || r.Revision != c.revision || s.Revision() != c.revision || r.KV.ModRevision != c.mod {
				t.Errorf("%s; want outcome %d, revision %d, mod_revision %d", resultText(&r), c.want, c.revision, c.mod)
			}
			if refused := c.want != OK && c.want != Ignored; refused != (r.Detail != "") {
				t.Errorf("the detail is %q", r.Detail)
			}
			if _, after := s.StateHash(); (after != before) != (c.revision == 5 || c.want == OK && (c.command.Op == OpTick || c.command.Op == OpCompact)) {
				t.Errorf("the state hash was %x and is %x", before, after)
			}
			checkCounters(t, s)
		})
	}
}

// TestRefusalOfTermKeepsState: commands of another term change nothing.
func TestRefusalOfTermKeepsState(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("a", "1"), Command{Op: OpTick, Term: 1, ElapsedMillis: 7})
	do(t, s, Command{Op: OpTick, Term: 3, ElapsedMillis: 9}, Command{Op: OpCompact, Term: 3, Revision: 2})
	if s.exec.now.Clock != 7 || s.CompactRevision() != 1 || s.SettingsGiven() {
		t.Errorf("%+v", s.exec.now)
	}
	do(t, s, Command{Op: OpTick, Term: 1, ElapsedMillis: 3})
	do(t, s, Command{Op: OpTick, Term: 1, ElapsedMillis: -5})
	if s.exec.now.Clock != 10 {
		t.Errorf("after 7 and 3 ms it is %d", s.exec.now.Clock)
	}
}

// TestFirstSettings: a leader sets settings once, a user at any time.
func TestFirstSettings(t *testing.T) {
	s := newStore(t, "pebble")
	first, second := DefaultSettings(), DefaultSettings()
	first.MaxKeyBytes, second.MaxKeyBytes = 10, 20
	set := func(settings Settings, term uint64, want Outcome, wantBytes int64) {
		t.Helper()
		r := do(t, s, Command{Op: OpSettings, Term: term, Settings: settings.Change()})[0]
		if r.Outcome != want || s.Settings().MaxKeyBytes != wantBytes || !s.SettingsGiven() {
			t.Errorf("outcome %d, settings %+v", r.Outcome, s.Settings())
		}
		checkCounters(t, s)
	}
	set(first, 1, OK, 10)
	set(second, 1, Ignored, 10)
	set(second, 0, OK, 20)
}

func TestChangesInOneEntrySeeEachOther(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		previous := appendTo("a", "!")
		previous.ReturnPrevious = true
		last := remove("a")
		last.ReturnPrevious = true
		r := do(t, s,
			put("a", "1"), incr("a", 41), previous, // 0 to 2
			remove("a"), appendTo("a", "new"), last, // 3 to 5
			put("b", "1"), Command{Op: OpDeleteRange}, incr("b", 2)) // 6 to 8
		if got := string(r[1].KV.Value); got != "42" {
			t.Errorf("incr gave %q", got)
		}
		if got := kvText(r[2].Previous); got != `"a"="42" create 2 mod 3 version 2 lease 0` {
			t.Errorf("previous of append: %s", got)
		}
		if !r[4].Created || r[4].KV.Version != 1 || r[4].KV.CreateRevision != 6 {
			t.Errorf("append after a delete: %s", resultText(&r[4]))
		}
		if got := kvText(r[5].Previous); got != `"a"="new" create 6 mod 6 version 1 lease 0` {
			t.Errorf("previous of delete: %s", got)
		}
		if r[7].Deleted != 1 || r[7].KV.ModRevision != 9 {
			t.Errorf("range delete: %s", resultText(&r[7]))
		}
		if got := fmt.Sprint(contentOf(t, s)); got != `["b"="2" create 10 mod 10 version 1 lease 0]` {
			t.Errorf("content: %s", got)
		}
		checkCounters(t, s)
	})
}

// TestResultsDoNotAlias: neither the input nor the results of Apply share memory with
// the store.
func TestResultsDoNotAlias(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		e := entryOf(1, put("a", "1"), Command{Op: OpPut, Key: []byte("a"), Value: []byte("2"), ReturnPrevious: true})
		e.Records = []Record{{Key: []byte("r"), Value: []byte("record")}}
		entries := []Entry{e}
		must(t, s.Apply(entries))
		previous := entries[0].Results[1].(*Result).Previous
		for _, b := range append(e.Commands, e.Records[0].Key, e.Records[0].Value) {
			clear(b)
		}
		clear(previous.Value)
		do(t, s, appendTo("a", "3"))
		if got := fmt.Sprint(contentOf(t, s)); got != `["a"="23" create 2 mod 4 version 3 lease 0]` {
			t.Errorf("content: %s", got)
		}
		must(t, s.Apply([]Entry{{Index: 3, Term: 1, Records: []Record{{Key: []byte("r"), Value: []byte("new")}}}}))
		checkCounters(t, s)
	})
}

// TestQuota fills the store to the last byte and frees space again.
func TestQuota(t *testing.T) {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.QuotaBytes = 1 << 20
	do(t, s, Command{Op: OpSettings, Settings: settings.Change()})
	want := func(c Command, want Outcome) {
		t.Helper()
		if r := do(t, s, c)[0]; r.Outcome != want {
			t.Fatalf("%s; want outcome %d at %d bytes", resultText(&r), want, s.Stats().LogicalBytes)
		}
		checkCounters(t, s)
	}
	const half = 1<<19 - 1 - layout.KeyOverheadBytes
	want(put("a", strings.Repeat("v", half)), OK)
	want(put("b", strings.Repeat("v", half+1)), NoSpace)
	want(put("b", strings.Repeat("v", half)), OK)
	want(put("c", ""), NoSpace)
	want(appendTo("a", "v"), NoSpace)
	want(appendTo("a", ""), OK)
	want(incr("c", 1), NoSpace)
	want(put("a", strings.Repeat("w", half)), OK)
	want(put("a", strings.Repeat("w", half-layout.KeyOverheadBytes-1)), OK)
	want(put("c", "1"), NoSpace)
	want(put("c", ""), OK)
	want(remove("b"), OK)
	want(put("d", "1"), OK)
	settings.QuotaBytes = 0
	want(Command{Op: OpSettings, Settings: settings.Change()}, OK)
	want(put("b", strings.Repeat("v", 1<<20)), OK)
	settings.QuotaBytes = 1 << 20
	want(Command{Op: OpSettings, Settings: settings.Change()}, OK)
	want(put("e", ""), NoSpace)
	want(put("b", strings.Repeat("v", 1<<20-1)), OK) // still above it, but less than before
	want(Command{Op: OpDeleteRange}, OK)
	want(put("e", ""), OK)
}

// TestRangeDeleteLimit deletes as many keys as one revision may, and asks for one more.
func TestRangeDeleteLimit(t *testing.T) {
	s := newStore(t, "memory")
	e := Entry{Index: 1, Term: 1}
	for i := range MaxRangeDelete {
		c := put(fmt.Sprintf("key%06d", i), "")
		e.Commands = append(e.Commands, EncodeCommand(nil, &c))
	}
	must(t, s.Apply([]Entry{e}))
	all := Command{Op: OpDeleteRange, Key: []byte("k")}
	// The last key and its deletion are not committed yet when they count.
	r := do(t, s, put("last", ""), all, remove("last"), put("kez", ""), remove("kez"), all)
	if r[1].Outcome != TooLarge || r[5].Outcome != OK || r[5].Deleted != MaxRangeDelete {
		t.Fatalf("%s, then %s", resultText(&r[1]), resultText(&r[5]))
	}
	checkCounters(t, s)
	do(t, s, put("later", ""), Command{Op: OpCompact, Revision: s.Revision() + 1})
	maintainAll(t, s)
	if st := s.Stats(); st.Keys != 1 || st.HistoryVersions != 0 || st.HistoryBytes != 0 {
		t.Errorf("after compaction: %+v", st)
	}
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	left := make(map[byte]int)
	_, err := v.each(func(k, _ []byte) error {
		left[k[0]]++
		return nil
	})
	must(t, err)
	if left[layout.TableVersion] != 1 || left[layout.TableChange] != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestApplyStops: a replica stops at what it does not understand and never skips it.
func TestApplyStops(t *testing.T) {
	good := put("a", "1")
	encoded := EncodeCommand(nil, &good)
	for name, entries := range map[string][]Entry{
		"unknown version":   {{Index: 1, Commands: [][]byte{encoded, {command.Version + 1, 1, 0, 0}}}},
		"unknown operation": {{Index: 1, Commands: [][]byte{encoded, {command.Version, 200, 0, 0}}}},
		"unknown flag":      {{Index: 1, Commands: [][]byte{encoded, {command.Version, 1, 0x80, 0}}}},
		"cut off":           {{Index: 1, Commands: [][]byte{encoded, {command.Version, 1, 0, 5, 'a'}}}},
		"empty":             {{Index: 1, Commands: [][]byte{encoded, {}}}},
		"a gap":             {{Index: 1, Commands: [][]byte{encoded}}, {Index: 3}},
		"a repetition":      {{Index: 1, Commands: [][]byte{encoded}}, {Index: 1}},
		"index 0":           {{Index: 0, Commands: [][]byte{encoded}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, "pebble")
			err := s.Apply(entries)
			if err == nil || s.Revision() != 1 || s.Position() != (Position{}) || len(contentOf(t, s)) > 0 {
				t.Fatalf("%v; part of it is visible", err)
			}
			if again := s.Apply([]Entry{{Index: 1}}); !errors.Is(again, err) {
				t.Errorf("then: %v", again)
			}
			if _, again := s.Maintain(); !errors.Is(again, err) {
				t.Errorf("maintain: %v", again)
			}
			if again := s.Restore(bytes.NewReader(nil)); !errors.Is(again, err) {
				t.Errorf("restore: %v", again)
			}
		})
	}
}

func TestRecordsAreHashed(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		apply := func(records ...Record) uint64 {
			t.Helper()
			must(t, s.Apply([]Entry{{Index: s.Position().Index + 1, Term: 1, Records: records}}))
			checkCounters(t, s)
			_, hash := s.StateHash()
			return hash
		}
		empty := apply()
		one := apply(recordOf("a", "1"), recordOf("a", ""), recordOf("", "empty key"))
		if again := apply(recordOf("a", "2"), recordOf("a", "")); again != one || one == empty {
			t.Errorf("hashes %x %x %x", empty, one, again)
		}
		if last := apply(Record{Key: []byte("a")}, Record{}, Record{Key: []byte("absent")}); last != empty {
			t.Errorf("the hash without records was %x and is %x", empty, last)
		}
	})
}

func TestHashesAreKeptByIndex(t *testing.T) {
	s := newStore(t, "memory")
	want := make(map[uint64]uint64)
	for index := uint64(1); index <= (timeline.KeptHashes+6)*timeline.HashStride; index++ {
		e := Entry{Index: index, Term: 1}
		if index%timeline.HashStride == 0 {
			e = entryOf(index, put("a", fmt.Sprint(index)))
		}
		must(t, s.Apply([]Entry{e}))
		if _, hash := s.StateHash(); index%timeline.HashStride == 0 && index > 6*timeline.HashStride {
			want[index] = hash
		}
	}
	if got := s.Hashes(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestUnlessEqualComparesAttributes: a put that would change nothing is none, whatever
// the pair has beside its value.
func TestUnlessEqualComparesAttributes(t *testing.T) {
	s := newStore(t, "memory")
	with := func(a *Attributes) Command {
		c := put("k", "v")
		c.UnlessEqual, c.Attributes = true, a
		return c
	}
	last := s.Revision()
	for i, step := range []struct {
		a       *Attributes
		changes bool
	}{
		{&Attributes{Flags: 1}, true}, {&Attributes{Flags: 1}, false}, {&Attributes{Flags: 2}, true}, {nil, true}, {nil, false}, {&Attributes{Flags: 2}, true},
	} {
		only(t, s, OK, with(step.a))
		if changed := s.Revision() != last; changed != step.changes {
			t.Errorf("step %d: changed %v", i, changed)
		}
		last = s.Revision()
	}
}

// TestReadPairsHaveTheirOwnKeys: a pair that is kept for the next reader does not share the
// memory of the request that read it first.
func TestReadPairsHaveTheirOwnKeys(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("key", "v"))
	for range 3 { // the first readers are not worth keeping it
		request := []byte("key")
		if _, _, err := s.Get(request, 0); err != nil {
			t.Fatal(err)
		}
		copy(request, "xxx")
	}
	if kv, _, err := s.Get([]byte("key"), 0); err != nil || string(kv.Key) != "key" {
		t.Errorf("%q, %v", kv.Key, err)
	}
}
