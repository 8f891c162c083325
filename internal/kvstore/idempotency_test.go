package kvstore

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/once"
)

// keyed gives a command an idempotency key.
func keyed(key string, c Command) Command {
	c.Idempotency = &Idempotency{Key: key, Fingerprint: [16]byte{1}}
	return c
}

func incrBy(key string, delta int64) Command {
	return Command{Op: OpIncr, Key: []byte(key), Delta: delta}
}

// tickBy lets replicated time pass in term 1.
func tickBy(t *testing.T, s *Store, millis int64) (more bool) {
	t.Helper()
	for ; millis > 0; millis -= MaxTickMillis {
		more = do(t, s, Command{Op: OpTick, Term: 1, ElapsedMillis: min(millis, MaxTickMillis)})[0].More
	}
	return more
}

// checkHash holds the state hash against a scan (S3).
func checkHash(t *testing.T, s *Store) {
	t.Helper()
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	if scanned := mustGet[uint64](t)(v.ScanHash()); scanned != v.Hash() {
		t.Errorf("state hash %x, a scan gives %x", v.Hash(), scanned)
	}
}

// A repeat has the first result and no effect, in the same entry, in a later one, and
// whatever became of the key since.
func TestRepeatHasTheFirstResult(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		first := do(t, s, keyed("k", incrBy("n", 5)), keyed("k", incrBy("n", 5)))
		do(t, s, put("n", "100"))
		again := do(t, s, keyed("k", incrBy("n", 5)))
		for _, r := range []Result{first[1], again[0]} {
			if !r.Replayed {
				t.Fatalf("the repeat ran: %+v", r)
			}
			r.Replayed = false
			if !reflect.DeepEqual(r, first[0]) {
				t.Errorf("repeat %+v\nfirst  %+v", r, first[0])
			}
		}
		if kv, rev, err := s.Get([]byte("n"), 0); string(kv.Value) != "100" || rev != 3 || err != nil {
			t.Errorf("%q at %d, %v", kv.Value, rev, err)
		}
		checkHash(t, s)
	})
}

// Outcomes that the command decides are recorded, refusals that pass are not.
func TestWhichOutcomesAreRecorded(t *testing.T) {
	s := newStore(t, "memory")
	absent := put("a", "x")
	absent.Conditions = []Condition{{Kind: IfRevision, Revisions: []uint64{9}}}
	if r := do(t, s, keyed("fails", absent))[0]; r.Outcome != PreconditionFailed {
		t.Fatalf("%+v", r)
	}
	do(t, s, put("a", "x"))
	if r := do(t, s, keyed("fails", absent))[0]; r.Outcome != PreconditionFailed || !r.Replayed || r.KV.ModRevision != 0 {
		t.Errorf("a precondition that failed once: %+v", r)
	}
	quota := int64(1 << 20)
	do(t, s, Command{Op: OpSettings, Settings: &SettingsChange{QuotaBytes: &quota}})
	large := put("b", strings.Repeat("x", 1<<20-200))
	do(t, s, put("fills", strings.Repeat("x", 1<<19)))
	if r := do(t, s, keyed("full", large))[0]; r.Outcome != NoSpace {
		t.Fatalf("%+v", r)
	}
	do(t, s, remove("fills"))
	if r := do(t, s, keyed("full", large))[0]; r.Outcome != OK || r.Replayed {
		t.Errorf("once there is space: %+v", r)
	}
}

func TestOtherRequestUnderAKey(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, keyed("k", put("a", "1")))
	other := keyed("k", put("a", "2"))
	other.Idempotency.Fingerprint[0]++
	if r := do(t, s, other)[0]; r.Outcome != IdempotencyMismatch {
		t.Errorf("%+v", r)
	}
	// Another user's key is not the same key.
	other.Origin.Principal = "eve"
	if r := do(t, s, other)[0]; r.Outcome != OK || r.Replayed {
		t.Errorf("%+v", r)
	}
	if r := do(t, s, keyed("k", put("a", "1")))[0]; !r.Replayed {
		t.Errorf("the first record is gone: %+v", r)
	}
}

// Released keys are forgotten whatever becomes of the command that releases them.
func TestRelease(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, keyed("k1", incrBy("n", 1)), keyed("k2", incrBy("n", 1)))
	fails := put("", "")
	fails.Release = []string{"k1", "unknown"}
	do(t, s, fails)
	if r := do(t, s, keyed("k1", incrBy("n", 1)))[0]; r.Replayed || string(r.KV.Value) != "3" {
		t.Errorf("%+v", r)
	}
	do(t, s, Command{Op: OpForget, Release: []string{"k1", "k2"}})
	if n := s.exec.idempotency.Stats(); n.Bytes != 0 || n.Records != 0 {
		t.Errorf("%d bytes are left", n)
	}
	checkHash(t, s)
}

