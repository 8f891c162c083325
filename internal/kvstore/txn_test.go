package kvstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

func txnOf(t Txn) Command { return Command{Op: OpTxn, Txn: &t} }

func get(key string) Command { return Command{Op: OpGet, Key: []byte(key)} }

func deleteRange(start, end string) Command {
	return Command{Op: OpDeleteRange, Key: []byte(start), End: []byte(end)}
}

// compareMod compares a mod_revision.
func compareMod(key string, revision uint64) Compare {
	return Compare{Key: []byte(key), Target: CompareModRevision, Relation: Equal, Number: revision}
}

// cachedStates is what the cache of a store knows.
func cachedStates(s *Store) map[string]keyMeta {
	out := make(map[string]keyMeta)
	for _, generation := range []map[string]*keyMeta{s.exec.cache.old, s.exec.cache.young} {
		for key, m := range generation {
			out[key] = *m
		}
	}
	return out
}

// TestFailedTxnLeavesNoTrace: a transaction that fails at its last operation leaves
// metadata, hash, counters, pending changes and engine as they were, and the one before
// it in the same entry takes effect.
func TestFailedTxnLeavesNoTrace(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, put("a", "1"), put("b", "text"), put("gone", "x"))
		works := txnOf(Txn{If: []Compare{compareMod("a", 2)}, Then: []Command{put("a", "2"), put("c", "3")}})
		r := do(t, s, works)
		if r[0].Outcome != OK || !r[0].Succeeded || r[0].Revision != 5 || len(r[0].Results) != 2 {
			t.Fatalf("%s", resultText(&r[0]))
		}
		cache, now, tables := cachedStates(s), s.exec.now, tablesOf(t, s)
		fails := txnOf(Txn{If: []Compare{compareMod("a", 5)}, Then: []Command{
			put("a", "9"), deleteRange("g", "h"), remove("c"), put("new", "9"), incr("b", 1),
		}})
		s.exec.rows.Set(layout.TableLease, leaseID(1), []byte("row")) // as the operations of a transaction may
		r = do(t, s, fails)
		if r[0].Outcome != NotANumber || r[0].Detail != "then[4].incr: the value is not a decimal 64-bit integer" || r[0].Revision != 5 || r[0].KV.ModRevision != 3 || len(r[0].Results) > 0 {
			t.Errorf("%s %q", resultText(&r[0]), r[0].Detail)
		}
		if len(s.exec.changes) > 0 || !s.exec.rows.Clean() || s.exec.overlay.logical != 0 {
			t.Errorf("left in the overlay: %+v", s.exec.overlay)
		}
		after := cachedStates(s)
		delete(after, "new") // was looked up, and is absent
		if !maps.Equal(after, cache) {
			t.Errorf("the cache was %+v and is %+v", cache, after)
		}
		now.Position.Index++
		if s.exec.now != now {
			t.Errorf("the counters were %+v and are %+v", now, s.exec.now)
		}
		s.exec.now.Position.Index-- // the record of the position is the only one that differs
		must(t, s.exec.commit())
		if got := tablesOf(t, s); string(got) != string(tables) {
			t.Errorf("the engine had %q and has %q", tables, got)
		}
		checkCounters(t, s)
	})
}

// TestTxnWithinAnEntry: a transaction that fails is between two commands that do not.
func TestTxnWithinAnEntry(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		r := do(t, s, put("a", "1"), txnOf(Txn{Then: []Command{put("a", "2"), put("", "")}}), incr("a", 1),
			txnOf(Txn{Then: []Command{get("a"), {Op: OpGet, Key: []byte("a"), Read: &Read{Revision: 2}}}}))
		if r[1].Outcome != Invalid || string(r[2].KV.Value) != "2" || r[2].Revision != 3 {
			t.Errorf("%s, %s", resultText(&r[1]), resultText(&r[2]))
		}
		// Revision 2 is not in the engine yet.
		for i, want := range []string{`"a"="2" create 2 mod 3 version 2 lease 0`, `"a"="1" create 2 mod 2 version 1 lease 0`} {
			if got := r[3].Results[i].Pairs; len(got) != 1 || kvText(&got[0]) != want {
				t.Errorf("read %d: %s", i, resultText(&r[3]))
			}
		}
		checkCounters(t, s)
	})
}

