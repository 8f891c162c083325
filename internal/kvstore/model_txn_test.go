package kvstore

import (
	"bytes"
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
)

// txn executes a transaction on a copy, which becomes the model if all succeeds.
func (m *model) txn(t *Txn) Result {
	if ops, compares := modelSize(t); int64(max(ops, compares)) > m.settings.MaxTxnOps {
		return Result{Outcome: TooLarge, Detail: "-"}
	}
	work := *m
	work.keys = make(map[string][]modelVersion)
	for key, versions := range m.keys {
		work.keys[key] = slices.Clone(versions)
	}
	work.leases = maps.Clone(m.leases)
	work.events = slices.Clone(m.events)
	work.inTxn, work.before = true, m.revision
	r := work.branch(t, m)
	if r.Outcome == OK {
		m.keys, m.revision, m.events, m.leases, m.seq = work.keys, work.revision, work.events, work.leases, work.seq
	}
	return r
}

func modelSize(t *Txn) (ops, compares int) {
	ops, compares = len(t.Then)+len(t.Else), len(t.If)
	for _, c := range slices.Concat(t.Then, t.Else) {
		if c.Txn != nil {
			nestedOps, nestedCompares := modelSize(c.Txn)
			ops, compares = ops+nestedOps, compares+nestedCompares
		}
	}
	return ops, compares
}

// branch executes a transaction in m, which began as a copy of before.
func (m *model) branch(t *Txn, before *model) Result {
	r := Result{Succeeded: true}
	for i := range t.If {
		r.Succeeded = r.Succeeded && before.compares(&t.If[i])
	}
	ops := t.Else
	if r.Succeeded {
		ops = t.Then
	}
	for i := range ops {
		res := m.txnOp(&ops[i], before)
		if res.Outcome != OK {
			return Result{Outcome: res.Outcome, Detail: "-", KV: res.KV, CompactRevision: res.CompactRevision}
		}
		res.Revision = m.revision
		r.Results = append(r.Results, res)
	}
	return r
}

func (m *model) txnOp(c *Command, before *model) Result {
	switch c.Op {
	case OpTxn:
		return m.branch(c.Txn, before)
	case OpGet, OpList:
		return m.readOp(c, before)
	}
	w := modelWrite{put: c.Op != OpDelete && c.Op != OpDeleteRange, key: string(c.Key), end: c.End, ranged: c.Op == OpDeleteRange}
	for _, earlier := range m.writes {
		if (w.put || earlier.put) && w.meets(&earlier) {
			return Result{Outcome: DuplicateKey, Detail: "-"}
		}
	}
	m.writes = append(m.writes, w)
	return m.execute(c, 0)
}

// meets reports whether two writes, of which at most one is of a range, have a key in
// common.
func (w *modelWrite) meets(o *modelWrite) bool {
	switch {
	case w.ranged:
		return inModelRange(o.key, []byte(w.key), w.end)
	case o.ranged:
		return inModelRange(w.key, []byte(o.key), o.end)
	}
	return w.key == o.key
}

func (m *model) compares(c *Compare) bool {
	keys := []string{string(c.Key)}
	if c.Range {
		keys = slices.DeleteFunc(m.live(m.revision), func(key string) bool { return !inModelRange(key, c.Key, c.End) })
	}
	for _, key := range keys {
		if !modelCompare(c, m.now(key)) {
			return false
		}
	}
	return len(keys) > 0 || modelCompare(c, nil)
}

func modelCompare(c *Compare, kv *KV) bool {
	if c.Target == CompareValue {
		return kv != nil && modelRelation(c.Relation, bytes.Compare(kv.Value, c.Value))
	}
	number := uint64(0)
	if kv != nil {
		number = map[CompareTarget]uint64{
			CompareLease: kv.Lease, CompareModRevision: kv.ModRevision, CompareCreateRevision: kv.CreateRevision, CompareVersion: kv.Version, CompareExists: 1,
		}[c.Target]
	}
	return modelRelation(c.Relation, cmp.Compare(number, c.Number))
}

func modelRelation(r Relation, order int) bool {
	return map[Relation]bool{Equal: order == 0, NotEqual: order != 0, Greater: order > 0, Less: order < 0}[r]
}

// readOp runs OpGet and OpList.
func (m *model) readOp(c *Command, before *model) Result {
	read := Read{}
	if c.Read != nil {
		read = *c.Read
	}
	at := cmp.Or(read.Revision, m.revision)
	switch {
	case read.Revision > before.revision:
		return Result{Outcome: FutureRevision, Detail: "-"}
	case read.Revision != 0 && read.Revision < before.compact:
		return Result{Outcome: Compacted, Detail: "-", CompactRevision: before.compact}
	}
	var r Result
	for _, key := range m.live(at) {
		if c.Op == OpGet && key != string(c.Key) || c.Op == OpList && !inModelRange(key, c.Key, c.End) {
			continue
		}
		r.Count++
		if kv := *m.at(key, at); !read.CountOnly && modelWithin(&kv, &read) {
			r.Pairs = append(r.Pairs, kv)
		}
	}
	modelSort(r.Pairs, &read)
	if n := read.Limit; n > 0 && uint64(len(r.Pairs)) > n {
		r.Pairs, r.More = r.Pairs[:n], true
	}
	for i := range r.Pairs {
		if read.KeysOnly {
			r.Pairs[i].Value = nil
		}
	}
	return r
}

func modelWithin(kv *KV, r *Read) bool {
	within := func(n, low, high uint64) bool { return n >= low && (high == 0 || n <= high) }
	return within(kv.ModRevision, r.MinModRevision, r.MaxModRevision) && within(kv.CreateRevision, r.MinCreateRevision, r.MaxCreateRevision)
}

