package kvstore

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
	"github.com/kvd-io/kvd/internal/limits"
)

// maxTxnKeys bounds the keys that the lists and comparisons of one transaction walk
// over while it is applied: they hold up everything that is applied after it. Only keys
// that exist count, since replicas differ in what else they still have.
const maxTxnKeys = 1 << 20

// ErrWrites is returned by ReadTxn for a transaction that could write.
var ErrWrites = errors.New("the transaction has operations that write")

// ErrNoRoom is returned by Select and ReadTxn for a result that has no room.
var ErrNoRoom = errors.New("there is no room for the result")

// refusal is an outcome on its way to the result.
type refusal struct {
	outcome Outcome
	detail  string
	compact uint64 // with Compacted
}

func (r *refusal) Error() string { return r.detail }

func refusalf(o Outcome, format string, args ...any) error {
	return &refusal{outcome: o, detail: fmt.Sprintf(format, args...)}
}

// take makes a refusal the outcome of the result. Other errors it returns.
func take(r *Result, err error) error {
	if err == nil {
		return nil // before errors.As, which allocates
	}
	var ref *refusal
	if !errors.As(err, &ref) {
		return err
	}
	*r = Result{Outcome: ref.outcome, Detail: ref.detail, CompactRevision: ref.compact}
	return nil
}

// budget bounds what one command may read, return and delete. What it counts is the
// same on every replica, also on those where nobody wants the result: whether a
// transaction is carried out may depend on it.
type budget struct {
	want        bool // somebody waits for the result
	resultBytes int  // that are left
	keys        int  // to walk over that are left
	deleted     int  // keys, up to MaxRangeDelete
	// room, if not nil, is asked whether the result may become as large as this. It is
	// for reads alone: what is applied must not depend on it. size is that of the result.
	room func(resultBytes int64) bool
	size int64
}

// add takes a pair of a number of bytes off the size of the result.
func (b *budget) add(pairBytes int) error {
	if b.count(pairBytes + layout.KeyOverheadBytes); b.resultBytes < 0 {
		return refusalf(TooLarge, "the result would be larger than %d bytes", limits.MaxResultBytes)
	}
	if b.room != nil && !b.room(b.size) {
		return ErrNoRoom
	}
	return nil
}

func (b *budget) count(n int) { b.resultBytes, b.size = b.resultBytes-n, b.size+int64(n) }

func (b *budget) deletedKey() error {
	if b.deleted++; b.deleted > MaxRangeDelete {
		return refusalf(TooLarge, "more than %d keys would be deleted at once; delete them in parts", MaxRangeDelete)
	}
	return nil
}

func (b *budget) walkedKey() error {
	if b.keys--; b.keys < 0 {
		return refusalf(TooLarge, "the transaction reads more than %d keys", maxTxnKeys)
	}
	return nil
}

// pairs is a state that comparisons and reads of a transaction look at: the executor,
// where they see the overlay, or a pinned state.
type pairs interface {
	// span returns the oldest and the newest revision that can be read by number.
	span() (oldest, newest uint64)
	// get returns a pair as of a revision. 0 is the newest one, with what the
	// transaction wrote. The value is valid until the next call, and need not be
	// there if keysOnly is set.
	get(key []byte, revision uint64, keysOnly bool) (kv KV, exists bool, err error)
	// walk calls fn with the pairs of a range, in order, until it returns false or an
	// error. The pair is valid during the call.
	walk(r Range, fn func(kv *KV) (more bool, err error)) error
}

// txnRun is one transaction being evaluated.
type txnRun struct {
	pairs  pairs
	x      *executor // nil for a transaction that only reads
	budget *budget
	// taken has for each transaction on the path whether its comparisons held, in the
	// order in which run comes to them. writes is set if there is an operation on
	// the path that writes.
	taken  []bool
	writes bool
}

