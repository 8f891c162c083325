package kvstore

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/once"
)

// Refusal returns the refusal that a command would get if it were applied now, of those
// that are worth knowing before it is proposed: every replica would do the work for
// nothing. It returns nil for all other commands. This replica may be behind, so a refusal
// counts only after a barrier.
func Refusal(ctx context.Context, s *Store, c *Command) (*Result, error) {
	if c.Idempotency != nil {
		return noRoom(s, c) // what else it asks for, it may have got already
	}
	if c.Op == OpTxn && c.Txn.DeletesRanges() {
		return tooManyDeletes(ctx, s, c.Txn)
	}
	return nil, nil
}

// CountsKeys reports whether Refusal may have to count many keys for a command.
func CountsKeys(c *Command) bool {
	return c.Op == OpTxn && c.Idempotency == nil && c.Txn.DeletesRanges()
}

// noRoom returns the refusal that a command with a new idempotency key would get, as far
// as this replica has applied, because too much is remembered already. It returns nil if
// there is room, if the command makes some, and if it is a repeat.
func noRoom(s *Store, c *Command) (*Result, error) {
	v := s.visible.Load()
	limit := v.settings.IdempotencyBytes
	if c.Idempotency == nil || len(c.Release) > 0 || v.remembered.Bytes < limit {
		return nil, nil
	}
	if _, known, err := s.row(layout.TableIdempotency, once.RowKey(c)); known || err != nil {
		return nil, err
	}
	r := new(Result)
	once.Refuse(r, v.remembered.Bytes, limit)
	r.Revision = v.Revision
	return r, nil
}

// tooManyDeletes counts the keys that the range deletes of a transaction would delete on
// the path that it would take.
func tooManyDeletes(ctx context.Context, s *Store, txn *Txn) (*Result, error) {
	p, err := pin(ctx, s)
	if err != nil {
		return nil, err
	}
	t := txnRun{pairs: p, budget: &budget{resultBytes: math.MaxInt, keys: maxTxnKeys}}
	err = t.decide(txn, "")
	if err == nil {
		err = t.countDeletes(txn, "")
	}
	r := &Result{}
	if err = take(r, errors.Join(err, p.snapshot.Close())); err != nil || r.Outcome == OK {
		return nil, err
	}
	r.Revision = p.at
	return r, nil
}

// countDeletes goes the way of run, and counts instead of deleting.
func (t *txnRun) countDeletes(txn *Txn, path string) error {
	succeeded := t.taken[0]
	t.taken = t.taken[1:]
	ops, name := txn.Branch(succeeded)
	for i := range ops {
		at := fmt.Sprintf("%s%s[%d].", path, name, i)
		switch c := &ops[i]; c.Op {
		case OpTxn:
			if err := t.countDeletes(c.Txn, at+"txn."); err != nil {
				return err
			}
		case OpDeleteRange:
			err := t.pairs.walk(Range{Start: c.Key, End: c.End, KeysOnly: true}, func(*KV) (bool, error) { return true, t.budget.deletedKey() })
			if err != nil {
				return within(at+opNames[c.Op], err)
			}
		}
	}
	return nil
}