func modelSort(pairs []KV, r *Read) {
	if r.SortBy == SortByKey {
		if r.Reverse {
			slices.Reverse(pairs)
		}
		return
	}
	slices.SortStableFunc(pairs, func(a, b KV) int {
		order := map[SortBy]int{
			SortByVersion: cmp.Compare(a.Version, b.Version), SortByCreateRevision: cmp.Compare(a.CreateRevision, b.CreateRevision),
			SortByModRevision: cmp.Compare(a.ModRevision, b.ModRevision), SortByValue: bytes.Compare(a.Value, b.Value),
		}[r.SortBy]
		if r.Reverse {
			return -order
		}
		return order
	})
}

// Random transactions.

func randomPutOptions(rng *rand.Rand, m *model, c *Command) {
	if rng.IntN(3) > 0 {
		return
	}
	c.KeepValue, c.KeepLease, c.UnlessEqual = rng.IntN(4) == 0, rng.IntN(3) == 0, rng.IntN(2) == 0
	if kv := m.now(string(c.Key)); kv != nil && rng.IntN(2) == 0 {
		c.Value = bytes.Clone(kv.Value)
	}
	if rng.IntN(3) == 0 {
		c.Attributes = &Attributes{Flags: 1 + rng.Uint64N(2), Holder: rng.Uint64N(2)}
	}
	switch rng.IntN(6) {
	case 0, 1:
		c.Lease = anyLease(rng, m)
	case 2:
		c.TTLMillis = 1000
	}
}

func randomTxn(rng *rand.Rand, m *model, depth int) *Txn {
	t := new(Txn)
	for range rng.IntN(3) {
		t.If = append(t.If, randomCompare(rng, m))
	}
	for range rng.IntN(5) {
		t.Then = append(t.Then, randomTxnOp(rng, m, depth))
	}
	for range rng.IntN(4) {
		t.Else = append(t.Else, randomTxnOp(rng, m, depth))
	}
	return t
}

func randomCompare(rng *rand.Rand, m *model) Compare {
	c := Compare{Key: randomKey(rng), Target: CompareModRevision + CompareTarget(rng.IntN(6)), Relation: Equal + Relation(rng.IntN(4))}
	if rng.IntN(4) == 0 {
		r := randomRange(rng)
		c.Key, c.Range, c.End = r.Start, true, r.End
	}
	if c.Target == CompareValue {
		c.Value = []byte(strconv.Itoa(rng.IntN(1000)))
	} else {
		c.Number = rng.Uint64N(3)
	}
	if kv := m.now(string(c.Key)); kv != nil && rng.IntN(2) == 0 {
		switch c.Target {
		case CompareValue:
			c.Value = bytes.Clone(kv.Value)
		case CompareLease:
			c.Number = kv.Lease
		case CompareModRevision:
			c.Number = kv.ModRevision
		case CompareCreateRevision:
			c.Number = kv.CreateRevision
		}
	}
	return c
}

// randomTxnOp mostly makes operations that can be carried out, or whole transactions
// would hardly ever be.
func randomTxnOp(rng *rand.Rand, m *model, depth int) Command {
	switch n := rng.IntN(10); {
	case n < 2 && depth < MaxTxnDepth:
		return Command{Op: OpTxn, Txn: randomTxn(rng, m, depth+1)}
	case n < 5 && m.logical() < 1<<20: // results have a limit that the model does not know
		return randomReadOp(rng, m)
	case n < 6:
		r := randomRange(rng)
		return Command{Op: OpDeleteRange, Key: r.Start, End: r.End, ReturnPrevious: rng.IntN(2) == 0}
	case n < 7:
		return Command{Op: OpDelete, Key: randomKey(rng), ReturnPrevious: rng.IntN(2) == 0}
	case n < 8:
		return Command{Op: OpIncr, Key: randomKey(rng), Delta: 1}
	case n < 9:
		return Command{Op: OpAppend, Key: randomKey(rng), Value: []byte("1")}
	}
	c := Command{Op: OpPut, Key: randomKey(rng), Value: []byte(strconv.Itoa(rng.IntN(1000))), ReturnPrevious: rng.IntN(3) == 0}
	if rng.IntN(6) == 0 {
		c.Conditions = randomConditions(rng, m)
	}
	randomPutOptions(rng, m, &c)
	return c
}

func randomReadOp(rng *rand.Rand, m *model) Command {
	r := randomRange(rng)
	c := Command{Op: OpList, Key: r.Start, End: r.End}
	if rng.IntN(3) == 0 {
		c = Command{Op: OpGet, Key: randomKey(rng)}
		if known := slices.Sorted(maps.Keys(m.keys)); len(known) > 0 {
			c.Key = []byte(known[rng.IntN(len(known))])
		}
	}
	if rng.IntN(3) == 0 {
		return c
	}
	c.Read = &Read{Reverse: rng.IntN(2) == 0, KeysOnly: rng.IntN(4) == 0, CountOnly: rng.IntN(8) == 0, SortBy: SortBy(rng.IntN(5)), Limit: rng.Uint64N(4)}
	bound := func() uint64 {
		if rng.IntN(6) > 0 {
			return 0
		}
		return rng.Uint64N(m.revision + 1)
	}
	c.Read.MinModRevision, c.Read.MaxModRevision = bound(), bound()
	c.Read.MinCreateRevision, c.Read.MaxCreateRevision = bound(), bound()
	switch rng.IntN(8) {
	case 0, 1, 2: // recent revisions are not in the engine yet
		c.Read.Revision = max(m.compact, m.revision-min(m.revision, rng.Uint64N(10)))
	case 3:
		c.Read.Revision = m.revision + 2 - min(m.revision, rng.Uint64N(1000))
	}
	return c
}
