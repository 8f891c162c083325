package kvstore

import (
	"context"
	"errors"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
)

// Evaluator answers questions about many pairs of a store at once. It has no state of its
// own.
type Evaluator struct{ store *Store }

// NewEvaluator returns the Evaluator of a store.
func NewEvaluator(s *Store) Evaluator { return Evaluator{s} }

// Select reads a range as OpList does, sorted and with bounds on revisions, at one position
// that was applied, and without a limit on the size of the result: room is asked, with its
// size so far, whether there is room, and if it denies that the error is ErrNoRoom.
// Result.Revision is the newest revision of that position. The other errors are those of
// Get and of the context.
func (e Evaluator) Select(ctx context.Context, start, end []byte, read Read, room func(resultBytes int64) bool) (Result, error) {
	p, _, err := pinAt(ctx, e.store, read.Revision)
	if err != nil {
		return Result{}, err
	}
	t := txnRun{pairs: p, budget: &budget{want: true, resultBytes: math.MaxInt, keys: math.MaxInt, room: room}}
	r := Result{Revision: p.at}
	err = t.list(&Command{Op: OpList, Key: start, End: end, Read: &read}, &r)
	return r, errors.Join(err, p.snapshot.Close())
}

// Count is Store.Count.
func (e Evaluator) Count(ctx context.Context, r Range) (n, revision uint64, err error) {
	return e.store.Count(ctx, r)
}

// PairsHash is the hash of the pairs that are live at a revision. It is the same on every
// replica that has applied the revision, whatever it has removed of its history, and
// before and after a compaction.
type PairsHash struct {
	Hash            uint64
	Revision        uint64
	CompactRevision uint64 // when it was computed
}

// PairsHash returns the hash of the pairs that are live at a revision, 0 for the newest.
// That of the newest is part of the state hash and known; others take a walk over all
// pairs. The errors are those of List.
func (e Evaluator) PairsHash(ctx context.Context, revision uint64) (PairsHash, error) {
	v := e.store.visible.Load()
	if revision == 0 || revision == v.Revision {
		return PairsHash{Hash: v.Pairs, Revision: v.Revision, CompactRevision: v.Compact}, nil
	}
	out := PairsHash{CompactRevision: v.Compact}
	var h statehash.Hasher
	at, err := e.store.List(ctx, Range{Revision: revision}, func(it Item) (bool, error) {
		kv := &it.KV
		out.Hash += h.Key(kv.Key, kv.ModRevision, &layout.Version{
			Create: kv.CreateRevision, Version: kv.Version, Lease: kv.Lease, Attributes: kv.Attributes, Value: kv.Value,
		})
		return true, nil
	})
	out.Revision = at
	return out, err
}
