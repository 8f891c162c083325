package kvstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
)

// replica is a store that follows a history in its own way: with its own sizes of calls
// and cache, and its own times of reopening and maintenance.
type replica struct {
	t       *testing.T
	rng     *rand.Rand
	name    string
	cache   int
	fs      *vfs.MemFS // nil: the engine in memory
	engine  engine.Engine
	store   *Store
	history *history
}

// history is a sequence of log entries, with the results that the model expects.
type history struct {
	entries []Entry
	want    [][]Result
	got     map[int][]Result // of the first replica that was asked, by entry
	records map[string]string
	model   *model
}

func newHistory() *history {
	return &history{model: newModel(), got: make(map[int][]Result), records: make(map[string]string)}
}

func newReplica(t *testing.T, rng *rand.Rand, h *history, kind string, cache int) *replica {
	r := &replica{t: t, rng: rng, name: fmt.Sprintf("%s, cache %d", kind, cache), cache: cache, history: h}
	if kind == "pebble" {
		r.fs = vfs.NewCrashableMem()
	}
	r.open()
	return r
}

func (r *replica) open() {
	if r.fs != nil {
		r.engine = openPebbleWith(r.t, r.fs, randomEngineOptions(r.rng))
	} else if r.engine == nil {
		r.engine = engine.NewMemory()
	}
	r.store = openStore(r.t, r.engine, Options{CacheEntries: r.cache})
	r.store.tally = tally.New(int64(1 + r.rng.IntN(4)))
}

// randomEngineOptions returns options that must not matter. They differ each time that an
// engine is opened, as after an upgrade. Small memtables flush in the middle of everything.
func randomEngineOptions(rng *rand.Rand) engine.PebbleOptions {
	return engine.PebbleOptions{
		MemTableBytes: 16 << (10 + rng.IntN(7)), // to 1 MiB
		CacheBytes:    1 << (20 + rng.IntN(4)),
		BlockBytes:    []int{0, 64, 1024, 32 << 10}[rng.IntN(4)],
		Compaction: engine.Compaction{
			Runs: rng.IntN(9), BaseBytes: []int64{0, 4 << 10, 256 << 10}[rng.IntN(3)], FileBytes: []int64{0, 16 << 10, 64 << 10}[rng.IntN(3)],
		},
	}
}

// reopen closes the store and opens the engine again. Closing an engine in memory would
// lose everything, so there only the store is dropped.
func (r *replica) reopen() {
	if r.fs != nil {
		must(r.t, r.store.Close())
	}
	r.open()
}

// crash loses what is not durable.
func (r *replica) crash() {
	if r.fs == nil {
		r.engine = nil
		r.open()
		return
	}
	if r.rng.IntN(2) == 0 {
		must(r.t, r.store.Flush())
	}
	fs := r.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.rng.IntN(101), RNG: r.rng})
	must(r.t, r.store.Close())
	r.fs = fs
	r.open()
}

// takeOver replaces the state with that of another replica.
func (r *replica) takeOver(other *replica) {
	must(r.t, r.store.Restore(bytes.NewReader(bodyOf(r.t, other.store))))
	if got, want := r.store.Stats(), other.store.Stats(); got.HistoryBytes > want.HistoryBytes || got.HistoryVersions > want.HistoryVersions {
		r.t.Fatalf("%s: history %+v after a restore from %+v", r.name, got, want)
	}
}

// catchUp applies the rest of the history in calls of random sizes, and compares the
// results.
func (r *replica) catchUp() {
	for {
		from := int(r.store.Position().Index)
		if from == len(r.history.entries) {
			return
		}
		until := from + 1 + r.rng.IntN(min(20, len(r.history.entries)-from))
		batch := slices.Clone(r.history.entries[from:until])
		for i := range batch {
			batch[i].WantResults = r.rng.IntN(5) > 0
		}
		must(r.t, r.store.Apply(batch))
		for i := range batch {
			r.compareResults(&batch[i], r.history.want[from+i])
			r.compareReplicas(&batch[i], from+i)
		}
		r.disturb()
	}
}