// Records survive a restart and a snapshot, and age afterwards as they would have
// without.
func TestRecordsSurvive(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, openPebble(t, fs), Options{})
	do(t, s, keyed("early", incrBy("n", 1)))
	tickBy(t, s, MaxTickMillis)
	do(t, s, keyed("late", incrBy("n", 1)))
	must(t, s.Close())
	s = openStore(t, openPebble(t, fs), Options{})
	defer func() { must(t, s.Close()) }()
	restored := newStore(t, "memory")
	must(t, restored.Restore(bytes.NewReader(bodyOf(t, s))))
	for name, s := range map[string]*Store{"restarted": s, "restored": restored} {
		if r := do(t, s, keyed("early", incrBy("n", 1)), keyed("late", incrBy("n", 1))); !r[0].Replayed || !r[1].Replayed {
			t.Errorf("%s: %+v", name, r)
		}
		tickBy(t, s, s.Settings().IdempotencyMillis)
		if r := do(t, s, keyed("early", incrBy("n", 1)), keyed("late", incrBy("n", 1))); r[0].Replayed || !r[1].Replayed {
			t.Errorf("%s, after the first has aged: %+v", name, r)
		}
		checkHash(t, s)
	}
	if _, a := s.StateHash(); true {
		if _, b := restored.StateHash(); a != b {
			t.Errorf("state hashes %x and %x", a, b)
		}
	}
}

// A tick forgets a bounded number of records, the same ones on a replica that has
// restarted: they are of one clock, and their order in the log decides.
func TestAgeingInSteps(t *testing.T) {
	s := newStore(t, "memory")
	var commands []Command
	for i := range once.MaxAgedRecords + 5 {
		commands = append(commands, keyed(fmt.Sprintf("k%d", once.MaxAgedRecords+5-i), incrBy("n", 1)))
	}
	do(t, s, commands...)
	restored := newStore(t, "memory")
	must(t, restored.Restore(bytes.NewReader(bodyOf(t, s))))
	for _, s := range []*Store{s, restored} {
		if !tickBy(t, s, s.Settings().IdempotencyMillis+MaxTickMillis) {
			t.Error("nothing is left after the first step")
		}
		if n := s.exec.idempotency.Stats().Records; n != 5 {
			t.Errorf("%d records are left", n)
		}
		checkHash(t, s)
	}
	if _, a := s.StateHash(); true {
		if _, b := restored.StateHash(); a != b {
			t.Errorf("state hashes %x and %x", a, b)
		}
	}
	if more := do(t, s, Command{Op: OpTick, Term: 1})[0].More; more || s.exec.idempotency.Stats().Records != 0 {
		t.Errorf("more %t, %d left", more, s.exec.idempotency.Stats().Records)
	}
}

// At the limit, commands with new keys are refused, and repeats are still answered.
func TestIdempotencyLimit(t *testing.T) {
	s := newStore(t, "memory")
	limit := int64(1 << 20)
	do(t, s, Command{Op: OpSettings, Settings: &SettingsChange{IdempotencyBytes: &limit}})
	returning := put("a", strings.Repeat("x", 1<<19))
	returning.ReturnPrevious = true
	for i := range 4 {
		do(t, s, keyed(fmt.Sprintf("k%d", i), returning))
	}
	before := s.Revision()
	full := do(t, s, keyed("one more", returning))[0]
	if full.Outcome != Busy || s.Revision() != before {
		t.Errorf("%+v", full)
	}
	// It can be known before it is applied.
	more, again, forgets := keyed("one more", returning), keyed("k1", returning), keyed("one more", returning)
	forgets.Release = []string{"k1"}
	if r := mustGet[*Result](t)(Refusal(t.Context(), s, &more)); r == nil || resultText(r) != resultText(&full) {
		t.Errorf("%+v, want %+v", r, full)
	}
	for _, c := range []Command{again, forgets, returning} {
		if r := mustGet[*Result](t)(Refusal(t.Context(), s, &c)); r != nil {
			t.Errorf("%+v", r)
		}
	}
	if r := do(t, s, keyed("k1", returning))[0]; r.Outcome != OK || !r.Replayed || len(r.Previous.Value) != 1<<19 {
		t.Errorf("%v replayed %t", r.Outcome, r.Replayed)
	}
	do(t, s, Command{Op: OpForget, Release: []string{"k1", "k2", "k3"}})
	if r := mustGet[*Result](t)(Refusal(t.Context(), s, &more)); r != nil {
		t.Errorf("%+v", r)
	}
	if r := do(t, s, keyed("one more", returning))[0]; r.Outcome != OK {
		t.Errorf("%+v", r)
	}
}

