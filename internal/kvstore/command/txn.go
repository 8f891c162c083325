package command

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/limits"
)

// ErrTxn is wrapped by the errors of Txn.Check.
var ErrTxn = errors.New("transaction cannot be encoded")

var errWrites = errors.New("an operation writes")

// Check reports whether the transaction can be encoded: whether it is not nested too
// deeply, and has only operations and numbers of them that every replica decodes. The
// limits in the settings are checked when it is applied.
func (t *Txn) Check() error {
	ops, compares := t.Count()
	switch {
	case t.depth() > MaxTxnDepth:
		return fmt.Errorf("%w: it is nested more than %d levels deep", ErrTxn, MaxTxnDepth)
	case ops > limits.MaxTxnOps || compares > limits.MaxTxnOps:
		return fmt.Errorf("%w: it has %d operations and %d comparisons, but the limit is %d", ErrTxn, ops, compares, limits.MaxTxnOps)
	}
	return t.each(func(c *Command) error {
		if !c.Op.InTxn() || c.envelope() != 0 || c.Op == OpTxn && c.Txn == nil {
			return fmt.Errorf("%w: operation %d", ErrTxn, c.Op)
		}
		return nil
	})
}

// ReadOnly reports whether no operation of the transaction can write, so that ReadTxn
// may evaluate it.
func (t *Txn) ReadOnly() bool {
	return t.each(func(c *Command) error {
		if c.Op.Writes() {
			return errWrites
		}
		return nil
	}) == nil
}

// DeletesRanges reports whether any operation, nested ones included, deletes a range.
func (t *Txn) DeletesRanges() bool {
	return t.each(func(c *Command) error {
		if c.Op == OpDeleteRange {
			return errWrites
		}
		return nil
	}) != nil
}

// Writes reports whether the operation of a transaction writes, nested ones aside.
func (o Op) Writes() bool { return o != OpGet && o != OpList && o != OpTxn }

// each calls fn with all operations of all levels until it returns an error.
func (t *Txn) each(fn func(c *Command) error) error {
	for _, branch := range [][]Command{t.Then, t.Else} {
		for i := range branch {
			if err := fn(&branch[i]); err != nil {
				return err
			}
			if nested := branch[i].Txn; nested != nil {
				if err := nested.each(fn); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Count returns the number of operations and comparisons of all levels.
func (t *Txn) Count() (ops, compares int) {
	compares = len(t.If)
	_ = t.each(func(c *Command) error { // fn returns no error
		ops++
		if c.Txn != nil {
			compares += len(c.Txn.If)
		}
		return nil
	})
	return ops, compares
}

// depth returns how deep transactions are nested, which is 1 without a nested one. It
// stops beyond MaxTxnDepth.
func (t *Txn) depth() int { return t.depthFrom(1) }

func (t *Txn) depthFrom(depth int) (deepest int) {
	deepest = depth
	for _, branch := range [][]Command{t.Then, t.Else} {
		for i := range branch {
			if nested := branch[i].Txn; nested != nil && deepest <= MaxTxnDepth {
				deepest = max(deepest, nested.depthFrom(depth+1))
			}
		}
	}
	return deepest
}

// Branch returns the operations that are carried out, and the name of their branch.
func (t *Txn) Branch(succeeded bool) (ops []Command, name string) {
	if succeeded {
		return t.Then, "then"
	}
	return t.Else, "else"
}

// Holds judges a pair.
func (c *Compare) Holds(kv *KV) bool {
	var number uint64
	switch c.Target {
	case CompareValue:
		return c.Relation.holds(bytes.Compare(kv.Value, c.Value))
	case CompareModRevision:
		number = kv.ModRevision
	case CompareCreateRevision:
		number = kv.CreateRevision
	case CompareVersion:
		number = kv.Version
	case CompareLease:
		number = kv.Lease
	case CompareExists:
		number = 1
	}
	return c.Relation.holds(cmp.Compare(number, c.Number))
}

// HoldsAbsent judges an absent key: all its numbers are 0, and it has no value.
func (c *Compare) HoldsAbsent() bool {
	return c.Target != CompareValue && c.Relation.holds(cmp.Compare(0, c.Number))
}

// holds reports whether the relation fits what a comparison of target and operand gave.
func (r Relation) holds(order int) bool {
	switch r {
	case Equal:
		return order == 0
	case NotEqual:
		return order != 0
	case Greater:
		return order > 0
	default:
		return order < 0
	}
}

// Compare orders the pairs of a result.
func (r *Read) Compare(a, b *KV) int {
	var order int
	switch r.SortBy {
	case SortByVersion:
		order = cmp.Compare(a.Version, b.Version)
	case SortByCreateRevision:
		order = cmp.Compare(a.CreateRevision, b.CreateRevision)
	case SortByModRevision:
		order = cmp.Compare(a.ModRevision, b.ModRevision)
	case SortByValue:
		order = bytes.Compare(a.Value, b.Value)
	}
	if r.Reverse {
		order = -order
	}
	return cmp.Or(order, bytes.Compare(a.Key, b.Key))
}

// Excludes reports whether the bounds on revisions leave the pair out.
func (r *Read) Excludes(kv *KV) bool {
	return kv.ModRevision < r.MinModRevision || r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
		kv.CreateRevision < r.MinCreateRevision || r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision
}