// disturb does something that must not change the state.
func (r *replica) disturb() {
	switch r.rng.IntN(12) {
	case 0, 1:
		_, err := r.store.Maintain()
		must(r.t, err)
	case 2:
		must(r.t, r.store.Flush())
	case 3:
		r.reopen()
	}
}

func (r *replica) compareResults(e *Entry, want []Result) {
	r.t.Helper()
	if !e.WantResults {
		return
	}
	for i := range want {
		if got, want := resultText(e.Results[i].(*Result)), resultText(&want[i]); got != want {
			c, _ := DecodeCommand(e.Commands[i])
			r.t.Fatalf("%s: entry %d, command %+v:\n got %s\nwant %s", r.name, e.Index, c, got, want)
		}
	}
}

// compareReplicas demands that the results are those of the other replicas to the last nil:
// the model and the texts of results know no difference between empty and missing.
func (r *replica) compareReplicas(e *Entry, at int) {
	r.t.Helper()
	if !e.WantResults {
		return
	}
	got := resultsOf(e)
	first, known := r.history.got[at]
	if !known {
		r.history.got[at] = got
		return
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], first[i]) {
			c, _ := DecodeCommand(e.Commands[i])
			r.t.Fatalf("%s: entry %d, command %+v:\n got %#v\nwant %#v", r.name, e.Index, c, got[i], first[i])
		}
	}
}

// check compares everything with the model.
func (r *replica) check() {
	r.t.Helper()
	m, s := r.history.model, r.store
	if s.Revision() != m.revision || s.CompactRevision() != m.compact || s.Settings() != m.settings || s.SettingsGiven() != m.given {
		r.t.Fatalf("%s: revision %d compact %d settings %+v", r.name, s.Revision(), s.CompactRevision(), s.Settings())
	}
	checkCounters(r.t, s)
	if st := s.Stats(); st.Keys != uint64(len(m.live(m.revision))) || st.LogicalBytes != m.logical() {
		r.t.Fatalf("%s: stats %+v, the model has %d keys, %d bytes", r.name, st, len(m.live(m.revision)), m.logical())
	}
	r.checkRecords()
	for range 15 {
		r.checkList()
		r.checkGet()
		r.checkReadTxn()
	}
	r.checkLeases()
	r.checkLocks()
	r.checkUnreadable()
	r.checkChanges()
	r.checkPairsHash()
}

// checkChanges reads the changes from a random revision on.
func (r *replica) checkChanges() {
	r.t.Helper()
	m := r.history.model
	from := max(m.compact, r.randomRevision())
	limit := 1 + r.rng.IntN(2*len(m.events)+1)
	var got, want []string
	newest, err := r.store.Changes(context.Background(), from, func(c Change) (bool, error) {
		got = append(got, changeText(&c))
		return len(got) < limit, nil
	})
	if must(r.t, err); newest != m.revision {
		r.t.Fatalf("%s: changes up to %d of %d", r.name, newest, m.revision)
	}
	for i := range m.events {
		if m.events[i].Revision >= from && len(want) < limit {
			want = append(want, changeText(&m.events[i]))
		}
	}
	if !slices.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		r.t.Fatalf("%s: changes from %d differ:\n got %.1000q\nwant %.1000q", r.name, from, got[i:min(i+1, len(got))], want[i:min(i+1, len(want))])
	}
	if m.compact > 1 {
		var compacted *CompactedError
		_, err := r.store.Changes(context.Background(), m.compact-1, func(Change) (bool, error) { return false, errors.New("called") })
		if !errors.As(err, &compacted) || compacted.CompactRevision != m.compact {
			r.t.Fatalf("%s: changes from before the compact revision: %v", r.name, err)
		}
	}
}