// A replica where nobody waits for results records the same.
func TestRecordsDoNotDependOnWhoAsks(t *testing.T) {
	asked, other := newStore(t, "memory"), newStore(t, "memory")
	returning := put("a", "2")
	returning.ReturnPrevious = true
	for _, c := range []Command{
		put("a", "1"), keyed("put", returning),
		keyed("txn", Command{Op: OpTxn, Txn: &Txn{Then: []Command{{Op: OpGet, Key: []byte("a")}, put("b", "x")}}}),
	} {
		e := entryOf(asked.Position().Index+1, c)
		must(t, asked.Apply([]Entry{e}))
		e.WantResults, e.Results = false, nil
		must(t, other.Apply([]Entry{e}))
	}
	_, a := asked.StateHash()
	_, b := other.StateHash()
	if a != b {
		t.Errorf("state hashes %x and %x", a, b)
	}
	if r := do(t, other, keyed("txn", Command{Op: OpTxn, Txn: &Txn{Then: []Command{{Op: OpGet, Key: []byte("a")}, put("b", "x")}}}))[0]; len(r.Results) != 2 || string(r.Results[0].Pairs[0].Value) != "2" {
		t.Errorf("%+v", r)
	}
}

// TestRecordsDoNotDependOnBatches: replicas that apply entries one by one or together
// find a value in different places, in the engine or among the writes to come. An empty
// one must be recorded the same.
func TestRecordsDoNotDependOnBatches(t *testing.T) {
	get := Command{Op: OpTxn, Txn: &Txn{Then: []Command{{Op: OpGet, Key: []byte("a")}, {Op: OpList, Key: []byte("a")}, {Op: OpPut, Key: []byte("a"), Value: []byte("x"), ReturnPrevious: true}}}}
	for _, empty := range []Command{put("a", ""), {Op: OpPut, Key: []byte("a")}, {Op: OpAppend, Key: []byte("a")}} {
		entries := func() []Entry { return []Entry{entryOf(1, empty), entryOf(2, keyed("k", get))} }
		hashes := make(map[uint64]bool)
		for _, name := range []string{"pebble", "memory"} {
			together, apart := newStore(t, name), newStore(t, name)
			must(t, together.Apply(entries()))
			for _, e := range entries() {
				must(t, apart.Apply([]Entry{e}))
			}
			for _, s := range []*Store{together, apart} {
				_, hash := s.StateHash()
				hashes[hash] = true
			}
		}
		if len(hashes) != 1 {
			t.Errorf("after %v: state hashes %x", empty.Op, slices.Collect(maps.Keys(hashes)))
		}
	}
}

// FuzzResult: what decodes encodes to the same bytes, and nothing makes the decoder
// panic or allocate more than it has read.
func FuzzResult(f *testing.F) {
	for _, r := range []Result{
		{}, {Outcome: TooLarge, Detail: "x", Revision: 7},
		{Revision: 3, KV: KV{ModRevision: 3, CreateRevision: 2, Version: 2, Lease: 1 << 62, Value: []byte("5")}, Created: true},
		{Previous: &KV{Key: []byte("k"), Value: []byte("v")}, Deleted: 4, Pairs: []KV{{Key: []byte("a")}}, Count: 9, More: true},
		{Succeeded: true, Results: []Result{{Results: []Result{{Revision: 1}}}, {Lock: &LockTicket{Name: []byte("l"), Token: 4, Held: true}}}},
		{Lease: &Lease{ID: 5, TTLMillis: 9}, CompactRevision: 3, Settings: new(DefaultSettings())},
	} {
		b := command.AppendResult(nil, &r)
		if back, err := command.DecodeResult(b); err != nil || !reflect.DeepEqual(back, r) {
			f.Fatalf("%+v became %+v, %v", r, back, err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := command.DecodeResult(b)
		if err != nil {
			return
		}
		back, err := command.DecodeResult(command.AppendResult(nil, &r))
		if err != nil || !reflect.DeepEqual(r, back) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}

// BenchmarkIdempotentPut beside BenchmarkApplyPut: each put releases the key of the
// one before, as a client does.
func BenchmarkIdempotentPut(b *testing.B) {
	for _, mode := range []string{"without", "with"} {
		b.Run(mode, func(b *testing.B) {
			s := newStore(b, "pebble")
			const batch = 64
			n := 0
			for b.Loop() {
				e := Entry{Index: s.Position().Index + 1, Term: 1, WantResults: true}
				for range batch {
					c := put(fmt.Sprintf("key%08d", n), strings.Repeat("v", 256))
					if mode == "with" {
						c = keyed(fmt.Sprintf("client-%d", n), c)
						c.Release = []string{fmt.Sprintf("client-%d", n-batch)}
					}
					n++
					e.Commands = append(e.Commands, EncodeCommand(nil, &c))
				}
				must(b, s.Apply([]Entry{e}))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/put")
		})
	}
}