// txnCases run one transaction each on a store that has a = "x" since revision 2, n =
// "5" since revision 3, and is compacted to revision 2.
var txnCases = []struct {
	name     string
	txn      Txn
	want     Outcome
	detail   string
	revision uint64
}{
	{"empty", Txn{}, OK, "", 3},
	{"reads", Txn{Then: []Command{get("a"), {Op: OpList, Key: []byte{}}}}, OK, "", 3},
	{"delete of nothing", Txn{Then: []Command{remove("z"), deleteRange("y", "z")}}, OK, "", 3},
	{"put", Txn{Then: []Command{put("a", "y")}}, OK, "", 4},
	{"put twice", Txn{Then: []Command{put("a", "y"), put("a", "z")}}, DuplicateKey, "then[1].put: the transaction has already written this key", 3},
	{"append and incr of a key", Txn{Then: []Command{appendTo("z", "1"), incr("z", 1)}}, DuplicateKey, "then[1].incr: the transaction has already written this key", 3},
	{"put and delete", Txn{Then: []Command{put("z", "y"), remove("z")}}, DuplicateKey, "then[1].delete: the transaction has already written this key", 3},
	{"delete and put of an absent key", Txn{Then: []Command{remove("z"), put("z", "y")}}, DuplicateKey, "then[1].put: the transaction has already written this key", 3},
	{"put in a range that was deleted", Txn{Then: []Command{deleteRange("y", "z"), put("y", "")}}, DuplicateKey, "then[1].put: the transaction has already written this key", 3},
	{"range with a key that was put", Txn{Then: []Command{put("y", ""), {Op: OpTxn, Txn: &Txn{Else: []Command{get("a")}, Then: []Command{deleteRange("y", "z")}}}}}, DuplicateKey, "then[1].txn.then[0].delete: the transaction has already written a key of this range", 3},
	{"put that changes nothing twice", Txn{Then: []Command{{Op: OpPut, Key: []byte("a"), Value: []byte("x"), UnlessEqual: true}, put("a", "x")}}, DuplicateKey, "then[1].put: the transaction has already written this key", 3},
	{"deletes of the same keys", Txn{Then: []Command{remove("a"), deleteRange("a", "b"), remove("a")}}, OK, "", 4},
	{"put on both branches", Txn{Then: []Command{put("a", "y")}, Else: []Command{put("a", "z")}}, OK, "", 4},
	{"equal put", Txn{Then: []Command{{Op: OpPut, Key: []byte("a"), Value: []byte("x"), UnlessEqual: true}}}, OK, "", 3},
	{"condition", Txn{Then: []Command{{Op: OpPut, Key: []byte("a"), Conditions: conditions(Condition{Kind: IfRevision, Revisions: []uint64{9}})}}}, PreconditionFailed, "then[0].put: a condition on the key does not hold", 3},
	{"keep the value of an absent key", Txn{Then: []Command{{Op: OpPut, Key: []byte("z"), KeepValue: true}}}, KeyNotFound, "then[0].put: the key does not exist, so it has no value or lease to keep", 3},
	{"keep the value of an absent key, for a time", Txn{Then: []Command{{Op: OpPut, Key: []byte("z"), KeepValue: true, TTLMillis: -1}}}, KeyNotFound, "then[0].put: the key does not exist, so it has no value or lease to keep", 3},
	{"keep the value of an absent key, under an unknown lease", Txn{Then: []Command{{Op: OpPut, Key: []byte("z"), KeepValue: true, Lease: 8}}}, LeaseNotFound, "then[0].put: lease 8 does not exist", 3},
	{"unknown lease", Txn{Then: []Command{{Op: OpPut, Key: []byte("z"), Lease: 8}}}, LeaseNotFound, "then[0].put: lease 8 does not exist", 3},
	{"empty key", Txn{Then: []Command{put("", "")}}, Invalid, "then[0].put: the key is empty", 3},
	{"read of the next revision", Txn{Then: []Command{put("a", "y"), {Op: OpGet, Key: []byte("a"), Read: &Read{Revision: 4}}}}, FutureRevision, "then[1].get: revision 4 does not exist yet; the newest revision is 3", 3},
	{"read of a compacted revision", Txn{Else: []Command{{Op: OpList, Key: []byte("a"), Read: &Read{Revision: 1}}}, If: []Compare{compareMod("a", 1)}}, Compacted, "else[0].list: revision 1 was compacted; the oldest readable revision is 2", 3},
	{"read of the compact revision", Txn{Then: []Command{{Op: OpList, Key: []byte("a"), Read: &Read{Revision: 2}}}}, OK, "", 3},
	{"too many operations", Txn{Then: slices.Repeat([]Command{get("a")}, 300), Else: []Command{{Op: OpTxn, Txn: &Txn{Then: slices.Repeat([]Command{get("a")}, 212)}}}}, TooLarge, "the transaction has 513 operations and 0 comparisons, but the limit is 512 (max_txn_ops in the settings)", 3},
	{"just as many as may be", Txn{Then: slices.Repeat([]Command{get("a")}, 512)}, OK, "", 3},
	{"too many comparisons", Txn{If: slices.Repeat([]Compare{compareMod("a", 1)}, 513)}, TooLarge, "the transaction has 0 operations and 513 comparisons, but the limit is 512 (max_txn_ops in the settings)", 3},
	{"too large", Txn{Then: slices.Repeat([]Command{put("a", strings.Repeat("v", 1<<20))}, 4)}, TooLarge, "the transaction has 4194339 bytes, but the limit is 4194304 (max_txn_bytes in the settings)", 3},
}