// checkPairsHash compares the hash of the pairs at a random revision with that of the model.
func (r *replica) checkPairsHash() {
	r.t.Helper()
	m, revision := r.history.model, r.randomRevision()
	got, err := NewEvaluator(r.store).PairsHash(context.Background(), revision)
	must(r.t, err)
	var h statehash.Hasher
	var want uint64
	for _, key := range m.live(got.Revision) {
		kv := m.at(key, got.Revision)
		want += h.Key([]byte(key), kv.ModRevision, &layout.Version{Create: kv.CreateRevision, Version: kv.Version, Lease: kv.Lease, Attributes: kv.Attributes, Value: kv.Value})
	}
	if got.Hash != want || got.CompactRevision != m.compact || revision != 0 && got.Revision != revision {
		r.t.Fatalf("%s: the pairs of revision %d are %+v, want the hash %x", r.name, revision, got, want)
	}
}

// checkReadTxn evaluates a transaction that only reads, and compares it with the model.
func (r *replica) checkReadTxn() {
	r.t.Helper()
	m := r.history.model
	txn := randomTxn(r.rng, m, 1)
	if ops, compares := txn.Count(); !txn.ReadOnly() || int64(max(ops, compares)) > m.settings.MaxTxnOps {
		return
	}
	got, err := r.store.ReadTxn(context.Background(), txn, anyRoom)
	must(r.t, err)
	want := m.apply(&Command{Op: OpTxn, Txn: txn}, 1)
	if got, want := resultText(&got), resultText(&want); got != want {
		r.t.Fatalf("%s: %+v\n got %s\nwant %s", r.name, txn, got, want)
	}
}

func (r *replica) checkRecords() {
	r.t.Helper()
	v := mustGet[*View](r.t)(r.store.View())
	defer v.Close()
	got := make(map[string]string)
	for _, record := range mustGet[[]Record](r.t)(v.Records()) {
		got[string(record.Key)] = string(record.Value)
	}
	if !maps.Equal(got, r.history.records) {
		r.t.Fatalf("%s: records %q, want %q", r.name, got, r.history.records)
	}
}

// randomRevision returns a readable revision, or 0 for the newest.
func (r *replica) randomRevision() uint64 {
	m := r.history.model
	if r.rng.IntN(3) == 0 {
		return 0
	}
	return m.compact + r.rng.Uint64N(m.revision-m.compact+1)
}

func (r *replica) checkList() {
	r.t.Helper()
	q := randomRange(r.rng)
	q.Revision = r.randomRevision()
	if want, got := r.history.model.list(q), listOf(r.t, r.store, q); !slices.Equal(got, want) {
		r.t.Fatalf("%s: list %+v:\n got %s\nwant %s", r.name, q, got, want)
	}
	n, at, err := r.store.Count(context.Background(), q)
	must(r.t, err)
	if want := r.history.model.list(q); n != uint64(len(want)) || q.Revision != 0 && at != q.Revision {
		r.t.Fatalf("%s: count %+v = %d at %d, want %d", r.name, q, n, at, len(want))
	}
	r.checkLimit(q)
}

// checkLimit stops a list after a few items.
func (r *replica) checkLimit(q Range) {
	r.t.Helper()
	limit := 1 + r.rng.IntN(4)
	var got []string
	_, err := r.store.List(context.Background(), q, func(i Item) (bool, error) {
		got = append(got, itemText(i))
		return len(got) < limit, nil
	})
	must(r.t, err)
	want := r.history.model.list(q)
	if !slices.Equal(got, want[:min(limit, len(want))]) {
		r.t.Fatalf("%s: the first %d of list %+v: %s, want %s", r.name, limit, q, got, want)
	}
}