// txn runs OpTxn: it first chooses the path, by the state before the transaction, and
// then runs the operations on the path, which see the overlay.
func (x *executor) txn(c *Command, size int, b *budget, r *Result) error {
	if n := int64(size); n > x.settings.MaxTxnBytes {
		r.Refuse(TooLarge, "the transaction has %d bytes, but the limit is %d (max_txn_bytes in the settings)", n, x.settings.MaxTxnBytes)
		return nil
	}
	if ops, compares := c.Txn.Count(); int64(max(ops, compares)) > x.settings.MaxTxnOps {
		r.Refuse(TooLarge, "the transaction has %d operations and %d comparisons, but the limit is %d (max_txn_ops in the settings)", ops, compares, x.settings.MaxTxnOps)
		return nil
	}
	x.overlay.clearClaims()
	t := txnRun{pairs: current{x}, x: x, budget: b}
	b.keys = maxTxnKeys
	return t.evaluate(c.Txn, r)
}

func (t *txnRun) evaluate(txn *Txn, r *Result) error {
	if err := t.decide(txn, ""); err != nil {
		return take(r, err)
	}
	if !t.writes && !t.budget.want {
		return nil // nothing but the result depends on it
	}
	return t.run(txn, r)
}

// decide notes which branches are taken. It looks only at the state before, since
// nothing was written yet.
func (t *txnRun) decide(txn *Txn, path string) error {
	succeeded := true
	for i := 0; i < len(txn.If) && succeeded; i++ {
		var err error
		if succeeded, err = t.holds(&txn.If[i]); err != nil {
			return within(fmt.Sprintf("%sif[%d]: ", path, i), err)
		}
	}
	t.taken = append(t.taken, succeeded)
	ops, name := txn.Branch(succeeded)
	for i := range ops {
		t.writes = t.writes || ops[i].Op.Writes()
		if ops[i].Op == OpTxn {
			if err := t.decide(ops[i].Txn, fmt.Sprintf("%s%s[%d].txn.", path, name, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// within prefixes the detail of a refusal with the place where it arose.
func within(path string, err error) error {
	var ref *refusal
	if errors.As(err, &ref) {
		ref.detail = path + ref.detail
	}
	return err
}

// holds judges a comparison.
func (t *txnRun) holds(c *Compare) (bool, error) {
	keysOnly := c.Target != CompareValue
	if !c.Range {
		kv, exists, err := t.pairs.get(c.Key, 0, keysOnly)
		if err != nil || !exists {
			return c.HoldsAbsent(), err
		}
		return c.Holds(&kv), nil
	}
	empty, all := true, true
	err := t.pairs.walk(Range{Start: c.Key, End: c.End, KeysOnly: keysOnly}, func(kv *KV) (bool, error) {
		empty, all = false, c.Holds(kv)
		return all, t.budget.walkedKey()
	})
	if empty {
		return c.HoldsAbsent(), err
	}
	return all, err
}

// run runs the operations of the branch that was taken.
func (t *txnRun) run(txn *Txn, r *Result) error {
	r.Succeeded, t.taken = t.taken[0], t.taken[1:]
	ops, name := txn.Branch(r.Succeeded)
	if t.budget.want {
		r.Results = make([]Result, len(ops))
	}
	for i := range ops {
		res := new(Result)
		if t.budget.want {
			res = &r.Results[i]
		}
		if err := t.op(&ops[i], res); err != nil {
			return err
		}
		if res.Outcome != OK {
			*r = Result{Outcome: res.Outcome, KV: res.KV, CompactRevision: res.CompactRevision}
			r.Detail = fmt.Sprintf("%s[%d].%s%s", name, i, opNames[ops[i].Op], res.Detail)
			return nil
		}
		res.Revision = t.seen()
	}
	return nil
}

// opNames are the beginnings of a detail, as the HTTP interface names operations.
var opNames = map[Op]string{
	OpPut: "put: ", OpDelete: "delete: ", OpDeleteRange: "delete: ", OpAppend: "append: ", OpIncr: "incr: ",
	OpGet: "get: ", OpList: "list: ", OpTxn: "txn.",
}

// seen returns the revision that the operation after the current one sees.
func (t *txnRun) seen() uint64 {
	if t.x == nil {
		_, newest := t.pairs.span()
		return newest
	}
	return t.x.seen()
}

func (t *txnRun) op(c *Command, r *Result) error {
	switch c.Op {
	case OpTxn:
		return t.run(c.Txn, r)
	case OpGet:
		return take(r, t.get(c, r))
	case OpList:
		return take(r, t.list(c, r))
	case OpDeleteRange:
		if !t.x.overlay.claimRange(c.Key, c.End) {
			r.Refuse(DuplicateKey, "the transaction has already written a key of this range")
			return nil
		}
		return take(r, t.x.deleteRange(c, t.budget, r))
	}
	if claimed := t.claim(c); !claimed {
		r.Refuse(DuplicateKey, "the transaction has already written this key")
		return nil
	}
	return take(r, t.x.keyOp(c, t.budget, r))
}

func (t *txnRun) claim(c *Command) bool {
	if c.Op == OpDelete {
		return t.x.overlay.claimDelete(c.Key)
	}
	return t.x.overlay.claimPut(c.Key)
}

// readOf returns how to read, and refuses a revision that cannot be read.
func (t *txnRun) readOf(c *Command) (Read, error) {
	if c.Read == nil {
		return Read{}, nil
	}
	oldest, newest := t.pairs.span()
	switch revision := c.Read.Revision; {
	case revision > newest:
		return Read{}, refusalf(FutureRevision, "revision %d does not exist yet; the newest revision is %d", revision, newest)
	case revision != 0 && revision < oldest:
		return Read{}, &refusal{Compacted, fmt.Sprintf("revision %d was compacted; the oldest readable revision is %d", revision, oldest), oldest}
	}
	return *c.Read, nil
}

// get runs OpGet.
func (t *txnRun) get(c *Command, r *Result) error {
	read, err := t.readOf(c)
	if err != nil {
		return err
	}
	keysOnly := read.KeysOnly || read.CountOnly
	kv, exists, err := t.pairs.get(c.Key, read.Revision, keysOnly)
	if err != nil || !exists {
		return err
	}
	if kv.Key = c.Key; keysOnly {
		kv.Value = nil
	}
	p := picker{read: &read, budget: t.budget}
	err = p.take(&kv)
	r.Count, r.Pairs = 1, p.kept
	return err
}

// list runs OpList.
func (t *txnRun) list(c *Command, r *Result) error {
	read, err := t.readOf(c)
	if err != nil {
		return err
	}
	byKey := read.SortBy == SortByKey
	keysOnly := read.CountOnly || read.KeysOnly && read.SortBy != SortByValue
	p := picker{read: &read, budget: t.budget}
	q := Range{Start: c.Key, End: c.End, Revision: read.Revision, Reverse: byKey && read.Reverse, KeysOnly: keysOnly}
	err = t.pairs.walk(q, func(kv *KV) (bool, error) {
		r.Count++
		if err := t.budget.walkedKey(); err != nil {
			return false, err
		}
		return true, p.take(kv)
	})
	r.Pairs, r.More = p.sorted(), p.more
	return err
}

// picker keeps those of the pairs of a list that its result has. With an order other
// than that of the walk and a limit, it is a heap with the last of the kept pairs on top,
// so that it holds no more pairs than the result.
type picker struct {
	read   *Read
	budget *budget
	kept   []KV
	more   bool // the limit left pairs out
}

func (p *picker) take(kv *KV) error {
	if p.read.CountOnly || p.read.Excludes(kv) {
		return nil
	}
	full := p.read.Limit > 0 && uint64(len(p.kept)) == p.read.Limit
	p.more = p.more || full
	switch {
	case full && (p.read.SortBy == SortByKey || p.read.Compare(kv, &p.kept[0]) >= 0):
		return nil
	case full:
		p.budget.count(-pairBytes(&p.kept[0]) - layout.KeyOverheadBytes)
		p.kept[0] = kv.Clone()
		heap.Fix(p, 0)
	case p.read.SortBy == SortByKey:
		p.kept = append(p.kept, kv.Clone())
	default:
		heap.Push(p, kv.Clone())
	}
	return p.budget.add(pairBytes(kv))
}

func pairBytes(kv *KV) int { return len(kv.Key) + len(kv.Value) }

// The heap of the pairs that are kept.
func (p *picker) Len() int           { return len(p.kept) }
func (p *picker) Less(i, j int) bool { return p.read.Compare(&p.kept[j], &p.kept[i]) < 0 }
func (p *picker) Swap(i, j int)      { p.kept[i], p.kept[j] = p.kept[j], p.kept[i] }
func (p *picker) Push(kv any)        { p.kept = append(p.kept, kv.(KV)) }

// Pop is not used: the heap only grows.
func (p *picker) Pop() any { panic("kvstore: the pairs of a list are not popped") }

// sorted returns the kept pairs in the order of the result.
func (p *picker) sorted() []KV {
	if p.read.SortBy != SortByKey {
		slices.SortFunc(p.kept, func(a, b KV) int { return p.read.Compare(&a, &b) })
	}
	if p.read.KeysOnly {
		for i := range p.kept {
			p.kept[i].Value = nil
		}
	}
	return p.kept
}

// ReadTxn evaluates a transaction whose operations only read, without an entry in the
// log, at one position that was applied. Its error is ErrWrites, ErrNoRoom if room denies
// that the result may become as large as it is told, that of the context, or one of the
// engine; what the transaction itself has wrong is the outcome of the result.
func (s *Store) ReadTxn(ctx context.Context, txn *Txn, room func(resultBytes int64) bool) (Result, error) {
	if !txn.ReadOnly() {
		return Result{}, ErrWrites
	}
	p, err := pin(ctx, s)
	if err != nil {
		return Result{}, err
	}
	t := txnRun{pairs: p, budget: &budget{want: true, resultBytes: limits.MaxResultBytes, keys: math.MaxInt, room: room}}
	var r Result
	err = t.evaluate(txn, &r)
	if err = errors.Join(err, p.snapshot.Close()); err != nil {
		return Result{}, err // and what was found is not kept
	}
	r.Revision = p.at
	return r, nil
}

// pinned is the newest revision that was visible at some moment, and what was readable
// then.
type pinned struct {
	ctx         context.Context //nolint:containedctx // it lives as long as the call that has it
	snapshot    engine.Snapshot
	at, compact uint64
	keys        uint64 // that exist at the newest revision
	generation  uint64 // of the store
}

// pin pins the newest revision. The compact revision is read after the snapshot was
// taken, for the reason that iterAt gives.
func pin(ctx context.Context, s *Store) (*pinned, error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	for {
		v := s.visible.Load()
		p := &pinned{ctx: ctx, snapshot: s.eng.Snapshot(), at: v.Revision, keys: v.Keys, generation: s.generation, compact: s.CompactRevision()}
		if p.compact <= p.at {
			return p, nil
		}
		if err := p.snapshot.Close(); err != nil {
			return nil, fmt.Errorf("read from engine: %w", err)
		}
	}
}

// pinAt is pin for a reader of a revision, and returns which that is.
func pinAt(ctx context.Context, s *Store, revision uint64) (p *pinned, at uint64, err error) {
	if p, err = pin(ctx, s); err != nil {
		return nil, 0, err
	}
	at, err = (&visible{Meta: layout.Meta{Revision: p.at, Compact: p.compact}}).readAt(revision)
	if err != nil {
		return nil, 0, errors.Join(err, p.snapshot.Close())
	}
	return p, at, nil
}

func (p *pinned) span() (oldest, newest uint64) { return p.compact, p.at }

func (p *pinned) get(key []byte, revision uint64, _ bool) (kv KV, exists bool, err error) {
	if err := p.ctx.Err(); err != nil {
		return KV{}, false, err
	}
	lower, upper := layout.PointBounds(make([]byte, 0, layout.PointBoundsLen(key)), key, cmp.Or(revision, p.at))
	it, err := p.snapshot.Iter(lower, upper)
	if err != nil {
		return KV{}, false, fmt.Errorf("read from engine: %w", err)
	}
	defer it.Close()
	if !it.First() {
		return KV{}, false, it.Err()
	}
	v, mod, err := walk.VersionAt(it)
	kv = v.KV(mod)
	kv.Value = bytes.Clone(v.Value)
	return kv, !v.Deleted, err
}

func (p *pinned) walk(r Range, fn func(kv *KV) (bool, error)) error {
	it, err := p.snapshot.Iter(layout.VersionBounds(r.Start, r.End))
	if err != nil {
		return fmt.Errorf("read from engine: %w", err)
	}
	w := walk.New(it, r, cmp.Or(r.Revision, p.at), p.ctx.Err)
	defer w.Close()
	for w.Next() {
		if more, err := fn(&w.Item.KV); err != nil || !more {
			return err
		}
	}
	return w.Err
}