func TestTxnOutcomes(t *testing.T) {
	for _, c := range txnCases {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, "memory")
			do(t, s, put("a", "x"), put("n", "5"), Command{Op: OpCompact, Revision: 2})
			_, before := s.StateHash()
			must(t, c.txn.Check())
			r := do(t, s, txnOf(c.txn))[0]
			if r.Outcome != c.want || r.Detail != c.detail || r.Revision != c.revision {
				t.Errorf("%s\ndetail %s", resultText(&r), r.Detail)
			}
			if _, after := s.StateHash(); (after != before) != (c.revision == 4) {
				t.Errorf("the state hash was %x and is %x", before, after)
			}
			checkCounters(t, s)
		})
	}
}

// TestTxnRevisions: what the results of operations say about revisions.
func TestTxnRevisions(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("a", "1"))
	r := do(t, s, txnOf(Txn{Then: []Command{get("a"), remove("z"), put("b", "2"), get("b"), remove("z"), deleteRange("a", "b")}}))[0]
	for i, want := range []uint64{2, 2, 3, 3, 3, 3} {
		if got := r.Results[i].Revision; got != want {
			t.Errorf("operation %d: revision %d, want %d", i, got, want)
		}
	}
	if got := r.Results[3].Pairs[0]; kvText(&got) != `"b"="2" create 3 mod 3 version 1 lease 0` {
		t.Errorf("a get sees %s", kvText(&got))
	}
	if got := r.Results[0].Pairs[0]; kvText(&got) != `"a"="1" create 2 mod 2 version 1 lease 0` || r.Revision != 3 {
		t.Errorf("the first get saw %s", kvText(&got))
	}
}

// TestTxnResultsAreBounded: what could not be answered is not carried out, whether or not
// this replica answers.
func TestTxnResultsAreBounded(t *testing.T) {
	for _, want := range []bool{true, false} {
		s := newStore(t, "memory")
		for i := range 9 {
			do(t, s, put(fmt.Sprint("k", i), strings.Repeat("v", 1<<20-100)))
		}
		list := Command{Op: OpList, Key: []byte("k"), End: []byte("l")}
		keys := list
		keys.Read = &Read{KeysOnly: true}
		newest := list
		newest.Read = &Read{SortBy: SortByModRevision, Reverse: true, Limit: 1}
		previous := list
		previous.Op, previous.ReturnPrevious = OpDeleteRange, true
		for i, c := range []struct {
			command Command
			works   bool
		}{
			{txnOf(Txn{Then: []Command{put("a", "1"), list}}), false},
			{txnOf(Txn{Then: []Command{put("a", "1"), keys}}), true},
			{txnOf(Txn{Then: []Command{put("a", "1"), newest, newest}}), true},
			{previous, false},
			{txnOf(Txn{Then: []Command{previous}}), false},
		} {
			before := s.Revision()
			e := entryOf(s.Position().Index+1, c.command)
			e.WantResults = want
			must(t, s.Apply([]Entry{e}))
			if (s.Revision() > before) != c.works {
				t.Errorf("command %d, results wanted %t: revision %d after %d", i, want, s.Revision(), before)
			}
		}
		checkCounters(t, s)
	}
}