func (r *replica) checkGet() {
	r.t.Helper()
	key, revision := randomKey(r.rng), r.randomRevision()
	at := revision
	if at == 0 {
		at = r.history.model.revision
	}
	kv, gotAt, err := r.store.Get(key, revision)
	if want := r.history.model.at(string(key), at); want == nil {
		if !errors.Is(err, ErrKeyNotFound) {
			r.t.Fatalf("%s: get %q at %d: %s, %v", r.name, key, at, kvText(&kv), err)
		}
	} else if err != nil || kvText(&kv) != kvText(want) {
		r.t.Fatalf("%s: get %q at %d: %s, %v; want %s", r.name, key, at, kvText(&kv), err, kvText(want))
	}
	if gotAt != at {
		r.t.Fatalf("%s: get %q at %d says %d", r.name, key, at, gotAt)
	}
}

// checkUnreadable reads before the oldest and after the newest revision.
func (r *replica) checkUnreadable() {
	r.t.Helper()
	var compacted *CompactedError
	var future *FutureRevisionError
	m := r.history.model
	if m.compact > 1 {
		_, _, err := r.store.Get([]byte("a"), m.compact-1)
		if !errors.As(err, &compacted) || compacted.CompactRevision != m.compact {
			r.t.Fatalf("%s: get before the compact revision: %v", r.name, err)
		}
	}
	_, _, err := r.store.Count(context.Background(), Range{Revision: m.revision + 1})
	if !errors.As(err, &future) || future.Revision != m.revision {
		r.t.Fatalf("%s: count in the future: %v", r.name, err)
	}
}

// checkCompacted runs maintenance to its end, and checks that what should be removed is
// removed, and nothing else.
func (r *replica) checkCompacted() {
	r.t.Helper()
	maintainAll(r.t, r.store)
	needed := r.history.model.needed()
	it := mustGet[engine.Iterator](r.t)(r.engine.Iter(nil, nil))
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		switch k := string(it.Key()); k[0] {
		case layout.TableVersion:
			// A deletion goes together with the record of the log that it is in.
			if !needed[k] && !(len(it.Value()) == layout.DeletedVersionBytes && r.inLog(k)) {
				r.t.Fatalf("%s: %q is still there", r.name, k)
			}
			delete(needed, k)
		case layout.TableChange:
			if last := mustGet[uint64](r.t)(checkChanges(it.Key(), it.Value())); last < r.history.model.compact {
				r.t.Fatalf("%s: a change record up to revision %d is still there: %x", r.name, last, k)
			}
		}
	}
	for k := range needed {
		r.t.Fatalf("%s: %q was removed", r.name, k)
	}
}

// inLog reports whether the first record of the change log is from before the revision of
// an engine key.
func (r *replica) inLog(k string) bool {
	_, revision, err := layout.SplitVersionKey([]byte(k))
	must(r.t, err)
	it := mustGet[engine.Iterator](r.t)(r.engine.Iter([]byte{layout.TableChange}, []byte{layout.TableChange + 1}))
	defer it.Close()
	return it.First() && binary.BigEndian.Uint64(it.Key()[1:]) <= revision
}

// checkCounters compares the counters with a recount of everything.
func checkCounters(t testing.TB, s *Store) {
	t.Helper()
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	sum := mustGet[uint64](t)(v.ScanHash())
	if _, hash := s.StateHash(); hash != sum || v.Hash() != sum {
		t.Fatalf("the state hash is %x, a scan gives %x", hash, sum)
	}
	var want Stats
	var last []byte
	_, err := v.each(func(k, value []byte) error {
		if k[0] != layout.TableVersion {
			n, err := rowBytes(k, value)
			want.LogicalBytes += n
			return err
		}
		prefix, mod, err := layout.SplitVersionKey(k)
		must(t, err)
		ver := mustGet[layout.Version](t)(layout.DecodeVersion(mod, value))
		if bytes.Equal(prefix, last) || ver.Deleted {
			want.HistoryVersions++
			want.HistoryBytes += int64(len(k) + len(value))
		} else {
			want.Keys++
			want.LogicalBytes += int64(len(layout.UnescapePrefix(nil, prefix))+len(ver.Value)) + 64
		}
		last = bytes.Clone(prefix)
		return nil
	})
	must(t, err)
	got := s.Stats()
	got.EngineBytes, got.EngineName = 0, ""
	if got != want {
		t.Fatalf("the counters are %+v, a recount gives %+v", got, want)
	}
}

// keyBytes are the bytes that a key format is likely to get wrong.
var keyBytes = []byte{0x00, 0x01, 0x02, '/', 'a', 'v', 0xFE, 0xFF}

func randomKey(rng *rand.Rand) []byte {
	key := make([]byte, 1+rng.IntN(3))
	for i := range key {
		key[i] = keyBytes[rng.IntN(len(keyBytes))]
	}
	return key
}

func randomRange(rng *rand.Rand) Range {
	r := Range{Reverse: rng.IntN(2) == 0, KeysOnly: rng.IntN(3) == 0}
	switch rng.IntN(3) {
	case 0: // a prefix
		r.Start = randomKey(rng)[:1]
		r.End = Prefix(r.Start).End()
		r.GroupAfter = len(r.Start)
	case 1: // any two keys, in either order
		r.Start, r.End = randomKey(rng), randomKey(rng)
	}
	if rng.IntN(2) == 0 {
		r.Delimiter = randomKey(rng)[:1]
		if r.GroupAfter == 0 {
			r.GroupAfter = rng.IntN(3)
		}
	}
	return r
}

func randomConditions(rng *rand.Rand, m *model) (out []Condition) {
	for range rng.IntN(6) - 3 {
		c := Condition{Kind: IfMatch + ConditionKind(rng.IntN(3)), Any: rng.IntN(3) == 0}
		n := rng.IntN(4)
		if c.Kind == IfRevision {
			n, c.Any = 1, false
		}
		for range n {
			c.Revisions = append(c.Revisions, max(m.revision, 20)-rng.Uint64N(20))
		}
		if c.Kind == IfRevision && rng.IntN(2) == 0 {
			c.Revisions[0] = 0
		}
		out = append(out, c)
	}
	return out
}

// randomCommand also aims at conditions that hold.
func randomCommand(rng *rand.Rand, m *model) Command {
	if rng.IntN(5) == 0 {
		return randomLeaseCommand(rng, m)
	}
	c := Command{Key: randomKey(rng), ReturnPrevious: rng.IntN(4) == 0, Conditions: randomConditions(rng, m)}
	if kv := m.now(string(c.Key)); kv != nil && rng.IntN(4) == 0 {
		c.Conditions = []Condition{{Kind: IfMatch, Revisions: []uint64{3, kv.ModRevision}}}
	}
	switch n := rng.IntN(100); {
	case n < 45:
		c.Op, c.Value = OpPut, []byte(strconv.Itoa(rng.IntN(1000)))
		if rng.IntN(30) == 0 {
			c.Value = make([]byte, 1+rng.IntN(200<<10)) // to reach the quota
		}
		randomPutOptions(rng, m, &c)
		if rng.IntN(8) == 0 {
			c.Value = nil
		}
	case n < 60:
		c.Op = OpDelete
	case n < 70:
		c.Op, c.Value = OpAppend, []byte(strconv.Itoa(rng.IntN(1000)))
		if rng.IntN(3) == 0 {
			c.Value = nil
		}
	case n < 80:
		c.Op, c.Delta = OpIncr, int64(rng.Uint64())>>rng.IntN(64)
	case n < 84:
		r := randomRange(rng)
		c = Command{Op: OpDeleteRange, Key: r.Start, End: r.End, ReturnPrevious: rng.IntN(2) == 0}
	case n < 90:
		return Command{Op: OpTxn, Txn: randomTxn(rng, m, 1)}
	default:
		return randomMaintenance(rng, m, n)
	}
	if rng.IntN(100) == 0 {
		c.Key = c.Key[:0]
	}
	return c
}