// TestRangeDeletesOfATxn: the limit on deleted keys is that of a revision.
func TestRangeDeletesOfATxn(t *testing.T) {
	s := newStore(t, "memory")
	e := Entry{Index: 1, Term: 1}
	for i := range MaxRangeDelete + 1 {
		c := put(fmt.Sprintf("key%06d", i), "")
		e.Commands = append(e.Commands, EncodeCommand(nil, &c))
	}
	must(t, s.Apply([]Entry{e}))
	r := do(t, s, txnOf(Txn{Then: []Command{deleteRange("key0", "key05"), deleteRange("key05", "l")}}))
	if r[0].Outcome != TooLarge || !strings.HasPrefix(r[0].Detail, "then[1].delete: ") || s.Stats().Keys != MaxRangeDelete+1 {
		t.Errorf("%s", resultText(&r[0]))
	}
	checkCounters(t, s)
	// It can be known before it is applied, with the same words, on the path that is taken.
	both := []Command{deleteRange("key0", "key05"), {Op: OpTxn, Txn: &Txn{Then: []Command{deleteRange("key05", "l")}}}}
	for name, c := range map[string]Command{
		"then": txnOf(Txn{Then: both}),
		"else": txnOf(Txn{If: []Compare{{Key: []byte("a"), Target: CompareExists, Relation: Equal, Number: 1}}, Else: both}),
	} {
		want := do(t, s, c)[0]
		if got := mustGet[*Result](t)(Refusal(t.Context(), s, &c)); !CountsKeys(&c) || got == nil || resultText(got) != resultText(&want) || got.Detail != want.Detail {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	repeat := keyed("k", txnOf(Txn{Then: both}))
	for name, c := range map[string]Command{
		"not taken": txnOf(Txn{Then: both[:1], Else: both}), "few": txnOf(Txn{Then: both[:1]}), "perhaps a repeat": repeat, "no range": txnOf(Txn{Then: []Command{put("a", "")}}),
	} {
		if got := mustGet[*Result](t)(Refusal(t.Context(), s, &c)); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Refusal(ended, s, new(txnOf(Txn{Then: both}))); !errors.Is(err, context.Canceled) {
		t.Errorf("counting for a request that has ended: %v", err)
	}
}

func anyRoom(int64) bool { return true }

func TestReadTxn(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, put("a", "1"), put("a", "2"), put("b", "3"))
		if _, err := s.ReadTxn(context.Background(), &Txn{Else: []Command{{Op: OpTxn, Txn: &Txn{Then: []Command{put("a", "3")}}}}}, anyRoom); !errors.Is(err, ErrWrites) {
			t.Errorf("a transaction that writes: %v", err)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := s.ReadTxn(ended, &Txn{Then: []Command{get("a")}}, anyRoom); !errors.Is(err, context.Canceled) {
			t.Errorf("after the context has ended: %v", err)
		}
		r := mustGet[Result](t)(s.ReadTxn(context.Background(), &Txn{If: []Compare{compareMod("a", 3)}, Then: []Command{get("b"), {Op: OpGet, Key: []byte("a"), Read: &Read{Revision: 2}}}}, anyRoom))
		if !r.Succeeded || r.Revision != 4 || string(r.Results[0].Pairs[0].Value) != "3" || string(r.Results[1].Pairs[0].Value) != "1" || r.Results[0].Revision != 4 {
			t.Errorf("%s", resultText(&r))
		}
		do(t, s, put("large", strings.Repeat("v", 1000)))
		var asked []int64
		limited := func(n int64) bool { asked = append(asked, n); return n < 1000 }
		if _, err := s.ReadTxn(context.Background(), &Txn{Then: []Command{get("a"), get("large"), get("b")}}, limited); !errors.Is(err, ErrNoRoom) {
			t.Errorf("without room: %v", err)
		}
		if len(asked) != 2 || asked[0] < 2 || asked[0] > 200 || asked[1] < asked[0]+1005 || asked[1] > 1400 {
			t.Errorf("asked for room for %v bytes", asked)
		}
	})
}

// TestReverseListOfChangedKeys: pairs that are not in the engine yet take their places in
// a list, in either direction.
func TestReverseListOfChangedKeys(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, put("b", "stored"), put("e", "stored"))
		for reverse, want := range map[bool]string{false: "a b c d e f ", true: "f e d c b a "} {
			list := Command{Op: OpList, Key: []byte("a"), End: []byte("z"), Read: &Read{Reverse: reverse}}
			r := do(t, s, put("a", "1"), put("d", "1"), put("f", "1"), txnOf(Txn{Then: []Command{put("c", "2"), list}}))[3]
			got := ""
			for _, kv := range r.Results[1].Pairs {
				got += string(kv.Key) + " "
			}
			if got != want {
				t.Errorf("reverse %v: %s", reverse, got)
			}
		}
	})
}