func randomMaintenance(rng *rand.Rand, m *model, n int) Command {
	term := rng.Uint64N(3) // the term of the entries is 1
	switch {
	case n < 93:
		return Command{Op: OpTick, Term: term, ElapsedMillis: rng.Int64N(1 << 40)}
	case n < 97:
		return Command{Op: OpCompact, Term: term, Revision: m.compact + rng.Uint64N(m.revision-m.compact+2)}
	}
	s := DefaultSettings()
	s.MaxKeyBytes = 2 + rng.Int64N(3)
	s.QuotaBytes = 1 << (20 - rng.IntN(2)) // half of them below the minimum
	s.MaxValueBytes = 1 + rng.Int64N(300<<10)
	s.MaxTxnOps = 4 + rng.Int64N(20)
	change := s.Change()
	if rng.IntN(2) == 0 {
		change.MaxKeyBytes, change.RetentionMillis = nil, nil
	}
	return Command{Op: OpSettings, Term: term, Settings: change}
}

// extend adds a random entry.
func (h *history) extend(rng *rand.Rand) {
	e := Entry{Index: uint64(len(h.entries)) + 1, Term: 1}
	var want []Result
	for range rng.IntN(6) {
		c := randomCommand(rng, h.model)
		e.Commands = append(e.Commands, EncodeCommand(nil, &c))
		want = append(want, h.model.apply(&c, e.Term))
	}
	for range max(rng.IntN(6)-3, 0) {
		key := strconv.Itoa(rng.IntN(5))
		if rng.IntN(3) == 0 {
			e.Records = append(e.Records, Record{Key: []byte(key)})
			delete(h.records, key)
			continue
		}
		h.records[key] = strconv.Itoa(rng.IntN(100))
		e.Records = append(e.Records, Record{Key: []byte(key), Value: []byte(h.records[key])})
	}
	h.entries, h.want = append(h.entries, e), append(h.want, want)
}

// TestRandomHistories applies random histories on replicas that differ in everything that
// must not matter, and compares them with a model and with each other.
func TestRandomHistories(t *testing.T) {
	rng := testRand(t)
	for range 2 {
		testRandomHistory(t, rng)
	}
}

func testRandomHistory(t *testing.T, rng *rand.Rand) {
	h := newHistory()
	replicas := []*replica{
		newReplica(t, rng, h, "pebble", 0), newReplica(t, rng, h, "memory", 0),
		newReplica(t, rng, h, "pebble", 4), newReplica(t, rng, h, "memory", 4),
	}
	for range 20 {
		for range rng.IntN(40) {
			h.extend(rng)
		}
		checkReplicas(t, rng, replicas)
	}
	for _, r := range replicas {
		must(t, r.store.Close())
	}
}

// checkReplicas crashes one replica, restores another from a third, and checks all of
// them after they have caught up.
func checkReplicas(t *testing.T, rng *rand.Rand, replicas []*replica) {
	t.Helper()
	rng.Shuffle(len(replicas), func(i, j int) { replicas[i], replicas[j] = replicas[j], replicas[i] })
	first := replicas[0]
	for i, r := range replicas {
		switch {
		case i == 1 && rng.IntN(3) == 0:
			r.takeOver(first)
		case rng.IntN(6) == 0:
			r.crash()
		}
		r.catchUp()
		r.check()
		if rng.IntN(3) == 0 {
			r.checkCompacted()
			r.check()
		}
		_, want := first.store.StateHash()
		if _, got := r.store.StateHash(); got != want || r.store.exec.now.Logical != first.store.exec.now.Logical || r.store.exec.now.Clock != first.store.exec.now.Clock {
			t.Fatalf("%s and %s differ: %+v, %+v", r.name, first.name, r.store.exec.now, first.store.exec.now)
		}
	}
}
